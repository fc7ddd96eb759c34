//! The token lens: the nearest vocabulary tokens of each visual embedding, at the projector's output and after every layer
//! of the decoder. The formulas are in docs/lens.md.
//!
//! ```text
//! checkpoint, image, prompt -> Lens::read   -> Reading: per layer and patch tokens, norm, angle, attention
//!                              lens_html    -> one page with a slider over the layers
//! checkpoint, data set      -> survey       -> Survey: the share of meaningful patches per layer, beside chance
//! either                    -> replaced_prompt -> the prompt with its nearest tokens in the patches' places
//! ```
//!
//! - `grid` knows where a visual embedding lies in the image, `vocabulary` compares rows with the embedding table,
//!   `trace` runs the decoder layer by layer, `token` and `meaning` say what a token is and whether it is meaningful.
//! - `reading` puts these together for one prompt, `survey` and `cases` for a data set, `replace` is the experiment.
//! - `page` and `pack` make the HTML page.

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
pub use replace::{Replacement, replaced_prompt, replacement};
pub use survey::{LayerShare, Survey, survey};
pub use token::{TokenText, TokenTexts};
pub use trace::{LayerRows, trace};
pub use vocabulary::{Asked, RowTokens, Vocabulary};

use crate::questions::EvalError;

/// Why there is nothing to see.
#[derive(Debug, Error)]
pub enum LensError {
    /// Checkpoint or image.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A prompt that does not fit its images.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// The data set.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file of questions.
    #[error(transparent)]
    Questions(#[from] EvalError),
    /// A knob of the method.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// Generation.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The device.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// A layer that the decoder does not have.
    #[error("there is no layer {layer}: the lens has 0, the projector's output, to {last}, the decoder's last layer")]
    Layer {
        /// What was asked for.
        layer: usize,
        /// L.
        last: usize,
    },
    /// An image without a place in its prompt.
    #[error("the prompt shows no image: write <image> where it goes")]
    NoImage,
    /// Pixels of another size than the vision encoder takes.
    #[error("{image}: the image processor makes {height} x {width} pixels, the vision encoder takes {side} x {side}", image = image.display())]
    Size {
        /// The image.
        image: PathBuf,
        /// Rows made.
        height: usize,
        /// Columns made.
        width: usize,
        /// Rows and columns taken.
        side: usize,
    },
    /// Hidden states that are no numbers.
    #[error("layer {layer}: the hidden states are not finite: the checkpoint's weights or configuration are broken")]
    NotFinite {
        /// The layer.
        layer: usize,
    },
    /// A data set of texts alone.
    #[error("{data}: none of its {samples} samples has an image: there is nothing to look at", data = data.display())]
    NoImages {
        /// The data.
        data: PathBuf,
        /// Samples looked at.
        samples: usize,
    },
    /// Labels that cannot be read, or that lack an image.
    #[error("{labels}: {reason}", labels = labels.display())]
    Labels {
        /// The file of labels.
        labels: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An image that cannot be written as PNG.
    #[error("{image}: what the model sees of it cannot be written as PNG: {source}", image = image.display())]
    Png {
        /// The image.
        image: PathBuf,
        /// What the encoder said.
        source: image::ImageError,
    },
    /// The page's template failed, which is a defect of this crate.
    #[error("the embedded template lens.html: {0}")]
    Template(#[from] minijinja::Error),
    /// Numbers without a JSON form, which is a defect of this crate.
    #[error("the lens's numbers have no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}
