//! What projectors that work on the grid of patches share: pooling to a smaller grid, and a convolution by channel.

use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};

/// Averages a square grid, row by row, to a smaller one: PyTorch's `AdaptiveAvgPool2d`, whose squares overlap where the
/// old side is no multiple of the new one.
///
/// # Shapes
/// - x: `[N, old * old, width]`
/// - output: `[N, new * new, width]`
pub(super) fn pooled(x: Tensor<3>, new: usize) -> Tensor<3> {
    let [n, patches, width] = x.dims();
    let old = patches.isqrt();
    if old == new {
        return x;
    }
    let along = weights(old, new);
    // Rows and columns are averaged separately: the weight of an old square is the product of both.
    let mut both = Vec::with_capacity(patches * new * new);
    for old_square in 0..patches {
        for new_square in 0..new * new {
            let row = along[new_square / new * old + old_square / old];
            both.push(row * along[new_square % new * old + old_square % old]);
        }
    }
    let device = x.device().without_autodiff();
    let both =
        Tensor::<2>::from_data(TensorData::new(both, [patches, new * new]), (&device, DType::F32)).cast(x.dtype());
    let columns = x.swap_dims(1, 2).reshape([n * width, patches]);
    columns.matmul(both).reshape([n, width, new * new]).swap_dims(1, 2)
}

/// The weights of the `old` squares in each of the `new` ones along one side, `[new, old]`.
fn weights(old: usize, new: usize) -> Vec<f32> {
    let row = |i: usize| {
        let (first, end) = (i * old / new, ((i + 1) * old).div_ceil(new));
        (0..old).map(move |j| if (first..end).contains(&j) { 1.0 / (end - first) as f32 } else { 0.0 })
    };
    (0..new).flat_map(row).collect()
}

/// A convolution of 3 x 3 squares in each channel by itself, with zeros around the grid.
pub(super) fn depthwise(width: usize, bias: bool, device: &Device) -> Conv2d {
    Conv2dConfig::new([width, width], [3, 3])
        .with_groups(width)
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .with_bias(bias)
        .init(device)
}

/// Applies a convolution to square grids, row by row.
///
/// # Shapes
/// - x and output: `[N, side * side, width]`
pub(super) fn convolved(layer: &Conv2d, x: Tensor<3>) -> Tensor<3> {
    let [n, patches, width] = x.dims();
    let side = patches.isqrt();
    let y = layer.forward(x.swap_dims(1, 2).reshape([n, width, side, side]));
    y.reshape([n, width, patches]).swap_dims(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_averages_squares_that_overlap_where_they_do_not_fit() {
        // torch.nn.AdaptiveAvgPool1d(2) of 3 and AdaptiveAvgPool1d(3) of 5: the mean of these entries.
        assert_eq!(weights(3, 2), [0.5, 0.5, 0.0, 0.0, 0.5, 0.5]);
        let third = 1.0 / 3.0;
        let expected = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, third, third, third, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5];
        assert_eq!(weights(5, 3), expected);
        let device = basic_core::DeviceSpec::Cpu.open().unwrap();
        let x = Tensor::<1>::from_floats(std::array::from_fn::<f32, 16, _>(|i| i as f32), &device).reshape([1, 16, 1]);
        let y: Vec<f32> = pooled(x, 2).into_data().try_to_vec().unwrap();
        assert_eq!(y, [2.5, 4.5, 10.5, 12.5]);
    }
}
