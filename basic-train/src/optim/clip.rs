//! Norms over all gradients of a module.

use basic_core::ops::sum_of_squares;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

/// The sum of squares of each gradient, `[1]` each, in the module's order.
pub fn gradient_squares<M: Module>(module: &M, grads: &GradientsParams) -> Vec<Tensor<1>> {
    struct Squares<'a> {
        grads: &'a GradientsParams,
        found: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.get::<D>(param.id) {
                self.found.push(sum_of_squares(grad).cast(DType::F32));
            }
        }
    }
    let mut squares = Squares { grads, found: Vec::new() };
    module.visit(&mut squares);
    squares.found
}

/// All gradients times `factor`.
pub fn scale_gradients<M: Module>(module: &M, grads: GradientsParams, factor: f64) -> GradientsParams {
    struct Scale {
        grads: GradientsParams,
        scaled: GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Scale {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.remove::<D>(param.id) {
                self.scaled.register(param.id, grad.mul_scalar(self.factor));
            }
        }
    }
    let mut scale = Scale { grads, scaled: GradientsParams::new(), factor };
    module.visit(&mut scale);
    scale.scaled
}

/// The sum of two sets of gradients of a module.
pub fn add_gradients<M: Module>(module: &M, first: GradientsParams, second: GradientsParams) -> GradientsParams {
    struct Add {
        first: GradientsParams,
        second: GradientsParams,
        sum: GradientsParams,
    }
    impl ModuleVisitor for Add {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let sum = match (self.first.remove::<D>(param.id), self.second.remove::<D>(param.id)) {
                (Some(a), Some(b)) => a + b,
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return,
            };
            self.sum.register(param.id, sum);
        }
    }
    let mut add = Add { first, second, sum: GradientsParams::new() };
    module.visit(&mut add);
    add.sum
}
