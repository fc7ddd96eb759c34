//! Shapes, a synthetic data set: scenes of one to four coloured shapes in a 3 x 3 grid of cells, with 64 x 64 images,
//! captions, questions, rasters of concept words, and data sets in LLaVA's format.
//!
//! Everything is a function of a seed, computed with ChaCha8 and without platform-dependent arithmetic, so the same
//! seed gives the same bytes on every platform.
//!
//! - [`Scene`] describes the objects. [`Split`] is decided by a hash of the scene alone, so whatever is trained on
//!   [`Split::Train`], with any seed, has never seen a validation or eval scene.
//! - [`render`] draws a scene; [`coverage`] and [`patch_truth`] say which object is drawn where.
//! - [`caption`] and [`questions`] describe a scene using only words of [`vocabulary`].
//! - [`raster_document`] and [`description_document`] give the texts that a language model is pretrained on before it
//!   sees any image.
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
pub use write::{SCENE_LIMIT, Written, write_dataset};

#[cfg(test)]
mod render_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod write_tests;
