//! The errors of generation.

use std::path::PathBuf;

use burn::tensor::TensorReadError;
use thiserror::Error;

use crate::processor::ProcessorError;

/// An error that prevents a generation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A prompt without tokens.
    #[error("prompt {0} has no tokens")]
    EmptyPrompt(usize),
    /// The prompt and the new tokens exceed the context.
    #[error("a prompt of {prompt} tokens and {new} new ones exceed the model's context of {context}")]
    TooLong {
        /// The number of tokens of the longest prompt.
        prompt: usize,
        /// The number of new tokens that were asked for.
        new: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// The number of visual embeddings differs from that of the prompts' image positions.
    #[error(
        "the prompts have {positions} image positions, the images {rows} visual embeddings: one is needed for each"
    )]
    Features {
        /// The number of image positions in all prompts.
        positions: usize,
        /// The number of visual embeddings.
        rows: usize,
    },
    /// A setting that is out of its range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// Its name in generation_config.json.
        name: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The model's logits are not finite.
    #[error(
        "step {step}: the logits of prompt {prompt} are not finite: the checkpoint's weights or configuration are broken"
    )]
    NotFinite {
        /// The index of the prompt, from 0.
        prompt: usize,
        /// The index of the new token, from 0.
        step: usize,
    },
    /// The device failed.
    #[error("logits could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// The tokenizer failed on the new ids.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// generation_config.json could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// generation_config.json is not valid.
    #[error("{path}: {reason}", path = path.display())]
    Defaults {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key or the line.
        reason: String,
    },
}
