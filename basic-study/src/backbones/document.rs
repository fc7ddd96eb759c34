//! The decoder's pretraining documents: texts about scenes, with a raster of concept words in place of each image.

use std::ops::Range;

use basic_data::shapes::{
    EMPTY, Place, RASTER_NOISE, Scene, caption, concept_words, description_document, patch_truth, raster_document,
    true_words,
};
use basic_models::processor::Tokenizer;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::tokenizer::{EOS, PAD};
use super::{BackboneError, PATCHES_PER_SIDE};

/// A document ends before a turn that would make it longer than this, which keeps padding in batches small.
const MAX_TOKENS: usize = 96;
/// The loss weight of tokens outside answers, which is low because questions and descriptions are mostly unpredictable.
const OTHER_WEIGHT: f32 = 0.5;

/// A document: its token ids, the word mixtures that represent a raster's patches, and the positions of answers.
pub struct Document {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each position its patch, if it belongs to a raster.
    pub raster: Vec<Option<Patch>>,
    /// The positions of answers, captions and scans of the cells.
    pub answers: Vec<Range<usize>>,
}

/// A raster's patch: token ids with their weights, which sum to the length of the patch's embedding.
pub type Patch = Vec<(u32, f32)>;

/// The kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A raster, then questions and answers.
    RasterQuestions,
    /// A raster, then the content of each cell.
    RasterScan,
    /// A raster, then a caption.
    RasterCaption,
    /// A description, then questions and answers.
    TextQuestions,
    /// A description, then the content of each cell.
    TextScan,
}

impl Kind {
    /// A random kind.
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..100) {
            0..40 => Self::RasterQuestions,
            40..60 => Self::RasterScan,
            60..70 => Self::RasterCaption,
            70..90 => Self::TextQuestions,
            _ => Self::TextScan,
        }
    }
}

/// The content of each cell in reading order, which a raster or a description determines completely.
fn scan(scene: &Scene) -> String {
    let cell = |place: &Place| match scene.objects().iter().find(|object| object.place == *place) {
        Some(o) => format!("{} : {} {} {} .", place.word(), o.size.word(), o.colour.word(), o.shape.word()),
        None => format!("{} : {EMPTY} .", place.word()),
    };
    Place::ALL.iter().map(cell).collect::<Vec<_>>().join(" ")
}

/// Makes a document of one kind about a scene.
pub fn document(
    scene: &Scene,
    kind: Kind,
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<Document, BackboneError> {
    let image = "<image>".repeat(PATCHES_PER_SIDE * PATCHES_PER_SIDE);
    let (turns, first, bare) = match kind {
        Kind::RasterQuestions => (raster_document(scene, PATCHES_PER_SIDE, rng).1, format!("{image}\n"), None),
        Kind::RasterScan => (Vec::new(), String::new(), Some((image, scan(scene)))),
        Kind::RasterCaption => (Vec::new(), String::new(), Some((image, caption(scene, rng)))),
        Kind::TextQuestions => {
            let (description, turns) = description_document(scene, rng);
            (turns, format!("{description} "), None)
        }
        Kind::TextScan => (Vec::new(), String::new(), Some((format!("{} ", caption(scene, rng)), scan(scene)))),
    };
    let (lead, said) = bare.unwrap_or_default();
    let mut ids = tokenizer.encode(&lead, true)?;
    let mut answers = Vec::new();
    if !said.is_empty() {
        let start = ids.len();
        ids.extend(tokenizer.encode(&said, false)?);
        answers.push(start..ids.len());
    }
    for (turn, (question, answer)) in turns.iter().enumerate() {
        let lead = if turn == 0 { first.as_str() } else { "" };
        let asked = tokenizer.encode(&format!("USER: {lead}{question} ASSISTANT:"), false)?;
        let said = tokenizer.encode(answer, false)?;
        if turn > 0 && ids.len() + asked.len() + said.len() >= MAX_TOKENS {
            break;
        }
        ids.extend(asked);
        let start = ids.len();
        ids.extend(said);
        ids.push(EOS);
        answers.push(start..ids.len());
    }
    let image_id = tokenizer.image_id()?;
    let mut patches = raster(scene, tokenizer, rng).into_iter();
    let raster = ids.iter().map(|id| if *id == image_id { patches.next() } else { None }).collect();
    Ok(Document { ids, raster, answers })
}

/// The raster of a scene. A patch that an object covers mixes the words for its colour, shape and size in random
/// shares; the other patches are the word `empty`. Some patches are replaced by a random word. The whole raster is
/// scaled by a random factor, because visual embeddings are longer than word embeddings.
fn raster(scene: &Scene, tokenizer: &Tokenizer, rng: &mut ChaCha8Rng) -> Vec<Patch> {
    let id = |word: &str| tokenizer.id_of(word).unwrap_or(PAD);
    let concepts = concept_words();
    let length = (rng.random::<f32>() * 1.8 - 0.3).exp();
    let truth = patch_truth(scene, u64::from(rng.random::<u32>()), PATCHES_PER_SIDE);
    let mut patches = Vec::with_capacity(truth.len());
    for object in truth {
        let replaced = rng.random::<f64>() < RASTER_NOISE;
        patches.push(match (replaced, object.and_then(|i| scene.objects().get(i))) {
            (true, _) => vec![(concepts.choose(rng).map_or(PAD, |word| id(word)), length)],
            (false, None) => vec![(id(EMPTY), length)],
            (false, Some(object)) => {
                let shares = [0; 3].map(|_| (1.5 * gaussian(rng)).exp());
                let sum: f32 = shares.iter().sum();
                true_words(object).iter().zip(shares).map(|(word, s)| (id(word), length * s / sum)).collect()
            }
        });
    }
    patches
}

impl Document {
    /// The positions that are predicted, with their loss weights. The positions of a raster are not predicted.
    pub fn weights(&self) -> Vec<(usize, f32)> {
        let answer = |p: &usize| self.answers.iter().any(|a| a.contains(p));
        let predicted = (1..self.ids.len()).filter(|p| self.raster[*p].is_none());
        predicted.map(|p| (p, if answer(&p) { 1.0 } else { OTHER_WEIGHT })).collect()
    }
}

/// Draws from the standard normal distribution (Box-Muller).
pub fn gaussian(rng: &mut impl Rng) -> f32 {
    let u = 1.0 - rng.random::<f32>();
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}
