//! The vision encoder families: the differences between their networks, the defaults of their classes in transformers,
//! and the names of their tensors on disk. No other file names them; a family that differs from the others only by
//! these fields is one entry of [`VisionFamily::ALL`].

use std::fmt;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::family::listed;

/// A vision encoder family: transformers' `model_type`s, and how its network and its files differ from the others'.
pub struct VisionFamily {
    /// The `model_type` that is written to config.json.
    pub name: &'static str,
    /// The `model_type` of a joint model of images and texts that contains such an encoder.
    pub joint_name: Option<&'static str>,
    /// The `model_type` of the class with register positions, if there is one.
    pub registers_name: Option<&'static str>,
    /// There is a CLS position before the patches.
    pub class: bool,
    /// How the patches' positions are told.
    pub positions: Positions,
    /// The images may have another size than the configuration's: position embeddings are interpolated to it, or there are
    /// none. (AIMv2's `is_native` says the same of one model.)
    pub interpolates: bool,
    /// The convolution of the patches has a bias.
    pub patch_bias: bool,
    /// There is a norm before the layers.
    pub pre_norm: bool,
    /// All norms are RMS norms, and there is one behind the convolution of the patches.
    pub rms_norms: bool,
    /// The feed-forward block is gated, with matrices of its own for the gate.
    pub gated: bool,
    /// Each block's output is scaled by a vector.
    pub layer_scale: bool,
    /// llama.cpp's `clip.cpp` computes it in front of LLaVA's projector.
    pub in_clip_cpp: bool,
    /// The names of the tensors on disk, if they differ from CLIP's, which the network's fields follow.
    pub names: Option<&'static VisionNames>,
    /// The keys of the family's class in transformers 5.24 that change the computation, with their defaults; the
    /// argument says whether it is the class with registers. Keys that only some classes have are read and written only
    /// if they are listed here.
    pub class_defaults: fn(bool) -> Value,
}

/// How an encoder tells the positions of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// A table of embeddings (`position_embedding`); CLS is a vector (`class_embedding`).
    Table,
    /// A parameter with a batch dimension (`position_embeddings`), as CLS is (`cls_token`).
    Batched,
    /// Queries and keys are rotated by their place in the grid; CLS is as with `Batched`.
    Rotary,
    /// A table that is interpolated to the grid of each image, whose patches are as many as fit with its aspect ratio.
    Flexible,
}

/// The names of a family's tensors on disk, as pairs of the name on disk and the name in this project.
pub struct VisionNames {
    /// A parameter, by this project's name, that no encoder has whose names come later in [`VisionNames::all`] or are CLIP's.
    pub mark: &'static str,
    /// A prefix that the names in some files have.
    pub prefix: &'static str,
    /// The starts of those names on disk to which `parts`, `modules` and `ends` apply.
    pub renamed: &'static [&'static str],
    /// Pairs that replace the start of a name.
    pub starts: &'static [(&'static str, &'static str)],
    /// Pairs that replace a part of a name.
    pub parts: &'static [(&'static str, &'static str)],
    /// Pairs that replace the end of a name.
    pub ends: &'static [(&'static str, &'static str)],
    /// Pairs for the names of transformers 5's modules where they differ from the files' names: adapters use
    /// the modules' names.
    pub modules: &'static [(&'static str, &'static str)],
}

/// CLIP: a CLS position, and a norm before the layers.
static CLIP: VisionFamily = VisionFamily {
    name: "clip_vision_model",
    joint_name: Some("clip"),
    registers_name: None,
    class: true,
    positions: Positions::Table,
    interpolates: false,
    patch_bias: false,
    pre_norm: true,
    rms_norms: false,
    gated: false,
    layer_scale: false,
    in_clip_cpp: true,
    names: None,
    class_defaults: |_| {
        json!({
            "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 512, "num_hidden_layers": 12,
            "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
        })
    },
};

/// SigLIP, and SigLIP 2 at a fixed resolution: no CLS position, and a pooling head that LLaVA does not use.
static SIGLIP: VisionFamily = VisionFamily {
    name: "siglip_vision_model",
    joint_name: Some("siglip"),
    registers_name: None,
    class: false,
    positions: Positions::Table,
    interpolates: false,
    patch_bias: true,
    pre_norm: false,
    rms_norms: false,
    gated: false,
    layer_scale: false,
    in_clip_cpp: true,
    names: None,
    class_defaults: |_| {
        json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "vision_use_head": true,
        })
    },
};

