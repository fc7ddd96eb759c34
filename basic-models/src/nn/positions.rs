//! Interpolates from one grid of patches to another, like PyTorch's `interpolate`: position embeddings bicubically, and
//! features bilinearly. Also positions that are computed: by rotation (DINOv3) and by sines (AIMv2).

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Interpolates the embeddings of a square grid, row by row, in f32. With `antialias`, a position of a smaller
/// grid averages over the area that it covers (PyTorch's `antialias=True`, as in DINOv2 with registers but not
/// in DINOv2 without).
///
/// # Shapes
/// - x: `[old * old, width]`
/// - output: `[new * new, width]`
pub fn interpolated(x: Tensor<2>, old: usize, new: usize, antialias: bool) -> Tensor<2> {
    let (dtype, device) = (x.dtype(), x.device().without_autodiff());
    let along = weights(old, new, antialias);
    // Rows and columns are interpolated separately: the weight of an old position is the product of both.
    let mut both = Vec::with_capacity(new * new * old * old);
    for row in along.chunks(old) {
        for column in along.chunks(old) {
            both.extend(row.iter().flat_map(|y| column.iter().map(move |x| y * x)));
        }
    }
    let both = Tensor::<2>::from_data(TensorData::new(both, [new * new, old * old]), (&device, DType::F32));
    both.matmul(x.cast(DType::F32)).cast(dtype)
}

/// Interpolates the features of images on square grids, row by row, in f32: bilinear, PyTorch's `interpolate` with
/// `align_corners=False`, as Cambrian-1 brings the grids of its encoders together.
///
/// # Shapes
/// - x: `[N, old * old, width]`
/// - output: `[N, new * new, width]`
pub fn on_grid(x: Tensor<3>, old: usize, new: usize) -> Tensor<3> {
    if old == new {
        return x;
    }
    let [n, _, width] = x.dims();
    let (dtype, device) = (x.dtype(), x.device().without_autodiff());
    let along = TensorData::new(linear_weights(old, new), [1, new, old]);
    let along = Tensor::<3>::from_data(along, (&device, DType::F32));
    // The rows of the grids first, then the columns.
    let rows = along.clone().matmul(x.cast(DType::F32).reshape([n, old, old * width]));
    let columns = along.matmul(rows.reshape([n * new, old, width]));
    columns.reshape([n, new * new, width]).cast(dtype)
}

/// The angles by which queries and keys are turned.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// `[1, T, width / 2]`
    pub cos: Tensor<3>,
    /// `[1, T, width / 2]`
    pub sin: Tensor<3>,
}

/// DINOv3's rotary positions of a square grid, behind `special` positions that do not turn: half of a head's pairs turn with
/// the row of the patch's middle and half with its column, both from -1 to 1.
pub fn rotation(side: usize, special: usize, width: usize, theta: f64, dtype: DType, device: &Device) -> Rotation {
    let frequencies: Vec<f64> =
        (0..width / 4).map(|i| 2.0 * std::f64::consts::PI / theta.powf(4.0 * i as f64 / width as f64)).collect();
    let place = |index: usize| 2.0 * (index as f64 + 0.5) / side as f64 - 1.0;
    let mut angles = vec![0f64; special * (width / 2)];
    for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
        angles.extend([row, column].into_iter().flat_map(|at| frequencies.iter().map(move |f| place(at) * f)));
    }
    let of = |function: fn(f64) -> f64| {
        let values: Vec<f32> = angles.iter().map(|angle| function(*angle) as f32).collect();
        let shape = [1, special + side * side, width / 2];
        Tensor::<3>::from_data(TensorData::new(values, shape), (device, DType::F32)).cast(dtype)
    };
    Rotation { cos: of(f64::cos), sin: of(f64::sin) }
}

/// AIMv2's positions by sines, `[side * side, width]`: sine and cosine of the column, then of the row.
pub fn sines(side: usize, width: usize, dtype: DType, device: &Device) -> Tensor<2> {
    let quarter = width / 4;
    let frequencies: Vec<f64> = (0..quarter).map(|i| 1e4f64.powf(-(i as f64) / quarter as f64)).collect();
    let mut values = Vec::with_capacity(side * side * width);
    for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
        for at in [column, row] {
            values.extend(frequencies.iter().map(|f| (at as f64 * f).sin() as f32));
            values.extend(frequencies.iter().map(|f| (at as f64 * f).cos() as f32));
        }
    }
    Tensor::<2>::from_data(TensorData::new(values, [side * side, width]), (device, DType::F32)).cast(dtype)
}

