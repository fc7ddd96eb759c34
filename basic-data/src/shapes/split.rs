//! Splits scenes into train, validation and eval, which are disjoint for every seed.

use std::collections::HashSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::scene::{Colour, Scene, Shape};

/// Colour-shape pairs that no train scene contains and that no text about a train scene names together.
pub const HELD_OUT_PAIRS: [(Colour, Shape); 4] = [
    (Colour::Red, Shape::Triangle),
    (Colour::Blue, Shape::Star),
    (Colour::Yellow, Shape::Cross),
    (Colour::Cyan, Shape::Circle),
];

/// The expected share of validation and eval scenes that contain one of [`HELD_OUT_PAIRS`].
pub const HELD_OUT_SHARE: f64 = 0.25;

/// A part of all possible scenes. The parts are disjoint by [`Scene::key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Scenes that anything, backbones included, may be trained on: 80% of the scenes without a held-out pair.
    Train,
    /// Scenes for choosing settings: 10% of all scenes.
    Validation,
    /// Scenes for reporting results only: 10% of all scenes.
    Eval,
}

impl Split {
    /// Every split, in order.
    pub const ALL: &'static [Self] = &[Self::Train, Self::Validation, Self::Eval];

    /// The split's name in files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Eval => "eval",
        }
    }
}

impl Scene {
    /// The split that the scene belongs to, by a stable hash of [`Scene::key`]; `None` for a scene with a held-out pair
    /// that would otherwise be a train scene.
    pub fn split(&self) -> Option<Split> {
        match fnv1a(self.key().as_bytes()) % 100 {
            0..80 if self.has_held_out_pair() => None,
            0..80 => Some(Split::Train),
            80..90 => Some(Split::Validation),
            _ => Some(Split::Eval),
        }
    }

    /// Whether an object's colour and shape are one of [`HELD_OUT_PAIRS`].
    pub fn has_held_out_pair(&self) -> bool {
        self.objects().iter().any(|o| HELD_OUT_PAIRS.contains(&(o.colour, o.shape)))
    }
}

/// `n` distinct scenes of `split`. The first scenes of a longer list with the same seed are the same.
///
/// Each split has more than 10^8 scenes, so memory limits `n` first.
pub fn sample_scenes(split: Split, n: usize, seed: u64) -> Vec<Scene> {
    let mut rng = seeded(seed, Purpose::Scenes, split, 0);
    let mut seen = HashSet::with_capacity(n);
    let mut scenes = Vec::with_capacity(n);
    while scenes.len() < n {
        let held_out = split != Split::Train && rng.random_bool(HELD_OUT_SHARE);
        let scene = loop {
            let scene = Scene::random(&mut rng);
            if scene.has_held_out_pair() == held_out && scene.split() == Some(split) {
                break scene;
            }
        };
        if seen.insert(scene.key()) {
            scenes.push(scene);
        }
    }
    scenes
}

/// The purpose of a stream of random numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The scenes of a split.
    Scenes = 0,
    /// The render seed and the texts of one sample.
    Sample = 1,
}

/// The stream of random numbers for one purpose, split and index. No two share any numbers, so a change in one sample
/// leaves all others unchanged.
pub(super) fn seeded(seed: u64, purpose: Purpose, split: Split, index: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose as u64) << 60 | (split as u64) << 56 | index as u64);
    rng
}

/// The 64-bit FNV-1a hash. Unlike the hashers of the standard library it is guaranteed to stay the same.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::fnv1a;

    #[test]
    fn the_hash_matches_the_published_fnv1a_vectors() {
        // From the reference test suite of FNV (Landon Curt Noll): "", "a" and "foobar".
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
