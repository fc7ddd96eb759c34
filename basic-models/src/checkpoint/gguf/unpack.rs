//! Turns the metadata of a GGUF file into the files of a Hugging Face directory: config.json, the tokenizer and the chat
//! template.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::CheckpointError;
use super::error::GgufError;
use super::metadata::Metadata;
use super::read::Found;
use super::{llama3, retokenize};
use crate::config::{DecoderConfig, Family, Rope, RopeKind};
use crate::processor::{ChatTemplate, TokenIds, Tokenizer};

/// The files beside the tensors, and what the tensors' names and order depend on.
pub(super) struct Unpacked {
    pub beside: TempDir,
    pub family: &'static Family,
    /// Whether the halves of each head's rows are interleaved.
    pub interleaved: bool,
    pub head_dim: usize,
}

/// Unpacks the metadata of a decoder; `divisors` are those of its rotary frequencies.
pub(super) fn unpack(
    metadata: &Metadata,
    tensors: &[Found],
    divisors: Option<&[f32]>,
) -> Result<Unpacked, CheckpointError> {
    let (family, config) = config(metadata, tensors, divisors)?;
    let parsed = DecoderConfig::from_value(&config)
        .map_err(|error| metadata.wrong("the decoder's keys", error.to_string().replacen("config.json: ", "", 1)))?;
    let beside = tempfile::Builder::new().prefix("basic-gguf-").tempdir();
    let beside = beside.map_err(CheckpointError::io(std::env::temp_dir()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = beside.path().join(name);
        std::fs::write(&path, bytes).map_err(CheckpointError::io(path))
    };
    write("config.json", format!("{config:#}\n").as_bytes())?;
    let tokenizer = retokenize::tokenizer(metadata)?;
    write("tokenizer.json", tokenizer.json.as_bytes())?;
    write("tokenizer_config.json", format!("{:#}\n", tokenizer.config).as_bytes())?;
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        ChatTemplate::new(template, format!("{}: tokenizer.chat_template", metadata.path().display()))?;
        write("chat_template.jinja", template.as_bytes())?;
    }
    // Loaded once here, so that an error names this file and not the directory that it was unpacked to.
    let ids = TokenIds::default();
    Tokenizer::load(beside.path(), &ids).map_err(|error| named(metadata, beside.path(), &error.to_string()))?;
    let interleaved = family.gguf.as_ref().is_some_and(|gguf| gguf.interleaved);
    Ok(Unpacked { family, interleaved, head_dim: parsed.head_dim(), beside })
}

/// An error of the tokenizer's loader, about the file that it was unpacked from.
fn named(metadata: &Metadata, unpacked: &Path, error: &str) -> GgufError {
    let said = error.replace(&format!("{}/tokenizer.json: ", unpacked.display()), "");
    metadata.wrong("tokenizer.ggml", said.replace(&unpacked.display().to_string(), "the unpacked tokenizer"))
}

