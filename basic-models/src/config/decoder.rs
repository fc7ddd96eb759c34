//! The configuration of Llama-like decoders, including the differences between the families.

use serde::{Deserialize, Serialize};

use super::{Activation, ConfigError, Family, Rope, RopeKind, above_zero, at_most, divides, most, positive};

/// A Llama-like decoder (transformers' `LlamaConfig` and its variants).
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family.
    pub family: &'static Family,
    /// The number of rows of the embedding table.
    pub vocab_size: usize,
    /// The width (d).
    pub hidden_size: usize,
    /// The width of the MLP.
    pub intermediate_size: usize,
    /// The number of layers (L).
    pub num_hidden_layers: usize,
    /// The number of query heads.
    pub num_attention_heads: usize,
    /// The number of key and value heads; by default that of the query heads.
    pub num_key_value_heads: Option<usize>,
    /// The width of a head; `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<usize>,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// The context length, in positions.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f64,
    /// The rotary position embedding.
    pub rope: Rope,
    /// That of the layers with a window, if it is another one.
    pub local_rope: Option<Rope>,
    /// For each layer, whether it has rotary positions; by default all have them.
    pub rotated: Option<Vec<bool>>,
    /// Scores are divided by the square root of this; of `head_dim` by default.
    pub query_scalar: Option<f64>,
    /// The soft cap of the attention's scores: s becomes `cap tanh(s / cap)`.
    pub score_cap: Option<f64>,
    /// `final_logit_softcapping`, which is only kept for the file: transformers' `LlavaForConditionalGeneration`, whose
    /// results are the measure, takes its logits from a head of its own and does not cap them.
    pub logit_cap: Option<f64>,
    /// The number of positions that a query sees in layers with a window, its own included.
    pub sliding_window: Option<usize>,
    /// For each layer, whether it has the window; by default all have it.
    pub windowed: Option<Vec<bool>>,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the attention's projections have biases. With [`Family::qkv_bias`], queries, keys and
    /// values have them anyway.
    pub attention_bias: bool,
    /// Whether the MLP has biases.
    pub mlp_bias: bool,
    /// The padding token's id.
    pub pad_token_id: Option<u32>,
    /// The begin-of-sequence token's id.
    pub bos_token_id: Option<u32>,
    /// The ids of the end-of-sequence tokens.
    pub eos_token_id: Option<EndIds>,
}

/// One token id or several; Hugging Face writes either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EndIds {
    /// `2`
    One(u32),
    /// `[2, 7]`
    Many(Vec<u32>),
}

impl EndIds {
    /// The ids, in order.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

impl Default for DecoderConfig {
    /// transformers' `LlamaConfig()`.
    fn default() -> Self {
        Self {
            family: Family::ALL[0],
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope: Rope::default(),
            local_rope: None,
            rotated: None,
            query_scalar: None,
            score_cap: None,
            logit_cap: None,
            sliding_window: None,
            windowed: None,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            pad_token_id: None,
            bos_token_id: Some(1),
            eos_token_id: Some(EndIds::One(2)),
        }
    }
}

impl DecoderConfig {
    /// The number of key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// The number of positions that a query of layer `index` sees, its own included; `None` if it sees all earlier
    /// ones.
    pub fn window(&self, index: usize) -> Option<usize> {
        let has = |flags: &Vec<bool>| flags.get(index).copied().unwrap_or(false);
        self.sliding_window.filter(|_| self.windowed.as_ref().is_none_or(has))
    }

    /// Whether layer `index` has rotary positions.
    pub fn rotates(&self, index: usize) -> bool {
        self.rotated.as_ref().is_none_or(|flags| flags.get(index).copied().unwrap_or(true))
    }

    /// What the queries are multiplied by, because the attention divides all scores by the square root of `head_dim`;
    /// `None` if the family divides them by the same.
    pub fn query_scale(&self) -> Option<f64> {
        let scalar = self.query_scalar.filter(|scalar| *scalar != self.head_dim() as f64)?;
        Some((self.head_dim() as f64 / scalar).sqrt())
    }

    /// The longest sequence in positions: the context length, times the factor by which dynamic scaling may stretch it, or
    /// what YaRN stretches the original context to (Qwen's files name the original one as the context length).
    pub fn context(&self) -> usize {
        match self.rope.kind {
            RopeKind::Yarn { factor, original, .. } => {
                self.max_position_embeddings.max((factor.max(1.0) * original) as usize)
            }
            RopeKind::Dynamic { factor, .. } => (self.max_position_embeddings as f64 * factor.max(1.0)) as usize,
            _ => self.max_position_embeddings,
        }
    }

    /// The factor of the token embeddings before the first layer; visual embeddings are not scaled.
    pub fn embedding_scale(&self) -> Option<f64> {
        self.family.scaled_embeddings.then(|| (self.hidden_size as f64).sqrt())
    }

