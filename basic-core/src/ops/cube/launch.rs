//! What every launch needs: contiguous operands, the width of a load, the number of cubes.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::{AddressType, CubeCount, CubeDim};

/// What every device lets a grid have along one dimension.
const GRID: usize = 65_535;

/// The tensor in row-major order without gaps.
pub fn rows(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// A tensor to be written, laid out as [`rows`].
pub fn like(tensor: &CubeTensor, shape: Vec<usize>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), Shape::from(shape), dtype)
}

/// CubeCL's name of a type.
///
/// # Panics
///
/// Where [`takes`](super::takes) says no.
pub fn element(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F32 => FloatKind::F32,
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        other => unreachable!("{other:?} is for the portable bodies"),
    })
}

/// Elements of one load: the most that the device loads well and that divide `length`.
pub fn width(tensor: &CubeTensor, length: usize) -> usize {
    let sizes = tensor.client.io_optimized_vector_sizes(tensor.dtype.size());
    sizes.filter(|size| length.is_multiple_of(*size)).max().unwrap_or(1)
}

/// The largest of the tensors' addresses.
pub fn addresses(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

/// So many cubes, along two dimensions where one is too short: `CUBE_POS` may then exceed their number.
pub fn cubes(count: usize) -> CubeCount {
    let wide = count.clamp(1, GRID);
    CubeCount::Static(wide as u32, count.div_ceil(wide).max(1) as u32, 1)
}

/// Cubes of 256 units, or fewer where the device has none so large, for `count` units: `ABSOLUTE_POS` may exceed it.
pub fn units(tensor: &CubeTensor, count: usize) -> (CubeCount, CubeDim) {
    let size = unit_limit(tensor).min(256);
    (cubes(count.div_ceil(size)), CubeDim::new_1d(size as u32))
}

/// Units of a cube at most, a power of two.
pub fn unit_limit(tensor: &CubeTensor) -> usize {
    let most = tensor.client.properties().hardware.max_units_per_cube.max(1) as usize;
    if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 }
}
