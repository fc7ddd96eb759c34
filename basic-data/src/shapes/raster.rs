//! Rasters of concept words, which teach a language model to read images before it sees one, and the documents that
//! contain them.

use rand::{Rng, RngExt};

use super::questions::questions;
use super::render::{IMAGE_SIDE, coverage};
use super::scene::{Colour, Object, Scene, Shape, Size, pick};
use super::text::{CAPTION_PROMPT, EMPTY, caption};

/// The share of a raster's words that [`raster_document`] replaces at random.
pub const RASTER_NOISE: f64 = 0.15;

/// The words that can describe an object: colours, shapes and sizes.
pub fn concept_words() -> Vec<&'static str> {
    let colours = Colour::ALL.iter().map(|colour| colour.word());
    let shapes = Shape::ALL.iter().map(|shape| shape.word());
    colours.chain(shapes).chain(Size::ALL.iter().map(|size| size.word())).collect()
}

/// The concept words that describe this object: its colour, shape and size.
pub fn true_words(object: &Object) -> [&'static str; 3] {
    [object.colour.word(), object.shape.word(), object.size.word()]
}

/// The object that covers most of each patch of the rendered image, as an index into [`Scene::objects`]; `None` where
/// no object covers a tenth of the patch.
///
/// The result has `patches_per_side`² entries in reading order. A pixel belongs to the patch that contains its centre,
/// so `patches_per_side` need not divide [`IMAGE_SIDE`]; a patch smaller than a pixel may contain no centre and then
/// counts as background.
pub fn patch_truth(scene: &Scene, render_seed: u64, patches_per_side: usize) -> Vec<Option<usize>> {
    let objects = scene.objects().len();
    let patch_of = |pixel: usize| (2 * pixel + 1) * patches_per_side / (2 * IMAGE_SIDE);
    // For each patch, the number of pixels of each object, then the number of all pixels.
    let mut counts = vec![vec![0_usize; objects + 1]; patches_per_side * patches_per_side];
    if !counts.is_empty() {
        for (pixel, object) in coverage(scene, render_seed).into_iter().enumerate() {
            let (row, column) = (patch_of(pixel / IMAGE_SIDE), patch_of(pixel % IMAGE_SIDE));
            let patch = &mut counts[row * patches_per_side + column];
            patch[objects] += 1;
            if let Some(object) = object {
                patch[object] += 1;
            }
        }
    }
    let winner = |counts: &Vec<usize>| {
        let (object, &pixels) = counts[..objects].iter().enumerate().max_by_key(|&(_, n)| n)?;
        (pixels > 0 && 10 * pixels >= counts[objects]).then_some(object)
    };
    counts.iter().map(winner).collect()
}

/// One word per patch of a random rendering, in reading order: the colour, shape or size of the object that covers the
/// patch, or [`EMPTY`]. With probability `noise` (clamped to 0 to 1) the word is replaced by a random concept word.
pub fn raster<R: Rng + ?Sized>(scene: &Scene, patches_per_side: usize, rng: &mut R, noise: f64) -> Vec<&'static str> {
    let concepts = concept_words();
    let noise = if noise.is_nan() { 0.0 } else { noise.clamp(0.0, 1.0) };
    let truth = patch_truth(scene, rng.random(), patches_per_side);
    truth
        .into_iter()
        .map(|object| match object {
            _ if rng.random_bool(noise) => pick(&concepts, rng),
            Some(object) => pick(&true_words(&scene.objects()[object]), rng),
            None => EMPTY,
        })
        .collect()
}

/// A raster with [`RASTER_NOISE`] and a conversation about its scene as `(prompt, answer)` turns: three to six
/// questions, preceded in half of the cases by a caption.
pub fn raster_document<R: Rng + ?Sized>(
    scene: &Scene,
    patches_per_side: usize,
    rng: &mut R,
) -> (Vec<&'static str>, Vec<(String, String)>) {
    let raster = raster(scene, patches_per_side, rng, RASTER_NOISE);
    let mut turns = Vec::new();
    if rng.random_bool(0.5) {
        turns.push((CAPTION_PROMPT.to_owned(), caption(scene, rng)));
    }
    turns.extend(question_turns(scene, 3, 6, rng));
    (raster, turns)
}

/// A caption and three to six questions about its scene as `(prompt, answer)` turns.
pub fn description_document<R: Rng + ?Sized>(scene: &Scene, rng: &mut R) -> (String, Vec<(String, String)>) {
    (caption(scene, rng), question_turns(scene, 3, 6, rng))
}

/// Between `fewest` and `most` questions with their answers, of as many kinds as possible.
pub(super) fn question_turns<R: Rng + ?Sized>(
    scene: &Scene,
    fewest: usize,
    most: usize,
    rng: &mut R,
) -> Vec<(String, String)> {
    let n = rng.random_range(fewest..=most);
    questions(scene, rng).into_iter().take(n).map(|q| (q.prompt, q.answer)).collect()
}
