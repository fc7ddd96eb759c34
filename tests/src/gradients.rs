//! Reads the gradients of a module's parameters.

use basic_models::checkpoint::ParamPath;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

use crate::tensors::Tensors;

/// The gradients by our names, with matrices oriented as in Hugging Face's files.
pub fn gradients<M: Module>(model: &M, grads: &Gradients) -> Tensors {
    struct Find<'a> {
        path: ParamPath,
        grads: &'a Gradients,
        found: Tensors,
    }
    impl ModuleVisitor for Find<'_> {
        fn enter_module(&mut self, name: &str, owner: &str) {
            self.path.enter(name, owner);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(grad) = param.val().grad(self.grads) else { return };
            let slot = self.path.slot(&grad.dims());
            let grad = if slot.transposed { grad.swap_dims(0, 1) } else { grad };
            let values = grad.into_data().try_to_vec().expect("the gradient can be read");
            self.found.insert(slot.name, crate::tensors::Tensor { shape: slot.shape, values });
        }
    }
    let mut find = Find { path: ParamPath::new(""), grads, found: Tensors::new() };
    model.visit(&mut find);
    find.found
}
