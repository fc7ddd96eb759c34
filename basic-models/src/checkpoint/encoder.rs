//! A vision encoder by itself, frozen, with its own image processor: what a supervision method compares with.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};

use super::blueprint::fit_images;
use super::config_file::part;
use super::hub::resolve;
use super::identity::{self, EncoderIdentity};
use super::names::Layout;
use super::read::TensorFiles;
use super::{CheckpointError, slots};
use crate::config::VisionConfig;
use crate::nn::{Llava, VisionEncoder};
use crate::processor::ImageProcessor;

/// What turns pixel values into patch features.
pub trait PatchEncoder {
    /// Where its weights are.
    fn device(&self) -> Device;

    /// # Shapes
    /// - pixels: `[N, channels, H, W]`
    /// - output: `[N * positions, feature width]`
    fn patches(&self, pixels: Tensor<4>) -> Tensor<2>;

    /// For an image of `[height, width]` pixels the rows of its features that are used; `None` for all rows.
    fn kept(&self, _image: [usize; 2]) -> Option<Vec<usize>> {
        None
    }

    /// What the features depend on, with a hash of the weights, which takes as long as reading them all. `None` if the
    /// device cannot be read from.
    fn identity(&self) -> Option<EncoderIdentity>;
}

impl PatchEncoder for Llava {
    fn device(&self) -> Device {
        Self::device(self)
    }

    fn patches(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.encode(pixels)
    }

    fn kept(&self, image: [usize; 2]) -> Option<Vec<usize>> {
        let tiling = self.config().tiling();
        tiling.varies().then(|| tiling.of(image).rows())
    }

    fn identity(&self) -> Option<EncoderIdentity> {
        let (config, dtype) = (self.config(), self.dtype());
        let towers = [&self.vision_tower].into_iter().chain(&self.fused_vision_towers);
        let each = towers.zip(config.encoders()).map(|(tower, encoder)| {
            let layers = config.feature_layers(encoder).ok()?;
            let weights = identity::weights(tower)?;
            Some(format!(
                "{encoder:?} layers {layers:?} without the first {} {dtype:?} {} {weights:032x}",
                config.dropped(encoder),
                identity::kind(&PatchEncoder::device(self)),
            ))
        });
        let mut text = each.collect::<Option<Vec<_>>>()?.join(" and ");
        if config.tiling().cuts() {
            text.push_str(&format!(" {:?}", config.image_grid_pinpoints));
        }
        let rows = (!config.tiling().varies()).then(|| config.features());
        Some(EncoderIdentity { text, rows, width: config.feature_width(), dtype })
    }
}

/// The files of a vision encoder: its configuration, its image processor and where its tensors are.
#[derive(Debug)]
pub struct EncoderFiles {
    dir: PathBuf,
    config: VisionConfig,
    images: ImageProcessor,
    files: TensorFiles,
}

impl EncoderFiles {
    /// Opens a vision encoder's directory, or its name in the Hugging Face cache. No weight is read.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that names the file, the key, or what does not fit.
    pub fn open(name: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = resolve(name)?;
        let invalid = |source| CheckpointError::Config { path: dir.clone(), source };
        let mut config = VisionConfig::from_value(&part(&dir, "vision_config")?).map_err(invalid)?;
        fit_images(&mut config, &dir);
        let images = ImageProcessor::load(&dir)?;
        let side = config.side();
        if images.output_size() != Some((side, side)) {
            let makes = match images.output_size() {
                Some((height, width)) => format!("{height} x {width}"),
                None => "different sizes".into(),
            };
            return Err(CheckpointError::Mismatch(format!(
                "{}: preprocessor_config.json makes images of {makes}, the vision encoder takes {side} x {side}",
                dir.display()
            )));
        }
        if !images.config().pinpoints.is_empty() {
            return Err(CheckpointError::Mismatch(format!(
                "{}: preprocessor_config.json cuts images into tiles (image_grid_pinpoints): give an encoder that sees \
                 whole images",
                dir.display()
            )));
        }
        let files = TensorFiles::open(&dir, Layout::Vision)?;
        Ok(Self { dir, config, images, files })
    }

    /// Patches of an image: positions without the encoder's special ones.
    pub fn positions(&self) -> usize {
        self.config.num_patches()
    }

    /// Width of a patch's features.
    pub fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Its image processor.
    pub fn images(&self) -> &ImageProcessor {
        &self.images
    }

    /// How many parameters it has; no weight is made on `device`.
    pub fn parameters(&self, device: &Device) -> u64 {
        let slots = slots(&self.config.init(device), "");
        slots.iter().map(|slot| slot.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// The files that make it what it is, in a fixed order: its weights and its two configurations.
    pub fn source_files(&self) -> Vec<PathBuf> {
        let beside = ["config.json", "preprocessor_config.json"].map(|name| self.dir.join(name));
        self.files.all_paths().into_iter().chain(beside.into_iter().filter(|path| path.is_file())).collect()
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the weights onto a device, without autodiff.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that lists missing tensors or wrong shapes.
    pub fn load(self, dtype: DType, device: &Device) -> Result<FrozenEncoder, CheckpointError> {
        let device = device.clone().without_autodiff();
        let network = self.files.load(self.config.init(&device), "vision_tower", dtype, &device)?;
        Ok(FrozenEncoder { network, config: self.config, images: self.images, dtype, device })
    }
}

/// A vision encoder that is never trained.
#[derive(Debug)]
pub struct FrozenEncoder {
    network: VisionEncoder,
    config: VisionConfig,
    images: ImageProcessor,
    dtype: DType,
    device: Device,
}

impl FrozenEncoder {
    /// Its image processor.
    pub fn images(&self) -> &ImageProcessor {
        &self.images
    }

    /// The side lengths of an image's pixel values: channels, height, width.
    pub fn image_shape(&self) -> [usize; 3] {
        let side = self.config.side();
        [self.config.num_channels, side, side]
    }
}

impl PatchEncoder for FrozenEncoder {
    fn device(&self) -> Device {
        self.device.clone()
    }

    /// The last layer's output at the patches, before the encoder's own last norm.
    fn patches(&self, pixels: Tensor<4>) -> Tensor<2> {
        let states = self.network.hidden_states(pixels.cast(self.dtype), &[self.config.num_hidden_layers]);
        let features = Tensor::cat(states, 2);
        let [n, positions, width] = features.dims();
        let special = self.config.special_positions();
        features.narrow(1, special, positions - special).reshape([n * (positions - special), width])
    }

    fn identity(&self) -> Option<EncoderIdentity> {
        let (config, dtype) = (&self.config, self.dtype);
        let weights = identity::weights(&self.network)?;
        let text =
            format!("{config:?} patches of the last layer {dtype:?} {} {weights:032x}", identity::kind(&self.device));
        Some(EncoderIdentity { text, rows: Some(config.num_patches()), width: config.hidden_size, dtype })
    }
}