/// The decoder's family and config.json.
fn config(
    metadata: &Metadata,
    tensors: &[Found],
    divisors: Option<&[f32]>,
) -> Result<(&'static Family, Value), GgufError> {
    const ARCHITECTURE: &str = "general.architecture";
    let name = metadata.text(ARCHITECTURE)?.ok_or_else(|| metadata.wrong(ARCHITECTURE, "is missing"))?;
    if name == "clip" || metadata.text("general.type")?.is_some_and(|kind| kind != "model") {
        let reason = "is a vision encoder or an adapter (mmproj), and no decoder: give the other file of the model";
        return Err(metadata.wrong(ARCHITECTURE, reason));
    }
    let Some((family, gguf)) = Family::of_gguf(name) else {
        let reason = format!("{name:?} is not supported: {}", Family::supported_in_gguf());
        return Err(metadata.wrong(ARCHITECTURE, reason));
    };
    let key = |rest: &str| format!("{name}.{rest}");
    let needed = |rest: &str| metadata.needed(&key(rest));
    refuse_others(metadata, name)?;
    let (width, heads) = (needed("embedding_length")?, needed("attention.head_count")?);
    if heads == 0 {
        return Err(metadata.wrong(&key("attention.head_count"), "is 0"));
    }
    let head_dim = metadata.count(&key("attention.key_length"))?.unwrap_or(width / heads);
    if metadata.count(&key("attention.value_length"))?.is_some_and(|length| length != head_dim) {
        return Err(metadata.wrong(&key("attention.value_length"), format!("differs from the keys' {head_dim}")));
    }
    let has = |tensor: &str| tensors.iter().any(|found| found.name == tensor);
    let rows = tensors.iter().find(|found| found.name == "token_embd.weight").map(|found| found.shape[0]);
    let Some(rows) = rows else {
        let (path, tensor) = (metadata.path().into(), "token_embd.weight".into());
        return Err(GgufError::Tensor { path, tensor, reason: "is missing".into() });
    };
    let epsilon = key("attention.layer_norm_rms_epsilon");
    let id = |what: &str| metadata.count(&format!("tokenizer.ggml.{what}_token_id"));
    let ends: Vec<u32> = [id("eos")?, id("eot")?].into_iter().flatten().collect();
    let mut config = json!({
        "model_type": family.name,
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": needed("feed_forward_length")?,
        "num_hidden_layers": needed("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count(&key("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "hidden_act": gguf.activation.name(),
        "max_position_embeddings": needed("context_length")?,
        "rms_norm_eps": metadata.number(&epsilon)?.ok_or_else(|| metadata.wrong(&epsilon, "is missing"))?,
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": has("blk.0.attn_output.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
        "bos_token_id": id("bos")?,
        "eos_token_id": ends.split_first().map(|(one, more)| if more.is_empty() { json!(one) } else { json!(ends) }),
        "pad_token_id": id("padding")?,
        "sliding_window": null,
    });
    let rope = rope(metadata, name, head_dim, divisors)?;
    rope.write(&mut config, false);
    Ok((family, config))
}

/// Keys of models that have more than the families that are read.
fn refuse_others(metadata: &Metadata, name: &str) -> Result<(), GgufError> {
    let others = [
        ("expert_count", "experts are not read"),
        ("attn_logit_softcapping", "a cap of the attention's logits is not read"),
        ("final_logit_softcapping", "a cap of the logits is not read"),
        ("rope.scaling.attn_factor", "a factor of the attention is not read"),
    ];
    for (rest, reason) in others {
        let key = format!("{name}.{rest}");
        if metadata.number(&key)?.is_some_and(|value| value != 0.0) {
            return Err(metadata.wrong(&key, reason));
        }
    }
    Ok(())
}

fn rope(metadata: &Metadata, name: &str, head_dim: u32, divisors: Option<&[f32]>) -> Result<Rope, GgufError> {
    let key = |rest: &str| format!("{name}.rope.{rest}");
    let above_zero = |rest: &str| -> Result<Option<f64>, GgufError> {
        match metadata.number(&key(rest))? {
            Some(number) if number <= 0.0 => Err(metadata.wrong(&key(rest), format!("is {number}"))),
            number => Ok(number),
        }
    };
    let theta = above_zero("freq_base")?.unwrap_or(Rope::default().theta);
    let kind = match metadata.text(&key("scaling.type"))? {
        None | Some("none") => match above_zero("scale_linear")? {
            Some(factor) if factor != 1.0 => RopeKind::Linear { factor },
            _ => RopeKind::Default,
        },
        Some("linear") => RopeKind::Linear { factor: above_zero("scaling.factor")?.unwrap_or(1.0) },
        Some(other) => {
            return Err(metadata.wrong(&key("scaling.type"), format!("{other:?} is not supported: none or linear")));
        }
    };
    if let Some(divisors) = divisors {
        let original = metadata.count(&key("scaling.original_context_length"))?;
        let found = llama3::settings(theta, divisors, original).filter(|_| kind == RopeKind::Default);
        return found.ok_or_else(|| GgufError::Tensor {
            path: metadata.path().into(),
            tensor: llama3::TENSOR.into(),
            reason: "does not hold the divisors of Llama 3's scaling with the bounds 1 and 4".into(),
        });
    }
    let rotated = metadata.count(&key("dimension_count"))?.unwrap_or(head_dim);
    if rotated == 0 || rotated > head_dim {
        return Err(metadata.wrong(&key("dimension_count"), format!("is {rotated}, and a head has {head_dim}")));
    }
    Ok(Rope { theta, kind, partial: f64::from(rotated) / f64::from(head_dim), growth: None })
}
