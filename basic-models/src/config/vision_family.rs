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
    /// CLS and the positions are parameters with a batch dimension (`cls_token`, `position_embeddings`) instead of a
    /// vector and a table (`class_embedding`, `position_embedding`).
    pub batched_embeddings: bool,
    /// Position embeddings are interpolated to the size of the input images.
    pub interpolates: bool,
    /// The convolution of the patches has a bias.
    pub patch_bias: bool,
    /// There is a norm before the layers.
    pub pre_norm: bool,
    /// Each block's output is scaled by a vector.
    pub layer_scale: bool,
    /// llama.cpp's `clip.cpp` computes it in front of LLaVA's projector.
    pub in_clip_cpp: bool,
    /// The names of the tensors on disk, if they differ from CLIP's, which the network's fields follow.
    pub names: Option<&'static VisionNames>,
    /// The keys of the family's class in transformers 5.23 that change the computation, with their defaults; the
    /// argument says whether it is the class with registers. Keys that only some classes have are read and written only
    /// if they are listed here.
    pub class_defaults: fn(bool) -> Value,
}

/// The names of a family's tensors on disk, as pairs of the name on disk and the name in this project.
pub struct VisionNames {
    /// A parameter, by this project's name, that only encoders with these names have.
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
    batched_embeddings: false,
    interpolates: false,
    patch_bias: false,
    pre_norm: true,
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
    batched_embeddings: false,
    interpolates: false,
    patch_bias: true,
    pre_norm: false,
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

/// DINOv2: a CLS position and layer scale; the variant with register positions has a class of its own.
static DINOV2: VisionFamily = VisionFamily {
    name: "dinov2",
    joint_name: None,
    registers_name: Some("dinov2_with_registers"),
    class: true,
    batched_embeddings: true,
    interpolates: true,
    patch_bias: true,
    pre_norm: false,
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
    mark: "embeddings.cls_token",
    prefix: "dinov2.",
    renamed: &["encoder.layer.", "embeddings.patch_embeddings."],
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

impl VisionFamily {
    /// Every family; a config.json without a `model_type` is of the first one.
    pub const ALL: [&'static Self; 3] = [&CLIP, &SIGLIP, &DINOV2];

    /// The family of a `model_type` in config.json, and whether it is the class with registers; the
    /// first one for `None`.
    pub fn of(name: Option<&str>) -> Option<(&'static Self, bool)> {
        let Some(name) = name else { return Some((Self::ALL[0], false)) };
        let has = |family: &&Self| [Some(family.name), family.joint_name, family.registers_name].contains(&Some(name));
        let family = Self::ALL.into_iter().find(has)?;
        Some((family, family.registers_name == Some(name)))
    }

    /// Whether a `model_type` starts as one of ours does, such as `dinov3_vit`: a vision encoder, if not one that is read.
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
        let all = "clip_vision_model, siglip_vision_model, dinov2 or dinov2_with_registers";
        assert_eq!(VisionFamily::supported(), all);
        assert_eq!(VisionFamily::of(None), Some((VisionFamily::ALL[0], false)));
        assert_eq!(VisionFamily::of(Some("vit")), None);
        for (name, relative) in [("clip", true), ("siglip2", true), ("dinov3_vit", true), ("vit", false), ("", false)] {
            assert_eq!(VisionFamily::is_relative(name), relative, "{name}");
        }
    }
}
