//! The parameters of a module: their names, which are the module paths, and their shapes on disk.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// A parameter of a module as it is named and shaped on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Our name: the module path with Hugging Face's word for norm parameters.
    pub name: String,
    /// Shape on disk.
    pub shape: Vec<usize>,
    /// Whether a Burn linear weight `[in, out]` stands for Hugging Face's `[out, in]`.
    pub transposed: bool,
}

impl Slot {
    /// Whether it is a factor of an adapter: they are named as PEFT does, `LAYER.lora_A.weight`, `LAYER.lora_B.weight`.
    pub fn is_adapter(&self) -> bool {
        self.name.ends_with(LORA_A) || self.name.ends_with(LORA_B)
    }
}

/// PEFT's names of an adapter's factors, behind the layer's.
pub(crate) const LORA_A: &str = ".lora_A.weight";
pub(crate) const LORA_B: &str = ".lora_B.weight";

/// The path of the parameter that a visitor or mapper stands at.
#[derive(Debug, Default, Clone)]
pub struct ParamPath {
    names: Vec<String>,
    owners: Vec<String>,
}

impl ParamPath {
    /// A path below `prefix` (empty, or ending without a dot).
    pub fn new(prefix: &str) -> Self {
        let mut path = Self::default();
        if !prefix.is_empty() {
            path.enter(prefix, "");
        }
        path
    }

    /// Goes into a field.
    pub fn enter(&mut self, name: &str, owner: &str) {
        self.names.push(name.into());
        self.owners.push(owner.into());
    }

    /// Leaves it again.
    pub fn exit(&mut self) {
        self.names.pop();
        self.owners.pop();
    }

    /// The parameter here.
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
                _ => {}
            }
        }
        let transposed = linear && shape.len() == 2;
        let shape = if transposed { vec![shape[1], shape[0]] } else { shape.to_vec() };
        Slot { name: names.join("."), shape, transposed }
    }

    /// The factor here: Burn shows it as `LAYER.weight.lora.a`, `[inputs, rank]`, and `b`, `[rank, outputs]`.
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

/// All parameters of a module below `prefix`, in order; nothing is allocated for lazy ones.
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
