//! Assembles a new model from a vision encoder and a decoder, with a newly initialized projector.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::CheckpointError;
use super::blueprint::composed;
use super::gguf::{GgufDecoder, is_gguf};
use super::hub::resolve;
use super::names::{FUSED_TOWERS, Layout, PROJECTOR};
use super::open::Opened;
use super::opened::Checkpoint;
use super::read::{TensorFiles, VOCABULARY};
use super::vocabulary::{TokenizerFiles, room_for};
use crate::config::{LlavaConfig, ProjectorKind};

/// The options of assembling a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssembleOptions {
    /// The projector, by a name that [`ProjectorKind::parse`] reads.
    pub projector: String,
    /// The seed of the projector's weights.
    pub seed: u64,
    /// Trained weights of the projector instead: LLaVA's `mm_projector.bin`, or safetensors with LLaVA's or
    /// transformers' names.
    pub projector_weights: Option<PathBuf>,
    /// Trained weights of the projector and of the decoder, which take the place of the decoder's own: a file of
    /// Prismatic's code (`latest-checkpoint.pt`), or one with LLaVA's or transformers' names.
    pub trained: Option<PathBuf>,
    /// Rounds the rows of the embedding table up to a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
    /// The resolutions, as height and width in pixels, of which the best one for an image is cut into tiles
    /// (LLaVA-NeXT); empty for a model that does not cut images.
    pub image_grid_pinpoints: Vec<[usize; 2]>,
    /// Further vision encoders, as directories or hub names, whose features are joined to the first one's by channel.
    pub fused_vision: Vec<PathBuf>,
}

impl Default for AssembleOptions {
    fn default() -> Self {
        Self {
            projector: "mlp2x_gelu".into(),
            seed: 0,
            projector_weights: None,
            trained: None,
            pad_to_multiple_of: None,
            image_grid_pinpoints: Vec::new(),
            fused_vision: Vec::new(),
        }
    }
}

impl Checkpoint {
    /// Assembles a vision encoder and a decoder, with a projector whose weights are drawn from `seed`; see
    /// [`Checkpoint::assemble_with`].
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file, the key or the tensors.
    pub fn assemble(vision: &Path, decoder: &Path, seed: u64) -> Result<Self, CheckpointError> {
        Self::assemble_with(vision, decoder, &AssembleOptions { seed, ..AssembleOptions::default() })
    }

    /// Assembles a vision encoder and a decoder, both given as directories or hub names; the decoder may also be a GGUF
    /// file of llama.cpp (`.gguf`), which holds its tokenizer and chat template too. If the decoder's tokenizer has no
    /// `<image>` token, it gets one, and the embedding table and the head get a row for it unless they have a spare one.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file, the key or the tensors.
    pub fn assemble_with(vision: &Path, decoder: &Path, options: &AssembleOptions) -> Result<Self, CheckpointError> {
        let kind = ProjectorKind::parse("projector", &options.projector)
            .map_err(|source| CheckpointError::Mismatch(source.to_string()))?;
        let vision = resolve(vision)?;
        let fused = options.fused_vision.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        let (mut files, dir, unpacked) = match is_gguf(decoder) {
            true => {
                let GgufDecoder { beside, files } = GgufDecoder::open(decoder)?;
                (files, decoder.to_path_buf(), Some(beside))
            }
            false => {
                let decoder = resolve(decoder)?;
                (TensorFiles::open(&decoder, Layout::Decoder)?, decoder, None)
            }
        };
        let decoder = unpacked.as_ref().map_or(&*dir, TempDir::path);
        let mut config = composed(&vision, &fused, decoder, kind, &options.image_grid_pinpoints)?;
        if let Some(path) = &options.trained {
            files = trained(path)?.over(files);
            // Prismatic adds a token for padding and rounds the table up.
            if let Some(rows) = files.shape(VOCABULARY[0]).and_then(|shape| shape.first()) {
                config["text_config"]["vocab_size"] = (*rows).into();
            }
        }
        let tokenizer_files = TokenizerFiles::with_image_token(decoder)?;
        let growth = room_for(&tokenizer_files, &files, &mut config, options.pad_to_multiple_of)?;
        let mut config = LlavaConfig::from_json(&config.to_string())
            .map_err(|source| CheckpointError::Config { path: dir.clone(), source })?;
        config.tie_word_embeddings = config.text_config.tie_word_embeddings;
        files = files.over(TensorFiles::open(&vision, Layout::Vision)?).growing(growth);
        for (index, dir) in fused.iter().enumerate() {
            let own = TensorFiles::open(dir, Layout::Vision)?;
            files = files.over(own.renamed("vision_tower", &format!("{FUSED_TOWERS}.{index}")));
        }
        if let Some(path) = &options.projector_weights {
            files = projector(path)?.over(files);
        }
        Self::with(Opened {
            dir,
            vision: Some(vision),
            fused_vision: fused,
            config,
            files,
            projector_seed: (options.projector_weights.is_none() && options.trained.is_none()).then_some(options.seed),
            tokenizer_files,
            composed: true,
            image_aspect_ratio: None,
            unpacked,
        })
    }
}

/// Opens a file with a trained projector and decoder.
fn trained(path: &Path) -> Result<TensorFiles, CheckpointError> {
    let path = resolve(path)?;
    if !path.is_file() {
        return Err(CheckpointError::Io { path, source: std::io::ErrorKind::NotFound.into() });
    }
    let files = TensorFiles::open(&path, Layout::Llava)?;
    let mismatch = |what: &str| Err(CheckpointError::Mismatch(format!("{}: {what}", path.display())));
    if files.contains_any("vision_backbone.") {
        return mismatch(
            "holds trained vision encoders with timm's names (vision_backbone.*), which are not read: only checkpoints whose \
             encoders were frozen can be assembled",
        );
    }
    match files.contains_any(PROJECTOR) && files.contains_any("language_model.") {
        true => {
            Ok(files.keep(&|name| [PROJECTOR, "language_model.", "lm_head."].iter().any(|part| name.starts_with(part))))
        }
        false => mismatch(
            "holds no projector and decoder together: its tensors are named model.projector.* and model.llm_backbone.* \
             (Prismatic), or as LLaVA's",
        ),
    }
}

/// Opens a file with a projector only, or a directory that contains LLaVA's.
fn projector(path: &Path) -> Result<TensorFiles, CheckpointError> {
    let path = resolve(path)?;
    let path = if path.is_dir() { path.join(super::files::PROJECTOR_FILE) } else { path };
    if !path.is_file() {
        return Err(CheckpointError::Io { path, source: std::io::ErrorKind::NotFound.into() });
    }
    let files = TensorFiles::open(&path, Layout::Llava)?;
    if files.contains_any(PROJECTOR) {
        return Ok(files.only(PROJECTOR));
    }
    Err(CheckpointError::Mismatch(format!(
        "{}: holds no projector: its tensors are named mm_projector.* or multi_modal_projector.*",
        path.display()
    )))
}
