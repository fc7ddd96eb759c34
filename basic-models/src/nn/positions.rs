//! Interpolates position embeddings from one grid of patches to another: bicubic, like PyTorch's `interpolate`.

use burn::tensor::{DType, Tensor, TensorData};

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
