//! A decoder's configuration as keys of GGUF. What llama.cpp cannot compute is an error that names the key of
//! config.json.

use super::export::Refusal;
use super::format::Kind;
use super::llama3;
use super::write::{Change, Item};
use crate::config::{Activation, DecoderConfig, GgufFamily, LlavaConfig, RopeKind};
use crate::parameters::Slot;

/// The keys of a decoder, and what the user should know about the file.
pub(super) struct Described {
    /// The value of `general.architecture`.
    pub architecture: &'static str,
    pub items: Vec<(String, Item)>,
    pub notes: Vec<String>,
    /// The divisors of the rotary frequencies, if the file needs them as a tensor.
    pub divisors: Option<Vec<f32>>,
}

/// The keys of the decoder of `config`.
pub(super) fn describe(config: &LlavaConfig) -> Result<Described, Refusal> {
    let decoder = &config.text_config;
    let Some(gguf) = &decoder.family.gguf else {
        let what = format!("text_config.model_type = {}", decoder.family.name);
        return Err(Refusal::new(what, "llama.cpp's way of this family is not known here"));
    };
    check(config, gguf)?;
    let mut notes = Vec::new();
    let name = gguf.architecture;
    let key = |rest: &str| format!("{name}.{rest}");
    let count = |what: &str, value: usize| match u32::try_from(value) {
        Ok(value) => Ok(Item::U32(value)),
        Err(_) => Err(Refusal::new(format!("text_config.{what} = {value}"), "GGUF holds it in 32 bits")),
    };
    let mut items = vec![
        (key("vocab_size"), count("vocab_size", decoder.vocab_size)?),
        (key("context_length"), count("max_position_embeddings", context(decoder, &mut notes))?),
        (key("embedding_length"), count("hidden_size", decoder.hidden_size)?),
        (key("block_count"), count("num_hidden_layers", decoder.num_hidden_layers)?),
        (key("feed_forward_length"), count("intermediate_size", decoder.intermediate_size)?),
        (key("attention.head_count"), count("num_attention_heads", decoder.num_attention_heads)?),
        (key("attention.head_count_kv"), count("num_key_value_heads", decoder.kv_heads())?),
        (key("attention.key_length"), count("head_dim", decoder.head_dim())?),
        (key("attention.value_length"), count("head_dim", decoder.head_dim())?),
        (key("attention.layer_norm_rms_epsilon"), Item::F32(decoder.rms_norm_eps as f32)),
        (key("rope.dimension_count"), count("head_dim", decoder.rope.rotary_dims(decoder.head_dim()))?),
        (key("rope.freq_base"), Item::F32(decoder.rope.theta as f32)),
    ];
    let mut divisors = None;
    match &decoder.rope.kind {
        RopeKind::Linear { factor } => {
            items.push((key("rope.scaling.type"), Item::Text("linear".into())));
            items.push((key("rope.scaling.factor"), Item::F32(*factor as f32)));
        }
        RopeKind::Llama3 { original, .. } => {
            // llama.cpp reads the divisors alone; the key lets a reader find the settings again.
            items.push((key("rope.scaling.original_context_length"), Item::U32(*original as u32)));
            divisors = Some(llama3::divisors(&decoder.rope, decoder.head_dim()));
        }
        // `check` has refused the others.
        RopeKind::Default | RopeKind::Dynamic { .. } | RopeKind::Yarn { .. } | RopeKind::LongRope { .. } => {}
    }
    Ok(Described { architecture: name, items, notes, divisors })
}

/// The context length. llama.cpp computes these families without windows, which makes no difference as long as the
/// context is no longer than the smallest window.
fn context(decoder: &DecoderConfig, notes: &mut Vec<String>) -> usize {
    let most = decoder.max_position_embeddings;
    let windows = (0..decoder.num_hidden_layers).filter_map(|layer| decoder.window(layer));
    let Some(window) = windows.min().filter(|window| *window < most) else { return most };
    notes.push(format!(
        "llama.cpp attends without this model's sliding window of {window} positions: the file states a context of \
         {window} instead of {most} positions, within which that makes no difference"
    ));
    window
}

