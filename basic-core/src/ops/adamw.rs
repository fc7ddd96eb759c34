//! AdamW's update of parameters: one pass, in place if nothing else holds the memory; and sums of gradients' squares. On a
//! GPU several parameters share a launch.

use std::vec::IntoIter;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchTensor};
use burn::tensor::{DType, Device, Tensor};

use super::array::{Array, accumulator};
use super::{FusedOps, Kernels, Tensors};

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
    let mut updated = update(vec![parameter.into_dispatch()], grad, moments, step).into_iter();
    let parameter = next(&mut updated);
    (parameter, next_moments(&mut updated))
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
    let mut updated = update(vec![parameter.into_dispatch(), master.into_dispatch()], grad, moments, step).into_iter();
    let [parameter, master] = [next(&mut updated), next(&mut updated)];
    (parameter, master, next_moments(&mut updated))
}

/// The update of one parameter, of which `held` has itself and its master if it has one.
fn update<const D: usize>(
    mut held: Vec<DispatchTensor>,
    grad: Tensor<D>,
    moments: AdamWMoments<D>,
    step: AdamWStep,
) -> Vec<DispatchTensor> {
    let masters = held.len() > 1;
    held.extend([grad, moments.first, moments.second].map(Tensor::into_dispatch));
    Dispatch::adamw(Tensors(held), masters, step).0
}

fn next<const D: usize>(updated: &mut IntoIter<DispatchTensor>) -> Tensor<D> {
    match updated.next() {
        Some(tensor) => Tensor::from_dispatch(tensor),
        None => unreachable!("an update returns every tensor but the gradients"),
    }
}

fn next_moments<const D: usize>(updated: &mut IntoIter<DispatchTensor>) -> AdamWMoments<D> {
    let [first, second] = [next(updated), next(updated)];
    AdamWMoments { first, second }
}

/// A parameter of n elements, or a piece of one, and what AdamW keeps of it.
#[derive(Debug, Clone)]
pub struct AdamWParameter {
    /// Its value, `[n]`.
    pub value: Tensor<1>,
    /// Its value in more bits, `[n]`, if the optimizer holds one: see [`adamw_with_master`].
    pub master: Option<Tensor<1>>,
    /// Its moments; none before the first step.
    pub moments: Option<AdamWMoments<1>>,
}

/// One of several updates.
#[derive(Debug, Clone)]
pub struct AdamWUpdate {
    /// The parameter before the step.
    pub parameter: AdamWParameter,
    /// Its gradient, `[n]`.
    pub grad: Tensor<1>,
    /// The settings.
    pub step: AdamWStep,
}

/// What parameters have in common that are updated together.
#[derive(PartialEq)]
struct Alike {
    device: Device,
    dtypes: [DType; 3],
    masters: bool,
    step: AdamWStep,
    /// Whether vectors of every width that a device loads at once divide their size.
    aligned: bool,
}

/// [`adamw`] or [`adamw_with_master`] for each of several parameters, in their order. On a GPU, parameters of the same
/// types and settings share launches, because one of a small parameter takes less time than its launch; those whose size
/// is no multiple of 16 are among themselves. No gradient.
///
/// # Panics
///
/// Panics if the shapes of a parameter, its gradient, its master and its moments differ.
pub fn adamw_each(updates: Vec<AdamWUpdate>) -> Vec<AdamWParameter> {
    let mut done: Vec<Option<AdamWParameter>> = Vec::new();
    let mut groups: Vec<(Alike, Vec<usize>, Vec<DispatchTensor>)> = Vec::new();
    for AdamWUpdate { parameter: AdamWParameter { value, master, moments }, grad, step } in updates {
        let [value, grad] = [value, grad].map(Tensor::without_autodiff);
        let master = master.map(Tensor::without_autodiff);
        let held = master.as_ref().unwrap_or(&value);
        let moments = AdamWMoments::of(moments, held, &grad);
        assert_eq!(value.dims(), held.dims(), "adamw: the parameter and its master");
        let n = value.dims()[0];
        if n == 0 {
            done.push(Some(AdamWParameter { value, master, moments: Some(moments) }));
            continue;
        }
        let alike = Alike {
            device: value.device(),
            dtypes: [value.dtype(), held.dtype(), grad.dtype()],
            masters: master.is_some(),
            step,
            aligned: n.is_multiple_of(WIDEST),
        };
        let tensors = [Some(value), master, Some(grad), Some(moments.first), Some(moments.second)];
        let tensors = tensors.into_iter().flatten().map(|tensor| tensor.without_autodiff().into_dispatch());
        match groups.iter_mut().find(|(others, ..)| *others == alike) {
            Some((_, places, group)) => {
                places.push(done.len());
                group.extend(tensors);
            }
            None => groups.push((alike, vec![done.len()], tensors.collect())),
        }
        done.push(None);
    }
    for (Alike { masters, step, .. }, places, tensors) in groups {
        let mut updated = Dispatch::adamw(Tensors(tensors), masters, step).0.into_iter();
        for place in places {
            let value = next(&mut updated);
            let master = masters.then(|| next(&mut updated));
            done[place] = Some(AdamWParameter { value, master, moments: Some(next_moments(&mut updated)) });
        }
    }
    done.into_iter().flatten().collect()
}

