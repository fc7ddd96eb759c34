//! AdamW's update of one parameter: one pass, in place if nothing else holds the memory; and sums of a gradient's squares.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch};
use burn::tensor::Tensor;

use super::FusedOps;
use super::array::{Array, accumulator};

/// The settings of an AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// A factor on the gradient, from clipping: 1 leaves it as it is.
    pub grad_scale: f64,
    /// The number of this step for this parameter, from 1.
    pub time: usize,
}

/// The moments of a parameter.
#[derive(Debug, Clone)]
pub struct AdamWMoments<const D: usize> {
    /// Exponential mean of the gradients, f32 (f64 for f64 parameters).
    pub first: Tensor<D>,
    /// Exponential mean of their squares, in the same type.
    pub second: Tensor<D>,
}

impl<const D: usize> AdamWMoments<D> {
    /// The moments, or zeros for a parameter that has none yet.
    fn of(moments: Option<Self>, parameter: &Tensor<D>, grad: &Tensor<D>) -> Self {
        let dims = parameter.dims();
        assert_eq!(grad.dims(), dims, "adamw: the parameter is {dims:?}");
        let moments = moments.unwrap_or_else(|| {
            let zeros = || Tensor::zeros(dims, (&parameter.device(), accumulator(parameter.dtype())));
            Self { first: zeros(), second: zeros() }
        });
        assert_eq!((moments.first.dims(), moments.second.dims()), (dims, dims), "adamw: the parameter is {dims:?}");
        moments
    }
}

/// One step of AdamW (Loshchilov and Hutter, 2019, as `torch.optim.AdamW` computes it): decays the parameter, updates
/// the moments and moves the parameter by `lr m' / (sqrt(v') + epsilon)`, m' and v' being bias-corrected. The moments
/// start as zeros; everything is computed in the moments' type. No gradient.
///
/// # Panics
///
/// Panics if the shapes differ.
pub fn adamw<const D: usize>(
    parameter: Tensor<D>,
    grad: Tensor<D>,
    moments: Option<AdamWMoments<D>>,
    step: AdamWStep,
) -> (Tensor<D>, AdamWMoments<D>) {
    let moments = AdamWMoments::of(moments, &parameter, &grad);
    if parameter.shape().num_elements() == 0 {
        return (parameter, moments);
    }
    let (parameter, first, second) = Dispatch::adamw(
        parameter.into_dispatch(),
        grad.into_dispatch(),
        moments.first.into_dispatch(),
        moments.second.into_dispatch(),
        step,
    );
    let moments = AdamWMoments { first: Tensor::from_dispatch(first), second: Tensor::from_dispatch(second) };
    (Tensor::from_dispatch(parameter), moments)
}

/// [`adamw`] of a `master`, which the optimizer holds for a parameter that the model holds in fewer bits: the parameter
/// becomes the updated master, rounded. What the parameter was does not matter; its memory is used again. Returns the
/// new parameter, the new master and the moments.
///
/// # Panics
///
/// Panics if the shapes differ.
pub fn adamw_with_master<const D: usize>(
    parameter: Tensor<D>,
    master: Tensor<D>,
    grad: Tensor<D>,
    moments: Option<AdamWMoments<D>>,
    step: AdamWStep,
) -> (Tensor<D>, Tensor<D>, AdamWMoments<D>) {
    let moments = AdamWMoments::of(moments, &master, &grad);
    assert_eq!(parameter.dims(), master.dims(), "adamw: the parameter and its master");
    if master.shape().num_elements() == 0 {
        return (parameter, master, moments);
    }
    let (parameter, master, first, second) = Dispatch::adamw_with_master(
        parameter.into_dispatch(),
        master.into_dispatch(),
        grad.into_dispatch(),
        moments.first.into_dispatch(),
        moments.second.into_dispatch(),
        step,
    );
    let moments = AdamWMoments { first: Tensor::from_dispatch(first), second: Tensor::from_dispatch(second) };
    (Tensor::from_dispatch(parameter), Tensor::from_dispatch(master), moments)
}

/// The number of elements whose squares are summed into one number.
pub const SQUARES_PART: usize = 1 << 14;

/// The sums of the squares of each [`SQUARES_PART`] elements in row-major order, `[parts]`, in f32 (f64 for f64): whoever
/// reads them adds them up, which spares the device a pass. At least one part. The order of summation is fixed even where
/// the backend's own sum has none (Flex adds the parts of tensors over 4 million elements in whatever order its threads
/// finish). No gradient.
pub fn sums_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let n = x.shape().num_elements();
    let x = x.without_autodiff().reshape([n]);
    match n {
        0 => Tensor::zeros([1], (&x.device(), accumulator(x.dtype()))),
        _ => Tensor::from_dispatch(Dispatch::sums_of_squares(x.into_dispatch())),
    }
}

/// The updated parameter and its moments.
pub type Updated<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

/// The updated parameter, its master and its moments.
pub type UpdatedMaster<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

pub fn portable<B: Backend>(
    parameter: FloatTensor<B>,
    grad: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    step: AdamWStep,
) -> Updated<B> {
    let parameter = Array::<B>(parameter);
    let dtype = parameter.dtype();
    let (first, second) = (Array::<B>(first), Array::<B>(second));
    let grad = Array::<B>(grad).cast(first.dtype());
    let grad = if step.grad_scale == 1.0 { grad } else { grad.scale(step.grad_scale) };
    let first = first.scale(step.beta1).add(grad.clone().scale(1.0 - step.beta1));
    let second = second.scale(step.beta2).add(grad.square().scale(1.0 - step.beta2));
    let Coefficients { keep, rate, root } = Coefficients::of(&step);
    let by = second.clone().sqrt().scale(root).plus(step.epsilon);
    let parameter = parameter.cast(first.dtype()).scale(keep).sub(first.clone().scale(rate).div(by)).cast(dtype);
    (parameter.0, first.0, second.0)
}

/// `x` is `[n]` with n > 0.
pub fn portable_sums_of_squares<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = Array::<B>(x);
    let dtype = accumulator(x.dtype());
    let x = x.cast(dtype).square();
    let n = x.dims()[0];
    let whole = n / SQUARES_PART;
    let mut parts = Vec::new();
    if whole > 0 {
        let full = x.clone().narrow(0, 0, whole * SQUARES_PART);
        parts.push(full.reshape(&[whole, SQUARES_PART]).sum_dim(1).reshape(&[whole]));
    }
    let rest = n - whole * SQUARES_PART;
    if rest > 0 {
        parts.push(x.narrow(0, whole * SQUARES_PART, rest).sum());
    }
    Array::cat(parts, 0).0
}

/// The coefficients of an element's update: `p = keep p - rate m / (root sqrt(v) + epsilon)`.
pub struct Coefficients {
    pub keep: f64,
    pub rate: f64,
    pub root: f64,
}

impl Coefficients {
    pub fn of(step: &AdamWStep) -> Self {
        let time = step.time.max(1) as i32;
        Self {
            keep: 1.0 - step.lr * step.weight_decay,
            rate: step.lr / (1.0 - step.beta1.powi(time)),
            root: (1.0 - step.beta2.powi(time)).powf(-0.5),
        }
    }
}