fn check(config: &LlavaConfig, gguf: &GgufFamily) -> Result<(), Refusal> {
    let decoder = &config.text_config;
    let name = decoder.family.name;
    let refuse = |what: String, reason: &str| Err(Refusal::new(format!("text_config.{what}"), reason));
    if decoder.hidden_act != gguf.activation {
        let wanted = gguf.activation.name();
        let reason = format!("llama.cpp computes {name} with {wanted}");
        return refuse(format!("hidden_act = {}", decoder.hidden_act.name()), &reason);
    }
    if decoder.attention_bias && !gguf.output_bias {
        return refuse(
            "attention_bias = true".into(),
            &format!("llama.cpp has no bias of the attention's output in {name}"),
        );
    }
    if decoder.mlp_bias && !gguf.mlp_bias {
        return refuse("mlp_bias = true".into(), &format!("llama.cpp has no biases of the MLP in {name}"));
    }
    let heads = decoder.num_attention_heads * decoder.head_dim();
    if gguf.heads_fill_width && heads != decoder.hidden_size {
        let reason = format!(
            "llama.cpp takes for {name} only heads that are together as wide as the decoder, {} and not {heads}",
            decoder.hidden_size
        );
        return refuse(format!("head_dim = {}", decoder.head_dim()), &reason);
    }
    if !config.tied() && !gguf.own_head {
        let reason = format!("llama.cpp uses the embedding table of {name} as its output head");
        return Err(Refusal::new("tie_word_embeddings = false", reason));
    }
    let rotary = decoder.rope.rotary_dims(decoder.head_dim());
    if rotary != decoder.head_dim() && !gguf.partial_rotary {
        let reason = format!("llama.cpp rotates whole heads of {name}");
        return refuse(format!("rope_parameters.partial_rotary_factor = {}", decoder.rope.partial), &reason);
    }
    match decoder.rope.kind {
        RopeKind::Yarn { .. } | RopeKind::LongRope { .. } => {
            let name = if matches!(decoder.rope.kind, RopeKind::Yarn { .. }) { "yarn" } else { "longrope" };
            let reason = "this project does not write its settings into GGUF";
            refuse(format!("rope_parameters.rope_type = {name}"), reason)
        }
        RopeKind::Dynamic { .. } => {
            let reason = "llama.cpp has no rotary base that grows with the length";
            refuse("rope_parameters.rope_type = dynamic".into(), reason)
        }
        RopeKind::Llama3 { .. } if !gguf.frequency_divisors => refuse(
            "rope_parameters.rope_type = llama3".into(),
            &format!("llama.cpp reads divisors of the rotary frequencies for llama, and not for {name}"),
        ),
        _ => Ok(()),
    }
}

/// What is done with a parameter of the decoder when it is written.
pub(super) fn change(decoder: &DecoderConfig, slot: &Slot) -> Change {
    let name = slot.name.as_str();
    let rows = ["self_attn.q_proj", "self_attn.k_proj"];
    let interleaved = decoder.family.gguf.as_ref().is_some_and(|gguf| gguf.interleaved);
    if interleaved && rows.iter().any(|part| name.contains(part)) {
        let columns = slot.shape.iter().skip(1).product::<usize>().max(1);
        return Change::Interleave { height: decoder.head_dim(), columns };
    }
    if decoder.family.norm_plus_one && is_norm(name) { Change::Add(1.0) } else { Change::Keep }
}

/// Whether a parameter of the decoder is a norm's weight.
pub(super) fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight")
}

/// The type of a matrix of the decoder: `wanted`, or another one where that is not possible or not good.
pub(super) fn kind(name: &str, shape: &[usize], wanted: Kind) -> Kind {
    let [_, columns] = shape else { return Kind::F32 };
    let vocabulary = matches!(name, "token_embd.weight" | "output.weight");
    match wanted {
        _ if !columns.is_multiple_of(wanted.block().0) => Kind::F16,
        // Every word passes through these two, and four bits are too coarse for them, as in llama.cpp's own files.
        Kind::Q4_0 if vocabulary => Kind::Q8_0,
        kind => kind,
    }
}

/// The scale of the visual embeddings that llama.cpp applies and this project does not.
pub(super) fn visual_scale(decoder: &DecoderConfig) -> Option<f64> {
    decoder.embedding_scale()
}

/// Whether the projector's activation can be computed, GELU or its approximation.
pub(super) fn is_gelu(activation: Activation) -> bool {
    matches!(activation, Activation::Gelu | Activation::GeluTanh)
}
