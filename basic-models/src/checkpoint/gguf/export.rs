//! Writes a checkpoint as the two files that llama.cpp loads: the decoder with its tokenizer and chat template, and the
//! vision encoder with the projector.

use std::path::Path;

use burn::tensor::Device;

use super::super::CheckpointError;
use super::super::floats::FloatType;
use super::super::fused;
use super::super::names::PROJECTOR;
use super::super::opened::Checkpoint;
use super::super::owned::Contents;
use super::super::staged::{Replaces, StagedDir};
use super::super::write::{Outgoing, gather};
use super::decoder::{self, Described};
use super::error::GgufError;
use super::format::Kind;
use super::write::{Change, Item, Tensor, write};
use super::{llama3, names, vision, vocabulary};
use crate::nn::{InitScheme, seeded_init};
use crate::parameters::{Slot, slots};

/// The names of the two files: the decoder, and the vision encoder with the projector.
pub const GGUF_FILES: [&str; 2] = ["model.gguf", "mmproj.gguf"];

/// The types of the matrices in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quant {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// 8 bits and a scale for every 32 values.
    Q8_0,
    /// 4 bits and a scale for every 32 values; the embedding table and the output head have 8 bits.
    Q4_0,
}

impl Quant {
    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::F32,
            Self::F16 => Kind::F16,
            Self::Q8_0 => Kind::Q8_0,
            Self::Q4_0 => Kind::Q4_0,
        }
    }

    /// The type of the matrices beside the decoder, which are few and make the visual embeddings.
    fn vision(self) -> Kind {
        if self == Self::F32 { Kind::F32 } else { Kind::F16 }
    }

    /// llama.cpp's number of a file of matrices of this type (`llama_ftype`).
    fn file_type(kind: Kind) -> u32 {
        match kind {
            Kind::F16 => 1,
            Kind::Q4_0 => 2,
            Kind::Q8_0 => 7,
            _ => 0,
        }
    }
}

/// What llama.cpp cannot compute, and why.
#[derive(Debug)]
pub(super) struct Refusal {
    what: String,
    reason: String,
}

impl Refusal {
    pub fn new(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { what: what.into(), reason: reason.into() }
    }

    pub fn at(self, path: &Path) -> GgufError {
        GgufError::Inexpressible { path: path.into(), what: self.what, reason: self.reason }
    }
}

impl Checkpoint {
    /// Writes the checkpoint for llama.cpp: a directory with the [`GGUF_FILES`]. Adapters are merged. Returns what the
    /// user should know about the files, one sentence each.
    ///
    /// # Errors
    ///
    /// Returns [`GgufError::Inexpressible`], before anything is written, for a model that llama.cpp cannot compute;
    /// [`GgufError::Unrepresentable`] for values that do not fit the type, in which case no directory is left; and the
    /// errors of [`Checkpoint::convert`].
    pub fn export_gguf(
        &self,
        target: &Path,
        quant: Quant,
        overwrite: bool,
        device: &Device,
    ) -> Result<Vec<String>, CheckpointError> {
        let replaces = Replaces::new(overwrite, Contents::Gguf, self.sources());
        replaces.check(target)?;
        self.check_beside()?;
        let refused = |refusal: Refusal| refusal.at(&self.dir);
        let Described { architecture, items, notes, divisors } = decoder::describe(&self.config).map_err(refused)?;
        let pictures = vision::describe(&self.config, self.images.config()).map_err(refused)?;
        let words = vocabulary::describe(self)?;
        let model = self.config.init(device);
        self.check_adapters(&model)?;
        let mut wanted = slots(&model, "");
        if self.projector_seed.is_some() {
            wanted.retain(|slot| !slot.name.starts_with(PROJECTOR));
        }
        let (text, mut image): (Vec<Slot>, Vec<Slot>) = wanted.into_iter().partition(|slot| is_decoder(&slot.name));
        let layers = vision::layers(&self.config).map_err(refused)?;
        image.retain(|slot| vision::disk(&self.config, &layers, &slot.name).is_some());
        let text = self.decoder_tensors(&text, divisors, quant.kind(), device)?;
        let mut parts = self.files.outgoing(&image, FloatType::F32, device)?;
        if let Some(seed) = self.projector_seed {
            let projector = seeded_init(model.multi_modal_projector, InitScheme::TorchLinear, seed, device);
            parts.extend(gather(&projector, PROJECTOR, FloatType::F32));
        }
        let image = self.vision_tensors(parts, &layers, quant.vision());
        let staged = StagedDir::replacing(target, replaces)?;
        let [model_file, vision_file] = GGUF_FILES;
        let items = general(architecture, "model", quant.kind()).into_iter().chain(items).chain(words);
        write(&staged, model_file, &items.collect::<Vec<_>>(), &text)?;
        let items = general("clip", "mmproj", quant.vision()).into_iter().chain(pictures);
        write(&staged, vision_file, &items.collect::<Vec<_>>(), &image)?;
        staged.commit()?;
        Ok(notes)
    }

