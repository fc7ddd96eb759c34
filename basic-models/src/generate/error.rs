//! Why nothing could be generated.

use std::path::PathBuf;

use burn::tensor::TensorReadError;
use thiserror::Error;

use crate::processor::ProcessorError;

/// Why nothing could be generated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A prompt without tokens.
    #[error("prompt {0} has no tokens")]
    EmptyPrompt(usize),
    /// Prompt and new tokens exceed the context.
    #[error("a prompt of {prompt} tokens and {new} new ones exceed the model's context of {context}")]
    TooLong {
        /// Tokens of the longest prompt.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// Visual features that don't fill the prompts' image positions.
    #[error(
        "the prompts have {positions} image positions, the images {rows} visual embeddings: one is needed for each"
    )]
    Features {
        /// Image positions of all prompts.
        positions: usize,
        /// Rows of the features.
        rows: usize,
    },
    /// A setting out of its range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// Its name in generation_config.json.
        name: &'static str,
        /// Its value.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// The model's scores are no numbers.
    #[error(
        "step {step}: the logits of prompt {prompt} are not finite: the checkpoint's weights or configuration are broken"
    )]
    NotFinite {
        /// Which prompt, from 0.
        prompt: usize,
        /// The new token, from 0.
        step: usize,
    },
    /// The device failed.
    #[error("logits could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// The tokenizer failed on new ids.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// generation_config.json could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// generation_config.json is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Defaults {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key or the line.
        reason: String,
    },
}
