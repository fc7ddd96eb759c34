//! The kinds of projectors and LLaVA's names for them.

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
    /// `identity`: the encoder's features unchanged.
    Identity,
}

const SUPPORTED: &str = "linear, mlp{N}x_gelu, pixel_shuffle{R}_mlp{N}x_gelu or identity";

impl ProjectorKind {
    /// LLaVA-1.5's projector, the only one that transformers' `LlavaConfig` can express.
    pub const LLAVA: Self = Self::Mlp { layers: 2 };

    /// The projector with the name `name`.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError::Unsupported`], which names `key`.
    pub fn parse(key: &str, name: &str) -> Result<Self, ConfigError> {
        let wrong = || unsupported(key, name, SUPPORTED);
        let mlp = |text: &str| -> Option<usize> {
            text.strip_prefix("mlp")?.strip_suffix("x_gelu")?.parse().ok().filter(|n| (1..=16).contains(n))
        };
        match name {
            "linear" => Ok(Self::Linear),
            "identity" => Ok(Self::Identity),
            _ => match name.strip_prefix("pixel_shuffle").and_then(|rest| rest.split_once('_')) {
                Some((factor, rest)) => {
                    let factor = factor.parse().ok().filter(|r| (2..=8).contains(r)).ok_or_else(wrong)?;
                    Ok(Self::PixelShuffle { factor, layers: mlp(rest).ok_or_else(wrong)? })
                }
                None => Ok(Self::Mlp { layers: mlp(name).ok_or_else(wrong)? }),
            },
        }
    }

    /// The projector's name, which [`ProjectorKind::parse`] can read.
    pub fn name(self) -> String {
        match self {
            Self::Linear => "linear".into(),
            Self::Mlp { layers } => format!("mlp{layers}x_gelu"),
            Self::PixelShuffle { factor, layers } => format!("pixel_shuffle{factor}_mlp{layers}x_gelu"),
            Self::Identity => "identity".into(),
        }
    }

    /// The number of linear layers.
    pub fn layers(self) -> usize {
        match self {
            Self::Linear => 1,
            Self::Mlp { layers } | Self::PixelShuffle { layers, .. } => layers,
            Self::Identity => 0,
        }
    }

    /// The number of patches along a side that become one visual token.
    pub fn shuffle(self) -> usize {
        match self {
            Self::PixelShuffle { factor, .. } => factor,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_others_are_errors() {
        for name in ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu", "pixel_shuffle2_mlp2x_gelu", "identity"] {
            assert_eq!(ProjectorKind::parse("k", name).unwrap().name(), name);
        }
        for name in ["mlp0x_gelu", "mlpx_gelu", "resampler", "pixel_shuffle1_mlp2x_gelu", "pixel_shuffle2_linear", ""] {
            let error = ProjectorKind::parse("mm_projector_type", name).unwrap_err().to_string();
            assert!(error.contains("mm_projector_type") && error.contains("pixel_shuffle{R}"), "{error}");
        }
    }
}
