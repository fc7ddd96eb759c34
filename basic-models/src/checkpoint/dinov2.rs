//! DINOv2's tensor names, which differ from CLIP's and SigLIP's, as whose our network is written.

use super::names::Slot;

/// On disk, and ours. Checkpoints have the first; transformers 5's modules are named by the second column of [`MODULES`].
const PARTS: [(&str, &str); 9] = [
    ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attention.attention.query.", ".self_attn.q_proj."),
    (".attention.attention.key.", ".self_attn.k_proj."),
    (".attention.attention.value.", ".self_attn.v_proj."),
    (".attention.output.dense.", ".self_attn.out_proj."),
    (".mlp.weights_", ".swiglu.weights_"),
    ("encoder.layer.", "encoder.layers."),
];

/// Names of transformers 5's modules, in case somebody saves those.
const MODULES: [(&str, &str); 4] = [
    (".attention.q_proj.", ".self_attn.q_proj."),
    (".attention.k_proj.", ".self_attn.k_proj."),
    (".attention.v_proj.", ".self_attn.v_proj."),
    (".attention.o_proj.", ".self_attn.out_proj."),
];

/// Our name of a vision encoder's tensor; names of other families stay as they are.
pub fn canonical(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("layernorm.") {
        return format!("post_layernorm.{rest}");
    }
    let ours = name.starts_with("encoder.layer.") || name.starts_with("embeddings.patch_embeddings.");
    if !ours {
        return name.to_string();
    }
    let renamed =
        PARTS.iter().chain(&MODULES).fold(name.to_string(), |name, (disk, ours)| name.replacen(disk, ours, 1));
    // A layer scale is a module of one parameter on disk.
    renamed.strip_suffix(".lambda1").map(str::to_string).unwrap_or(renamed)
}

/// Whether parameters are those of a DINOv2 encoder, or of a model that has one.
pub fn wanted(slots: &[Slot]) -> bool {
    slots.iter().any(|slot| slot.name == "vision_tower.embeddings.cls_token")
}

/// The name on disk of a tensor of our name.
pub fn disk(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("post_layernorm.") {
        return format!("layernorm.{rest}");
    }
    let renamed = PARTS.iter().fold(name.to_string(), |name, (disk, ours)| name.replacen(ours, disk, 1));
    match renamed.ends_with(".layer_scale1") || renamed.ends_with(".layer_scale2") {
        true => format!("{renamed}.lambda1"),
        false => renamed,
    }
}

/// The name of a tensor of our name in transformers 5's modules.
pub fn module(name: &str) -> String {
    disk(&MODULES.iter().fold(name.to_string(), |name, (module, ours)| name.replacen(ours, module, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (disk_name, ours) in [
            ("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embedding.weight"),
            ("encoder.layer.3.attention.attention.key.bias", "encoder.layers.3.self_attn.k_proj.bias"),
            ("encoder.layer.3.attention.output.dense.weight", "encoder.layers.3.self_attn.out_proj.weight"),
            ("encoder.layer.0.norm2.weight", "encoder.layers.0.layer_norm2.weight"),
            ("encoder.layer.0.layer_scale1.lambda1", "encoder.layers.0.layer_scale1"),
            ("encoder.layer.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.weight"),
            ("encoder.layer.0.mlp.weights_in.bias", "encoder.layers.0.swiglu.weights_in.bias"),
            ("encoder.layer.0.mlp.weights_out.weight", "encoder.layers.0.swiglu.weights_out.weight"),
            ("layernorm.bias", "post_layernorm.bias"),
            ("embeddings.cls_token", "embeddings.cls_token"),
        ] {
            assert_eq!(canonical(disk_name), ours);
            assert_eq!(disk(ours), disk_name);
        }
        assert_eq!(canonical("encoder.layer.1.attention.o_proj.bias"), "encoder.layers.1.self_attn.out_proj.bias");
        for clip in ["encoder.layers.0.self_attn.q_proj.weight", "head.layernorm.weight", "post_layernorm.weight"] {
            assert_eq!(canonical(clip), clip);
        }
    }
}