    /// Whether queries, keys and values have biases, and whether the attention's output has one.
    pub fn attention_biases(&self) -> (bool, bool) {
        (self.attention_bias || self.family.qkv_bias, self.attention_bias)
    }

    /// The end-of-sequence ids.
    pub fn eos_ids(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map(EndIds::to_vec).unwrap_or_default()
    }

    /// Checks that the network can be built.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        let bounds = [
            ("vocab_size", self.vocab_size, most::VOCABULARY),
            ("hidden_size", self.hidden_size, most::WIDTH),
            ("intermediate_size", self.intermediate_size, most::INNER),
            ("num_hidden_layers", self.num_hidden_layers, most::LAYERS),
            ("num_attention_heads", self.num_attention_heads, most::HEADS),
            ("num_key_value_heads", self.kv_heads(), most::HEADS),
            ("head_dim", self.head_dim(), most::HEAD_DIM),
            ("num_attention_heads * head_dim", self.num_attention_heads.saturating_mul(self.head_dim()), most::INNER),
            ("max_position_embeddings", self.max_position_embeddings, most::POSITIONS),
            ("the positions that rope_scaling stretches to", self.context(), most::POSITIONS),
            ("eos_token_id (number of ids)", self.eos_ids().len(), most::END_IDS),
        ];
        // Checked first: with too many heads, the width of each would be 0.
        at_most("text_config", &bounds)?;
        positive("text_config", &sizes)?;
        above_zero("text_config.rms_norm_eps", self.rms_norm_eps)?;
        divides(
            "text_config",
            "num_key_value_heads",
            self.kv_heads(),
            "num_attention_heads",
            self.num_attention_heads,
        )?;
        for (key, value) in [
            ("query_pre_attn_scalar", self.query_scalar),
            ("attn_logit_softcapping", self.score_cap),
            ("final_logit_softcapping", self.logit_cap),
        ] {
            above_zero(&format!("text_config.{key}"), value.unwrap_or(1.0))?;
        }
        for rope in [Some(&self.rope), self.local_rope.as_ref()].into_iter().flatten() {
            self.validate_rope(rope)?;
        }
        if let Some(flags) = self.rotated.as_ref().filter(|flags| flags.len() < self.num_hidden_layers) {
            return Err(ConfigError::Inconsistent(format!(
                "text_config.no_rope_layers names {} layers of {}",
                flags.len(),
                self.num_hidden_layers
            )));
        }
        if let Some(flags) = &self.windowed {
            if flags.len() != self.num_hidden_layers {
                return Err(ConfigError::Inconsistent(format!(
                    "text_config.layer_types names {} layers of {}",
                    flags.len(),
                    self.num_hidden_layers
                )));
            }
            if flags.contains(&true) && self.sliding_window.is_none() {
                return Err(ConfigError::Inconsistent(
                    "text_config.layer_types has sliding_attention, and sliding_window (with use_sliding_window, where \
                     the family has it) is not set"
                        .into(),
                ));
            }
        }
        Ok(())
    }

    /// How many of the first `shared` tokens of a cache can be taken for a sequence of `length` tokens, where its first
    /// `prompt` tokens were computed as one sequence, and each further one of the `held` as it came: where rotary angles
    /// depend on a sequence's length, keys of another length do not fit.
    pub(crate) fn reusable(&self, shared: usize, prompt: usize, held: usize, length: usize) -> usize {
        let ropes = || [Some(&self.rope), self.local_rope.as_ref()].into_iter().flatten();
        let angles = |rope: &Rope, length| rope.frequencies(self.head_dim(), length);
        let alike = |other| other == length || ropes().all(|rope| angles(rope, other) == angles(rope, length));
        match (alike(prompt), alike(held)) {
            (true, true) => shared,
            (true, false) => shared.min(prompt),
            (false, _) => 0,
        }
    }

    fn validate_rope(&self, rope: &Rope) -> Result<(), ConfigError> {
        let rotary = rope.rotary_dims(self.head_dim());
        if !rotary.is_multiple_of(2) || rotary == 0 {
            return Err(ConfigError::Inconsistent(format!(
                "text_config.head_dim {}: {rotary} of it are rotated, and rotary embeddings need pairs",
                self.head_dim()
            )));
        }
        if let RopeKind::LongRope { short, long, .. } = &rope.kind
            && let Some(list) = [short, long].into_iter().find(|list| list.len() != rotary / 2)
        {
            return Err(ConfigError::Inconsistent(format!(
                "text_config.rope_parameters: short_factor or long_factor has {} numbers, and {rotary} of head_dim {} are \
                 rotated, which are {} pairs",
                list.len(),
                self.head_dim(),
                rotary / 2
            )));
        }
        let factor = rope.attention_factor();
        if !(factor.is_finite() && factor > 0.0) {
            return Err(ConfigError::Inconsistent(format!(
                "text_config.rope_parameters: the factor of the attention comes out as {factor}: \
                 original_max_position_embeddings must be above 1"
            )));
        }
        Ok(())
    }
}
