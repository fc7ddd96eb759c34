//! Sums and norms over all gradients of a module.

use basic_core::ops::sums_of_squares;
use basic_models::checkpoint::ParamPath;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

/// Takes the gradients of a backward pass in the order in which they are found.
pub trait GradientSink {
    /// Takes gradients of some of the module's parameters. A parameter may come several times in a pass; its gradients
    /// are added up.
    fn take<M: Module>(&mut self, module: &M, found: GradientsParams);

    /// Hears that in this pass no further gradient comes for the decoder's layers from `layer` (0-based) on.
    fn layer_done(&mut self, layer: usize);
}

impl GradientSink for GradientsParams {
    fn take<M: Module>(&mut self, module: &M, found: GradientsParams) {
        *self = match self.is_empty() {
            true => found,
            false => add_gradients(module, std::mem::take(self), found),
        };
    }

    fn layer_done(&mut self, _: usize) {}
}

/// The squares of a parameter's gradient.
#[derive(Debug, Clone)]
pub struct GradientSquares {
    /// The parameter's path.
    pub name: String,
    /// The sums of the squares of its parts, `[parts]`, f32.
    pub sums: Tensor<1>,
}

/// The sums of squares of each gradient, in the module's order.
pub fn gradient_squares<M: Module>(module: &M, grads: &GradientsParams) -> Vec<GradientSquares> {
    struct Squares<'a> {
        path: ParamPath,
        grads: &'a GradientsParams,
        found: Vec<GradientSquares>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn enter_module(&mut self, name: &str, owner: &str) {
            self.path.enter(name, owner);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.get::<D>(param.id) {
                let name = self.path.slot(&grad.dims()).name;
                self.found.push(GradientSquares { name, sums: sums_of_squares(grad).cast(DType::F32) });
            }
        }
    }
    let mut squares = Squares { path: ParamPath::new(""), grads, found: Vec::new() };
    module.visit(&mut squares);
    squares.found
}

/// The sum of the squares of each gradient, rounded to f32, from what was read of their [`GradientSquares::sums`]; `parts`
/// says how many numbers belong to each. They are added in their order, so that every run gives the same bits.
pub(crate) fn total_squares(mut read: &[f32], parts: Vec<usize>) -> Vec<f64> {
    let total = |count| {
        let (own, rest) = read.split_at(count);
        read = rest;
        f64::from(own.iter().copied().map(f64::from).sum::<f64>() as f32)
    };
    parts.into_iter().map(total).collect()
}

/// Adds two sets of gradients of a module; sums of 16-bit gradients are kept in f32.
pub fn add_gradients<M: Module>(module: &M, first: GradientsParams, second: GradientsParams) -> GradientsParams {
    struct Add {
        first: GradientsParams,
        second: GradientsParams,
        sum: GradientsParams,
    }
    impl ModuleVisitor for Add {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let wide = |x: Tensor<D>| match x.dtype() {
                DType::BF16 | DType::F16 => x.cast(DType::F32),
                _ => x,
            };
            let sum = match (self.first.remove::<D>(param.id), self.second.remove::<D>(param.id)) {
                (Some(a), Some(b)) => wide(a) + wide(b),
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