    fn decoder_tensors(
        &self,
        wanted: &[Slot],
        divisors: Option<Vec<f32>>,
        kind: Kind,
        device: &Device,
    ) -> Result<Vec<Tensor<'_>>, CheckpointError> {
        let config = &self.config.text_config;
        let mut parts = self.files.outgoing(wanted, FloatType::F32, device)?;
        let slots: Vec<Slot> = parts.iter().map(|part| part.slot.clone()).collect();
        let joined = match config.family.fused_on_disk {
            true => fused::join(slots),
            false => slots.into_iter().map(|slot| (slot.name.clone(), vec![slot])).collect(),
        };
        let mut tensors = Vec::new();
        for (name, slots) in joined {
            let mut shape = slots[0].shape.clone();
            if let Some(rows) = shape.first_mut() {
                *rows = slots.iter().map(|slot| slot.shape[0]).sum();
            }
            let change = decoder::change(config, &slots[0]);
            let mut take = |slot: &Slot| {
                let at = parts.iter().position(|part| part.slot.name == slot.name)?;
                Some(parts.swap_remove(at))
            };
            let parts = slots.iter().filter_map(&mut take).collect();
            let name = names::disk(&name);
            tensors.push(Tensor { kind: decoder::kind(&name, &shape, kind), name, shape, parts, change });
        }
        if let Some(divisors) = divisors {
            let shape = vec![divisors.len()];
            let slot = Slot { name: llama3::TENSOR.into(), shape: shape.clone(), transposed: false };
            let part = Outgoing::new(&slot, move |sink| sink.encode(&divisors, FloatType::F32));
            let (name, kind, change) = (llama3::TENSOR.into(), Kind::F32, Change::Keep);
            tensors.push(Tensor { name, kind, shape, parts: vec![part], change });
        }
        Ok(tensors)
    }

    fn vision_tensors<'a>(&self, parts: Vec<Outgoing<'a>>, layers: &[usize], kind: Kind) -> Vec<Tensor<'a>> {
        let mut tensors: Vec<Tensor<'a>> = Vec::new();
        // llama.cpp scales the embeddings of words and pictures alike where this project scales those of words alone.
        let scale = decoder::visual_scale(&self.config.text_config).map(|scale| Change::Scale((1.0 / scale) as f32));
        for part in parts {
            let Some(name) = vision::disk(&self.config, layers, &part.slot.name) else { continue };
            let shape = part.slot.shape.clone();
            let change = scale.filter(|_| name.starts_with("mm.2.")).unwrap_or(Change::Keep);
            let kind = vision::kind(&name, &shape, kind);
            tensors.push(Tensor { name, kind, shape, parts: vec![part], change });
        }
        if !self.config.multimodal_projector_bias {
            // clip.cpp adds the biases without asking whether there are any.
            for name in ["mm.0.bias", "mm.2.bias"] {
                let width = self.config.text_config.hidden_size;
                let slot = Slot { name: name.into(), shape: vec![width], transposed: false };
                let part = Outgoing::new(&slot, move |sink| sink.encode(&vec![0.0f32; width], FloatType::F32));
                let (name, shape) = (name.into(), vec![width]);
                tensors.push(Tensor { name, kind: Kind::F32, shape, parts: vec![part], change: Change::Keep });
            }
        }
        tensors
    }
}

fn is_decoder(name: &str) -> bool {
    name.starts_with("language_model.") || name.starts_with("lm_head.")
}

fn general(architecture: &str, what: &str, kind: Kind) -> Vec<(String, Item)> {
    vec![
        ("general.architecture".into(), Item::Text(architecture.into())),
        ("general.type".into(), Item::Text(what.into())),
        ("general.file_type".into(), Item::U32(Quant::file_type(kind))),
        ("general.quantization_version".into(), Item::U32(2)),
    ]
}
