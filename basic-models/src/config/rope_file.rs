//! Reads and writes the settings of the rotary position embedding in config.json.

use serde_json::{Map, Value, json};

use super::rope::stretched_attention;
use super::{ConfigError, QueryGrowth, Rope, RopeKind, above_zero, most, unsupported};
use crate::outside::excerpt;

/// A decoder's keys about rotary positions, on top of the defaults of its class.
struct Keys<'a> {
    /// The name of the object with the settings, and the object; null if there is none.
    name: String,
    object: &'a Value,
}

impl Keys<'_> {
    fn path(&self, name: &str) -> String {
        format!("text_config.{}.{name}", self.name)
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        let Some(found) = self.object.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
        match found.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
            Some(x) => Ok(Some(x)),
            None => Err(ConfigError::Type {
                key: self.path(name),
                reason: format!("{} is no number above 0", excerpt(&found.to_string())),
            }),
        }
    }

    fn needed(&self, name: &str) -> Result<f64, ConfigError> {
        self.number(name)?.ok_or_else(|| ConfigError::Type { key: self.path(name), reason: "is missing".into() })
    }

    /// A list of numbers above 0, one a pair.
    fn divisors(&self, name: &str) -> Result<Vec<f64>, ConfigError> {
        let wrong = |reason: String| ConfigError::Type { key: self.path(name), reason };
        let list = self.object.get(name).and_then(Value::as_array).ok_or_else(|| wrong("is no list".into()))?;
        if list.len() > most::HEAD_DIM {
            return Err(wrong(format!("has {} numbers, more than a head has pairs", list.len())));
        }
        let number = |value: &Value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        list.iter()
            .map(|value| {
                number(value).ok_or_else(|| wrong(format!("{} is no number above 0", excerpt(&value.to_string()))))
            })
            .collect()
    }

    /// The context length before the scaling; `fixed` is the key beside the settings that some classes have.
    fn original(&self, fixed: Option<f64>, context: usize) -> Result<f64, ConfigError> {
        Ok(match fixed {
            Some(original) => original,
            None => self.number("original_max_position_embeddings")?.unwrap_or(context as f64),
        })
    }

    fn kind(&self, fixed: Option<f64>, context: usize) -> Result<RopeKind, ConfigError> {
        let name = self.object.get("rope_type").or_else(|| self.object.get("type")).filter(|v| !v.is_null());
        Ok(match name.map(|v| v.as_str().unwrap_or_default()) {
            None | Some("default") => RopeKind::Default,
            Some("linear") => RopeKind::Linear { factor: self.needed("factor")? },
            Some("dynamic") => RopeKind::Dynamic { factor: self.needed("factor")?, original: context },
            Some("llama3") => RopeKind::Llama3 {
                factor: self.needed("factor")?,
                low: self.needed("low_freq_factor")?,
                high: self.needed("high_freq_factor")?,
                original: self.original(None, context)?,
            },
            Some("yarn") => {
                let factor = self.needed("factor")?;
                let truncate = match self.object.get("truncate").filter(|v| !v.is_null()) {
                    None => true,
                    Some(value) => value.as_bool().ok_or_else(|| ConfigError::Type {
                        key: self.path("truncate"),
                        reason: format!("{} is neither true nor false", excerpt(&value.to_string())),
                    })?,
                };
                let scale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
                let attention =
                    match (self.number("attention_factor")?, self.number("mscale")?, self.number("mscale_all_dim")?) {
                        (Some(given), ..) => given,
                        (None, Some(one), Some(all)) => scale(one) / scale(all),
                        _ => scale(1.0),
                    };
                RopeKind::Yarn {
                    factor,
                    original: self.original(None, context)?,
                    fast: self.number("beta_fast")?.unwrap_or(32.0),
                    slow: self.number("beta_slow")?.unwrap_or(1.0),
                    truncate,
                    attention,
                }
            }
            // "su" is what the first Phi-3 files called it.
            Some("longrope" | "su") => {
                let original = self.original(fixed, context)?;
                let attention = match (self.number("attention_factor")?, self.number("factor")?) {
                    (Some(given), _) => Some(given),
                    (None, Some(factor)) => Some(stretched_attention(factor, original)),
                    (None, None) => None,
                };
                let (short, long) = (self.divisors("short_factor")?, self.divisors("long_factor")?);
                RopeKind::LongRope { short, long, original, context: context as f64, attention }
            }
            Some(_) => {
                let value = name.unwrap_or(&Value::Null);
                let supported = "default, linear, dynamic, llama3, yarn or longrope";
                return Err(unsupported(&self.path("rope_type"), value, supported));
            }
        })
    }
}

