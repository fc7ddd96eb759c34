//! Shapes, the embedded world: scenes of one to four coloured shapes in a 3 x 3 grid of cells, their
//! 64 x 64 images, captions, questions, rasters of concept words, and data sets in LLaVA's format.
//!
//! Everything is a function of a seed, with ChaCha8 and without platform-dependent arithmetic: the same
//! seed gives the same bytes everywhere.
//!
//! - [`Scene`] says what is there; [`Split`] is decided by a hash of the scene alone, so whatever is
//!   trained on [`Split::Train`], with any seed, has never met a validation or eval scene.
//! - [`render`] draws a scene, and [`coverage`] and [`patch_truth`] say which object is drawn where.
//! - [`caption`] and [`questions`] talk about a scene in words of [`vocabulary`] only.
//! - [`raster_document`] and [`description_document`] are what a language model reads before it ever
//!   sees an image.
//! - [`write_dataset`] writes images, captions and questions as LLaVA's files.

mod error;
mod phrase;
mod questions;
mod raster;
mod records;
mod render;
mod scene;
mod split;
mod text;
mod write;

pub use error::ShapesError;
pub use questions::{Question, QuestionKind, questions};
pub use raster::{RASTER_NOISE, concept_words, description_document, patch_truth, raster, raster_document, true_words};
pub use records::{QuestionRecord, SceneRecord};
pub use render::{IMAGE_SIDE, Placement, coverage, layout, render};
pub use scene::{Colour, MAX_OBJECTS, Object, Place, Scene, Shape, Size};
pub use split::{HELD_OUT_PAIRS, HELD_OUT_SHARE, Split, sample_scenes};
pub use text::{CAPTION_PROMPT, EMPTY, caption, vocabulary};
pub use write::{Written, write_dataset};

#[cfg(test)]
mod render_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod write_tests;
