//! Reads and writes a decoder's section of config.json.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Activation, ConfigError, DecoderConfig, EndIds, Family, Rope, Windows, at_most, most, positive, section,
    unsupported,
};
use crate::outside::excerpt;

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: String,
    hidden_activation: Option<String>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    max_window_layers: usize,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    no_rope_layers: Option<Vec<u64>>,
    #[serde(default)]
    no_rope_layer_interval: usize,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    pad_token_id: Option<u32>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<EndIds>,
}

impl DecoderConfig {
    /// Reads the object of a config.json (LLaVA's `text_config`, or a language model's whole file). Absent keys take
    /// the defaults of the family's class in transformers.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        const SECTION: &str = "text_config";
        let kind = value.get("model_type").unwrap_or(&Value::Null);
        let family = Family::of(kind.as_str()).filter(|_| kind.is_string() || kind.is_null());
        let Some(family) = family else {
            return Err(unsupported("text_config.model_type", kind, Family::supported()));
        };
        let own_keys = family.defaults();
        // For these keys null means "none"; elsewhere it means "the default".
        let nullable = [
            "sliding_window",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ];
        let mut merged = section::merged(SECTION, value, own_keys.clone(), &nullable)?;
        for key in ["pad_token_id", "bos_token_id", "eos_token_id"] {
            // Original Llama checkpoints write -1 for a token that does not exist.
            if merged.get(key).and_then(Value::as_i64) == Some(-1) {
                merged.insert(key.into(), Value::Null);
            }
        }
        section::must_be(SECTION, &merged, "attention_dropout", &[json!(0.0), json!(0)])?;
        section::must_be(SECTION, &merged, "resid_pdrop", &[json!(0.0), json!(0)])?;
        section::must_be(SECTION, &merged, "embd_pdrop", &[json!(0.0), json!(0)])?;
        section::must_be(SECTION, &merged, "use_bidirectional_attention", &[json!(false)])?;
        let partial = match merged.get("partial_rotary_factor").filter(|value| !value.is_null()) {
            None => None,
            Some(value) => Some(value.as_f64().ok_or_else(|| ConfigError::Type {
                key: "text_config.partial_rotary_factor".into(),
                reason: format!("{} is no number", excerpt(&value.to_string())),
            })?),
        };
        let raw: Raw = section::parse(SECTION, merged)?;
        // Checked before a list with an entry per layer is made.
        at_most(SECTION, &[("num_hidden_layers", raw.num_hidden_layers, most::LAYERS)])?;
        let rotated = own_keys.contains_key("no_rope_layers").then(|| raw.rotated());
        let sliding_window = raw
            .sliding_window
            .filter(|_| raw.use_sliding_window || matches!(family.windows, Windows::All | Windows::AllButEvery(_)));
        let windowed = raw.windowed(family, sliding_window.is_some(), rotated.as_deref())?;
        let hidden_act = match (&raw.hidden_activation, raw.hidden_act.as_str()) {
            (Some(name), _) => Activation::parse("text_config.hidden_activation", name)?,
            (None, "gelu") if family.gelu_is_tanh => Activation::GeluTanh,
            (None, name) => Activation::parse("text_config.hidden_act", name)?,
        };
        let context = raw.max_position_embeddings;
        let (rope, local_rope) = match family.local_rope {
            true => Rope::pair_from_value(value, &own_keys, context).map(|(rope, local)| (rope, Some(local)))?,
            false => (Rope::from_value(value, &own_keys, partial, context, family.query_growth)?, None),
        };
        let other = value.get("hidden_activation").filter(|v| family.gelu_is_tanh && !v.is_null());
        if other.is_some_and(|v| v != "gelu_pytorch_tanh") {
            let value = other.unwrap_or(&Value::Null);
            return Err(unsupported("text_config.hidden_activation", value, "gelu_pytorch_tanh"));
        }
        let config = Self {
            family,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads,
            head_dim: raw.head_dim,
            hidden_act,
            max_position_embeddings: raw.max_position_embeddings,
            rms_norm_eps: raw.rms_norm_eps,
            rope,
            local_rope,
            rotated,
            query_scalar: raw.query_pre_attn_scalar,
            score_cap: raw.attn_logit_softcapping,
            logit_cap: raw.final_logit_softcapping,
            sliding_window,
            windowed,
            tie_word_embeddings: raw.tie_word_embeddings,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            pad_token_id: raw.pad_token_id,
            bos_token_id: raw.bos_token_id,
            eos_token_id: raw.eos_token_id,
        };
        config.validate()?;
        Ok(config)
    }

    /// The object of a config.json that transformers 4 and 5 can read.
    pub fn to_value(&self) -> Value {
        let mut out = json!({
            "model_type": self.family.name,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.kv_heads(),
            "head_dim": self.head_dim(),
            "hidden_act": self.hidden_act.name(),
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        });
        let flags: Vec<bool> = (0..self.num_hidden_layers).map(|i| self.window(i).is_some()).collect();
        let layer_type = |windowed: &bool| if *windowed { "sliding_attention" } else { "full_attention" };
        let layer_types: Value = flags.iter().map(layer_type).collect();
        let rotated: Vec<u8> = (0..self.num_hidden_layers).map(|i| u8::from(self.rotates(i))).collect();
        let optional = [
            ("use_sliding_window", json!(self.sliding_window.is_some())),
            ("sliding_window", json!(self.sliding_window)),
            // transformers before 4.53 reads this key instead of `layer_types`.
            ("max_window_layers", json!(flags.iter().take_while(|windowed| !**windowed).count())),
            ("layer_types", layer_types),
            ("no_rope_layers", json!(rotated)),
            ("attention_bias", json!(self.attention_bias)),
            ("mlp_bias", json!(self.mlp_bias)),
            ("hidden_activation", json!(self.hidden_act.name())),
            // transformers 4 takes it as a whole number only.
            ("query_pre_attn_scalar", self.query_scalar.map_or(Value::Null, whole)),
            ("attn_logit_softcapping", json!(self.score_cap)),
            ("final_logit_softcapping", json!(self.logit_cap)),
        ];
        // Of the optional keys, only those that the family's class has.
        let keys = self.family.defaults();
        for (key, value) in optional {
            if keys.contains_key(key) {
                out[key] = value;
            }
        }
        self.rope.write(&mut out, keys.contains_key("original_max_position_embeddings"));
        if let Some(local) = &self.local_rope {
            out["rope_local_base_freq"] = json!(local.theta);
            let pair = json!({ "full_attention": self.rope.to_value(), "sliding_attention": local.to_value() });
            out["rope_parameters"] = pair;
        }
        out
    }
}

