//! Root-mean-square normalization: one cube per row.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, cubes, element, like, rows, unit_limit, units, width};

/// The number of rows that one sum of gamma's gradient covers.
const BLOCK: usize = 64;

/// The sum of a vector's elements.
#[cube]
pub fn across<N: Size>(x: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..N::value() {
        sum += x.extract(i);
    }
    sum
}

/// The sum of `value` over the cube's units, returned to each of them. The number of units must be a power of two.
#[cube]
pub fn over_cube(value: f32, shared: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut step = (units / 2).runtime();
    while step > 0 {
        if unit < step {
            let other = shared[unit + step];
            shared[unit] += other;
        }
        sync_cube();
        step /= 2;
    }
    let sum = shared[0];
    // The next sum must not overwrite it before all units have read it.
    sync_cube();
    sum
}

#[cube(launch, address_type = "dynamic")]
fn rms_norm_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    gamma: &Tensor<Vector<E, N>>,
    y: &mut Tensor<Vector<E, N>>,
    count: usize,
    epsilon: f32,
    #[comptime] length: usize,
    #[comptime] units: usize,
    #[define(E)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    if row >= count {
        terminate!();
    }
    let start = row * length;
    let mut squares = Vector::<f32, N>::new(0.0f32);
    for i in range_stepped(UNIT_POS as usize, length, units) {
        let value = Vector::<f32, N>::cast_from(x[start + i]);
        squares += value * value;
    }
    let mean = over_cube(across(squares), &mut shared, units) / (length * N::value()) as f32;
    let scale = Vector::<f32, N>::new(1.0f32 / (mean + epsilon).sqrt());
    for i in range_stepped(UNIT_POS as usize, length, units) {
        // As in the portable implementation, the product with gamma is computed in x's type.
        let normed: Vector<E, N> = Vector::cast_from(Vector::<f32, N>::cast_from(x[start + i]) * scale);
        let product = Vector::<f32, N>::cast_from(normed) * Vector::<f32, N>::cast_from(gamma[i]);
        y[start + i] = Vector::cast_from(product);
    }
}

/// The number of units for rows of `length` vectors.
fn row_units(x: &CubeTensor, length: usize) -> usize {
    length.next_power_of_two().clamp(32, 256).min(unit_limit(x))
}

/// Normalizes x `[N, d]` and multiplies it by gamma `[d]`.
pub fn rms_norm(x: CubeTensor, gamma: CubeTensor, epsilon: f64) -> CubeTensor {
    let (x, gamma) = (rows(x), rows(gamma));
    let [count, d] = [x.meta.shape()[0], x.meta.shape()[1]];
    let vector = width(&x, d);
    let y = like(&x, vec![count, d], x.dtype);
    let length = d / vector;
    let units = row_units(&x, length);
    let client = x.client.clone();
    let (address, dtype) = (addresses(&[&x, &y]), element(x.dtype));
    rms_norm_kernel::launch(
        &client,
        cubes(count),
        CubeDim::new_1d(units as u32),
        address,
        vector,
        x.into_tensor_arg(),
        gamma.into_tensor_arg(),
        y.clone().into_tensor_arg(),
        count,
        epsilon as f32,
        length,
        units,
        dtype,
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn rms_norm_backward_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    gamma: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    x_grad: &mut Tensor<Vector<E, N>>,
    reciprocals: &mut Tensor<f32>,
    count: usize,
    epsilon: f32,
    #[comptime] length: usize,
    #[comptime] units: usize,
    #[define(E)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    if row >= count {
        terminate!();
    }
    let start = row * length;
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut pulls = Vector::<f32, N>::new(0.0f32);
    for i in range_stepped(UNIT_POS as usize, length, units) {
        let value = Vector::<f32, N>::cast_from(x[start + i]);
        let pulled = Vector::<f32, N>::cast_from(grad[start + i]) * Vector::<f32, N>::cast_from(gamma[i]);
        squares += value * value;
        pulls += pulled * value;
    }
    let width = (length * N::value()) as f32;
    let mean = over_cube(across(squares), &mut shared, units) / width;
    let reciprocal = 1.0f32 / (mean + epsilon).sqrt();
    // mean(g gamma y) / rms, with y = x / rms, as a factor of x
    let drop = over_cube(across(pulls), &mut shared, units) / width * reciprocal * reciprocal;
    for i in range_stepped(UNIT_POS as usize, length, units) {
        let value = Vector::<f32, N>::cast_from(x[start + i]);
        let pulled = Vector::<f32, N>::cast_from(grad[start + i]) * Vector::<f32, N>::cast_from(gamma[i]);
        let own = pulled - value * Vector::<f32, N>::new(drop);
        x_grad[start + i] = Vector::cast_from(own * Vector::<f32, N>::new(reciprocal));
    }
    if UNIT_POS == 0 {
        reciprocals[row] = reciprocal;
    }
}

