//! Maps the tensor names of Hugging Face's layouts and of LLaVA's own code to this project's, which are module paths.

use super::{gguf, vision_names};
use crate::config::VisionNames;
use crate::parameters::Slot;

/// The kind of model in a directory, whose names differ by a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `LlavaForConditionalGeneration`.
    Llava,
    /// Only a vision encoder (`CLIPVisionModel`).
    Vision,
    /// Only a decoder (`LlamaForCausalLM`).
    Decoder,
    /// What `peft` saves for a `LlavaForConditionalGeneration`.
    Adapters,
    /// Only a decoder, in a GGUF file of llama.cpp.
    Gguf,
}

/// The prefix of the parameters of the vision encoders beside the first one; a number follows. Their names on disk are
/// this project's, because no class of transformers has them.
pub(super) const FUSED_TOWERS: &str = "fused_vision_towers";

/// Whether a parameter belongs to a vision encoder's pooling head.
pub fn in_pooling_head(name: &str) -> bool {
    let fused = || name.strip_prefix(FUSED_TOWERS)?.strip_prefix('.')?.split_once('.');
    let rest = name.strip_prefix("vision_tower.").or_else(|| Some(fused()?.1));
    rest.is_some_and(|rest| rest.starts_with("head."))
}

/// The prefix of the projector's parameters.
pub(super) const PROJECTOR: &str = "multi_modal_projector";

/// The newline embedding on disk, beside the projector, and as a part of the projector here.
const NEWLINE: [&str; 2] = ["image_newline", "multi_modal_projector.image_newline"];

/// The prefix of the model's own modules in a file of adapters.
const ADAPTERS: &str = "base_model.model.";

impl Layout {
    /// This project's name for a tensor on disk; `None` for buffers without weights.
    ///
    /// LLaVA's names exist in three forms, of which the first two may also have a leading `model.`:
    ///
    /// - transformers 4: `vision_tower.vision_model.*`, `language_model.model.*`, `language_model.lm_head.*`
    /// - transformers 5: `vision_tower.*`, `language_model.*`, `lm_head.*`
    /// - LLaVA's own code, in which the decoder contains the other parts: `model.layers.*`, `model.mm_projector.*`,
    ///   `model.vision_tower.vision_tower.vision_model.*`
    ///
    /// A file of Prismatic's code is read as well: `model.projector.projector.*`, and below `model.llm_backbone.llm.` the
    /// decoder's own names.
    pub fn canonical(self, disk: &str) -> Option<String> {
        if disk.ends_with(".position_ids") || disk.ends_with("rotary_emb.inv_freq") {
            return None;
        }
        // The other tensors of a joint model of images and texts (CLIP, SigLIP), of which only the
        // vision encoder is read.
        let joint = ["text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias"];
        if self == Self::Vision && joint.iter().any(|prefix| disk.starts_with(prefix)) {
            return None;
        }
        let strip = |name: &str, prefix: &str| name.strip_prefix(prefix).unwrap_or(name).to_string();
        Some(match self {
            Self::Llava => {
                let name = strip(disk, "model.");
                if let Some(rest) = name.strip_prefix("vision_tower.") {
                    let rest = strip(rest, "vision_tower.");
                    format!("vision_tower.{}", vision_names::canonical(&strip(&rest, "vision_model.")))
                } else if let Some(rest) = name.strip_prefix("llm_backbone.llm.") {
                    self.canonical(rest)?
                } else if let Some(rest) =
                    name.strip_prefix("mm_projector.").or_else(|| name.strip_prefix("projector.projector."))
                {
                    projector(rest)
                } else if name == NEWLINE[0] {
                    NEWLINE[1].into()
                } else if ["layers.", "embed_tokens.", "norm."].iter().any(|part| name.starts_with(part)) {
                    format!("language_model.{name}")
                } else if let Some(rest) = name.strip_prefix("language_model.") {
                    match rest.strip_prefix("lm_head.") {
                        Some(head) => format!("lm_head.{head}"),
                        None => format!("language_model.{}", strip(rest, "model.")),
                    }
                } else {
                    name
                }
            }
            Self::Vision => {
                format!("vision_tower.{}", vision_names::canonical(&strip(disk, "vision_model.")))
            }
            Self::Decoder => match disk.strip_prefix("model.") {
                Some(rest) => format!("language_model.{rest}"),
                None => disk.to_string(),
            },
            // Their names depend on the architecture, which the reader of such files knows.
            Self::Gguf => disk.to_string(),
            // PEFT also saves the matrix below the adapters of an embedding table or a head.
            Self::Adapters => Self::Llava.canonical(&strip(disk, ADAPTERS).replacen(".base_layer.", ".", 1))?,
        })
    }

