//! A Llama decoder (transformers' `LlamaModel`).

use basic_core::ops::{rms_norm, swiglu};
use basic_core::{Seen, Supervision};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor};

use super::{DecoderAttention, KvCache, Mask, RotaryTables};
use crate::config::LlamaConfig;

/// Embeddings, decoder layers and the final norm; the output head belongs to the model around it.
#[derive(Module, Debug)]
pub struct LlamaDecoder {
    embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
}

/// A pre-norm decoder layer.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: DecoderAttention,
    post_attention_layernorm: RmsNorm,
    mlp: SwiGlu,
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct SwiGlu {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl LlamaConfig {
    /// A decoder with lazily made weights: nothing is allocated until a weight is used or loaded.
    pub fn init(&self, device: &Device) -> LlamaDecoder {
        let d = self.hidden_size;
        let norm = || RmsNormConfig::new(d).with_epsilon(self.rms_norm_eps).init(device);
        let linear = |i, o| LinearConfig::new(i, o).with_bias(false).init(device);
        let layer = |_| DecoderLayer {
            input_layernorm: norm(),
            self_attn: DecoderAttention::new(self, device),
            post_attention_layernorm: norm(),
            mlp: SwiGlu {
                gate_proj: linear(d, self.intermediate_size),
                up_proj: linear(d, self.intermediate_size),
                down_proj: linear(self.intermediate_size, d),
            },
        };
        LlamaDecoder {
            embed_tokens: EmbeddingConfig::new(self.vocab_size, d).init(device),
            layers: (0..self.num_hidden_layers).map(layer).collect(),
            norm: norm(),
        }
    }
}

impl LlamaDecoder {
    /// The input embedding table E, raw.
    ///
    /// # Shapes
    /// - output: `[V, d]`
    pub fn table(&self) -> Tensor<2> {
        self.embed_tokens.weight.val()
    }

    /// Layers (L).
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Token embeddings.
    ///
    /// # Shapes
    /// - ids: `[N]`
    /// - output: `[N, d]`
    pub fn embed(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.table().select(0, ids)
    }

    /// Runs the layers and the final norm; `supervision` sees the first k layers' residual stream.
    ///
    /// # Shapes
    /// - embeddings and output: `[B, T, d]`
    pub fn forward(
        &self,
        embeddings: Tensor<3>,
        rope: &RotaryTables,
        mask: &Mask,
        mut supervision: Option<&mut Supervision>,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [b, t, d] = embeddings.dims();
        let mut x = embeddings.reshape([b * t, d]);
        for (index, layer) in self.layers.iter().enumerate() {
            let slot = cache.as_deref_mut().map(|cache| (cache, index));
            let (y, seen) = layer.forward(x, b, rope, mask, slot);
            if let Some(supervision) = supervision.as_deref_mut()
                && supervision.wants(index)
            {
                supervision.observe(index, &y.clone().reshape([b, t, d]), &seen);
            }
            x = y;
        }
        if let Some(cache) = cache {
            cache.advance(t);
        }
        normalized(&self.norm, x).reshape([b, t, d])
    }
}

/// Burn's norm holds the weight; the fused operation computes.
fn normalized(norm: &RmsNorm, x: Tensor<2>) -> Tensor<2> {
    rms_norm(x, norm.gamma.val(), norm.epsilon)
}

impl DecoderLayer {
    /// Returns the residual stream after the layer and what its attention looked at.
    ///
    /// # Shapes
    /// - x and output: `[B * T, d]`
    fn forward(
        &self,
        x: Tensor<2>,
        batch: usize,
        rope: &RotaryTables,
        mask: &Mask,
        cache: Option<(&mut KvCache, usize)>,
    ) -> (Tensor<2>, Seen) {
        let normed = normalized(&self.input_layernorm, x.clone());
        let (attended, seen) = self.self_attn.forward(normed, batch, rope, mask, cache);
        let x = x + attended;
        let y = self.mlp.forward(normalized(&self.post_attention_layernorm, x.clone()));
        (x + y, seen)
    }
}

impl SwiGlu {
    /// # Shapes
    /// - x and output: `[N, d]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down_proj.forward(swiglu(self.gate_proj.forward(x.clone()), self.up_proj.forward(x)))
    }
}
