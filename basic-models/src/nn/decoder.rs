//! A Llama-like decoder (transformers' `LlamaModel` and its variants; config/family.rs lists the differences).

use std::convert::Infallible;

use basic_core::ops::swiglu;
use basic_core::{Seen, Supervision};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm};
use burn::tensor::{Device, Int, Tensor};

use super::linear::linear;
use super::norm::{norm, normalized};
use super::{DecoderAttention, KvCache, Mask, Masks, RotaryTables, activate};
use crate::config::{Activation, DecoderConfig, LayerNorms};

/// Embeddings, decoder layers and the final norm. The output head belongs to the model that contains the decoder.
#[derive(Module, Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    embedding_scale: Option<f64>,
    // The norms of some families scale by 1 + weight.
    one_plus: bool,
}

/// A decoder layer, which normalizes the inputs of its attention and its MLP, their outputs, or both. The norms have
/// transformers' names: `post_attention_layernorm` is that of the MLP's input if no output is normalized, and that of the
/// attention's output otherwise.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    input_layernorm: Option<RmsNorm>,
    self_attn: DecoderAttention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: Option<RmsNorm>,
    post_feedforward_layernorm: Option<RmsNorm>,
    mlp: GatedMlp,
    windowed: bool,
    one_plus: bool,
}

/// `down(activation(gate(x)) * up(x))`: SwiGLU, or GeGLU if the activation is GELU.
#[derive(Module, Debug)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl DecoderConfig {
    /// Builds the decoder. A weight is allocated only when it is first used or loaded.
    pub fn init(&self, device: &Device) -> Decoder {
        let d = self.hidden_size;
        let one_plus = self.family.norm_plus_one;
        let norm = || norm(self, d, device);
        let norms = self.family.layer_norms;
        let linear = |i, o| LinearConfig::new(i, o).with_bias(self.mlp_bias).init(device);
        let layer = |index| DecoderLayer {
            input_layernorm: (norms != LayerNorms::After).then(norm),
            self_attn: DecoderAttention::new(self, index, device),
            post_attention_layernorm: norm(),
            pre_feedforward_layernorm: (norms == LayerNorms::Around).then(norm),
            post_feedforward_layernorm: (norms != LayerNorms::Before).then(norm),
            mlp: GatedMlp {
                gate_proj: linear(d, self.intermediate_size),
                up_proj: linear(d, self.intermediate_size),
                down_proj: linear(self.intermediate_size, d),
                activation: self.hidden_act,
            },
            windowed: self.window(index).is_some(),
            one_plus,
        };
        Decoder {
            embed_tokens: EmbeddingConfig::new(self.vocab_size, d).init(device),
            layers: (0..self.num_hidden_layers).map(layer).collect(),
            norm: norm(),
            embedding_scale: self.embedding_scale(),
            one_plus,
        }
    }
}

impl Decoder {
    /// The input embedding table E, without any scaling.
    ///
    /// # Shapes
    /// - output: `[V, d]`
    pub fn table(&self) -> Tensor<2> {
        self.embed_tokens.weight.val()
    }

    /// The number of layers (L).
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Token embeddings, scaled if the family scales them.
    ///
    /// # Shapes
    /// - ids: `[N]`
    /// - output: `[N, d]`
    pub fn embed(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        let rows = basic_core::ops::embedding(self.table(), ids);
        match self.embedding_scale {
            Some(scale) => rows.mul_scalar(scale),
            None => rows,
        }
    }

    /// Runs the layers and the final norm. `supervision` observes the layers that its methods need.
    ///
    /// # Shapes
    /// - embeddings and output: `[B, T, d]`
    pub fn forward(
        &self,
        embeddings: Tensor<3>,
        rope: &RotaryTables,
        masks: &Masks,
        mut supervision: Option<&mut Supervision>,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [b, t, d] = embeddings.dims();
        let x = embeddings.reshape([b * t, d]);
        let walked = self.walk(x, b, rope, masks, cache.as_deref_mut(), |index, hidden, seen| {
            if let Some(supervision) = supervision.as_deref_mut().filter(|supervision| supervision.wants(index)) {
                supervision.observe(index, &hidden.clone().reshape([b, t, d]), seen);
            }
            Ok::<_, Infallible>(())
        });
        let x = match walked {
            Ok(x) => x,
            Err(never) => match never {},
        };
        if let Some(cache) = cache {
            cache.advance(t);
        }
        self.finish(x).reshape([b, t, d])
    }

