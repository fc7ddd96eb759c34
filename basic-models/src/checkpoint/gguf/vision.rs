//! The vision encoder and the projector as llama.cpp's second file, mmproj: keys, names and types of tensors. What
//! `clip.cpp` cannot compute is an error that names the key of config.json.

use super::decoder::is_gelu;
use super::export::Refusal;
use super::format::Kind;
use super::write::Item;
use crate::config::{Activation, LlavaConfig, ProjectorKind};
use crate::processor::ImageProcessorConfig;

const ENCODER: &str = "vision_tower.encoder.layers.";

/// The keys of the file.
pub(super) fn describe(config: &LlavaConfig, images: &ImageProcessorConfig) -> Result<Vec<(String, Item)>, Refusal> {
    check(config)?;
    let vision = &config.vision_config;
    let layers = layers(config)?;
    let (mean, deviation) = pixels(images)?;
    let count = |what: &str, value: usize| match u32::try_from(value) {
        Ok(value) => Ok(Item::U32(value)),
        Err(_) => Err(Refusal::new(format!("vision_config.{what} = {value}"), "GGUF holds it in 32 bits")),
    };
    let list = |values: [f32; 3]| Item::Floats(values.to_vec());
    let mut items = vec![
        ("clip.has_vision_encoder", Item::Flag(true)),
        ("clip.projector_type", Item::Text("mlp".into())),
        ("clip.vision.image_size", count("image_size", vision.side())?),
        ("clip.vision.patch_size", count("patch_size", vision.patch_size)?),
        ("clip.vision.embedding_length", count("hidden_size", vision.hidden_size)?),
        ("clip.vision.feed_forward_length", count("intermediate_size", vision.intermediate_size)?),
        ("clip.vision.block_count", count("num_hidden_layers", blocks(&layers))?),
        ("clip.vision.attention.head_count", count("num_attention_heads", vision.num_attention_heads)?),
        ("clip.vision.attention.layer_norm_epsilon", Item::F32(vision.layer_norm_eps as f32)),
        ("clip.vision.projection_dim", count("hidden_size", config.text_config.hidden_size)?),
        ("clip.vision.image_mean", list(mean)),
        ("clip.vision.image_std", list(deviation)),
    ];
    let numbers = layers.iter().map(|layer| *layer as i32).collect();
    items.push(("clip.vision.feature_layer", Item::Integers(numbers)));
    // Without either flag, the activation is quick GELU.
    if is_gelu(vision.hidden_act) {
        items.push(("clip.use_gelu", Item::Flag(true)));
    } else if vision.hidden_act == Activation::Silu {
        items.push(("clip.use_silu", Item::Flag(true)));
    }
    Ok(items.into_iter().map(|(key, item)| (key.to_string(), item)).collect())
}

fn check(config: &LlavaConfig) -> Result<(), Refusal> {
    let vision = &config.vision_config;
    if config.is_fused() {
        return Err(Refusal::new("fused_vision_configs", "llama.cpp's LLaVA has a single vision encoder"));
    }
    if !vision.family.in_clip_cpp {
        let what = format!("vision_config.model_type = {}", vision.family.name);
        return Err(Refusal::new(what, "llama.cpp computes CLIP and SigLIP encoders for LLaVA's projector"));
    }
    if config.projector != ProjectorKind::LLAVA {
        let what = format!("projector_type = {}", config.projector.name());
        return Err(Refusal::new(what, "llama.cpp computes LLaVA's mlp2x_gelu alone"));
    }
    if config.tiling().cuts() {
        return Err(Refusal::new(
            "image_grid_pinpoints",
            "files for models that cut images into tiles are not written",
        ));
    }
    if !is_gelu(config.projector_hidden_act) {
        let what = format!("projector_hidden_act = {}", config.projector_hidden_act.name());
        return Err(Refusal::new(what, "llama.cpp computes the projector with GELU"));
    }
    if vision.num_channels != 3 {
        let what = format!("vision_config.num_channels = {}", vision.num_channels);
        return Err(Refusal::new(what, "llama.cpp takes pictures of three channels"));
    }
    if vision.side() != vision.patch_size * vision.grid() {
        let what = format!("vision_config.image_size = {}", vision.side());
        return Err(Refusal::new(what, format!("it is no multiple of patch_size {}", vision.patch_size)));
    }
    if (config.dropped(vision) > 0) != vision.family.class {
        let (strategy, reason) = match vision.family.class {
            true => ("full", "llama.cpp drops CLS of the encoder's output"),
            false => ("default", "llama.cpp drops no position of an encoder without CLS"),
        };
        return Err(Refusal::new(format!("vision_feature_select_strategy = {strategy}"), reason));
    }
    Ok(())
}

