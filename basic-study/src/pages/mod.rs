//! The parts that all HTML pages share: layout and style, number formatting, plots, and embedded images.
//!
//! - `base.html` is the layout that pages extend, and [`STYLE`] its style sheet; `axes.html` draws the axes of every plot.
//! - `plot` has frames, axes, ticks and paths; `series` thins long curves to a size that can be drawn.
//! - `numbers` formats numbers; `picture` embeds images.

pub(crate) mod numbers;
pub(crate) mod picture;
pub(crate) mod plot;
pub(crate) mod series;

use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;
use thiserror::Error;

pub use picture::PictureError;

/// The style sheet of every page.
pub(crate) use basic_eval::page::STYLE;

/// A template: its file name and its text. minijinja escapes inserted values in templates whose name ends in `.html`.
pub(crate) type Template = (&'static str, &'static str);

/// The templates that every page may extend or import from.
const SHARED: [Template; 2] = [("base.html", include_str!("base.html")), ("axes.html", include_str!("axes.html"))];

/// An embedded template failed, which is a bug in this crate.
#[derive(Debug, Error)]
#[error("the embedded template {file}: {source}")]
pub struct PageError {
    /// The template's file.
    pub file: &'static str,
    /// The template engine's error.
    pub source: minijinja::Error,
}

/// Renders the first of `templates`, which may include the others.
pub(crate) fn render(templates: &[Template], page: impl Serialize) -> Result<String, PageError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    for (file, text) in SHARED.iter().chain(templates).copied() {
        environment.add_template(file, text).map_err(|source| PageError { file, source })?;
    }
    let file = templates.first().map_or(SHARED[0].0, |(file, _)| file);
    let filled = environment.get_template(file).and_then(|template| template.render(page));
    filled.map_err(|source| PageError { file, source })
}
