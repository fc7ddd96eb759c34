//! Llama 3's scaling of rotary frequencies. GGUF holds it as one divisor for each frequency, config.json as four
//! settings.

use crate::config::{Rope, RopeKind};

/// The tensor of the divisors.
pub(super) const TENSOR: &str = "rope_freqs.weight";

/// What each frequency of a head is divided by.
pub(super) fn divisors(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let plain = Rope { kind: RopeKind::Default, ..rope.clone() };
    let pairs = plain.frequencies(head_dim, 0).into_iter().zip(rope.frequencies(head_dim, 0));
    pairs.map(|(plain, scaled)| plain / scaled).collect()
}

/// The settings that give these divisors, if they are Llama 3's with its bounds 1 and 4: the factor is the largest
/// divisor, and the original context is `original` or one of those of the Llama models.
pub(super) fn settings(theta: f64, divisors: &[f32], original: Option<u32>) -> Option<Rope> {
    let factor = divisors.iter().copied().fold(0.0f32, f32::max);
    if !(factor.is_finite() && factor >= 1.0) || divisors.iter().any(|divisor| !(1.0..=factor).contains(divisor)) {
        return None;
    }
    let originals = original.into_iter().chain([8192, 4096, 2048, 16384, 32768, 65536, 131_072]);
    originals.map(f64::from).find_map(|original| {
        let kind = RopeKind::Llama3 { factor: f64::from(factor), low: 1.0, high: 4.0, original };
        let rope = Rope { theta, kind, ..Rope::default() };
        let given = self::divisors(&rope, 2 * divisors.len());
        // Divisors that converters computed in double precision differ in the last digits.
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b.abs();
        (given.len() == divisors.len() && given.iter().zip(divisors).all(close)).then_some(rope)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_again_from_the_divisors() {
        for (factor, original, stated) in [(8.0, 8192.0, None), (32.0, 8192.0, None), (8.0, 64.0, Some(64))] {
            let kind = RopeKind::Llama3 { factor, low: 1.0, high: 4.0, original };
            let rope = Rope { theta: 500_000.0, kind, ..Rope::default() };
            let divisors = divisors(&rope, 128);
            assert_eq!(settings(500_000.0, &divisors, stated), Some(rope));
        }
        assert_eq!(settings(10_000.0, &[1.0, 3.0, 2.0, 8.0], None), None);
        assert_eq!(settings(10_000.0, &[f32::NAN, 1.0], None), None);
        assert_eq!(settings(10_000.0, &[], None), None);
    }
}