impl Rope {
    /// Reads the keys of transformers 4 or 5 from a decoder's config.json, on top of its class's `defaults`.
    /// `rope_scaling` takes precedence, as in transformers 5. With `grows`, the queries grow with their position.
    pub(super) fn from_value(
        value: &Value,
        defaults: &Map<String, Value>,
        partial: Option<f64>,
        context: usize,
        grows: bool,
    ) -> Result<Self, ConfigError> {
        let present = |v: &&Value| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty());
        let given = |key: &str| value.get(key).filter(present);
        let (name, object) = match (given("rope_scaling"), given("rope_parameters")) {
            (Some(rope), _) => ("rope_scaling", rope),
            (None, Some(rope)) => ("rope_parameters", rope),
            (None, None) => ("rope_parameters", defaults.get("rope_parameters").unwrap_or(&Value::Null)),
        };
        let theta = top_theta(value, "rope_theta", defaults)?;
        let original = match defaults.get("original_max_position_embeddings") {
            None => None,
            Some(default) => {
                let found = given("original_max_position_embeddings").unwrap_or(default);
                let number = found.as_f64().filter(|x| x.is_finite() && *x >= 1.0);
                Some(number.ok_or_else(|| ConfigError::Type {
                    key: "text_config.original_max_position_embeddings".into(),
                    reason: format!("{} is no number of positions", excerpt(&found.to_string())),
                })?)
            }
        };
        Self::from_keys(&Keys { name: name.into(), object }, theta, partial, original, context, grows)
    }

    /// Reads the two embeddings of a decoder whose windowed layers have one of their own: that of the layers without a
    /// window, and that of the layers with one. In transformers 5 they are two objects of `rope_parameters`; before,
    /// they were `rope_theta` with `rope_scaling` and `rope_local_base_freq`.
    pub(super) fn pair_from_value(
        value: &Value,
        defaults: &Map<String, Value>,
        context: usize,
    ) -> Result<(Self, Self), ConfigError> {
        let nested = value.get("rope_parameters").unwrap_or(&Value::Null);
        if !nested.is_object() && !nested.is_null() {
            let key = "text_config.rope_parameters".into();
            return Err(ConfigError::Type { key, reason: "expected an object".into() });
        }
        let of = |layers: &str| nested.get(layers).filter(|v| !v.is_null()).cloned().unwrap_or_else(|| json!({}));
        let mut full = of("full_attention");
        if let Some(scaling) = value.get("rope_scaling").filter(|v| !v.is_null()) {
            let wrong =
                || ConfigError::Type { key: "text_config.rope_scaling".into(), reason: "expected an object".into() };
            let over = scaling.as_object().ok_or_else(wrong)?;
            if let Some(object) = full.as_object_mut() {
                object.extend(over.clone());
            }
        }
        let read = |object: &Value, layers: &str, theta: &str| {
            let keys = Keys { name: format!("rope_parameters.{layers}"), object };
            Self::from_keys(&keys, top_theta(value, theta, defaults)?, None, None, context, false)
        };
        let local = of("sliding_attention");
        Ok((read(&full, "full_attention", "rope_theta")?, read(&local, "sliding_attention", "rope_local_base_freq")?))
    }

    fn from_keys(
        keys: &Keys<'_>,
        theta: Option<f64>,
        partial: Option<f64>,
        original: Option<f64>,
        context: usize,
        grows: bool,
    ) -> Result<Self, ConfigError> {
        if !keys.object.is_object() && !keys.object.is_null() {
            let key = format!("text_config.{}", keys.name);
            return Err(ConfigError::Type { key, reason: "expected an object".into() });
        }
        let theta = keys.number("rope_theta")?.or(theta).unwrap_or(Self::default().theta);
        above_zero("text_config.rope_theta", theta)?;
        let kind = keys.kind(original, context)?;
        let partial = keys.number("partial_rotary_factor")?.or(partial).unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            let key = "text_config.partial_rotary_factor".into();
            return Err(ConfigError::Type { key, reason: format!("{partial} is not above 0 and at most 1") });
        }
        let growth = match grows {
            true => {
                let (beta, original) = (keys.needed("llama_4_scaling_beta")?, keys.original(None, context)?);
                Some(QueryGrowth { beta, original })
            }
            false => None,
        };
        Ok(Self { theta, kind, partial, growth })
    }

    /// The embedding as the object that transformers 5 calls `rope_parameters`.
    pub(super) fn to_value(&self) -> Value {
        let mut rope = self.scaling();
        rope["rope_theta"] = json!(self.theta);
        if self.partial != 1.0 {
            rope["partial_rotary_factor"] = json!(self.partial);
        }
        rope
    }

    fn scaling(&self) -> Value {
        let mut rope = match &self.kind {
            RopeKind::Default => json!({ "rope_type": "default" }),
            RopeKind::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            RopeKind::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
            RopeKind::Llama3 { factor, low, high, original } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": *original as u64,
            }),
            RopeKind::Yarn { factor, original, fast, slow, truncate, attention } => json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": *original as u64,
                "beta_fast": fast, "beta_slow": slow, "truncate": truncate, "attention_factor": attention,
            }),
            RopeKind::LongRope { short, long, original, attention, .. } => {
                let mut rope = json!({
                    "rope_type": "longrope", "short_factor": short, "long_factor": long,
                    "original_max_position_embeddings": *original as u64,
                });
                if let Some(attention) = attention {
                    rope["attention_factor"] = json!(attention);
                }
                rope
            }
        };
        if let Some(QueryGrowth { beta, original }) = self.growth {
            rope["llama_4_scaling_beta"] = json!(beta);
            rope["original_max_position_embeddings"] = json!(original as u64);
        }
        rope
    }

    /// Writes the keys of both transformers 4 and 5. With `beside`, the class keeps the original context length
    /// beside the settings.
    pub(crate) fn write(&self, out: &mut Value, beside: bool) {
        if self.kind != RopeKind::Default || self.growth.is_some() {
            let mut scaling = self.scaling();
            if let (true, RopeKind::LongRope { original, .. }) = (beside, &self.kind) {
                out["original_max_position_embeddings"] = json!(*original as u64);
                // The class of transformers 4 takes three keys: the divisors, and the type by its older name.
                let object = scaling.as_object_mut();
                if let Some(object) = object {
                    object.remove("original_max_position_embeddings");
                    object.remove("rope_type");
                }
                scaling["type"] = json!("longrope");
            }
            out["rope_scaling"] = scaling;
        }
        if self.partial != 1.0 {
            out["partial_rotary_factor"] = json!(self.partial);
        }
        out["rope_theta"] = json!(self.theta);
        out["rope_parameters"] = self.to_value();
    }
}

/// A base beside the settings, which is checked even if another key takes precedence: a text there is a mistake, not an
/// absent key.
fn top_theta(value: &Value, key: &str, defaults: &Map<String, Value>) -> Result<Option<f64>, ConfigError> {
    match value.get(key).filter(|v| !v.is_null()).or_else(|| defaults.get(key)) {
        None => Ok(None),
        Some(theta) => theta.as_f64().map(Some).ok_or_else(|| ConfigError::Type {
            key: format!("text_config.{key}"),
            reason: format!("{} is no number", excerpt(&theta.to_string())),
        }),
    }
}
