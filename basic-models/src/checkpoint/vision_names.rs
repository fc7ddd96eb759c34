//! Maps the tensor names of vision encoders whose files do not use CLIP's names. The network's fields follow CLIP's;
//! the tables are those of the families (config/vision_family.rs).

use crate::config::VisionNames;

/// This project's name for a tensor of a vision encoder. A name that is in no family's table is unchanged.
pub fn canonical(disk: &str) -> String {
    let renamed = VisionNames::all().find_map(|names| {
        let name = disk.strip_prefix(names.prefix).unwrap_or(disk);
        if let Some(renamed) = start(name, names.starts, |(disk, ours)| (disk, ours)) {
            return Some(renamed);
        }
        if !names.renamed.iter().any(|start| name.starts_with(start)) {
            return (name != disk).then(|| name.to_string());
        }
        let parts = names.parts.iter().chain(names.modules);
        let renamed = parts.fold(name.to_string(), |name, (disk, ours)| name.replacen(disk, ours, 1));
        let end = names.ends.iter().find_map(|(disk, ours)| Some(format!("{}{ours}", renamed.strip_suffix(disk)?)));
        Some(end.unwrap_or(renamed))
    });
    renamed.unwrap_or_else(|| disk.to_string())
}

/// The name on disk of the tensor with this project's name `ours`.
pub fn disk(names: &VisionNames, ours: &str) -> String {
    if let Some(renamed) = start(ours, names.starts, |(disk, ours)| (ours, disk)) {
        return renamed;
    }
    let renamed = names.parts.iter().fold(ours.to_string(), |name, (disk, ours)| name.replacen(ours, disk, 1));
    let end = names.ends.iter().find_map(|(disk, ours)| Some(format!("{}{disk}", renamed.strip_suffix(ours)?)));
    end.unwrap_or(renamed)
}

/// The name in transformers 5's modules of the tensor with this project's name `ours`.
pub fn module(names: &VisionNames, ours: &str) -> String {
    let renamed = names.modules.iter().fold(ours.to_string(), |name, (module, ours)| name.replacen(ours, module, 1));
    disk(names, &renamed)
}

/// The name with its start replaced by one of `pairs`, if one matches; `order` returns a pair as (old, new).
fn start(
    name: &str,
    pairs: &'static [(&'static str, &'static str)],
    order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Option<String> {
    let mut pairs = pairs.iter().map(|pair| order(*pair));
    pairs.find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let names = VisionNames::all().next().unwrap();
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
            assert_eq!(canonical(&format!("{}{disk_name}", names.prefix)), ours);
            assert_eq!(disk(names, ours), disk_name);
        }
        assert_eq!(canonical("encoder.layer.1.attention.o_proj.bias"), "encoder.layers.1.self_attn.out_proj.bias");
        assert_eq!(module(names, "encoder.layers.1.self_attn.out_proj.bias"), "encoder.layer.1.attention.o_proj.bias");
        for clip in ["encoder.layers.0.self_attn.q_proj.weight", "head.layernorm.weight", "post_layernorm.weight"] {
            assert_eq!(canonical(clip), clip);
        }
    }
}