/// The layers whose outputs are projected.
pub(super) fn layers(config: &LlavaConfig) -> Result<Vec<usize>, Refusal> {
    let layers = config.feature_layers(&config.vision_config);
    let layers = layers.map_err(|error| Refusal::new("vision_feature_layer", error.to_string()))?;
    if layers.is_sorted_by(|a, b| a < b) {
        return Ok(layers);
    }
    let what = format!("vision_feature_layer = {layers:?} of {}", config.vision_config.num_hidden_layers);
    Err(Refusal::new(what, "llama.cpp joins the outputs of several layers from the first to the last, each once"))
}

/// How many layers of the encoder are needed.
fn blocks(layers: &[usize]) -> usize {
    layers.iter().copied().max().unwrap_or(0).max(1)
}

/// The mean and the standard deviation of pixel values between 0 and 1.
fn pixels(images: &ImageProcessorConfig) -> Result<([f32; 3], [f32; 3]), Refusal> {
    match images.rescale_factor {
        Some(factor) if (factor * 255.0 - 1.0).abs() < 1e-6 => {}
        other => {
            let what = format!("preprocessor_config.json: rescale_factor = {other:?}");
            return Err(Refusal::new(what, "llama.cpp divides pixel values by 255"));
        }
    }
    Ok(images.normalize.unwrap_or(([0.0; 3], [1.0; 3])))
}

/// The name in the file of a parameter of the vision encoder or the projector; `None` for one that is not needed.
pub(super) fn disk(config: &LlavaConfig, layers: &[usize], name: &str) -> Option<String> {
    const WHOLE: [(&str, &str); 10] = [
        ("vision_tower.embeddings.class_embedding", "v.class_embd"),
        ("vision_tower.embeddings.patch_embedding.weight", "v.patch_embd.weight"),
        ("vision_tower.embeddings.patch_embedding.bias", "v.patch_embd.bias"),
        ("vision_tower.embeddings.position_embedding.weight", "v.position_embd.weight"),
        ("vision_tower.pre_layrnorm.weight", "v.pre_ln.weight"),
        ("vision_tower.pre_layrnorm.bias", "v.pre_ln.bias"),
        ("multi_modal_projector.linear_1.weight", "mm.0.weight"),
        ("multi_modal_projector.linear_1.bias", "mm.0.bias"),
        ("multi_modal_projector.linear_2.weight", "mm.2.weight"),
        ("multi_modal_projector.linear_2.bias", "mm.2.bias"),
    ];
    const PARTS: [(&str, &str); 8] = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.out_proj", "attn_out"),
        ("layer_norm1", "ln1"),
        ("layer_norm2", "ln2"),
        ("mlp.fc1", "ffn_up"),
        ("mlp.fc2", "ffn_down"),
    ];
    if let Some((_, disk)) = WHOLE.iter().find(|(ours, _)| *ours == name) {
        return Some((*disk).into());
    }
    let (index, rest) = name.strip_prefix(ENCODER)?.split_once('.')?;
    if index.parse::<usize>().ok()? >= blocks(layers) {
        return None;
    }
    let (module, kind) = rest.rsplit_once('.')?;
    let (_, part) = PARTS.iter().find(|(ours, _)| *ours == module)?;
    // Old files have the two matrices of the MLP under each other's names. clip.cpp recognizes those by a down matrix
    // that is as wide as the encoder, and exchanges them: an MLP without a wider middle must be written like that.
    let vision = &config.vision_config;
    let part = match *part {
        "ffn_up" if vision.intermediate_size == vision.hidden_size => "ffn_down",
        "ffn_down" if vision.intermediate_size == vision.hidden_size => "ffn_up",
        part => part,
    };
    Some(format!("v.blk.{index}.{part}.{kind}"))
}

/// The type of a tensor: matrices of the layers and of the projector as `wanted`, everything else f32.
pub(super) fn kind(name: &str, shape: &[usize], wanted: Kind) -> Kind {
    let matrix = shape.len() == 2 && name.ends_with(".weight") && !name.contains("position_embd");
    if matrix { wanted } else { Kind::F32 }
}
