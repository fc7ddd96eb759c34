//! Vision transformers (transformers' `CLIPVisionModel` and its variants; config/vision_family.rs lists the
//! differences).

mod embeddings;

use basic_core::ops::{attention_to_all, rotate, swiglu};
use burn::module::{Module, Param};
use burn::nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor};

use super::activate;
use super::linear::linear;
use super::norm::normalized;
use super::positions::{Rotation, rotation};
use crate::config::{Activation, Positions, VisionConfig};
use embeddings::PatchEmbeddings;

/// A pre-norm vision transformer. The fields are named after CLIP's tensors on disk; other families' names
/// are mapped to them.
#[derive(Module, Debug)]
pub struct VisionEncoder {
    embeddings: PatchEmbeddings,
    // transformers' spelling, which is the tensor's name on disk
    pre_layrnorm: Option<LayerNorm>,
    encoder: VisionLayers,
    // Used only for pooling; no hidden state passes through it. Either of the two is present.
    post_layernorm: Option<LayerNorm>,
    rms_norm: Option<RmsNorm>,
    // A pooling head that no hidden state passes through, kept so that a saved checkpoint is complete.
    head: Option<PoolingHead>,
    // The base of the rotary frequencies and the grid, if positions are told by rotation.
    #[module(skip)]
    rotary: Option<(f64, usize)>,
}

#[derive(Module, Debug)]
struct VisionLayers {
    layers: Vec<VisionLayer>,
}

#[derive(Module, Debug)]
struct VisionLayer {
    // Layer norms or RMS norms.
    layer_norm1: Option<LayerNorm>,
    rms_norm1: Option<RmsNorm>,
    self_attn: VisionAttention,
    layer_scale1: Option<Param<Tensor<1>>>,
    layer_norm2: Option<LayerNorm>,
    rms_norm2: Option<RmsNorm>,
    // Either `mlp` or `swiglu` is present.
    mlp: Option<VisionMlp>,
    swiglu: Option<VisionSwiGlu>,
    layer_scale2: Option<Param<Tensor<1>>>,
}

#[derive(Module, Debug)]
struct VisionAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

/// `fc2(act(fc1))`, or `fc2(act(gate) * fc1)`.
#[derive(Module, Debug)]
struct VisionMlp {
    gate: Option<Linear>,
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

/// `weights_out(silu(gate) * up)`, with gate and up in one matrix (transformers' `Dinov2SwiGLUFFN`).
#[derive(Module, Debug)]
struct VisionSwiGlu {
    weights_in: Linear,
    weights_out: Linear,
}

/// SigLIP's pooling head, or AIMv2's, which has the last four.
#[derive(Module, Debug)]
struct PoolingHead {
    probe: Option<Param<Tensor<3>>>,
    attention: Option<PoolingAttention>,
    layernorm: Option<LayerNorm>,
    mlp: Option<VisionMlp>,
    cls_token: Option<Param<Tensor<3>>>,
    k_proj: Option<Linear>,
    v_proj: Option<Linear>,
    output_proj: Option<Linear>,
}

#[derive(Module, Debug)]
struct PoolingAttention {
    in_proj_weight: Param<Tensor<2>>,
    in_proj_bias: Param<Tensor<1>>,
    out_proj: Linear,
}

impl VisionConfig {
    /// Builds the encoder. A weight is allocated only when it is first used or loaded.
    pub fn init(&self, device: &Device) -> VisionEncoder {
        let d = self.hidden_size;
        let family = self.family;
        let layer_norm = || LayerNormConfig::new(d).with_epsilon(self.layer_norm_eps).init(device);
        let norm = || (!family.rms_norms).then(layer_norm);
        let rms_norm = || family.rms_norms.then(|| self.rms_norm(device));
        let scale = || self.family.layer_scale.then(|| Initializer::Ones.init([d], device));
        let layer = |_| VisionLayer {
            layer_norm1: norm(),
            rms_norm1: rms_norm(),
            self_attn: self.attention(device),
            layer_scale1: scale(),
            layer_norm2: norm(),
            rms_norm2: rms_norm(),
            mlp: (!self.swiglu).then(|| self.mlp(device)),
            swiglu: self.swiglu.then(|| VisionSwiGlu {
                weights_in: LinearConfig::new(d, 2 * self.swiglu_width()).init(device),
                weights_out: LinearConfig::new(self.swiglu_width(), d).init(device),
            }),
            layer_scale2: scale(),
        };
        VisionEncoder {
            embeddings: self.patch_embeddings(device),
            pre_layrnorm: family.pre_norm.then(layer_norm),
            encoder: VisionLayers { layers: (0..self.num_hidden_layers).map(layer).collect() },
            post_layernorm: norm(),
            rms_norm: rms_norm(),
            head: self.pooling_head.then(|| self.head(device)),
            rotary: (family.positions == Positions::Rotary).then(|| (self.rope_theta, self.grid())),
        }
    }

