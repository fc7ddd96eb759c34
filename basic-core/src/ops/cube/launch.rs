//! What every launch needs: contiguous operands, the width of a load, the number of cubes.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::{AddressType, CubeCount, CubeDim};

/// The number of cubes along one dimension that every device allows.
const GRID: usize = 65_535;

/// The tensor in row-major order without gaps.
pub fn rows(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// A new tensor for a kernel to write, with the layout of [`rows`].
pub fn like(tensor: &CubeTensor, shape: Vec<usize>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), Shape::from(shape), dtype)
}

/// CubeCL's name for a type.
///
/// # Panics
///
/// Panics if [`takes`](super::takes) is false for the type.
pub fn element(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F32 => FloatKind::F32,
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        other => unreachable!("{other:?} is for the portable bodies"),
    })
}

/// The number of elements per load: the most that the device loads efficiently and that divide `length`.
pub fn width(tensor: &CubeTensor, length: usize) -> usize {
    let sizes = tensor.client.io_optimized_vector_sizes(tensor.dtype.size());
    sizes.filter(|size| length.is_multiple_of(*size)).max().unwrap_or(1)
}

/// The address type that is large enough for all of the tensors.
pub fn addresses(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

/// `count` cubes, along two dimensions if one is too short: `CUBE_POS` may then exceed `count`.
pub fn cubes(count: usize) -> CubeCount {
    let wide = count.clamp(1, GRID);
    CubeCount::Static(wide as u32, count.div_ceil(wide).max(1) as u32, 1)
}

/// Cubes of 256 units, or fewer if the device has none so large, for `count` units: `ABSOLUTE_POS` may exceed `count`.
pub fn units(tensor: &CubeTensor, count: usize) -> (CubeCount, CubeDim) {
    let size = unit_limit(tensor).min(256);
    (cubes(count.div_ceil(size)), CubeDim::new_1d(size as u32))
}

/// The most units that a cube can have, rounded down to a power of two.
pub fn unit_limit(tensor: &CubeTensor) -> usize {
    let most = tensor.client.properties().hardware.max_units_per_cube.max(1) as usize;
    if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 }
}
