//! The demo's outcome for people: a self-contained HTML page and a table for the terminal.
//!
//! - `statistics` has the arithmetic: mean, sample standard deviation, differences paired by seed.
//! - `measures` reads a [`Summary`] into rows that both renderings share.
//! - `numbers` and `wording` turn figures into text; every verdict is derived from the figures.
//! - `chart`, `strip` and `samples` prepare the loss curves, the differences by seed and the answered images.
//! - `page` fills the templates `report/*.html`; `terminal` lays out the plain-text table.

pub(crate) mod chart;
#[cfg(test)]
mod fixture;
mod measures;
pub(crate) mod numbers;
mod page;
mod samples;
mod statistics;
mod strip;
mod terminal;
#[cfg(test)]
mod tests;
mod wording;

use std::io;
use std::path::{Path, PathBuf};

use basic_data::{DataError, ImageNameError};

use crate::demo::summary::Summary;

/// Why the page could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A sample's image could not be read.
    #[error("{path}: cannot read the sample image: {source}", path = path.display())]
    Read {
        /// The image's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A sample's image is not an image, or is cut short.
    #[error("{path}: cannot decode the sample image: {source}", path = path.display())]
    Decode {
        /// The image's file.
        path: PathBuf,
        /// What the decoder said.
        source: image::ImageError,
    },
    /// A sample's image that is not below the folder of images.
    #[error("sample {0}")]
    Outside(#[from] ImageNameError),
    /// The folder of images.
    #[error(transparent)]
    Folder(#[from] DataError),
    /// A sample's image that is larger than images may be, or that a decoder gave up on.
    #[error("{path}: cannot decode the sample image: {reason}", path = path.display())]
    Broken {
        /// The image's file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// An embedded template failed, which is a defect of this crate.
    #[error("the embedded template {file}: {source}")]
    Template {
        /// The template's file under `src/demo/report`.
        file: &'static str,
        /// What the template engine said.
        source: minijinja::Error,
    },
}

/// The demo's report as one HTML page, which needs neither a network nor other files.
///
/// The samples' images are read from `images_root` joined with [`SampleAnswer::image`] and embedded.
///
/// # Errors
/// A sample image that cannot be read or decoded, named.
///
/// [`SampleAnswer::image`]: crate::demo::summary::SampleAnswer::image
pub fn render_html(summary: &Summary, images_root: &Path) -> Result<String, ReportError> {
    page::render(summary, images_root)
}

/// The demo's figures as a plain-text table of fewer than 100 columns, without colour codes.
#[must_use]
pub fn render_table(summary: &Summary) -> String {
    terminal::render(summary)
}
