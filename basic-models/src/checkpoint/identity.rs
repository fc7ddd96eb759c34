//! What the features of a vision encoder depend on beside the pixel values.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};
use xxhash_rust::xxh3::Xxh3;

use crate::parameters::ParamPath;

/// What the features of a vision encoder depend on beside the pixel values, and their form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderIdentity {
    /// The configuration, the chosen layers and positions, the kind of device, and a hash of the weights as they are
    /// computed with, whichever files they are from. Encoders of the same text give the same features.
    pub text: String,
    /// The positions of an image; `None` if they differ from image to image.
    pub rows: Option<usize>,
    /// The width of a position's features.
    pub width: usize,
    /// Their type.
    pub dtype: DType,
}

/// A hash of a network's weights with their names, shapes and types. `None` if the device cannot be read from.
pub(super) fn weights<M: Module>(network: &M) -> Option<u128> {
    let mut hash = Weights { path: ParamPath::new(""), hasher: Xxh3::new(), failed: false };
    network.visit(&mut hash);
    (!hash.failed).then(|| hash.hasher.digest128())
}

struct Weights {
    path: ParamPath,
    hasher: Xxh3,
    failed: bool,
}

impl ModuleVisitor for Weights {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let slot = self.path.slot(&tensor.dims());
        self.hasher.update(format!("{} {:?} {:?} ", slot.name, slot.shape, tensor.dtype()).as_bytes());
        match tensor.try_into_data() {
            Ok(data) => self.hasher.update(data.as_bytes()),
            Err(_) => self.failed = true,
        }
    }
}

/// The kind of a device, without its number: devices of one kind compute with the same kernels. With autodiff, some
/// operations are others, and their results differ in the last bits.
pub(super) fn kind(device: &Device) -> String {
    format!("{device:?}").chars().filter(|c| !c.is_ascii_digit()).collect()
}