    /// The name on disk that both transformers 4 and 5 can read; `vision` is given if the vision encoder's files have
    /// names of their own.
    pub fn disk(self, canonical: &str, vision: Option<&VisionNames>) -> String {
        let canonical = if canonical == NEWLINE[1] { NEWLINE[0] } else { canonical };
        if self == Self::Adapters {
            return match canonical.strip_prefix("vision_tower.").zip(vision) {
                Some((rest, names)) => format!("{ADAPTERS}model.vision_tower.{}", vision_names::module(names, rest)),
                _ if canonical.starts_with("lm_head.") => format!("{ADAPTERS}{canonical}"),
                _ => format!("{ADAPTERS}model.{canonical}"),
            };
        }
        if let Some((rest, names)) = canonical.strip_prefix("vision_tower.").zip(vision) {
            let name = vision_names::disk(names, rest);
            return if self == Self::Vision { name } else { format!("vision_tower.{name}") };
        }
        match self {
            Self::Llava => {
                if let Some(rest) = canonical.strip_prefix("vision_tower.") {
                    format!("vision_tower.vision_model.{rest}")
                } else if let Some(rest) = canonical.strip_prefix("language_model.") {
                    format!("language_model.model.{rest}")
                } else if canonical.starts_with("lm_head.") {
                    format!("language_model.{canonical}")
                } else {
                    canonical.to_string()
                }
            }
            Self::Vision => canonical.replacen("vision_tower.", "vision_model.", 1),
            Self::Decoder => canonical.replacen("language_model.", "model.", 1),
            Self::Gguf => gguf::disk_name(canonical),
            Self::Adapters => canonical.to_string(),
        }
    }
}

/// Renumbers LLaVA's `nn.Sequential` of linear layers and activations, so that only the linear layers count.
fn projector(rest: &str) -> String {
    let (layer, parameter) = match rest.split_once('.') {
        Some((index, parameter)) => (index.parse::<usize>().map_or(0, |index| index / 2), parameter),
        // A projector of one layer is that layer itself.
        None => (0, rest),
    };
    match layer {
        0 | 1 => format!("multi_modal_projector.linear_{}.{parameter}", layer + 1),
        _ => format!("multi_modal_projector.linear.{}.{parameter}", layer - 2),
    }
}

/// The vision encoder's names on disk for these parameters, if its files have names of their own.
pub(super) fn vision_names_of(slots: &[Slot]) -> Option<&'static VisionNames> {
    let marked = |slot: &Slot, names: &VisionNames| slot.name.strip_prefix("vision_tower.") == Some(names.mark);
    VisionNames::all().find(|names| slots.iter().any(|slot| marked(slot, names)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_of_names_mean_the_same_tensors() {
        let cases = [
            ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
            ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
            ("language_model.model.norm.weight", "language_model.norm.weight"),
            ("model.language_model.norm.weight", "language_model.norm.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
            ("model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"),
            ("model.embed_tokens.weight", "language_model.embed_tokens.weight"),
            ("model.image_newline", "multi_modal_projector.image_newline"),
            ("image_newline", "multi_modal_projector.image_newline"),
            ("model.mm_projector.0.weight", "multi_modal_projector.linear_1.weight"),
            ("model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"),
            ("model.mm_projector.4.bias", "multi_modal_projector.linear.0.bias"),
            ("model.projector.projector.4.weight", "multi_modal_projector.linear.0.weight"),
            ("model.llm_backbone.llm.model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"),
            ("model.llm_backbone.llm.lm_head.weight", "lm_head.weight"),
            ("mm_projector.weight", "multi_modal_projector.linear_1.weight"),
            ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", "vision_tower.pre_layrnorm.bias"),
        ];
        for (disk, ours) in cases {
            assert_eq!(Layout::Llava.canonical(disk).as_deref(), Some(ours));
        }
        let buffer = "vision_tower.vision_model.embeddings.position_ids";
        assert_eq!(Layout::Llava.canonical(buffer), None);
        assert_eq!(Layout::Vision.canonical("text_model.embeddings.token_embedding.weight"), None);
    }

    #[test]
    fn a_pooling_head_is_found_in_every_encoder() {
        for (name, expected) in [
            ("vision_tower.head.mlp.fc1.weight", true),
            ("fused_vision_towers.1.head.probe", true),
            ("fused_vision_towers.1.encoder.layers.0.mlp.fc1.weight", false),
            ("fused_vision_towers", false),
            ("lm_head.weight", false),
        ] {
            assert_eq!(in_pooling_head(name), expected, "{name}");
        }
    }

    #[test]
    fn a_written_name_reads_back_as_itself() {
        for (layout, name) in [
            (Layout::Llava, "vision_tower.post_layernorm.bias"),
            (Layout::Llava, "language_model.layers.0.self_attn.q_proj.weight"),
            (Layout::Llava, "lm_head.weight"),
            (Layout::Llava, "multi_modal_projector.image_newline"),
            (Layout::Adapters, "multi_modal_projector.image_newline"),
            (Layout::Vision, "vision_tower.pre_layrnorm.weight"),
            (Layout::Decoder, "language_model.embed_tokens.weight"),
            (Layout::Decoder, "lm_head.weight"),
            (Layout::Llava, "fused_vision_towers.1.encoder.layers.0.mlp.fc1.bias"),
            (Layout::Adapters, "fused_vision_towers.0.encoder.layers.0.mlp.fc1.bias"),
            (Layout::Llava, "vision_tower.encoder.layers.1.layer_norm1.bias"),
        ] {
            for vision in VisionNames::all().map(Some).chain([None]) {
                assert_eq!(layout.canonical(&layout.disk(name, vision)).as_deref(), Some(name));
            }
        }
    }
}
