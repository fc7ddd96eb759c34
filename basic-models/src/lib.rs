//! Vision encoders, projectors and decoders on Burn, composed into LLaVA; Hugging Face checkpoints in and out,
//! image processing, tokenization, conversations and generation.
//!
//! [`Checkpoint::open`] reads a Hugging Face LLaVA directory, [`Llava`] is the model, [`processor`] turns images and
//! conversations into its inputs, [`generate`] answers.

#![warn(missing_docs)]

pub mod adapters;
pub mod checkpoint;
pub mod config;
pub mod generate;
pub mod input;
pub mod nn;
pub mod outside;
mod parameters;
pub mod processor;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::{ConfigError, DecoderConfig, LlavaConfig, VisionConfig};
pub use input::{Batch, ImageTokens};
pub use nn::{Decoder, KvCache, Llava};
