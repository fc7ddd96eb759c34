//! Collects the adapters of a module, and merges them into weights.

use std::any::Any;
use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::parameters::{LORA_A as A, LORA_B as B, ParamPath};

/// The adapter of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    /// `[inputs, rank]`
    pub a: Tensor<2>,
    /// `[rank, outputs]`
    pub b: Tensor<2>,
    pub scale: f64,
}

/// The module's adapters, by the names of their weights below `prefix`.
pub(crate) fn adapters<M: Module>(module: &M, prefix: &str) -> BTreeMap<String, Adapter> {
    let mut factors = Collect { path: ParamPath::new(prefix), found: BTreeMap::new() };
    module.visit(&mut factors);
    if factors.found.is_empty() {
        return BTreeMap::new();
    }
    let scales = scales(module, prefix);
    let mut found: BTreeMap<String, Adapter> = BTreeMap::new();
    let mut factors = factors.found;
    let names: Vec<String> = factors.keys().filter_map(|name| Some(name.strip_suffix(A)?.to_string())).collect();
    for name in names {
        let (a, b) = (factors.remove(&format!("{name}{A}")), factors.remove(&format!("{name}{B}")));
        let weight = format!("{name}.weight");
        if let (Some(a), Some(b)) = (a, b) {
            let scale = scales.get(&weight).copied().unwrap_or_default();
            found.insert(weight, Adapter { a, b, scale });
        }
    }
    found
}

/// `base + scale * A B` in f32.
pub(crate) fn merged<const D: usize>(base: Tensor<D>, adapter: &Adapter) -> Tensor<D> {
    let full = |factor: &Tensor<2>| factor.clone().without_autodiff().cast(DType::F32);
    let base = dense(base.without_autodiff()).cast(DType::F32);
    let delta = full(&adapter.a).matmul(full(&adapter.b)).mul_scalar(adapter.scale);
    let delta = delta.reshape(base.shape());
    base + delta
}

/// The tensor, dequantized if it is quantized.
pub(crate) fn dense<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.dtype().is_float() { tensor } else { tensor.dequantize() }
}

struct Collect {
    path: ParamPath,
    found: BTreeMap<String, Tensor<2>>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let slot = self.path.slot(&param.lazy_shape().to_vec());
        if !slot.is_adapter() {
            return;
        }
        // Not reshaped: the factor must stay the leaf by which gradients are found.
        let value = param.val();
        if let Some(factor) = (&value as &dyn Any).downcast_ref::<Tensor<2>>() {
            self.found.insert(slot.name, factor.clone());
        }
    }
}

/// The scales, by the names of the weights. A visitor does not get them, because Burn stores them as constants beside
/// the factors. Therefore every parameter is replaced by a single number, weights by 0 and factors by 1, and the
/// adapters are merged.
fn scales<M: Module>(module: &M, prefix: &str) -> BTreeMap<String, f64> {
    struct Single {
        path: ParamPath,
    }
    impl ModuleMapper for Single {
        fn enter_module(&mut self, name: &str, owner: &str) {
            self.path.enter(name, owner);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = if self.path.slot(&[1; D]).is_adapter() { 1.0 } else { 0.0 };
            let device: Device = param.lazy_device().without_autodiff();
            Param::initialized(param.id, Tensor::<D>::full([1; D], value, (&device, DType::F32)))
        }
    }
    struct Read {
        path: ParamPath,
        scales: BTreeMap<String, f64>,
    }
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, owner: &str) {
            self.path.enter(name, owner);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let scale = f64::from(param.val().into_scalar::<f32>());
            if scale != 0.0 {
                self.scales.insert(self.path.slot(&[1; D]).name, scale);
            }
        }
    }
    let folded = module.clone().map(&mut Single { path: ParamPath::new(prefix) }).materialize();
    let mut read = Read { path: ParamPath::new(prefix), scales: BTreeMap::new() };
    folded.visit(&mut read);
    read.scales
}