/// The bilinear weights of the `old` samples in each of the `new` ones, `[new, old]`.
fn linear_weights(old: usize, new: usize) -> Vec<f32> {
    let scale = old as f64 / new as f64;
    let mut all = vec![0f32; new * old];
    for (i, row) in all.chunks_mut(old).enumerate() {
        // The place of the middle of a new sample; before the first sample and behind the last one is their value.
        let place = ((i as f64 + 0.5) * scale - 0.5).clamp(0.0, (old - 1) as f64);
        let first = place.floor();
        let share = (place - first) as f32;
        row[first as usize] += 1.0 - share;
        row[(first as usize + 1).min(old - 1)] += share;
    }
    all
}

/// The weights of the `old` samples in each of the `new` ones, `[new, old]`.
fn weights(old: usize, new: usize, antialias: bool) -> Vec<f32> {
    let scale = old as f64 / new as f64;
    let mut all = vec![0f64; new * old];
    for (i, row) in all.chunks_mut(old).enumerate() {
        let center = (i as f64 + 0.5) * scale;
        if antialias {
            let stretch = scale.max(1.0);
            let first = (center - 2.0 * stretch + 0.5).max(0.0) as usize;
            let last = ((center + 2.0 * stretch + 0.5) as usize).min(old);
            for (j, weight) in row.iter_mut().enumerate().take(last).skip(first) {
                *weight = cubic((j as f64 - center + 0.5) / stretch, -0.5);
            }
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|weight| *weight /= sum);
        } else {
            let nearest = (center - 0.5).floor();
            for j in -1..=2 {
                // A sample beyond the edge has the value at the edge.
                let at = (nearest as i64 + j).clamp(0, old as i64 - 1) as usize;
                row[at] += cubic(center - 0.5 - nearest - j as f64, -0.75);
            }
        }
    }
    all.into_iter().map(|weight| weight as f32).collect()
}

/// The cubic convolution kernel of Keys (1981).
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_interpolated_between_the_middles_of_their_patches() {
        // PyTorch: interpolate(torch.arange(3.).reshape(1, 1, 3), size=n, mode="linear", align_corners=False)
        for (new, expected) in [(2, vec![0.25, 1.75]), (6, vec![0.0, 0.25, 0.75, 1.25, 1.75, 2.0]), (1, vec![1.0])] {
            let found: Vec<f32> = linear_weights(3, new).chunks(3).map(|row| row[1] + 2.0 * row[2]).collect();
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        }
        let device = basic_core::DeviceSpec::Cpu.open().unwrap();
        // Two images whose features are 10 * row + column, and minus that.
        let plane: Vec<f32> = (0..9).map(|i| (i / 3 * 10 + i % 3) as f32).collect();
        let values: Vec<f32> = plane.iter().copied().chain(plane.iter().map(|x| -x)).collect();
        let x = Tensor::<3>::from_data(TensorData::new(values, [2, 9, 1]), &device);
        let y: Vec<f32> = on_grid(x, 3, 2).into_data().try_to_vec().unwrap();
        assert_eq!(y[..4], [2.75, 4.25, 17.75, 19.25]);
        assert_eq!(y[4..], [-2.75, -4.25, -17.75, -19.25]);
    }

    #[test]
    fn a_grid_of_the_same_size_stays_and_constants_stay_constant() {
        for antialias in [false, true] {
            for (i, weight) in weights(5, 5, antialias).into_iter().enumerate() {
                assert!((weight - f32::from(u8::from(i % 6 == 0))).abs() < 1e-6);
            }
            for (old, new) in [(7, 4), (4, 7), (37, 16), (2, 1), (1, 3)] {
                for row in weights(old, new, antialias).chunks(old) {
                    assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{old} to {new}");
                }
            }
        }
    }
}
