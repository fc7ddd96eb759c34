//! The language of Shapes: its vocabulary and its captions.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use super::scene::{Colour, Object, Scene, Shape, Size, pick};

/// The prompt for a caption.
pub const CAPTION_PROMPT: &str = "describe the image";

/// The word for a patch that shows the background.
pub const EMPTY: &str = "empty";

/// The numbers from zero, as words.
pub(super) const NUMBERS: [&str; 5] = ["zero", "one", "two", "three", "four"];

/// Words and punctuation other than shapes, colours, sizes, numbers and raster words.
const FUNCTION_WORDS: [&str; 34] = [
    ".", "?", ":", ",", "a", "an", "the", "and", "there", "is", "are", "at", "in", "of", "to", "what", "where", "how",
    "many", "color", "shape", "object", "objects", "top", "bottom", "left", "right", "center", "above", "below", "yes",
    "no", "describe", "image",
];

/// Every word and punctuation mark that can occur in a text of Shapes, each once: the vocabulary of a word-level
/// tokenizer that splits at white space.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words = FUNCTION_WORDS.to_vec();
    words.extend(NUMBERS);
    words.extend(Colour::ALL.iter().map(|colour| colour.word()));
    words.extend(Shape::ALL.iter().map(|shape| shape.word()));
    words.extend(Shape::ALL.iter().map(|shape| shape.plural()));
    words.extend(Size::ALL.iter().map(|size| size.word()));
    words.push(EMPTY);
    words
}

/// A caption that names the size, colour, shape and place of every object, in random order and phrasing:
/// `there is a small red circle at top left . center : large blue square .`
pub fn caption<R: Rng + ?Sized>(scene: &Scene, rng: &mut R) -> String {
    let mut objects = scene.objects().to_vec();
    objects.shuffle(rng);
    match rng.random_range(0..4) {
        0 if objects.len() > 1 => joined(&objects),
        0 | 1 => {
            let phrasing = pick(PHRASINGS, rng);
            sentences(&objects, || phrasing)
        }
        _ => sentences(&objects, || pick(PHRASINGS, rng)),
    }
}

/// A way to phrase what is where.
type Phrasing = fn(&Object) -> String;

const PHRASINGS: &[Phrasing] = &[
    |o| format!("there is a {} at {} .", name(o), o.place.word()),
    |o| format!("a {} at {} .", name(o), o.place.word()),
    |o| format!("at {} there is a {} .", o.place.word(), name(o)),
    |o| format!("{} : {} .", o.place.word(), name(o)),
    |o| format!("{} , {} .", name(o), o.place.word()),
];

fn sentences(objects: &[Object], mut phrasing: impl FnMut() -> Phrasing) -> String {
    let sentences: Vec<String> = objects.iter().map(|object| phrasing()(object)).collect();
    sentences.join(" ")
}

/// One sentence about all objects: `there is a .. at .. , a .. at .. and a .. at .. .`
fn joined(objects: &[Object]) -> String {
    let parts: Vec<String> = objects.iter().map(|o| format!("a {} at {}", name(o), o.place.word())).collect();
    match parts.split_last() {
        Some((last, first)) if !first.is_empty() => {
            format!("there is {} and {last} .", first.join(" , "))
        }
        _ => format!("there is {} .", parts.join(" , ")),
    }
}

/// `small red circle`, for example.
fn name(object: &Object) -> String {
    format!("{} {} {}", object.size.word(), object.colour.word(), object.shape.word())
}
