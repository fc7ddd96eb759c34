//! The gradient of a table from which rows were selected: one cube for each row of the table adds up the gradients of
//! its occurrences in order, so that the result does not depend on the order of the cubes.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, cubes, element, like, rows, unit_limit, width};

/// ids `[n]`, grad `[n, d]`, sums `[rows, d]`.
#[cube(launch, address_type = "dynamic")]
fn gather_kernel<E: Float, N: Size>(
    ids: &Tensor<i32>,
    grad: &Tensor<Vector<E, N>>,
    sums: &mut Tensor<Vector<E, N>>,
    table: usize,
    count: usize,
    #[comptime] length: usize,
    #[comptime] units: usize,
    #[define(E)] _dtype: ElemType,
) {
    // How often each unit found the row in `ids`, and where last.
    let mut times = Shared::<[u32]>::new_slice(units);
    let mut places = Shared::<[u32]>::new_slice(units);
    let row = CUBE_POS;
    if row >= table {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let mut met = 0u32.runtime();
    let mut place = 0u32.runtime();
    for i in range_stepped(unit, count, units) {
        if ids[i] == row as i32 {
            met += 1;
            place = i as u32;
        }
    }
    times[unit] = met;
    places[unit] = place;
    sync_cube();
    let mut step = (units / 2).runtime();
    while step > 0 {
        if unit < step {
            let others = times[unit + step];
            if others > 0 {
                places[unit] = max(places[unit], places[unit + step]);
                times[unit] += others;
            }
        }
        sync_cube();
        step /= 2;
    }
    let met = times[0];
    let last = places[0] as usize;
    for column in range_stepped(unit, length, units) {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        if met == 1 {
            sum = Vector::cast_from(grad[last * length + column]);
        }
        if met > 1 {
            for i in 0..last + 1 {
                if ids[i] == row as i32 {
                    sum += Vector::<f32, N>::cast_from(grad[i * length + column]);
                }
            }
        }
        sums[row * length + column] = Vector::cast_from(sum);
    }
}

/// The table's gradient, `[table, d]`; ids are in i32.
pub fn gather(table: usize, ids: CubeTensor, grad: CubeTensor) -> CubeTensor {
    let (ids, grad) = (rows(ids), rows(grad));
    let [count, d] = [grad.meta.shape()[0], grad.meta.shape()[1]];
    let vector = width(&grad, d);
    let sums = like(&grad, vec![table, d], grad.dtype);
    let units = 256.min(unit_limit(&grad));
    let client = grad.client.clone();
    let (address, dtype) = (addresses(&[&grad, &sums]), element(grad.dtype));
    gather_kernel::launch(
        &client,
        cubes(table),
        CubeDim::new_1d(units as u32),
        address,
        vector,
        ids.into_tensor_arg(),
        grad.into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        table,
        count,
        d / vector,
        units,
        dtype,
    );
    sums
}