    /// Runs the layers, first to last. `visit` gets each layer's index (0-based), its output on the residual stream,
    /// and its attention's inputs. Training, recompute, generation and the token lens all use this function.
    ///
    /// # Shapes
    /// - x, the output that `visit` gets, and the result: `[B * T, d]`, before the final norm
    ///
    /// # Errors
    ///
    /// Returns the first error of `visit`.
    pub fn walk<E>(
        &self,
        mut x: Tensor<2>,
        batch: usize,
        rope: &RotaryTables,
        masks: &Masks,
        mut cache: Option<&mut KvCache>,
        mut visit: impl FnMut(usize, &Tensor<2>, &Seen) -> Result<(), E>,
    ) -> Result<Tensor<2>, E> {
        for (index, layer) in self.layers.iter().enumerate() {
            let slot = cache.as_deref_mut().map(|cache| (cache, index));
            let (y, seen) = layer.forward(x, batch, rope, masks, slot);
            visit(index, &y, &seen)?;
            x = y;
        }
        Ok(x)
    }

    /// Runs the layers and the final norm on one new position of each of several sequences that have caches of their own.
    ///
    /// # Shapes
    /// - x and output: `[B, d]`, one row for each of the caches and masks
    pub fn forward_each(
        &self,
        mut x: Tensor<2>,
        rope: &RotaryTables,
        masks: &[Masks],
        caches: &mut [&mut KvCache],
    ) -> Tensor<2> {
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward_each(x, rope, masks, caches, index);
        }
        caches.iter_mut().for_each(|cache| cache.advance(1));
        self.finish(x)
    }

    /// The layers, first to last, for callers that run one of them again.
    pub fn layers(&self) -> &[DecoderLayer] {
        &self.layers
    }

    /// Applies the final norm.
    ///
    /// # Shapes
    /// - x and output: `[N, d]`
    pub fn finish(&self, x: Tensor<2>) -> Tensor<2> {
        normalized(&self.norm, x, self.one_plus)
    }
}

impl DecoderLayer {
    /// Returns the residual stream after the layer, and its attention's inputs for the supervision methods.
    ///
    /// # Shapes
    /// - x and output: `[B * T, d]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        batch: usize,
        rope: &RotaryTables,
        masks: &Masks,
        cache: Option<(&mut KvCache, usize)>,
    ) -> (Tensor<2>, Seen) {
        let (rope, mask) = (rope.of(self.windowed), masks.of(self.windowed));
        self.around(x, |normed| self.self_attn.forward(normed, batch, rope, mask, cache))
    }

    /// The layer for one new position of each of several sequences that have caches of their own.
    ///
    /// # Shapes
    /// - x and output: `[B, d]`
    fn forward_each(
        &self,
        x: Tensor<2>,
        rope: &RotaryTables,
        masks: &[Masks],
        caches: &mut [&mut KvCache],
        index: usize,
    ) -> Tensor<2> {
        let masks: Vec<&Mask> = masks.iter().map(|masks| masks.of(self.windowed)).collect();
        let rope = rope.of(self.windowed);
        let attend = |normed| (self.self_attn.forward_each(normed, rope, &masks, caches, index), ());
        self.around(x, attend).0
    }

    /// The residual stream after the layer, and what `attend` returns beside the attention's output.
    fn around<T>(&self, x: Tensor<2>, attend: impl FnOnce(Tensor<2>) -> (Tensor<2>, T)) -> (Tensor<2>, T) {
        let normed = |norm: &RmsNorm, x| normalized(norm, x, self.one_plus);
        let input = |norm: &Option<RmsNorm>, x: &Tensor<2>| match norm {
            Some(norm) => normed(norm, x.clone()),
            None => x.clone(),
        };
        let (attended, seen) = attend(input(&self.input_layernorm, &x));
        let after_attention = &self.post_attention_layernorm;
        let Some(after_mlp) = &self.post_feedforward_layernorm else {
            let x = x + attended;
            let y = self.mlp.forward(normed(after_attention, x.clone()));
            return (x + y, seen);
        };
        let x = x + normed(after_attention, attended);
        let y = self.mlp.forward(input(&self.pre_feedforward_layernorm, &x));
        (x + normed(after_mlp, y), seen)
    }
}

impl GatedMlp {
    /// Applies the feed-forward block.
    ///
    /// # Shapes
    /// - x and output: `[N, d]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (gate, up) = (linear(&self.gate_proj, x.clone()), linear(&self.up_proj, x));
        let inner = match self.activation {
            Activation::Silu => swiglu(gate, up),
            other => activate(other, gate) * up,
        };
        linear(&self.down_proj, inner)
    }
}
