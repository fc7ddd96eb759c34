//! AdamW with one launch for several parameters, in place if nothing else holds the memory, and sums of gradients' squares.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, cubes, element, like, rows, unit_limit, units, width};
use super::norm::{across, over_cube};
use crate::ops::adamw::{AdamWStep, Coefficients, SQUARES_PART, squares_parts};

/// `g = scale grad`, `m = beta1 m + rest1 g`, `v = beta2 v + rest2 g^2`, `p = keep p - rate m / (root sqrt(v) + epsilon)`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Update {
    scale: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    keep: f32,
    rate: f32,
    root: f32,
    epsilon: f32,
}

/// The arguments of a launch.
fn update(step: &AdamWStep) -> UpdateLaunch {
    let Coefficients { keep, rate, root } = Coefficients::of(step);
    UpdateLaunch::new(
        step.grad_scale as f32,
        step.beta1 as f32,
        step.beta2 as f32,
        (1.0 - step.beta1) as f32,
        (1.0 - step.beta2) as f32,
        keep as f32,
        rate as f32,
        root as f32,
        step.epsilon as f32,
    )
}

/// Updates the moments at `at`; what becomes of the parameter `p` there.
#[cube]
fn advance<G: Float, N: Size>(
    p: Vector<f32, N>,
    grad: &[Vector<G, N>],
    first: &mut [Vector<f32, N>],
    second: &mut [Vector<f32, N>],
    at: usize,
    by: Update,
) -> Vector<f32, N> {
    let g = Vector::<f32, N>::cast_from(grad[at]) * Vector::new(by.scale);
    let m = first[at] * Vector::new(by.beta1) + g * Vector::new(by.rest1);
    let v = second[at] * Vector::new(by.beta2) + g * g * Vector::new(by.rest2);
    let under = v.sqrt() * Vector::new(by.root) + Vector::new(by.epsilon);
    first[at] = m;
    second[at] = v;
    p * Vector::new(by.keep) - m * Vector::new(by.rate) / under
}

/// Units count through the vectors of all parameters, one parameter after the other. There are masters of all or of none.
#[cube(launch, address_type = "dynamic")]
fn adamw_kernel<E: Float, M: Float, G: Float, N: Size>(
    parameters: &mut Sequence<Box<[Vector<E, N>]>>,
    masters: &mut Sequence<Box<[Vector<M, N>]>>,
    grads: &Sequence<Box<[Vector<G, N>]>>,
    firsts: &mut Sequence<Box<[Vector<f32, N>]>>,
    seconds: &mut Sequence<Box<[Vector<f32, N>]>>,
    counts: &Sequence<usize>,
    by: Update,
    #[define(E, M, G)] _dtypes: [ElemType; 3],
) {
    let held = comptime!(masters.len());
    let mut before = 0usize.runtime();
    #[unroll]
    for i in 0..counts.len() {
        let count = counts[i];
        if ABSOLUTE_POS >= before && ABSOLUTE_POS < before + count {
            let at = ABSOLUTE_POS - before;
            let parameter = &mut parameters[i];
            if comptime!(held > 0) {
                let master = &mut masters[i];
                let p = Vector::<f32, N>::cast_from(master[at]);
                let p = advance::<G, N>(p, &grads[i], &mut firsts[i], &mut seconds[i], at, by);
                master[at] = Vector::cast_from(p);
                parameter[at] = Vector::cast_from(p);
            } else {
                let p = Vector::<f32, N>::cast_from(parameter[at]);
                let p = advance::<G, N>(p, &grads[i], &mut firsts[i], &mut seconds[i], at, by);
                parameter[at] = Vector::cast_from(p);
            }
        }
        before += count;
    }
}

/// The tensor, contiguous and not shared with any other.
fn own(tensor: CubeTensor) -> CubeTensor {
    // A copy may have padded rows, whatever the tensor has.
    let tensor = if tensor.can_mut() { tensor } else { tensor.copy() };
    rows(tensor)
}

/// How many parameters of `each` tensors share a launch: `most`, or fewer if the device binds fewer buffers. A kernel's
/// length grows with their number.
pub fn together(client: &cubecl::client::Client, each: usize, most: usize) -> usize {
    let buffers = client.properties().hardware.max_bindings as usize;
    // One is the kernel's sizes, and one may be its result.
    (buffers.saturating_sub(2) / each).clamp(1, most)
}

/// What is updated of parameters, and their gradients: see [`FusedOps::adamw`](crate::ops::FusedOps::adamw).
#[derive(Default)]
struct Operands {
    parameters: Vec<CubeTensor>,
    masters: Vec<CubeTensor>,
    grads: Vec<CubeTensor>,
    firsts: Vec<CubeTensor>,
    seconds: Vec<CubeTensor>,
}