    fn rms_norm(&self, device: &Device) -> RmsNorm {
        RmsNormConfig::new(self.hidden_size).with_epsilon(self.layer_norm_eps).init(device)
    }

    fn head(&self, device: &Device) -> PoolingHead {
        let (d, aim) = (self.hidden_size, self.family.rms_norms);
        let linear = |bias: bool| LinearConfig::new(d, d).with_bias(bias).init(device);
        let token = || Initializer::Zeros.init([1, 1, d], device);
        PoolingHead {
            probe: (!aim).then(token),
            attention: (!aim).then(|| PoolingAttention {
                in_proj_weight: Initializer::Zeros.init([3 * d, d], device),
                in_proj_bias: Initializer::Zeros.init([3 * d], device),
                out_proj: linear(true),
            }),
            layernorm: (!aim).then(|| LayerNormConfig::new(d).with_epsilon(self.layer_norm_eps).init(device)),
            mlp: (!aim).then(|| self.mlp(device)),
            cls_token: aim.then(token),
            k_proj: aim.then(|| linear(self.biases.key)),
            v_proj: aim.then(|| linear(self.biases.value)),
            output_proj: aim.then(|| linear(true)),
        }
    }

    fn attention(&self, device: &Device) -> VisionAttention {
        let d = self.hidden_size;
        let linear = |bias: bool| LinearConfig::new(d, d).with_bias(bias).init(device);
        VisionAttention {
            q_proj: linear(self.biases.query),
            k_proj: linear(self.biases.key),
            v_proj: linear(self.biases.value),
            out_proj: linear(self.biases.out),
            heads: self.num_attention_heads,
        }
    }

