//! Vision encoders, projectors and decoders on Burn, composed into LLaVA, with reading and writing of Hugging Face
//! checkpoints, image processing, tokenization, conversations and generation.
//!
//! [`Checkpoint::open`] reads a Hugging Face LLaVA directory, [`Checkpoint::assemble`] combines a vision encoder and a
//! language model, [`Llava`] is the model, [`processor`] turns images and conversations into its inputs, and
//! [`generate`] generates answers.
//!
//! ```
//! use std::path::Path;
//!
//! use basic_core::DeviceSpec;
//! use basic_models::Checkpoint;
//! use burn::tensor::{DType, Tensor, TensorData};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The repository's two small backbones, with a fresh projector between them.
//! let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
//! let checkpoint = Checkpoint::assemble(&repository.join("assets/vision"), &repository.join("assets/llm"), 0)?;
//! let device = "cpu".parse::<DeviceSpec>()?.open()?;
//! let model = checkpoint.load(DType::F32, &device)?;
//!
//! // An image, as the checkpoint's image processor makes it, and its visual embeddings.
//! let pixels = checkpoint.pixels(&repository.join("tests/fixtures/images/b.png"))?;
//! let [channels, height, width] = checkpoint.image_shape();
//! let pixels = Tensor::<4>::from_data(TensorData::new(pixels.data, [1, channels, height, width]), &device);
//! let v = model.multi_modal_projector.forward(model.encode(pixels));
//! assert_eq!(v.dims(), [36, 128]); // 6 x 6 patches, as wide as the decoder
//! # Ok(())
//! # }
//! ```
//!
//! `examples/answer.rs` loads a checkpoint and answers a question about an image. This crate contains no data sets,
//! optimizers or training.

#![warn(missing_docs)]

pub mod adapters;
pub mod atomic_file;
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
