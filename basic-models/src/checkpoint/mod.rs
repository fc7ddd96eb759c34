//! Hugging Face checkpoints: LLaVA directories, and a vision encoder and a decoder put together into a new model.
//!
//! [`Checkpoint::open`] reads (open.rs, of the parts in config_file.rs, read.rs and vocabulary.rs), [`Checkpoint::load`]
//! makes the model (load.rs), [`Checkpoint::save`] and [`Checkpoint::convert`] write (save.rs, write.rs). Names on disk
//! and ours are names.rs; adapters are peft/; llama.cpp's files are gguf/.

mod assemble;
mod blueprint;
mod config_file;
pub mod crash_cleanup;
mod describe;
mod diagnose;
mod encoder;
mod error;
mod files;
mod floats;
mod fused;
mod generation;
mod gguf;
mod hub;
mod identity;
mod kind;
mod laid_over;
mod load;
mod names;
mod not_llava;
mod open;
mod opened;
mod original;
mod overwrite_guard;
mod owned;
mod peft;
mod read;
mod save;
mod source;
mod staged;
pub mod temporary_names;
mod tensor_matching;
mod tied;
mod tokenizer_check;
mod torch;
mod vision_names;
mod vocabulary;
mod write;

#[cfg(test)]
mod tests;

pub use crate::parameters::{ParamPath, Slot, slots};
pub use assemble::AssembleOptions;
pub use describe::{Description, FileReport, Parameters, TypeReport, describe};
pub use encoder::{EncoderFiles, FrozenEncoder, PatchEncoder};
pub use error::CheckpointError;
pub use floats::FloatType;
pub use gguf::{GGUF_FILES, GgufError, Quant};
pub use hub::{DownloadEvent, allow_downloads, download, resolve};
pub use identity::EncoderIdentity;
pub use kind::Kind;
pub use names::{Layout, in_pooling_head};
pub use opened::Checkpoint;
pub use overwrite_guard::spare;
pub use owned::{Contents, MANIFEST};
pub use peft::{AdapterFiles, save_adapters};
pub use read::TensorFiles;
pub use staged::{Replaces, StagedDir};
pub use write::{SaveOptions, parse_size, write_tensors};