impl Operands {
    fn of(tensors: Vec<CubeTensor>, masters: bool) -> Self {
        let mut operands = Self::default();
        let mut tensors = tensors.into_iter();
        while let Some(parameter) = tensors.next() {
            let master = if masters { tensors.next().map(own) } else { None };
            let (Some(grad), Some(first), Some(second)) = (tensors.next(), tensors.next(), tensors.next()) else {
                unreachable!("an update takes a gradient and two moments of every parameter");
            };
            operands.parameters.push(match &master {
                None => own(parameter),
                // All of it is written, so that a parameter that something else holds is not copied.
                Some(_) if parameter.can_mut() && parameter.is_contiguous() => parameter,
                Some(master) => like(master, master.meta.shape().to_vec(), parameter.dtype),
            });
            operands.masters.extend(master);
            operands.grads.push(rows(grad));
            operands.firsts.push(own(first));
            operands.seconds.push(own(second));
        }
        operands
    }

    fn all(&self) -> impl Iterator<Item = &CubeTensor> {
        [&self.parameters, &self.masters, &self.grads, &self.firsts, &self.seconds].into_iter().flatten()
    }

    /// All but the gradients, parameter by parameter.
    fn updated(self) -> Vec<CubeTensor> {
        let mut masters = self.masters.into_iter();
        let each = self.parameters.into_iter().zip(self.firsts).zip(self.seconds);
        each.flat_map(|((parameter, first), second)| {
            [Some(parameter), masters.next(), Some(first), Some(second)].into_iter().flatten().collect::<Vec<_>>()
        })
        .collect()
    }
}

/// The tensors as a kernel's arguments.
fn arguments<'a, A: FromIterator<BufferArg>>(tensors: impl IntoIterator<Item = &'a CubeTensor>) -> A {
    tensors.into_iter().map(|tensor| tensor.clone().into_buffer_arg()).collect()
}

/// The updated parameters, with their masters if they have `masters`, and their moments, which are in f32. There is at
/// least one parameter, and all agree in their types.
pub fn adamw(tensors: Vec<CubeTensor>, masters: bool, step: AdamWStep) -> Vec<CubeTensor> {
    let operands = Operands::of(tensors, masters);
    let vector = operands.all().map(|x| width(x, x.meta.num_elements())).min().unwrap_or(1);
    let counts: Vec<usize> = operands.parameters.iter().map(|x| x.meta.num_elements() / vector).collect();
    let count = counts.iter().sum();
    let [parameter, grad] = [&operands.parameters[0], &operands.grads[0]];
    let master = operands.masters.first().unwrap_or(parameter);
    let (cubes, dim) = units(parameter, count);
    let address = addresses(&operands.all().collect::<Vec<_>>()).max(AddressType::from_len(count));
    adamw_kernel::launch(
        &parameter.client,
        cubes,
        dim,
        address,
        vector,
        arguments(&operands.parameters),
        arguments(&operands.masters),
        arguments(&operands.grads),
        arguments(&operands.firsts),
        arguments(&operands.seconds),
        counts.into_iter().collect(),
        update(&step),
        [parameter, master, grad].map(|x| element(x.dtype)),
    );
    operands.updated()
}

/// A cube's part, in an order that depends only on the sizes of the tensors; the parts of one come after those of another.
#[cube(launch, address_type = "dynamic")]
fn squares_kernel<E: Float, N: Size>(
    xs: &Sequence<Box<[Vector<E, N>]>>,
    sums: &mut [f32],
    counts: &Sequence<usize>,
    parts: usize,
    #[comptime] units: usize,
    #[define(E)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let part = CUBE_POS;
    if part >= parts {
        terminate!();
    }
    let length = SQUARES_PART / N::value();
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut before = 0usize.runtime();
    #[unroll]
    for i in 0..counts.len() {
        let count = counts[i];
        let own = count.div_ceil(length);
        if part >= before && part < before + own {
            let start = (part - before) * length;
            let end = min(start + length, count);
            for at in range_stepped(start + UNIT_POS as usize, end, units) {
                let value = Vector::<f32, N>::cast_from(xs[i][at]);
                sum += value * value;
            }
        }
        before += own;
    }
    let total = over_cube(across(sum), &mut shared, units);
    if UNIT_POS == 0 {
        sums[part] = total;
    }
}

/// The sums of the squares of parts of each `[n]`, one after the other, in f32. There is at least one tensor, none is
/// empty, and all are of one type.
pub fn sums_of_squares(xs: Vec<CubeTensor>) -> CubeTensor {
    let xs: Vec<CubeTensor> = xs.into_iter().map(rows).collect();
    let vector = xs.iter().map(|x| width(x, x.meta.num_elements())).min().unwrap_or(1);
    let counts: Vec<usize> = xs.iter().map(|x| x.meta.num_elements() / vector).collect();
    let parts = xs.iter().map(|x| squares_parts(x.meta.num_elements())).sum();
    let units = 256.min(unit_limit(&xs[0]));
    let sums = like(&xs[0], vec![parts], DType::F32);
    let address = addresses(&xs.iter().chain([&sums]).collect::<Vec<_>>());
    squares_kernel::launch(
        &sums.client,
        cubes(parts),
        CubeDim::new_1d(units as u32),
        address,
        vector,
        arguments(&xs),
        sums.clone().into_buffer_arg(),
        counts.into_iter().collect(),
        parts,
        units,
        element(xs[0].dtype),
    );
    sums
}
