//! AdamW with one launch per parameter, in place if nothing else holds the memory, and sums of a gradient's squares.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, cubes, element, like, rows, unit_limit, units, width};
use super::norm::{across, over_cube};
use crate::ops::adamw::{AdamWStep, Coefficients, SQUARES_PART};

/// `g = scale grad`, `m = beta1 m + rest1 g`, `v = beta2 v + rest2 g^2`, `p = keep p - rate m / (root sqrt(v) + epsilon)`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone))]
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
    grad: &Tensor<Vector<G, N>>,
    first: &mut Tensor<Vector<f32, N>>,
    second: &mut Tensor<Vector<f32, N>>,
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

#[cube(launch, address_type = "dynamic")]
fn adamw_kernel<E: Float, G: Float, N: Size>(
    parameter: &mut Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<G, N>>,
    first: &mut Tensor<Vector<f32, N>>,
    second: &mut Tensor<Vector<f32, N>>,
    count: usize,
    by: Update,
    #[define(E, G)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let p = Vector::<f32, N>::cast_from(parameter[ABSOLUTE_POS]);
    let p = advance(p, grad, first, second, ABSOLUTE_POS, by);
    parameter[ABSOLUTE_POS] = Vector::cast_from(p);
}

#[cube(launch, address_type = "dynamic")]
fn adamw_with_master_kernel<E: Float, M: Float, G: Float, N: Size>(
    parameter: &mut Tensor<Vector<E, N>>,
    master: &mut Tensor<Vector<M, N>>,
    grad: &Tensor<Vector<G, N>>,
    first: &mut Tensor<Vector<f32, N>>,
    second: &mut Tensor<Vector<f32, N>>,
    count: usize,
    by: Update,
    #[define(E, M, G)] _dtypes: [ElemType; 3],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let p = Vector::<f32, N>::cast_from(master[ABSOLUTE_POS]);
    let p = advance(p, grad, first, second, ABSOLUTE_POS, by);
    master[ABSOLUTE_POS] = Vector::cast_from(p);
    parameter[ABSOLUTE_POS] = Vector::cast_from(p);
}

/// The tensor, contiguous and not shared with any other.
fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = rows(tensor);
    if tensor.can_mut() { tensor } else { tensor.copy() }
}

/// The updated parameter and its moments, which are in f32.
pub fn adamw(
    parameter: CubeTensor,
    grad: CubeTensor,
    first: CubeTensor,
    second: CubeTensor,
    step: AdamWStep,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let grad = rows(grad);
    let [parameter, first, second] = [parameter, first, second].map(own);
    let elements = parameter.meta.num_elements();
    let vector = [&parameter, &grad, &first].map(|x| width(x, elements)).into_iter().min().unwrap_or(1);
    let count = elements / vector;
    let (cubes, dim) = units(&parameter, count);
    let client = parameter.client.clone();
    let address = addresses(&[&parameter, &grad, &first]);
    let dtypes = [element(parameter.dtype), element(grad.dtype)];
    adamw_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        vector,
        parameter.clone().into_tensor_arg(),
        grad.into_tensor_arg(),
        first.clone().into_tensor_arg(),
        second.clone().into_tensor_arg(),
        count,
        update(&step),
        dtypes,
    );
    (parameter, first, second)
}

/// The updated parameter, its master, and its moments, which are in f32.
pub fn adamw_with_master(
    parameter: CubeTensor,
    master: CubeTensor,
    grad: CubeTensor,
    first: CubeTensor,
    second: CubeTensor,
    step: AdamWStep,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let grad = rows(grad);
    let [master, first, second] = [master, first, second].map(own);
    // All of it is written, so that a parameter that something else holds is not copied.
    let parameter = match parameter.can_mut() && parameter.is_contiguous() {
        true => parameter,
        false => like(&master, master.meta.shape().to_vec(), parameter.dtype),
    };
    let elements = master.meta.num_elements();
    let vector = [&master, &grad, &first, &parameter].map(|x| width(x, elements)).into_iter().min().unwrap_or(1);
    let count = elements / vector;
    let (cubes, dim) = units(&master, count);
    let client = master.client.clone();
    let address = addresses(&[&master, &grad, &first, &parameter]);
    let dtypes = [element(parameter.dtype), element(master.dtype), element(grad.dtype)];
    adamw_with_master_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        vector,
        parameter.clone().into_tensor_arg(),
        master.clone().into_tensor_arg(),
        grad.into_tensor_arg(),
        first.clone().into_tensor_arg(),
        second.clone().into_tensor_arg(),
        count,
        update(&step),
        dtypes,
    );
    (parameter, master, first, second)
}

/// The number of parts of `n` elements.
pub fn squares_parts(n: usize) -> usize {
    n.div_ceil(SQUARES_PART)
}

/// A cube's part, in an order that depends only on the sizes.
#[cube(launch, address_type = "dynamic")]
fn squares_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    sums: &mut Tensor<f32>,
    count: usize,
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
    let start = part * length;
    let end = min(start + length, count);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for i in range_stepped(start + UNIT_POS as usize, end, units) {
        let value = Vector::<f32, N>::cast_from(x[i]);
        sum += value * value;
    }
    let total = over_cube(across(sum), &mut shared, units);
    if UNIT_POS == 0 {
        sums[part] = total;
    }
}

/// The sums of the squares of parts of `[n]`, in f32.
pub fn sums_of_squares(x: CubeTensor) -> CubeTensor {
    let x = rows(x);
    let elements = x.meta.num_elements();
    let vector = width(&x, elements);
    let units = 256.min(unit_limit(&x));
    let parts = squares_parts(elements);
    let sums = like(&x, vec![parts], DType::F32);
    let client = x.client.clone();
    let (address, dtype) = (addresses(&[&x, &sums]), element(x.dtype));
    squares_kernel::launch(
        &client,
        cubes(parts),
        CubeDim::new_1d(units as u32),
        address,
        vector,
        x.into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        elements / vector,
        parts,
        units,
        dtype,
    );
    sums
}
