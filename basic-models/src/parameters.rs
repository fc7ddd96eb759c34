//! Lists the parameters of a module: their names on disk, which follow the module paths, and their shapes on disk.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// A parameter of a module, with its name and shape on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The name: the module path, with Hugging Face's words for the parameters of norms.
    pub name: String,
    /// The shape on disk.
    pub shape: Vec<usize>,
    /// Whether Burn's linear weight `[in, out]` is stored as Hugging Face's `[out, in]`.
    pub transposed: bool,
}

impl Slot {
    /// Whether it is a factor of an adapter. These have PEFT's names, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.
    pub fn is_adapter(&self) -> bool {
        self.name.ends_with(LORA_A) || self.name.ends_with(LORA_B)
    }
}

/// PEFT's names for the factors of an adapter, which follow the layer's name.
pub(crate) const LORA_A: &str = ".lora_A.weight";
pub(crate) const LORA_B: &str = ".lora_B.weight";

/// The path of the parameter that a module visitor or mapper is at.
#[derive(Debug, Default, Clone)]
pub struct ParamPath {
    names: Vec<String>,
    owners: Vec<String>,
}

impl ParamPath {
    /// A path below `prefix`, which is empty or has no dot at its end.
    pub fn new(prefix: &str) -> Self {
        let mut path = Self::default();
        if !prefix.is_empty() {
            path.enter(prefix, "");
        }
        path
    }

    /// Enters a field.
    pub fn enter(&mut self, name: &str, owner: &str) {
        self.names.push(name.into());
        self.owners.push(owner.into());
    }

    /// Leaves the field.
    pub fn exit(&mut self) {
        self.names.pop();
        self.owners.pop();
    }

    /// The parameter at this path.
    pub fn slot(&self, shape: &[usize]) -> Slot {
        if let Some(slot) = self.adapter(shape) {
            return slot;
        }
        let linear = self.owners.last().is_some_and(|owner| owner == "Struct:Linear");
        let mut names = self.names.clone();
        if let Some(last) = names.last_mut() {
            match last.as_str() {
                "gamma" => *last = "weight".into(),
                "beta" => *last = "bias".into(),
                // A field is needed for each shape that a parameter has in the families.
                "mask_token_3d" => *last = "mask_token".into(),
                "weight_flat" => *last = "weight".into(),
                _ => {}
            }
        }
        let transposed = linear && shape.len() == 2;
        let shape = if transposed { vec![shape[1], shape[0]] } else { shape.to_vec() };
        Slot { name: names.join("."), shape, transposed }
    }

    /// The adapter's factor at this path. Burn's paths are `LAYER.weight.lora.a`, `[inputs, rank]`, and `b`,
    /// `[rank, outputs]`.
    fn adapter(&self, shape: &[usize]) -> Option<Slot> {
        let [layer @ .., weight, lora, factor] = &self.names[..] else { return None };
        let attached = self.owners.get(self.names.len() - 2).is_some_and(|owner| owner == "Reparameterization");
        if !attached || weight != "weight" || lora != "lora" || shape.len() != 2 {
            return None;
        }
        let name = format!("{}{}", layer.join("."), if factor == "a" { LORA_A } else { LORA_B });
        Some(Slot { name, shape: vec![shape[1], shape[0]], transposed: true })
    }
}

/// All parameters of a module below `prefix`, in order. Nothing is allocated for parameters that are
/// not initialized yet.
pub fn slots<M: Module>(module: &M, prefix: &str) -> Vec<Slot> {
    struct Collect {
        path: ParamPath,
        slots: Vec<Slot>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, owner: &str) {
            self.path.enter(name, owner);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let shape = param.lazy_shape();
            self.slots.push(self.path.slot(&shape.to_vec()));
        }
    }
    let mut collect = Collect { path: ParamPath::new(prefix), slots: Vec::new() };
    module.visit(&mut collect);
    collect.slots
}
