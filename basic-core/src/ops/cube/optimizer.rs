//! AdamW with one launch per parameter, in place if nothing else holds the memory, and the sum of a gradient's squares.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, cubes, element, like, rows, unit_limit, units, width};
use super::norm::{across, over_cube};
use crate::ops::adamw::{AdamWStep, Coefficients};

/// `m = beta1 m + rest1 g`, `v = beta2 v + rest2 g^2`, `p = keep p - rate m / (root sqrt(v) + epsilon)`.
#[cube(launch, address_type = "dynamic")]
fn adamw_kernel<E: Float, G: Float, N: Size>(
    parameter: &mut Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<G, N>>,
    first: &mut Tensor<Vector<f32, N>>,
    second: &mut Tensor<Vector<f32, N>>,
    count: usize,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    keep: f32,
    rate: f32,
    root: f32,
    epsilon: f32,
    #[define(E, G)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let g = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    let m = first[ABSOLUTE_POS] * Vector::new(beta1) + g * Vector::new(rest1);
    let v = second[ABSOLUTE_POS] * Vector::new(beta2) + g * g * Vector::new(rest2);
    let by = v.sqrt() * Vector::new(root) + Vector::new(epsilon);
    let p = Vector::<f32, N>::cast_from(parameter[ABSOLUTE_POS]) * Vector::new(keep) - m * Vector::new(rate) / by;
    first[ABSOLUTE_POS] = m;
    second[ABSOLUTE_POS] = v;
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
    let vector = width(&first, elements).min(width(&parameter, elements)).min(width(&grad, elements));
    let count = elements / vector;
    let (cubes, dim) = units(&parameter, count);
    let Coefficients { keep, rate, root } = Coefficients::of(&step);
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
        step.beta1 as f32,
        step.beta2 as f32,
        (1.0 - step.beta1) as f32,
        (1.0 - step.beta2) as f32,
        keep as f32,
        rate as f32,
        root as f32,
        step.epsilon as f32,
        dtypes,
    );
    (parameter, first, second)
}

/// The number of vectors that a unit adds up, one after the other.
const STRIDES: usize = 32;

/// A cube's part of the sum, in an order that depends only on the sizes.
#[cube(launch, address_type = "dynamic")]
fn squares_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    sums: &mut Tensor<f32>,
    count: usize,
    parts: usize,
    #[comptime] square: bool,
    #[comptime] units: usize,
    #[define(E)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let part = CUBE_POS;
    if part >= parts {
        terminate!();
    }
    let start = part * comptime!(STRIDES * units);
    let end = min(start + comptime!(STRIDES * units), count);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for i in range_stepped(start + UNIT_POS as usize, end, units) {
        let value = Vector::<f32, N>::cast_from(x[i]);
        if square {
            sum += value * value;
        } else {
            sum += value;
        }
    }
    let total = over_cube(across(sum), &mut shared, units);
    if UNIT_POS == 0 {
        sums[part] = total;
    }
}

/// The sum of the squares of `[n]`, `[1]` in f32: sums of parts, then sums of these, until one is left.
pub fn sum_of_squares(x: CubeTensor) -> CubeTensor {
    let mut x = rows(x);
    let mut square = true;
    loop {
        let elements = x.meta.num_elements();
        let vector = width(&x, elements);
        let count = elements / vector;
        let units = 256.min(unit_limit(&x));
        let parts = count.div_ceil(STRIDES * units);
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
            count,
            parts,
            square,
            units,
            dtype,
        );
        if parts == 1 {
            return sums;
        }
        (x, square) = (sums, false);
    }
}
