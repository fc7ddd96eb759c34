//! The kinds of projectors and their names.

use super::{ConfigError, unsupported};

/// The kind of projector between the vision encoder and the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectorKind {
    /// `linear`: one layer.
    Linear,
    /// `mlp{N}x_gelu`: N layers with the activation between them; LLaVA-1.5 has two.
    Mlp {
        /// N, at least 1.
        layers: usize,
    },
    /// `pixel_shuffle{R}_mlp{N}x_gelu`: squares of R x R patches are joined into one before the MLP, so that an image
    /// has R^2 times fewer visual tokens.
    PixelShuffle {
        /// R, at least 2.
        factor: usize,
        /// N, at least 1.
        layers: usize,
    },
    /// `fused_gelu_mlp`: Prismatic's projector for the joined features of several encoders: three layers, of which the
    /// first widens the features four times.
    FusedMlp,
    /// `identity`: the encoder's features unchanged.
    Identity,
    /// `perceiver_q{Q}_l{L}`: Flamingo's Perceiver resampler as TinyLLaVA Factory has it (`resampler`): Q learned
    /// queries, as wide as the decoder, attend to the features and to themselves in L layers.
    Perceiver {
        /// Q, the number of visual embeddings.
        queries: usize,
        /// L.
        layers: usize,
    },
    /// `qformer_q{Q}_l{L}_w{W}`: BLIP-2's Q-Former as TinyLLaVA Factory has it: Q learned queries of width W go through
    /// L layers of BERT, of which every other one attends to the features.
    QFormer {
        /// Q, the number of visual embeddings.
        queries: usize,
        /// L.
        layers: usize,
        /// W, a multiple of 64, the width of a head.
        width: usize,
    },
    /// `c_abstractor_q{Q}_l{L}_w{W}`: Honeybee's C-Abstractor: L convolution blocks of width W, a pooling of the grid to
    /// Q squares, and L blocks after it.
    CAbstractor {
        /// Q, a square number.
        queries: usize,
        /// L.
        layers: usize,
        /// W.
        width: usize,
    },
    /// `ldpv2_q{Q}`: MobileVLM V2's lightweight downsample projector: an MLP, a pooling of the grid to Q squares, and a
    /// convolution that adds their positions.
    Ldp {
        /// Q, a square number.
        queries: usize,
    },
}

const SUPPORTED: &str = "linear, mlp{N}x_gelu, pixel_shuffle{R}_mlp{N}x_gelu, fused_gelu_mlp, perceiver_q{Q}_l{L}, \
                         qformer_q{Q}_l{L}_w{W}, c_abstractor_q{Q}_l{L}_w{W}, ldpv2_q{Q} or identity";

/// The most queries, layers and width of a projector. Those of the original projects are far below.
const MOST: [(char, usize); 3] = [('q', 4096), ('l', 64), ('w', 8192)];

/// The width of a head of the Q-Former, BERT's.
pub(crate) const QFORMER_HEAD: usize = 64;

/// The settings in a name such as `_q64_l3`, in this order, of which each has a default; `None` if there are others.
fn settings<const N: usize>(text: &str, known: [(char, usize); N]) -> Option<[usize; N]> {
    let mut values = known.map(|(_, default)| default);
    let mut next = 0;
    for part in text.split('_').skip(1) {
        let letter = part.chars().next()?;
        let at = (next..N).find(|at| known[*at].0 == letter)?;
        let (_, most) = MOST.into_iter().find(|(of, _)| *of == letter)?;
        let digits = part.strip_prefix(letter).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        values[at] = digits.parse().ok().filter(|value| (1..=most).contains(value))?;
        next = at + 1;
    }
    Some(values)
}

impl ProjectorKind {
    /// LLaVA-1.5's projector, the only one that transformers' `LlavaConfig` can express.
    pub const LLAVA: Self = Self::Mlp { layers: 2 };

