//! GGUF, the file format of llama.cpp: a checkpoint is written as the two files that llama.cpp loads, and a decoder is
//! read from a GGUF file.
//!
//! Writing ([`Checkpoint::export_gguf`](super::Checkpoint::export_gguf), export.rs) checks first that llama.cpp can
//! express the model (decoder.rs, vision.rs, vocabulary.rs), and streams the tensors (write.rs). Reading (read.rs)
//! checks the header of a mapped file within a budget; unpack.rs turns its keys into the configuration and the
//! tokenizer of a Hugging Face directory, and views.rs gives its tensors in Hugging Face's order.
//!
//! The reader is this project's own: candle's `gguf_file` brings a tensor library along, reserves memory by the sizes
//! that a file states before it checks them, and reads each tensor into memory; the smaller crates on crates.io are
//! unmaintained or panic on files that were cut short.

mod blocks;
mod decoder;
mod error;
mod export;
mod format;
mod llama3;
mod metadata;
mod names;
mod open;
mod pre_tokenizer;
mod read;
mod retokenize;
mod unpack;
mod views;
mod vision;
mod vocabulary;
mod write;

#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod tests;

pub use error::GgufError;
pub use export::{GGUF_FILES, Quant};
pub(super) use names::disk as disk_name;
pub(super) use open::{GgufDecoder, is_gguf};
pub(super) use views::Views;
