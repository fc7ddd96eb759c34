//! The token lens: finds the nearest vocabulary tokens of each visual embedding, at the projector's output and after
//! every decoder layer. docs/lens.md has the formulas.
//!
//! ```text
//! checkpoint, image, prompt -> Lens::read -> Reading: tokens, norm, angle and attention, per layer and patch
//!                              lens_html  -> one HTML page with a slider over the layers
//! checkpoint, data set      -> survey     -> Survey: the share of meaningful patches per layer, beside chance
//! either                    -> replaced_prompt -> the prompt with the nearest tokens in place of the patches
//! ```
//!
//! - `grid` maps visual embeddings to places in the image, `vocabulary` compares hidden states with the embedding table,
//!   `trace` runs the decoder layer by layer, `token` gives the text of a token, and `meaning` decides whether it is
//!   meaningful.
//! - `prompt_reading` combines these for one prompt, `survey`, `word_rank` and `cases` for a data set; `replace` runs the replacement
//!   experiment.
//! - `page` and `page_data` make the HTML page.

mod cases;
mod grid;
mod meaning;
mod page;
mod page_data;
mod prompt_reading;
mod replace;
mod survey;
mod token;
mod trace;
mod vocabulary;
mod word_rank;

#[cfg(test)]
mod page_tests;

use std::path::PathBuf;

use basic_core::ObjectiveError;
use basic_data::DataError;
use basic_models::CheckpointError;
use basic_models::generate::GenerateError;
use basic_models::processor::ProcessorError;
use burn::tensor::TensorReadError;
use thiserror::Error;

pub use cases::{Case, Cases};
pub use grid::{Grid, Place};
pub use meaning::{Meaning, Rule, Scenes, Truth, content_words};
pub use page::{Pictured, lens_html, seen_image};
pub use prompt_reading::{ImageReading, LayerReading, Lens, LensOptions, Near, Reading};
pub use replace::{Replacement, check_replaceable, replaced_prompt, replacement};
pub use survey::{Anisotropy, LayerShare, Survey, survey};
pub use token::{TokenText, TokenTexts};
pub use trace::{LayerRows, trace};
pub use vocabulary::{Asked, RowTokens, Vocabulary};
pub use word_rank::WordRank;

use crate::questions::EvalError;

/// Why the lens failed.
#[derive(Debug, Error)]
pub enum LensError {
    /// The checkpoint or an image could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A prompt could not be rendered or tokenized, or does not match its images.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// The data set could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file of questions could not be read.
    #[error(transparent)]
    Questions(#[from] EvalError),
    /// A setting of the supervision method is out of range.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// Generation failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The device failed while a tensor was read.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// The decoder does not have the requested layer.
    #[error("there is no layer {layer}: the lens has 0, the projector's output, to {last}, the decoder's last layer")]
    Layer {
        /// The requested layer.
        layer: usize,
        /// The last layer (L).
        last: usize,
    },
    /// The prompt has no `<image>`.
    #[error("the prompt shows no image: write <image> where it goes")]
    NoImage,
    /// The image processor's output does not have the size that the vision encoder takes.
    #[error("{image}: the image processor makes {height} x {width} pixels, the vision encoder takes {side} x {side}", image = image.display())]
    Size {
        /// The image.
        image: PathBuf,
        /// The rows of the image processor's output.
        height: usize,
        /// The columns of the image processor's output.
        width: usize,
        /// The rows and columns that the vision encoder takes.
        side: usize,
    },
    /// Nearest tokens in place of the visual embeddings of a model that cuts images into tiles.
    #[error(
        "the model cuts images into tiles, and no token stands for the newlines between their rows of patches: its visual \
         embeddings cannot be replaced by tokens (--replace; in a study replaced_choices and evaluation.lens.replace)"
    )]
    Tiles,
    /// A model whose images have grids of their own.
    #[error(
        "the vision encoder gives each image a grid of its own, and the lens compares one grid of all images: it cannot read such a model"
    )]
    OwnGrids,
    /// Hidden states are NaN or infinite.
    #[error("layer {layer}: the hidden states are not finite: the checkpoint's weights or configuration are broken")]
    NotFinite {
        /// The layer.
        layer: usize,
    },
    /// No sample of the data set has an image.
    #[error("{data}: none of its {samples} samples has an image: there is nothing to look at", data = data.display())]
    NoImages {
        /// The data set.
        data: PathBuf,
        /// How many samples it has.
        samples: usize,
    },
    /// The file of labels cannot be read, or it has no entry for an image.
    #[error("{labels}: {reason}", labels = labels.display())]
    Labels {
        /// The file of labels.
        labels: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The processed image cannot be encoded as PNG.
    #[error("{image}: what the model sees of it cannot be written as PNG: {source}", image = image.display())]
    Png {
        /// The image.
        image: PathBuf,
        /// The PNG encoder's error.
        source: image::ImageError,
    },
    /// The page's template failed, which is a bug in this crate.
    #[error("the embedded template lens.html: {0}")]
    Template(#[from] minijinja::Error),
    /// The page's data could not be serialized as JSON, which is a bug in this crate.
    #[error("the lens's numbers have no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}
