//! Transcendental functions that the compiler can vectorize, and reductions with independent lanes. Call them inside
//! [`simd`], which compiles its closure for the widest instructions of this CPU.

/// Runs `body`, compiled for the widest vector instructions of this CPU. All that it calls must be inlined into it.
#[inline(always)]
pub fn simd<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// The number of partial sums that a reduction keeps: the compiler does not reorder floating-point sums by itself.
pub const LANES: usize = 16;

/// `e^x`, within 2 units in the last place; 0 below -87.3 (where f32 has no normal numbers left), infinite above 88.7,
/// NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which is then in
    // the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as a sum of two numbers, so that n * ln 2 is exact enough.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons, because `min` and `max` would drop a NaN.
    let clipped = if x > 88.8 { 88.8 } else { x };
    let clipped = if clipped < -88.0 { -88.0 } else { clipped };
    let shifted = clipped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clipped - n * LN2_HIGH - n * LN2_LOW;
    // The Taylor series of e^r up to the seventh power; the next term is below 3e-9 on the interval.
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // 2^n as a product of two factors, because n reaches 128, which is above the largest exponent.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = p * power(half) * power(n - half);
    if x < -87.3 { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The largest element; minus infinity if there is none. A NaN may or may not be returned.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of `f` over the elements' indices, in a fixed order.
#[inline(always)]
pub fn sum(n: usize, mut f: impl FnMut(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut at = 0;
    while at < whole {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(at + i);
        }
        at += LANES;
    }
    for (i, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += f(whole + i);
    }
    lanes.into_iter().sum()
}

/// The sum of the elements' products.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    sum(n, |i| a[i] * b[i])
}

/// Replaces every element by `e^(x - shift)` and returns their sum.
#[inline(always)]
pub fn exp_in_place(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - shift);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - shift);
        *lane += *x;
    }
    lanes.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in -873_000..=887_000 {
            let x = i as f32 * 1e-4;
            let (ours, true_value) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((ours - true_value).abs() / true_value);
        }
        assert!(worst < 2.4e-7, "{worst:e}");
    }

    #[test]
    fn exp_keeps_nan_and_reaches_zero_and_infinity() {
        assert!(exp(f32::NAN).is_nan());
        assert_eq!((exp(-90.0), exp(-1e4), exp(f32::NEG_INFINITY)), (0.0, 0.0, 0.0));
        assert_eq!((exp(0.0), exp(89.0), exp(1e4)), (1.0, f32::INFINITY, f32::INFINITY));
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(sigmoid(f32::NAN).is_nan() && sigmoid(200.0) == 1.0 && sigmoid(-200.0) == 0.0);
    }

    #[test]
    fn reductions_cover_every_length() {
        for n in 0..70 {
            let row: Vec<f32> = (0..n).map(|i| ((i * 37) % 19) as f32 - 9.0).collect();
            assert_eq!(simd(|| sum(n, |i| row[i])), row.iter().sum::<f32>());
            assert_eq!(simd(|| max(&row)), row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(simd(|| dot(&row, &row)), row.iter().map(|x| x * x).sum::<f32>());
        }
    }
}
