//! The demo's outcome for people: a self-contained HTML page and a table for the terminal.
//!
//! - `paired_arms` pairs the arms seed by seed; `measures` reads a [`Summary`] into rows that both renderings share.
//! - `sentences` turns figures into text; every verdict is derived from the figures.
//! - `pairs` draws the conclusion's seeds; `chart`, `strip` and `samples` prepare the loss curves, the differences by seed and
//!   the answered images.
//! - `page` fills the templates `report/*.html`, with what all pages share from [`crate::pages`]; `terminal` lays out the
//!   plain-text table, and `terminal_strip` the seeds' picture.

mod chart;
#[cfg(test)]
mod fixture;
mod measures;
mod page;
mod paired_arms;
mod pairs;
mod samples;
mod sentences;
mod strip;
mod terminal;
mod terminal_strip;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::DemoError;
use crate::demo::summary::Summary;
use crate::pages::numbers;

/// The demo's report as one HTML page, which needs neither a network nor other files.
///
/// The samples' images are read from `images_root` joined with [`SampleAnswer::image`] and embedded.
///
/// # Errors
/// A sample image that cannot be read or decoded, named.
///
/// [`SampleAnswer::image`]: crate::demo::summary::SampleAnswer::image
pub fn render_html(summary: &Summary, images_root: &Path) -> Result<String, DemoError> {
    page::render(summary, images_root)
}

/// The demo's figures as a plain-text table of fewer than 100 columns, without colour codes.
#[must_use]
pub fn render_table(summary: &Summary) -> String {
    terminal::render(summary)
}

/// A difference in points: `+3.3`.
pub(super) fn points(difference: f64) -> String {
    numbers::signed(difference, 1)
}
