//! The settings of the rotary position embedding.

/// A rotary position embedding (transformers' `rope_parameters`; in version 4 `rope_theta` and `rope_scaling`).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are changed for longer contexts.
    pub kind: RopeKind,
    /// The fraction of a head that is rotated, from its start.
    pub partial: f64,
    /// How queries grow with their position; only Ministral 3 has it.
    pub growth: Option<QueryGrowth>,
}

/// How queries grow with their position: a query at position p is multiplied by
/// `1 + beta ln(1 + floor(p / original))` after its rotation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// The strength (`llama_4_scaling_beta`).
    pub beta: f64,
    /// The number of positions before the queries grow for the first time.
    pub original: f64,
}

/// How the frequencies are changed for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    /// They are not changed.
    Default,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The factor by which the context grows.
        factor: f64,
    },
    /// The base grows with sequences beyond `original` positions (NTK scaling).
    Dynamic {
        /// The factor by which the context grows.
        factor: f64,
        /// `max_position_embeddings`.
        original: usize,
    },
    /// Llama 3's scaling: low frequencies are divided by `factor`, high ones are kept, those between are interpolated.
    Llama3 {
        /// The factor by which the context grows.
        factor: f64,
        /// Frequencies with wavelengths above `original / low` are divided by the whole factor.
        low: f64,
        /// Frequencies with wavelengths below `original / high` are kept.
        high: f64,
        /// The context length before the scaling.
        original: f64,
    },
    /// YaRN: pairs that turn rarely within the original context are divided by `factor`, those that turn often are
    /// kept, and those between are interpolated by their index.
    Yarn {
        /// The factor by which the context grows.
        factor: f64,
        /// The context length before the scaling.
        original: f64,
        /// Pairs that turn more often than this within the original context are kept.
        fast: f64,
        /// Pairs that turn less often than this are divided by the whole factor.
        slow: f64,
        /// Whether the bounds between them are rounded to whole pairs.
        truncate: bool,
        /// The factor of the rotated queries and keys.
        attention: f64,
    },
    /// LongRoPE: each frequency has a divisor of its own, for sequences up to `original` positions and for longer ones.
    LongRope {
        /// The divisors for sequences of at most `original` positions, one a pair.
        short: Vec<f64>,
        /// The divisors for longer sequences.
        long: Vec<f64>,
        /// The context length before the scaling.
        original: f64,
        /// `max_position_embeddings`.
        context: f64,
        /// The factor of the rotated queries and keys; by default it follows from the two context lengths.
        attention: Option<f64>,
    },
}

impl Default for Rope {
    fn default() -> Self {
        Self { theta: 10000.0, kind: RopeKind::Default, partial: 1.0, growth: None }
    }
}

/// LongRoPE's factor of the rotated queries and keys for a context that is `factor` times as long as the original one.
pub(super) fn stretched_attention(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
}

impl Rope {
    /// The number of a head's dimensions that are rotated.
    pub fn rotary_dims(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial) as usize
    }

    /// The factor of the cosines and sines, and with them of the rotated queries and keys.
    pub fn attention_factor(&self) -> f64 {
        match &self.kind {
            RopeKind::Yarn { attention, .. } => *attention,
            RopeKind::LongRope { original, context, attention, .. } => {
                attention.unwrap_or_else(|| stretched_attention(context / original, *original))
            }
            _ => 1.0,
        }
    }

    /// The frequencies of a head's pairs for sequences of `length` positions, in f32 as transformers computes them.
    pub fn frequencies(&self, head_dim: usize, length: usize) -> Vec<f32> {
        let dims = self.rotary_dims(head_dim);
        let powers = |base: f32| (0..dims / 2).map(move |i| base.powf(2.0 * i as f32 / dims as f32));
        let plain = || powers(self.theta as f32).map(|power| 1.0 / power);
        match &self.kind {
            RopeKind::Default => plain().collect(),
            RopeKind::Linear { factor } => plain().map(|f| f / *factor as f32).collect(),
            RopeKind::Dynamic { factor, original } => {
                let (factor, original) = (*factor, *original);
                let stretch = factor * length.max(original) as f64 / original as f64 - (factor - 1.0);
                let exponent = dims as f64 / (dims as f64 - 2.0);
                powers((self.theta * stretch.powf(exponent)) as f32).map(|power| 1.0 / power).collect()
            }
            RopeKind::Llama3 { factor, low, high, original } => {
                let [factor, low, high, original] = [factor, low, high, original].map(|x| *x as f32);
                let stretched = |f: f32| {
                    let wavelength = std::f32::consts::TAU / f;
                    if wavelength < original / high {
                        f
                    } else if wavelength > original / low {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                plain().map(stretched).collect()
            }
            RopeKind::Yarn { factor, original, fast, slow, truncate, .. } => {
                // The index of the pair that turns so often within the original context.
                let pair = |turns: f64| {
                    let ratio = original / (turns * std::f64::consts::TAU);
                    dims as f64 * ratio.ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = (pair(*fast), pair(*slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
                let high = if low == high { high + 0.001 } else { high };
                let mixed = |(i, power): (usize, f32)| {
                    let kept = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    (1.0 - kept) / (*factor as f32 * power) + kept / power
                };
                powers(self.theta as f32).enumerate().map(mixed).collect()
            }
            RopeKind::LongRope { short, long, original, .. } => {
                let divisors = if length as f64 > *original { long } else { short };
                let divided = |(divisor, power): (&f64, f32)| 1.0 / (*divisor as f32 * power);
                divisors.iter().zip(powers(self.theta as f32)).map(divided).collect()
            }
        }
    }
}

impl QueryGrowth {
    /// The factor of a query at `position`, in f32 as transformers computes it.
    pub fn at(self, position: usize) -> f32 {
        1.0 + self.beta as f32 * (1.0 + (position as f32 / self.original as f32).floor()).ln()
    }
}