/// SigLIP 2 NaFlex: images keep their aspect ratio and have grids of their own, of at most so many patches. (SigLIP 2 at a
/// fixed resolution is SigLIP.)
static SIGLIP2: VisionFamily = VisionFamily {
    name: "siglip2_vision_model",
    joint_name: Some("siglip2"),
    registers_name: None,
    class: false,
    positions: Positions::Flexible,
    interpolates: false,
    patch_bias: true,
    pre_norm: false,
    rms_norms: false,
    gated: false,
    layer_scale: false,
    in_clip_cpp: false,
    names: None,
    class_defaults: |_| {
        json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "num_channels": 3, "patch_size": 16, "num_patches": 256, "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "vision_use_head": true,
        })
    },
};

/// DINOv2: a CLS position and layer scale; the variant with register positions has a class of its own.
static DINOV2: VisionFamily = VisionFamily {
    name: "dinov2",
    joint_name: None,
    registers_name: Some("dinov2_with_registers"),
    class: true,
    positions: Positions::Batched,
    interpolates: true,
    patch_bias: true,
    pre_norm: false,
    rms_norms: false,
    gated: false,
    layer_scale: true,
    in_clip_cpp: false,
    names: Some(&DINOV2_NAMES),
    class_defaults: |registers| {
        json!({
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "drop_path_rate": 0.0, "layer_norm_eps": 1e-6, "image_size": 224,
            "patch_size": if registers { 16 } else { 14 }, "num_channels": 3, "qkv_bias": true,
            "use_swiglu_ffn": false, "num_register_tokens": if registers { 4 } else { 0 },
            "use_mask_token": true,
        })
    },
};

static DINOV2_NAMES: VisionNames = VisionNames {
    mark: "embeddings.position_embeddings",
    prefix: "dinov2.",
    renamed: &["encoder.layer.", "embeddings.patch_embeddings.projection."],
    starts: &[("layernorm.", "post_layernorm.")],
    parts: &[
        ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
        (".norm1.", ".layer_norm1."),
        (".norm2.", ".layer_norm2."),
        (".attention.attention.query.", ".self_attn.q_proj."),
        (".attention.attention.key.", ".self_attn.k_proj."),
        (".attention.attention.value.", ".self_attn.v_proj."),
        (".attention.output.dense.", ".self_attn.out_proj."),
        (".mlp.weights_", ".swiglu.weights_"),
        ("encoder.layer.", "encoder.layers."),
    ],
    // On disk, a layer scale is a module with one parameter.
    ends: &[(".layer_scale1.lambda1", ".layer_scale1"), (".layer_scale2.lambda1", ".layer_scale2")],
    modules: &[
        (".attention.q_proj.", ".self_attn.q_proj."),
        (".attention.k_proj.", ".self_attn.k_proj."),
        (".attention.v_proj.", ".self_attn.v_proj."),
        (".attention.o_proj.", ".self_attn.out_proj."),
    ],
};

/// DINOv3's transformers: CLS, registers and layer scale as DINOv2's, and rotary positions. The random changes of the
/// positions that transformers makes in training mode are left out.
static DINOV3: VisionFamily = VisionFamily {
    name: "dinov3_vit",
    joint_name: None,
    registers_name: None,
    class: true,
    positions: Positions::Rotary,
    interpolates: true,
    patch_bias: true,
    pre_norm: false,
    rms_norms: false,
    gated: false,
    layer_scale: true,
    in_clip_cpp: false,
    names: Some(&DINOV3_NAMES),
    class_defaults: |_| {
        json!({
            "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6,
            "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
            "attention_dropout": 0.0, "drop_path_rate": 0.0, "rope_theta": 100.0, "query_bias": true, "key_bias": false,
            "value_bias": true, "proj_bias": true, "mlp_bias": true, "use_gated_mlp": false, "num_register_tokens": 0,
        })
    },
};

static DINOV3_NAMES: VisionNames = VisionNames {
    mark: "embeddings.cls_token",
    prefix: "model.",
    renamed: &["layer.", "embeddings.patch_embeddings."],
    starts: &[("norm.", "post_layernorm.")],
    parts: &[
        ("embeddings.patch_embeddings.", "embeddings.patch_embedding."),
        (".norm1.", ".layer_norm1."),
        (".norm2.", ".layer_norm2."),
        (".attention.o_proj.", ".self_attn.out_proj."),
        (".attention.", ".self_attn."),
        (".mlp.gate_proj.", ".mlp.gate."),
        (".mlp.up_proj.", ".mlp.fc1."),
        (".mlp.down_proj.", ".mlp.fc2."),
        ("layer.", "encoder.layers."),
    ],
    ends: &[(".layer_scale1.lambda1", ".layer_scale1"), (".layer_scale2.lambda1", ".layer_scale2")],
    modules: &[("model.layer.", "encoder.layers.")],
};