    fn mlp(&self, device: &Device) -> VisionMlp {
        let (d, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |from, to| LinearConfig::new(from, to).with_bias(self.biases.mlp).init(device);
        VisionMlp {
            gate: self.gated.then(|| linear(d, inner)),
            fc1: linear(d, inner),
            fc2: linear(inner, d),
            activation: self.hidden_act,
        }
    }
}

impl VisionEncoder {
    /// The hidden states after each of `layers` (transformers' `hidden_states[layer]`): 0 is the embeddings, after the
    /// norm before the layers if there is one. Layers after the last requested one do not run.
    ///
    /// # Shapes
    /// - pixels: `[N, channels, H, W]`
    /// - output: per layer `[N, special + patches, hidden]`, CLS and registers first
    pub fn hidden_states(&self, pixels: Tensor<4>, layers: &[usize]) -> Vec<Tensor<3>> {
        let (mut x, mask) = self.embeddings.forward(pixels);
        if let Some(norm) = &self.pre_layrnorm {
            x = norm.forward(x);
        }
        let last = layers.iter().copied().max().unwrap_or(0);
        let mask = mask.map(|valid| masked(&valid));
        let rotation = self.rotary.map(|(theta, side)| {
            let special = x.dims()[1] - side * side;
            rotation(side, special, self.encoder.head_width(), theta, x.dtype(), &x.device().without_autodiff())
        });
        let mut found: Vec<Option<Tensor<3>>> = vec![None; layers.len()];
        for index in 0..=last {
            if index > 0 {
                x = self.encoder.layers[index - 1].forward(x, rotation.as_ref(), mask.as_ref());
            }
            for (slot, layer) in found.iter_mut().zip(layers) {
                if *layer == index {
                    *slot = Some(x.clone());
                }
            }
        }
        found.into_iter().flatten().collect()
    }
}

impl VisionLayers {
    /// The width of a head; 0 without layers.
    fn head_width(&self) -> usize {
        self.layers.first().map_or(0, |layer| {
            let attention = &layer.self_attn;
            attention.q_proj.weight.lazy_shape()[1] / attention.heads
        })
    }
}

impl VisionLayer {
    fn forward(&self, x: Tensor<3>, rotation: Option<&Rotation>, mask: Option<&Tensor<4>>) -> Tensor<3> {
        let normed = |x: Tensor<3>, layer: &Option<LayerNorm>, rms: &Option<RmsNorm>| match (layer, rms) {
            (Some(norm), _) => norm.forward(x),
            (None, Some(norm)) => normalized(norm, x, false),
            (None, None) => x,
        };
        let scaled = |y: Tensor<3>, scale: &Option<Param<Tensor<1>>>| match scale {
            Some(scale) => y * scale.val().unsqueeze(),
            None => y,
        };
        let y = self.self_attn.forward(normed(x.clone(), &self.layer_norm1, &self.rms_norm1), rotation, mask);
        let x = x + scaled(y, &self.layer_scale1);
        let y = normed(x.clone(), &self.layer_norm2, &self.rms_norm2);
        let y = match (&self.mlp, &self.swiglu) {
            (Some(mlp), _) => mlp.forward(y),
            (None, Some(mlp)) => mlp.forward(y),
            (None, None) => y,
        };
        x + scaled(y, &self.layer_scale2)
    }
}

impl VisionAttention {
    /// Applies self-attention in which every position sees every other, except those that are masked.
    ///
    /// # Shapes
    /// - x and output: `[N, T, hidden]`
    fn forward(&self, x: Tensor<3>, rotation: Option<&Rotation>, mask: Option<&Tensor<4>>) -> Tensor<3> {
        let [n, t, d] = x.dims();
        let width = d / self.heads;
        let split = |y: Tensor<3>| y.reshape([n, t, self.heads, width]);
        let turned = |y: Tensor<4>| match rotation {
            Some(Rotation { cos, sin }) => rotate(y, cos.clone(), sin.clone()),
            None => y,
        };
        let q = turned(split(linear(&self.q_proj, x.clone())));
        let k = turned(split(linear(&self.k_proj, x.clone())));
        let v = split(linear(&self.v_proj, x));
        let seen = match mask {
            Some(mask) => masked_attention(q, k, v, mask.clone()),
            None => attention_to_all(q, k, v),
        };
        linear(&self.out_proj, seen.reshape([n, t, d]))
    }
}

/// What is added to the scores of keys, `[N, 1, 1, patches]` in f32: so little that padding is not seen.
fn masked(valid: &Tensor<2>) -> Tensor<4> {
    let [n, count] = valid.dims();
    valid.clone().cast(DType::F32).sub_scalar(1.0).mul_scalar(1e30).reshape([n, 1, 1, count])
}

/// Attention to the keys that are not masked, composed of operations; softmax in f32.
///
/// # Shapes
/// - q, k, v and output: `[N, T, heads, width]`
fn masked_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Tensor<4>) -> Tensor<4> {
    let (dtype, width) = (q.dtype(), q.dims()[3]);
    let [q, k, v] = [q, k, v].map(|x| x.swap_dims(1, 2));
    let scores = q.matmul(k.transpose()).cast(DType::F32).div_scalar((width as f64).sqrt()) + mask;
    softmax(scores, 3).cast(dtype).matmul(v).swap_dims(1, 2)
}

impl VisionMlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = linear(&self.fc1, x.clone());
        let inner = match &self.gate {
            Some(gate) if self.activation == Activation::Silu => swiglu(linear(gate, x), inner),
            Some(gate) => activate(self.activation, linear(gate, x)) * inner,
            None => activate(self.activation, inner),
        };
        linear(&self.fc2, inner)
    }
}

impl VisionSwiGlu {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let both = linear(&self.weights_in, x); // [N, T, 2 * width]
        let width = both.dims()[2] / 2;
        linear(&self.weights_out, swiglu(both.clone().narrow(2, 0, width), both.narrow(2, width, width)))
    }
}