/// The gradient with respect to x, `[N, d]`, and each row's reciprocal root mean square, `[N]`.
pub fn rms_norm_backward(x: CubeTensor, gamma: CubeTensor, grad: CubeTensor, epsilon: f64) -> (CubeTensor, CubeTensor) {
    let (x, gamma, grad) = (rows(x), rows(gamma), rows(grad));
    let [count, d] = [x.meta.shape()[0], x.meta.shape()[1]];
    let vector = width(&x, d);
    let x_grad = like(&x, vec![count, d], x.dtype);
    let reciprocals = like(&x, vec![count], DType::F32);
    let length = d / vector;
    let units = row_units(&x, length);
    let client = x.client.clone();
    let (address, dtype) = (addresses(&[&x, &grad, &x_grad]), element(x.dtype));
    rms_norm_backward_kernel::launch(
        &client,
        cubes(count),
        CubeDim::new_1d(units as u32),
        address,
        vector,
        x.into_tensor_arg(),
        gamma.into_tensor_arg(),
        grad.into_tensor_arg(),
        x_grad.clone().into_tensor_arg(),
        reciprocals.clone().into_tensor_arg(),
        count,
        epsilon as f32,
        length,
        units,
        dtype,
    );
    (x_grad, reciprocals)
}

/// A unit sums one vector of columns over a block of rows.
#[cube(launch, address_type = "dynamic")]
fn rms_norm_gamma_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    reciprocals: &Tensor<f32>,
    sums: &mut Tensor<Vector<f32, N>>,
    count: usize,
    rows: usize,
    #[comptime] length: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let column = ABSOLUTE_POS % length;
    let first = ABSOLUTE_POS / length * BLOCK;
    let last = min(first + BLOCK, rows);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for row in first..last {
        let at = row * length + column;
        let product = Vector::<f32, N>::cast_from(x[at]) * Vector::<f32, N>::cast_from(grad[at]);
        sum += product * Vector::<f32, N>::new(reciprocals[row]);
    }
    sums[ABSOLUTE_POS] = sum;
}

/// A unit adds one vector of columns over the blocks.
#[cube(launch, address_type = "dynamic")]
fn rms_norm_gamma_total_kernel<E: Float, N: Size>(
    sums: &Tensor<Vector<f32, N>>,
    total: &mut Tensor<Vector<E, N>>,
    length: usize,
    blocks: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= length {
        terminate!();
    }
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for block in 0..blocks {
        sum += sums[block * length + ABSOLUTE_POS];
    }
    total[ABSOLUTE_POS] = Vector::cast_from(sum);
}

/// Gamma's gradient, `[d]` in x's type: summed over blocks of rows first.
pub fn rms_norm_gamma(x: CubeTensor, grad: CubeTensor, reciprocals: CubeTensor) -> CubeTensor {
    let (x, grad, reciprocals) = (rows(x), rows(grad), rows(reciprocals));
    let [count, d] = [x.meta.shape()[0], x.meta.shape()[1]];
    let blocks = count.div_ceil(BLOCK);
    let sums = like(&x, vec![blocks, d], DType::F32);
    let total = like(&x, vec![d], x.dtype);
    // The sums are in f32, whose vectors are the narrower ones.
    let vector = width(&x, d).min(width(&sums, d));
    let length = d / vector;
    let work = blocks * length;
    let (cubes, dim) = units(&x, work);
    let client = x.client.clone();
    let (address, dtype) = (addresses(&[&x, &grad, &sums]), element(x.dtype));
    rms_norm_gamma_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        vector,
        x.into_tensor_arg(),
        grad.into_tensor_arg(),
        reciprocals.into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        work,
        count,
        length,
        dtype,
    );
    let (cubes, dim) = units(&total, length);
    rms_norm_gamma_total_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        vector,
        sums.into_tensor_arg(),
        total.clone().into_tensor_arg(),
        length,
        blocks,
        dtype,
    );
    total
}