    /// The projector with the name `name`. Settings that a resampler's name leaves out are those of the original
    /// project.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError::Unsupported`], which names `key`.
    pub fn parse(key: &str, name: &str) -> Result<Self, ConfigError> {
        let wrong = || unsupported(key, name, SUPPORTED);
        let mlp = |text: &str| -> Option<usize> {
            text.strip_prefix("mlp")?.strip_suffix("x_gelu")?.parse().ok().filter(|n| (1..=16).contains(n))
        };
        let after = |base: &str| name.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with('_'));
        let found = if let Some(rest) = after("perceiver") {
            settings(rest, [('q', 128), ('l', 3)]).map(|[queries, layers]| Self::Perceiver { queries, layers })
        } else if let Some(rest) = after("qformer") {
            let found = settings(rest, [('q', 128), ('l', 12), ('w', 768)]);
            found
                .filter(|[_, _, width]| width.is_multiple_of(QFORMER_HEAD))
                .map(|[queries, layers, width]| Self::QFormer { queries, layers, width })
        } else if let Some(rest) = after("c_abstractor") {
            let found = settings(rest, [('q', 144), ('l', 3), ('w', 1024)]);
            found.filter(|[queries, ..]| is_square(*queries)).map(|[queries, layers, width]| Self::CAbstractor {
                queries,
                layers,
                width,
            })
        } else if let Some(rest) = after("ldpv2") {
            settings(rest, [('q', 144)]).filter(|[queries]| is_square(*queries)).map(|[queries]| Self::Ldp { queries })
        } else if let Some((factor, rest)) = name.strip_prefix("pixel_shuffle").and_then(|rest| rest.split_once('_')) {
            let factor = factor.parse().ok().filter(|r| (2..=8).contains(r)).ok_or_else(wrong)?;
            mlp(rest).map(|layers| Self::PixelShuffle { factor, layers })
        } else {
            match name {
                "linear" => Some(Self::Linear),
                "identity" => Some(Self::Identity),
                "fused_gelu_mlp" => Some(Self::FusedMlp),
                _ => mlp(name).map(|layers| Self::Mlp { layers }),
            }
        };
        found.ok_or_else(wrong)
    }

    /// The projector's name, which [`ProjectorKind::parse`] can read.
    pub fn name(self) -> String {
        match self {
            Self::Linear => "linear".into(),
            Self::Mlp { layers } => format!("mlp{layers}x_gelu"),
            Self::PixelShuffle { factor, layers } => format!("pixel_shuffle{factor}_mlp{layers}x_gelu"),
            Self::Identity => "identity".into(),
            Self::FusedMlp => "fused_gelu_mlp".into(),
            Self::Perceiver { queries, layers } => format!("perceiver_q{queries}_l{layers}"),
            Self::QFormer { queries, layers, width } => format!("qformer_q{queries}_l{layers}_w{width}"),
            Self::CAbstractor { queries, layers, width } => format!("c_abstractor_q{queries}_l{layers}_w{width}"),
            Self::Ldp { queries } => format!("ldpv2_q{queries}"),
        }
    }

    /// The number of linear layers of a projector that computes each visual embedding by itself; 0 for a resampler.
    pub fn layers(self) -> usize {
        match self {
            Self::Linear => 1,
            Self::FusedMlp => 3,
            Self::Mlp { layers } | Self::PixelShuffle { layers, .. } => layers,
            Self::Identity
            | Self::Perceiver { .. }
            | Self::QFormer { .. }
            | Self::CAbstractor { .. }
            | Self::Ldp { .. } => 0,
        }
    }

    /// The widths of the input and the output of each of these layers, for features and a decoder of the given widths.
    pub fn widths(self, features: usize, decoder: usize) -> Vec<[usize; 2]> {
        let joined = features * self.shuffle() * self.shuffle();
        let inner = if self == Self::FusedMlp { 4 * joined } else { decoder };
        let layer = |index: usize| match index {
            0 if self.layers() == 1 => [joined, decoder],
            0 => [joined, inner],
            1 => [inner, decoder],
            _ => [decoder; 2],
        };
        (0..self.layers()).map(layer).collect()
    }

    /// The number of patches along a side that become one visual token.
    pub fn shuffle(self) -> usize {
        match self {
            Self::PixelShuffle { factor, .. } => factor,
            _ => 1,
        }
    }

    /// The number of visual embeddings of an image, if it does not depend on the image's size.
    pub fn queries(self) -> Option<usize> {
        match self {
            Self::Perceiver { queries, .. }
            | Self::QFormer { queries, .. }
            | Self::CAbstractor { queries, .. }
            | Self::Ldp { queries } => Some(queries),
            _ => None,
        }
    }

    /// The number of squares along a side, if the grid of patches is pooled to a smaller grid.
    pub fn pooled_side(self) -> Option<usize> {
        match self {
            Self::CAbstractor { queries, .. } | Self::Ldp { queries } => Some(queries.isqrt()),
            _ => None,
        }
    }
}

