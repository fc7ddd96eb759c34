//! Tensor names: ours, which are the module paths, and those of Hugging Face's layouts.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use super::dinov2;

/// Which model a directory holds: its names differ by a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `LlavaForConditionalGeneration`.
    Llava,
    /// A vision tower alone (`CLIPVisionModel`).
    Vision,
    /// A decoder alone (`LlamaForCausalLM`).
    Decoder,
    /// What `peft` saves of a `LlavaForConditionalGeneration`.
    Adapters,
}

/// What stands before the names of the model's own modules in a file of adapters.
const ADAPTERS: &str = "base_model.model.";

impl Layout {
    /// Our name for a tensor on disk; `None` for buffers that carry no weights.
    ///
    /// LLaVA's names exist in two generations, each also with a leading `model.`:
    /// transformers 4 `vision_tower.vision_model.*`, `language_model.model.*`, `language_model.lm_head.*`;
    /// transformers 5 `vision_tower.*`, `language_model.*`, `lm_head.*`.
    /// LLaVA's own code has a third, a decoder that holds the others: `model.layers.*`, `model.mm_projector.*`,
    /// `model.vision_tower.vision_tower.vision_model.*`.
    pub fn canonical(self, disk: &str) -> Option<String> {
        if disk.ends_with(".position_ids") || disk.ends_with("rotary_emb.inv_freq") {
            return None;
        }
        // The rest of a model of images and texts (CLIP, SigLIP) whose vision tower is wanted.
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
                    format!("vision_tower.{}", dinov2::canonical(&strip(&rest, "vision_model.")))
                } else if let Some(rest) = name.strip_prefix("mm_projector.") {
                    projector(rest)
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
                let name = strip(&strip(disk, "vision_model."), "dinov2.");
                format!("vision_tower.{}", dinov2::canonical(&name))
            }
            Self::Decoder => match disk.strip_prefix("model.") {
                Some(rest) => format!("language_model.{rest}"),
                None => disk.to_string(),
            },
            // PEFT saves the matrix below the adapters of a table or a head along with them.
            Self::Adapters => Self::Llava.canonical(&strip(disk, ADAPTERS).replacen(".base_layer.", ".", 1))?,
        })
    }

    /// The name on disk that both transformers 4 and 5 read; `dinov2` where the vision encoder is one.
    pub fn disk(self, canonical: &str, dinov2: bool) -> String {
        if self == Self::Adapters {
            return match canonical.strip_prefix("vision_tower.") {
                Some(rest) if dinov2 => format!("{ADAPTERS}model.vision_tower.{}", dinov2::module(rest)),
                _ if canonical.starts_with("lm_head.") => format!("{ADAPTERS}{canonical}"),
                _ => format!("{ADAPTERS}model.{canonical}"),
            };
        }
        if dinov2 && let Some(rest) = canonical.strip_prefix("vision_tower.") {
            let name = dinov2::disk(rest);
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
            Self::Adapters => canonical.to_string(),
        }
    }
}

/// LLaVA's `nn.Sequential` of linear layers and activations, by index, as a numbered list of the linear layers alone.
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

/// A parameter of a module as it is named and shaped on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Our name: the module path with Hugging Face's word for norm parameters.
    pub name: String,
    /// Shape on disk.
    pub shape: Vec<usize>,
    /// Whether a Burn linear weight `[in, out]` stands for Hugging Face's `[out, in]`.
    pub transposed: bool,
}

impl Slot {
    /// Whether it is a factor of an adapter: they are named as PEFT does, `LAYER.lora_A.weight`, `LAYER.lora_B.weight`.
    pub fn is_adapter(&self) -> bool {
        self.name.ends_with(LORA_A) || self.name.ends_with(LORA_B)
    }
}

/// PEFT's names of an adapter's factors, behind the layer's.
pub(crate) const LORA_A: &str = ".lora_A.weight";
pub(crate) const LORA_B: &str = ".lora_B.weight";

/// The path of the parameter that a visitor or mapper stands at.
#[derive(Debug, Default, Clone)]
pub struct ParamPath {
    names: Vec<String>,
    owners: Vec<String>,
}

impl ParamPath {
    /// A path below `prefix` (empty, or ending without a dot).
    pub fn new(prefix: &str) -> Self {
        let mut path = Self::default();
        if !prefix.is_empty() {
            path.enter(prefix, "");
        }
        path
    }

    /// Goes into a field.
    pub fn enter(&mut self, name: &str, owner: &str) {
        self.names.push(name.into());
        self.owners.push(owner.into());
    }

    /// Leaves it again.
    pub fn exit(&mut self) {
        self.names.pop();
        self.owners.pop();
    }

    /// The parameter here.
    pub fn slot(&self, shape: &[usize]) -> Slot {
        if let Some(slot) = self.adapter(shape) {
            return slot;
        }
        let linear = self.owners.last().is_some_and(|owner| owner == "Struct:Linear");
        let mut names = self.names.clone();
        if let Some(last) = names.last_mut() {
            match last.as_str() {
                "gamma" => *last = "weight".into(),
                "beta" => *last = "bias".into(),
                _ => {}
            }
        }
        let transposed = linear && shape.len() == 2;
        let shape = if transposed { vec![shape[1], shape[0]] } else { shape.to_vec() };
        Slot { name: names.join("."), shape, transposed }
    }

    /// The factor here: Burn shows it as `LAYER.weight.lora.a`, `[inputs, rank]`, and `b`, `[rank, outputs]`.
    fn adapter(&self, shape: &[usize]) -> Option<Slot> {
        let [layer @ .., weight, lora, factor] = &self.names[..] else { return None };
        let attached = self.owners.get(self.names.len() - 2).is_some_and(|owner| owner == "Reparameterization");
        if !attached || weight != "weight" || lora != "lora" || shape.len() != 2 {
            return None;
        }
        let name = format!("{}{}", layer.join("."), if factor == "a" { LORA_A } else { LORA_B });
        Some(Slot { name, shape: vec![shape[1], shape[0]], transposed: true })
    }
}

/// All parameters of a module below `prefix`, in order; nothing is allocated for lazy ones.
pub fn slots<M: Module>(module: &M, prefix: &str) -> Vec<Slot> {
    struct Collect {
        path: ParamPath,
        slots: Vec<Slot>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, owner: &str) {
            self.path.enter(name, owner);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let shape = param.lazy_shape();
            self.slots.push(self.path.slot(&shape.to_vec()));
        }
    }
    let mut collect = Collect { path: ParamPath::new(prefix), slots: Vec::new() };
    module.visit(&mut collect);
    collect.slots
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
            ("model.mm_projector.0.weight", "multi_modal_projector.linear_1.weight"),
            ("model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"),
            ("model.mm_projector.4.bias", "multi_modal_projector.linear.0.bias"),
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
    fn a_written_name_reads_back_as_itself() {
        for (layout, name) in [
            (Layout::Llava, "vision_tower.post_layernorm.bias"),
            (Layout::Llava, "language_model.layers.0.self_attn.q_proj.weight"),
            (Layout::Llava, "lm_head.weight"),
            (Layout::Vision, "vision_tower.pre_layrnorm.weight"),
            (Layout::Decoder, "language_model.embed_tokens.weight"),
            (Layout::Decoder, "lm_head.weight"),
            (Layout::Llava, "vision_tower.encoder.layers.1.layer_norm1.bias"),
        ] {
            assert_eq!(layout.canonical(&layout.disk(name, true)).as_deref(), Some(name));
            assert_eq!(layout.canonical(&layout.disk(name, false)).as_deref(), Some(name));
        }
    }
}
