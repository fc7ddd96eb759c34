//! The settings of the rotary position embedding.

use serde_json::{Value, json};

use super::{ConfigError, above_zero, unsupported};
use crate::outside::excerpt;

/// A rotary position embedding (transformers' `rope_parameters`; in version 4 `rope_theta` and `rope_scaling`).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are changed for longer contexts.
    pub kind: RopeKind,
    /// The fraction of a head that is rotated, from its start.
    pub partial: f64,
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
}

impl Default for Rope {
    fn default() -> Self {
        Self { theta: 10000.0, kind: RopeKind::Default, partial: 1.0 }
    }
}

impl Rope {
    /// Reads the keys of transformers 4 or 5 from a decoder's config.json. `rope_scaling` takes precedence, as
    /// in transformers 5.
    pub(super) fn from_value(value: &Value, partial: Option<f64>, context: usize) -> Result<Self, ConfigError> {
        let given = |key: &str| value.get(key).filter(|v| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty()));
        let (key, rope) = match (given("rope_scaling"), given("rope_parameters")) {
            (Some(rope), _) => ("rope_scaling", rope),
            (None, Some(rope)) => ("rope_parameters", rope),
            (None, None) => ("rope_parameters", &Value::Null),
        };
        if !rope.is_object() && !rope.is_null() {
            return Err(ConfigError::Type { key: format!("text_config.{key}"), reason: "expected an object".into() });
        }
        let path = |name: &str| format!("text_config.{key}.{name}");
        let number = |name: &str| -> Result<Option<f64>, ConfigError> {
            let Some(found) = rope.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
            match found.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(Some(x)),
                None => Err(ConfigError::Type {
                    key: path(name),
                    reason: format!("{} is no number above 0", excerpt(&found.to_string())),
                }),
            }
        };
        let needed = |name: &str| -> Result<f64, ConfigError> {
            number(name)?.ok_or_else(|| ConfigError::Type { key: path(name), reason: "is missing".into() })
        };
        // Checked even if the other key takes precedence: a text there is a mistake, not an absent key.
        let top = match value.get("rope_theta").filter(|v| !v.is_null()) {
            None => None,
            Some(theta) => Some(theta.as_f64().ok_or_else(|| ConfigError::Type {
                key: "text_config.rope_theta".into(),
                reason: format!("{} is no number", excerpt(&theta.to_string())),
            })?),
        };
        let theta = number("rope_theta")?.or(top).unwrap_or(Self::default().theta);
        above_zero("text_config.rope_theta", theta)?;
        let name = rope.get("rope_type").or_else(|| rope.get("type")).filter(|v| !v.is_null());
        let kind = match name.map(|v| v.as_str().unwrap_or_default()) {
            None | Some("default") => RopeKind::Default,
            Some("linear") => RopeKind::Linear { factor: needed("factor")? },
            Some("dynamic") => RopeKind::Dynamic { factor: needed("factor")?, original: context },
            Some("llama3") => RopeKind::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original: number("original_max_position_embeddings")?.unwrap_or(context as f64),
            },
            Some(_) => {
                let value = name.unwrap_or(&Value::Null);
                return Err(unsupported(&path("rope_type"), value, "default, linear, dynamic or llama3"));
            }
        };
        let partial = number("partial_rotary_factor")?.or(partial).unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            let key = "text_config.partial_rotary_factor".into();
            return Err(ConfigError::Type { key, reason: format!("{partial} is not above 0 and at most 1") });
        }
        Ok(Self { theta, kind, partial })
    }

    /// Writes the keys of both transformers 4 and 5.
    pub(crate) fn write(&self, out: &mut Value) {
        let mut rope = match self.kind {
            RopeKind::Default => json!({ "rope_type": "default" }),
            RopeKind::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            RopeKind::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
            RopeKind::Llama3 { factor, low, high, original } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original as u64,
            }),
        };
        if self.kind != RopeKind::Default {
            out["rope_scaling"] = rope.clone();
        }
        rope["rope_theta"] = json!(self.theta);
        if self.partial != 1.0 {
            rope["partial_rotary_factor"] = json!(self.partial);
            out["partial_rotary_factor"] = json!(self.partial);
        }
        out["rope_theta"] = json!(self.theta);
        out["rope_parameters"] = rope;
    }

    /// The number of a head's dimensions that are rotated.
    pub fn rotary_dims(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial) as usize
    }

    /// The frequencies of a head's pairs for sequences of `length` positions, in f32 as transformers computes them.
    pub fn frequencies(&self, head_dim: usize, length: usize) -> Vec<f32> {
        let dims = self.rotary_dims(head_dim);
        let power = |base: f32| (0..dims / 2).map(move |i| 1.0 / base.powf(2.0 * i as f32 / dims as f32));
        match self.kind {
            RopeKind::Default => power(self.theta as f32).collect(),
            RopeKind::Linear { factor } => power(self.theta as f32).map(|f| f / factor as f32).collect(),
            RopeKind::Dynamic { factor, original } => {
                let stretch = factor * length.max(original) as f64 / original as f64 - (factor - 1.0);
                let exponent = dims as f64 / (dims as f64 - 2.0);
                power((self.theta * stretch.powf(exponent)) as f32).collect()
            }
            RopeKind::Llama3 { factor, low, high, original } => {
                let [factor, low, high, original] = [factor, low, high, original].map(|x| x as f32);
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
                power(self.theta as f32).map(stretched).collect()
            }
        }
    }
}