fn is_square(number: usize) -> bool {
    number.isqrt().pow(2) == number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_widths_follow_from_the_kind() {
        let widths = |name: &str| ProjectorKind::parse("projector", name).unwrap().widths(5, 7);
        assert_eq!(widths("linear"), [[5, 7]]);
        assert_eq!(widths("mlp3x_gelu"), [[5, 7], [7, 7], [7, 7]]);
        assert_eq!(widths("pixel_shuffle2_mlp2x_gelu"), [[20, 7], [7, 7]]);
        assert_eq!(widths("fused_gelu_mlp"), [[5, 20], [20, 7], [7, 7]]);
        assert!(widths("identity").is_empty());
    }

    #[test]
    fn names_read_back_and_others_are_errors() {
        for name in [
            "linear",
            "mlp1x_gelu",
            "mlp2x_gelu",
            "mlp3x_gelu",
            "pixel_shuffle2_mlp2x_gelu",
            "fused_gelu_mlp",
            "identity",
            "perceiver_q64_l2",
            "qformer_q32_l6_w256",
            "c_abstractor_q64_l2_w512",
            "ldpv2_q16",
        ] {
            assert_eq!(ProjectorKind::parse("k", name).unwrap().name(), name);
        }
        for name in [
            "mlp0x_gelu",
            "mlpx_gelu",
            "resampler",
            "pixel_shuffle1_mlp2x_gelu",
            "pixel_shuffle2_linear",
            "",
            "perceiver64",
            "perceiver_64",
            "perceiver_q0",
            "perceiver_q5000",
            "perceiver_l3_q64",
            "perceiver_q64_q64",
            "perceiver_q+64",
            "perceiver_",
            "qformer_w100",
            "qformer_q99999999999999999999",
            "c_abstractor_q12",
            "ldpv2_q10",
            "ldpv2_l2",
        ] {
            let error = ProjectorKind::parse("mm_projector_type", name).unwrap_err().to_string();
            assert!(error.contains("mm_projector_type") && error.contains("pixel_shuffle{R}"), "{error}");
        }
    }

    #[test]
    fn settings_that_a_name_leaves_out_are_those_of_the_original_projects() {
        // TinyLLaVA Factory's num_queries and num_resampler_layers and BERT base; Honeybee's configurations of 144
        // visual tokens; MobileVLM V2's pooling to 12 x 12.
        for (name, whole) in [
            ("perceiver", "perceiver_q128_l3"),
            ("qformer", "qformer_q128_l12_w768"),
            ("qformer_l2", "qformer_q128_l2_w768"),
            ("c_abstractor", "c_abstractor_q144_l3_w1024"),
            ("ldpv2", "ldpv2_q144"),
        ] {
            assert_eq!(ProjectorKind::parse("k", name).unwrap().name(), whole);
        }
    }
}