/// AIMv2: RMS norms, a gated feed-forward block and no CLS; positions by a table, or by sines (`is_native`).
static AIMV2: VisionFamily = VisionFamily {
    name: "aimv2_vision_model",
    joint_name: Some("aimv2"),
    registers_name: None,
    class: false,
    positions: Positions::Table,
    interpolates: false,
    patch_bias: true,
    pre_norm: false,
    rms_norms: true,
    gated: true,
    layer_scale: false,
    in_clip_cpp: false,
    names: Some(&AIMV2_NAMES),
    class_defaults: |_| {
        json!({
            "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 8,
            "num_channels": 3, "image_size": 224, "patch_size": 14, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "attention_dropout": 0.0, "qkv_bias": false, "mlp_bias": false, "use_head": true, "is_native": false,
        })
    },
};

static AIMV2_NAMES: VisionNames = VisionNames {
    mark: "rms_norm.weight",
    prefix: "",
    renamed: &["encoder.layers.", "embeddings.patch_embed."],
    starts: &[],
    parts: &[
        ("embeddings.patch_embed.", "embeddings.patch_embedding."),
        (".attention.", ".self_attn."),
        (".ffn.gate_proj.", ".mlp.gate."),
        (".ffn.up_proj.", ".mlp.fc1."),
        (".ffn.down_proj.", ".mlp.fc2."),
    ],
    ends: &[],
    modules: &[],
};

impl VisionFamily {
    /// Every family; a config.json without a `model_type` is of the first one.
    pub const ALL: [&'static Self; 6] = [&CLIP, &SIGLIP, &SIGLIP2, &DINOV2, &DINOV3, &AIMV2];

    /// The family of a `model_type` in config.json, and whether it is the class with registers; the
    /// first one for `None`.
    pub fn of(name: Option<&str>) -> Option<(&'static Self, bool)> {
        let Some(name) = name else { return Some((Self::ALL[0], false)) };
        let has = |family: &&Self| [Some(family.name), family.joint_name, family.registers_name].contains(&Some(name));
        let family = Self::ALL.into_iter().find(has)?;
        Some((family, family.registers_name == Some(name)))
    }

    /// Whether a `model_type` starts as one of ours does, such as `dinov3_convnext`: a vision encoder, if not one that is read.
    pub(crate) fn is_relative(name: &str) -> bool {
        // Up to the first digit or underscore: `clip`, `siglip`, `dinov`.
        let stem = |name: &'static str| name.split(|c: char| c == '_' || c.is_ascii_digit()).next().unwrap_or(name);
        Self::ALL.iter().any(|family| name.starts_with(stem(family.name)))
    }

    /// The `model_type`s that are supported, as listed in an error.
    pub(super) fn supported() -> &'static str {
        static NAMES: LazyLock<String> = LazyLock::new(|| {
            let names = VisionFamily::ALL.iter().flat_map(|family| [Some(family.name), family.registers_name]);
            listed(&names.flatten().collect::<Vec<_>>())
        });
        &NAMES
    }

    /// The keys of the family's class that change the computation, with their defaults.
    pub(super) fn defaults(&self, registers: bool) -> Map<String, Value> {
        match (self.class_defaults)(registers) {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

impl VisionNames {
    /// The names of all families that differ from CLIP's.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        VisionFamily::ALL.into_iter().filter_map(|family| family.names)
    }
}

impl fmt::Debug for VisionFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for VisionNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mark)
    }
}

impl PartialEq for VisionFamily {
    /// Each name has only one entry.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl PartialEq for VisionNames {
    /// Each mark belongs to one family.
    fn eq(&self, other: &Self) -> bool {
        self.mark == other.mark
    }
}

impl Eq for VisionFamily {}
impl Eq for VisionNames {}

#[cfg(test)]
mod tests {
    use super::VisionFamily;

    #[test]
    fn a_name_has_one_entry_and_errors_list_all_of_them() {
        for family in VisionFamily::ALL {
            for name in [Some(family.name), family.joint_name, family.registers_name].into_iter().flatten() {
                let registers = family.registers_name == Some(name);
                assert_eq!(VisionFamily::of(Some(name)), Some((family, registers)), "{name}");
            }
        }
        let all = "clip_vision_model, siglip_vision_model, siglip2_vision_model, dinov2, dinov2_with_registers, dinov3_vit or aimv2_vision_model";
        assert_eq!(VisionFamily::supported(), all);
        assert_eq!(VisionFamily::of(None), Some((VisionFamily::ALL[0], false)));
        assert_eq!(VisionFamily::of(Some("vit")), None);
        for (name, relative) in
            [("clip", true), ("siglip3", true), ("dinov3_convnext", true), ("vit", false), ("", false)]
        {
            assert_eq!(VisionFamily::is_relative(name), relative, "{name}");
        }
    }
}