impl Raw {
    /// For each layer, whether it has rotary positions.
    fn rotated(&self) -> Vec<bool> {
        let every = self.no_rope_layer_interval;
        match &self.no_rope_layers {
            Some(flags) => flags.iter().map(|flag| *flag != 0).collect(),
            // An interval of 0, at which transformers fails, means no such layer.
            None => (1..=self.num_hidden_layers).map(|layer| every == 0 || !layer.is_multiple_of(every)).collect(),
        }
    }

    /// For each layer, whether it has the window; `None` if all have it.
    fn windowed(&self, family: &Family, set: bool, rotated: Option<&[bool]>) -> Result<Option<Vec<bool>>, ConfigError> {
        if family.windows == Windows::All {
            return Ok(None);
        }
        if let Some(types) = &self.layer_types {
            return types.iter().map(|kind| layer_type(kind)).collect::<Result<_, _>>().map(Some);
        }
        positive("text_config", &[("sliding_window_pattern", self.sliding_window_pattern.unwrap_or(1))])?;
        let rotates = |layer: usize| rotated.is_none_or(|flags| flags.get(layer).copied().unwrap_or(true));
        let has = |layer: usize| match family.windows {
            Windows::All => true,
            Windows::FromLayer => set && layer >= self.max_window_layers,
            Windows::Unrotated => set && !rotates(layer),
            Windows::AllButEvery(n) => !(layer + 1).is_multiple_of(self.sliding_window_pattern.unwrap_or(n)),
        };
        Ok(Some((0..self.num_hidden_layers).map(has).collect()))
    }
}

/// A number that config.json has as an integer, if it is one.
fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value < 1e9 { json!(value as u64) } else { json!(value) }
}

/// Whether layers of this type have the window.
fn layer_type(kind: &str) -> Result<bool, ConfigError> {
    match kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(unsupported("text_config.layer_types", other, "full_attention or sliding_attention")),
    }
}
