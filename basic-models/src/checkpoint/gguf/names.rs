//! The names of a decoder's tensors in GGUF and in this project.

/// The parts of a layer: the module here and its name in GGUF, without `weight` or `bias`.
const PARTS: [(&str, &str); 13] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// The tensors outside layers.
const WHOLE: [(&str, &str); 3] = [
    ("language_model.embed_tokens.weight", "token_embd.weight"),
    ("language_model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// The name in GGUF of a decoder's parameter; the name itself if there is none.
pub(in super::super) fn disk(name: &str) -> String {
    if let Some((_, disk)) = WHOLE.iter().find(|(ours, _)| *ours == name) {
        return (*disk).into();
    }
    let layer = || {
        let (index, rest) = name.strip_prefix("language_model.layers.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let (_, part) = PARTS.iter().find(|(ours, _)| *ours == module)?;
        Some(format!("blk.{index}.{part}.{kind}"))
    };
    layer().unwrap_or_else(|| name.into())
}

/// This project's name of a decoder's tensor in GGUF; `None` for one that it has no name for. `fused` says whether the
/// family stores gate and up as one matrix, which has the name of the up matrix.
pub(super) fn canonical(disk: &str, fused: bool) -> Option<String> {
    if let Some((ours, _)) = WHOLE.iter().find(|(_, name)| *name == disk) {
        return Some((*ours).into());
    }
    let (index, rest) = disk.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let fits =
        |(ours, name): &&(&str, &str)| *name == part && (*name != "ffn_up" || (*ours == "mlp.gate_up_proj") == fused);
    let (module, _) = PARTS.iter().find(fits)?;
    Some(format!("language_model.layers.{index}.{module}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (ours, gguf, fused) in [
            ("language_model.embed_tokens.weight", "token_embd.weight", false),
            ("lm_head.weight", "output.weight", false),
            ("language_model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias", false),
            ("language_model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", false),
            ("language_model.layers.0.mlp.gate_up_proj.weight", "blk.0.ffn_up.weight", true),
            ("language_model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight", false),
        ] {
            assert_eq!(disk(ours), gguf);
            assert_eq!(canonical(gguf, fused).as_deref(), Some(ours));
        }
        for unknown in ["rope_freqs.weight", "blk.0.attn_sinks.weight", "blk.0", "v.blk.0.ln1.weight"] {
            assert_eq!(canonical(unknown, false), None, "{unknown}");
        }
    }
}