/// The most parameters that share a launch of AdamW.
pub const UPDATES_TOGETHER: usize = 8;

/// The most tensors that share a launch of the sums of squares.
pub const SQUARES_TOGETHER: usize = 16;

/// The most elements that a device loads at once.
const WIDEST: usize = 16;

/// The number of elements whose squares are summed into one number.
pub const SQUARES_PART: usize = 1 << 14;

/// The number of parts of n elements.
pub fn squares_parts(n: usize) -> usize {
    n.div_ceil(SQUARES_PART).max(1)
}

/// The sums of the squares of each [`SQUARES_PART`] elements in row-major order, `[parts]`, in f32 (f64 for f64): whoever
/// reads them adds them up, which spares the device a pass. At least one part. The order of summation is fixed even where
/// the backend's own sum has none (Flex adds the parts of tensors over 4 million elements in whatever order its threads
/// finish). No gradient.
pub fn sums_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let n = x.shape().num_elements();
    match sums_of_squares_of_each(vec![x.reshape([n])]).pop() {
        Some(sums) => sums,
        None => unreachable!("a tensor has sums of squares, if only of nothing"),
    }
}

/// [`sums_of_squares`] of each `[n]`, in tensors that hold the sums of one or more of them: one after the other they hold
/// those of all, [`squares_parts`] of each. On a GPU several share a launch. No gradient.
pub fn sums_of_squares_of_each(xs: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    // Empty, or whether vectors of every width divide it.
    let size = |x: &Tensor<1>| match x.dims()[0] {
        0 => None,
        n => Some(n.is_multiple_of(WIDEST)),
    };
    let alike = |a: &Tensor<1>, b: &Tensor<1>| (a.device(), a.dtype(), size(a)) == (b.device(), b.dtype(), size(b));
    let xs: Vec<Tensor<1>> = xs.into_iter().map(Tensor::without_autodiff).collect();
    let mut sums = Vec::new();
    for run in xs.chunk_by(alike) {
        if size(&run[0]).is_none() {
            sums.extend(run.iter().map(|x| Tensor::zeros([1], (&x.device(), accumulator(x.dtype())))));
            continue;
        }
        let run = run.iter().map(|x| x.clone().into_dispatch()).collect();
        sums.extend(Dispatch::sums_of_squares(Tensors(run)).0.into_iter().map(Tensor::from_dispatch));
    }
    sums
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

/// The updates of several parameters, one after the other; of each, its value, its master if they have one, its gradient
/// and its moments.
pub fn one_by_one<B: Kernels>(tensors: Tensors<B>, masters: bool, step: AdamWStep) -> Tensors<B> {
    let mut tensors = tensors.0.into_iter();
    let mut updated = Vec::new();
    while let Some(value) = tensors.next() {
        let master = if masters { tensors.next() } else { None };
        let (Some(grad), Some(first), Some(second)) = (tensors.next(), tensors.next(), tensors.next()) else {
            unreachable!("an update takes a gradient and two moments of every parameter");
        };
        match master {
            Some(master) => {
                let (value, master, first, second) =
                    B::adamw_with_master_kernel(value, master, grad, first, second, step);
                updated.extend([value, master, first, second]);
            }
            None => {
                let (value, first, second) = B::adamw_kernel(value, grad, first, second, step);
                updated.extend([value, first, second]);
            }
        }
    }
    Tensors(updated)
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
