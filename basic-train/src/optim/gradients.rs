//! Sums and norms over all gradients of a module.

use basic_core::ops::{SQUARES_TOGETHER, squares_parts, sums_of_squares_of_each};
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

/// The squares of a module's gradients.
#[derive(Debug, Clone, Default)]
pub struct GradientSquares {
    /// The parameters' paths, in the module's order.
    pub names: Vec<String>,
    /// The number of parts of each gradient.
    pub parts: Vec<usize>,
    /// The sums of the squares of the parts, f32: one after the other they are those of all gradients, in order.
    pub sums: Vec<Tensor<1>>,
}

/// The sums of squares of each gradient.
pub fn gradient_squares<M: Module>(module: &M, grads: &GradientsParams) -> GradientSquares {
    struct Squares<'a> {
        path: ParamPath,
        grads: &'a GradientsParams,
        flat: Vec<Tensor<1>>,
        found: GradientSquares,
    }
    impl Squares<'_> {
        fn sum(&mut self) {
            let (parts, sums) = squares_of(std::mem::take(&mut self.flat));
            self.found.parts.extend(parts);
            self.found.sums.extend(sums);
        }
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
                self.found.names.push(self.path.slot(&grad.dims()).name);
                let n = grad.shape().num_elements();
                self.flat.push(grad.reshape([n]));
            }
            // No more at a time, because flattening may copy.
            if self.flat.len() == SQUARES_TOGETHER {
                self.sum();
            }
        }
    }
    let found = GradientSquares::default();
    let mut squares = Squares { path: ParamPath::new(""), grads, flat: Vec::new(), found };
    module.visit(&mut squares);
    squares.sum();
    squares.found
}

/// The number of parts of each gradient, `[n]`, and the sums of their squares, in f32 and in order.
pub(crate) fn squares_of(gradients: Vec<Tensor<1>>) -> (Vec<usize>, Vec<Tensor<1>>) {
    let parts = gradients.iter().map(|gradient| squares_parts(gradient.dims()[0])).collect();
    let sums = sums_of_squares_of_each(gradients).into_iter().map(|sums| sums.cast(DType::F32)).collect();
    (parts, sums)
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
