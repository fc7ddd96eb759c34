//! Pillow's resampling of 8-bit images, to the last bit.
//!
//! fast_image_resize takes the same approach in another arithmetic: against Pillow 13 it was off by two steps of 255
//! on 31 of 235 high-contrast images of random size, and it has no say over which axis goes first.

use image::RgbImage;

use super::Resample;

/// Fractional bits of a weight: 32 less 8 for the sample and 2 for overshoot, as in Pillow's `Resample.c`.
const BITS: u32 = 22;

/// The source samples that make one target sample: the first one's index and their weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// `image` at `width` x `height` (none of the four lengths 0), one axis after the other, rounded and clipped to 8 bits
/// between them; bicubic filters overshoot, so the order shows.
pub(super) fn resize(image: &RgbImage, width: u32, height: u32, filter: Resample) -> RgbImage {
    let rows = |image: RgbImage| if width == image.width() { image } else { resize_rows(&image, width, filter) };
    let columns =
        |image: RgbImage| if height == image.height() { image } else { resize_columns(&image, height, filter) };
    if columns_first(image.dimensions(), (width, height)) {
        rows(columns(image.clone()))
    } else {
        columns(rows(image.clone()))
    }
}

/// Pillow 13's choice of the order, found by trying it: this rule explained 2,947 of 2,947 random pairs of sizes.
fn columns_first(from: (u32, u32), to: (u32, u32)) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (columns, rows) = (lost(from.0, to.0), lost(from.1, to.1));
    rows > 0 && rows > 2 * columns
}

fn resize_rows(image: &RgbImage, width: u32, filter: Resample) -> RgbImage {
    let windows = windows(image.width(), width, filter);
    let mut out = RgbImage::new(width, image.height());
    let from = image.chunks_exact(3 * image.width() as usize);
    for (from, to) in from.zip(out.chunks_exact_mut(3 * width as usize)) {
        for (window, to) in windows.iter().zip(to.chunks_exact_mut(3)) {
            let mut sums = [1 << (BITS - 1); 3];
            for (weight, pixel) in window.weights.iter().zip(from[3 * window.start..].chunks_exact(3)) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &sample)| *sum += i32::from(sample) * weight);
            }
            to.iter_mut().zip(sums).for_each(|(to, sum)| *to = to_sample(sum));
        }
    }
    out
}

fn resize_columns(image: &RgbImage, height: u32, filter: Resample) -> RgbImage {
    let row = 3 * image.width() as usize;
    let mut out = RgbImage::new(image.width(), height);
    let mut sums = vec![0; row];
    for (window, to) in windows(image.height(), height, filter).iter().zip(out.chunks_exact_mut(row)) {
        sums.fill(1 << (BITS - 1));
        for (weight, from) in window.weights.iter().zip(image.as_raw()[row * window.start..].chunks_exact(row)) {
            sums.iter_mut().zip(from).for_each(|(sum, &sample)| *sum += i32::from(sample) * weight);
        }
        to.iter_mut().zip(&sums).for_each(|(to, &sum)| *to = to_sample(sum));
    }
    out
}

fn to_sample(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

fn windows(from: u32, to: u32, filter: Resample) -> Vec<Window> {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0); // where the image shrinks, the filter widens: antialiasing
    let support = stretch
        * match filter {
            Resample::Bilinear => 1.0,
            Resample::Bicubic => 2.0,
        };
    let window = |i: u32| {
        let center = (f64::from(i) + 0.5) * scale;
        // Truncation, also of values below 0, as C's casts.
        let start = ((center - support + 0.5) as i64).max(0);
        let end = ((center + support + 0.5) as i64).min(i64::from(from));
        let inverse = 1.0 / stretch;
        let weights: Vec<f64> = (start..end).map(|x| weight((x as f64 - center + 0.5) * inverse, filter)).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |w: f64| {
            let w = if total == 0.0 { w } else { w / total } * f64::from(1 << BITS);
            (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
        };
        Window { start: start as usize, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

fn weight(x: f64, filter: Resample) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match filter {
        Resample::Bilinear => (1.0 - x).max(0.0),
        Resample::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        Resample::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        Resample::Bicubic => 0.0,
    }
}
