//! CLIP's vision transformer (transformers' `CLIPVisionModel`).

use basic_core::ops::gelu;
use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{DType, Device, Tensor};

use crate::config::ClipVisionConfig;

/// CLIP's vision tower: patches and a CLS position through a pre-norm transformer.
#[derive(Module, Debug)]
pub struct ClipVision {
    embeddings: ClipEmbeddings,
    // transformers' spelling, kept because it is the tensor's name on disk
    pre_layrnorm: LayerNorm,
    encoder: ClipEncoder,
    post_layernorm: LayerNorm,
}

#[derive(Module, Debug)]
struct ClipEmbeddings {
    class_embedding: Param<Tensor<1>>,
    patch_embedding: Conv2d,
    position_embedding: Embedding,
}

#[derive(Module, Debug)]
struct ClipEncoder {
    layers: Vec<ClipLayer>,
}

#[derive(Module, Debug)]
struct ClipLayer {
    layer_norm1: LayerNorm,
    self_attn: ClipAttention,
    layer_norm2: LayerNorm,
    mlp: ClipMlp,
}

#[derive(Module, Debug)]
struct ClipAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

#[derive(Module, Debug)]
struct ClipMlp {
    fc1: Linear,
    fc2: Linear,
    quick: bool,
}

impl ClipVisionConfig {
    /// A tower with lazily made weights: nothing is allocated until a weight is used or loaded.
    pub fn init(&self, device: &Device) -> ClipVision {
        let d = self.hidden_size;
        let norm = || LayerNormConfig::new(d).with_epsilon(self.layer_norm_eps).init(device);
        let linear = |i, o| LinearConfig::new(i, o).init(device);
        let layer = |_| ClipLayer {
            layer_norm1: norm(),
            self_attn: ClipAttention {
                q_proj: linear(d, d),
                k_proj: linear(d, d),
                v_proj: linear(d, d),
                out_proj: linear(d, d),
                heads: self.num_attention_heads,
            },
            layer_norm2: norm(),
            mlp: ClipMlp {
                fc1: linear(d, self.intermediate_size),
                fc2: linear(self.intermediate_size, d),
                quick: self.hidden_act == "quick_gelu",
            },
        };
        ClipVision {
            embeddings: ClipEmbeddings {
                class_embedding: Initializer::Normal { mean: 0.0, std: 1.0 }.init([d], device),
                patch_embedding: Conv2dConfig::new([self.num_channels, d], [self.patch_size; 2])
                    .with_stride([self.patch_size; 2])
                    .with_bias(false)
                    .init(device),
                position_embedding: EmbeddingConfig::new(self.num_patches() + 1, d).init(device),
            },
            pre_layrnorm: norm(),
            encoder: ClipEncoder { layers: (0..self.num_hidden_layers).map(layer).collect() },
            post_layernorm: norm(),
        }
    }
}

impl ClipVision {
    /// The hidden states after `layer` layers (transformers' `hidden_states[layer]`): 0 is the embeddings after the
    /// pre-norm. The post-norm is applied to CLS pooling only and not here.
    ///
    /// # Shapes
    /// - pixels: `[N, channels, H, W]`
    /// - output: `[N, 1 + patches, hidden]`, CLS first
    pub fn hidden_states(&self, pixels: Tensor<4>, layer: usize) -> Tensor<3> {
        let x = self.embeddings.forward(pixels);
        let mut x = self.pre_layrnorm.forward(x);
        for block in &self.encoder.layers[..layer] {
            x = block.forward(x);
        }
        x
    }
}

impl ClipEmbeddings {
    /// # Shapes
    /// - pixels: `[N, channels, H, W]`
    /// - output: `[N, 1 + patches, hidden]`
    fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let patches = self.patch_embedding.forward(pixels); // [N, hidden, H / patch, W / patch]
        let [n, d, _, _] = patches.dims();
        let patches = patches.flatten::<3>(2, 3).swap_dims(1, 2); // [N, patches, hidden]
        let class = self.class_embedding.val().reshape([1, 1, d]).expand([n, 1, d]);
        let x = Tensor::cat(vec![class, patches], 1);
        x + self.position_embedding.weight.val().unsqueeze::<3>()
    }
}

impl ClipLayer {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x));
        x.clone() + self.mlp.forward(self.layer_norm2.forward(x))
    }
}

impl ClipAttention {
    /// # Shapes
    /// - x and output: `[N, T, hidden]`
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [n, t, d] = x.dims();
        let width = d / self.heads;
        let split = |y: Tensor<3>| y.reshape([n, t, self.heads, width]).swap_dims(1, 2); // [N, heads, T, width]
        let q = split(self.q_proj.forward(x.clone())).mul_scalar((width as f64).powf(-0.5));
        let k = split(self.k_proj.forward(x.clone()));
        let v = split(self.v_proj.forward(x));
        let dtype = v.dtype();
        let p = softmax(q.matmul(k.transpose()).cast(DType::F32), 3).cast(dtype);
        self.out_proj.forward(p.matmul(v).swap_dims(1, 2).reshape([n, t, d]))
    }
}

impl ClipMlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let h = self.fc1.forward(x);
        let h = if self.quick { h.clone() * sigmoid(h.mul_scalar(1.702)) } else { gelu(h) };
        self.fc2.forward(h)
    }
}
