//! Questions that have exactly one answer in a scene, with their answers.

use std::collections::HashSet;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::phrase::Phrase;
use super::scene::{Colour, Object, Scene, Shape, pick};
use super::split::Split;
use super::text::NUMBERS;

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuestionKind {
    /// The colour of an object.
    Colour,
    /// The shape of an object.
    Shape,
    /// The place of an object.
    Place,
    /// The number of objects, either all of them or those with some attribute.
    Count,
    /// Whether an object with given attributes exists; yes or no.
    Existence,
    /// Whether an object is left of, right of, above or below another; yes or no.
    Relation,
}

impl QuestionKind {
    /// Every kind, in order.
    pub const ALL: &'static [Self] =
        &[Self::Colour, Self::Shape, Self::Place, Self::Count, Self::Existence, Self::Relation];

    /// The kind's name in files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Colour => "colour",
            Self::Shape => "shape",
            Self::Place => "place",
            Self::Count => "count",
            Self::Existence => "existence",
            Self::Relation => "relation",
        }
    }
}

/// A question about a scene.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What the question is about.
    pub kind: QuestionKind,
    /// The question, as in `what color is the object at top left ?`.
    pub prompt: String,
    /// The only correct answer: one or two words without a period.
    pub answer: String,
}

/// Questions of every kind that the scene admits, without repeating a prompt. The first ones are of distinct kinds in
/// random order, followed by a second question of each kind, and so on, so that any prefix of the list covers as many
/// kinds as possible. Only [`QuestionKind::Place`] and [`QuestionKind::Relation`] may be missing, if no phrase
/// distinguishes the objects.
///
/// Yes and no are equally likely. A question about a train scene never names a held-out pair, so that no model learns
/// that the answer for such pairs is always no.
pub fn questions<R: Rng + ?Sized>(scene: &Scene, rng: &mut R) -> Vec<Question> {
    let mut by_kind = vec![Vec::new(); QuestionKind::ALL.len()];
    let mut asked = HashSet::new();
    let mut add = |kind: QuestionKind, (prompt, answer): (String, &str)| {
        if asked.insert(prompt.clone()) {
            let answer = answer.to_owned();
            by_kind[kind as usize].push(Question { kind, prompt, answer });
        }
    };

    for object in scene.objects() {
        add(QuestionKind::Colour, colour_question(scene, object, rng));
        add(QuestionKind::Shape, shape_question(scene, object, rng));
        if let Some(question) = place_question(scene, object, rng) {
            add(QuestionKind::Place, question);
        }
    }
    for _ in 0..2 {
        add(QuestionKind::Count, count_question(scene, rng));
        add(QuestionKind::Existence, existence_question(scene, rng));
        if let Some(question) = relation_question(scene, rng) {
            add(QuestionKind::Relation, question);
        }
    }

    by_kind.shuffle(rng);
    for questions in &mut by_kind {
        questions.shuffle(rng);
    }
    let longest = by_kind.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|round| by_kind.iter().filter_map(move |questions| questions.get(round))).cloned().collect()
}

/// `the small star`, or `the object at top left` if that is drawn at random or no other phrase is unique.
fn reference<R: Rng + ?Sized>(
    scene: &Scene,
    object: &Object,
    allowed: impl Fn(&Phrase) -> bool,
    rng: &mut R,
) -> String {
    match Phrase::unique(scene, object, allowed).choose(rng) {
        Some(phrase) if rng.random_bool(0.6) => format!("the {}", phrase.text()),
        _ => format!("the object at {}", object.place.word()),
    }
}

fn colour_question<R: Rng + ?Sized>(scene: &Scene, object: &Object, rng: &mut R) -> (String, &'static str) {
    let what = reference(scene, object, |phrase| phrase.colour.is_none(), rng);
    let prompt = match rng.random_range(0..3) {
        0 => format!("what is the color of {what} ?"),
        _ => format!("what color is {what} ?"),
    };
    (prompt, object.colour.word())
}

fn shape_question<R: Rng + ?Sized>(scene: &Scene, object: &Object, rng: &mut R) -> (String, &'static str) {
    let what = reference(scene, object, |phrase| phrase.shape.is_none(), rng);
    let prompt = match rng.random_range(0..3) {
        0 => format!("what is the shape of {what} ?"),
        _ => format!("what shape is {what} ?"),
    };
    (prompt, object.shape.word())
}

fn place_question<R: Rng + ?Sized>(scene: &Scene, object: &Object, rng: &mut R) -> Option<(String, &'static str)> {
    let what = Phrase::unique(scene, object, |_| true).choose(rng)?.text();
    let prompt = match rng.random_range(0..3) {
        0 => format!("where in the image is the {what} ?"),
        _ => format!("where is the {what} ?"),
    };
    Some((prompt, object.place.word()))
}

/// Counts all objects in a third of the cases, otherwise those with one attribute; a sixth of the latter use a random
/// value, which no object usually has.
fn count_question<R: Rng + ?Sized>(scene: &Scene, rng: &mut R) -> (String, &'static str) {
    let object = pick(scene.objects(), rng);
    let mut phrase = Phrase::default();
    if rng.random_ratio(2, 3) {
        let any = rng.random_ratio(1, 6);
        match rng.random_range(0..3) {
            0 => phrase.size = Some(object.size),
            1 => phrase.colour = Some(if any { pick(Colour::ALL, rng) } else { object.colour }),
            _ => phrase.shape = Some(if any { pick(Shape::ALL, rng) } else { object.shape }),
        }
    }
    let what = match (phrase.shape, phrase.size, phrase.colour) {
        (Some(shape), ..) => shape.plural().to_owned(),
        (_, Some(size), _) => format!("{} objects", size.word()),
        (_, _, Some(colour)) => format!("{} objects", colour.word()),
        _ => "objects".to_owned(),
    };
    let prompt = match rng.random_range(0..3) {
        0 => format!("how many {what} are in the image ?"),
        _ => format!("how many {what} are there ?"),
    };
    (prompt, NUMBERS[phrase.count(scene)])
}

/// Half of the answers are yes and half are no. In a question with the answer no, the phrase differs from an object in
/// one attribute; in half of these cases, if possible, that attribute is taken from another object: with a red circle
/// and a blue square, `is there a red square ?`
fn existence_question<R: Rng + ?Sized>(scene: &Scene, rng: &mut R) -> (String, &'static str) {
    let phrases = Phrase::all_of(&pick(scene.objects(), rng));
    // Colour and shape with or without size in most cases, otherwise colour or shape alone.
    let phrase = phrases[pick(&[0b110, 0b110, 0b110, 0b111, 0b010, 0b100], rng)];
    let no_train_pair = scene.split() == Some(Split::Train);
    let (asked, answer) = if rng.random_bool(0.5) {
        (phrase, "yes")
    } else {
        let mut variants = phrase.variants();
        variants.retain(|p| p.count(scene) == 0 && !(no_train_pair && p.is_held_out()));
        let (harder, easier): (Vec<Phrase>, Vec<Phrase>) =
            variants.into_iter().partition(|variant| variant.is_of_present_attributes(scene));
        let pool = if easier.is_empty() || !harder.is_empty() && rng.random_bool(0.5) { harder } else { easier };
        // The pool is never empty: with at most four objects, some colour or shape is always absent.
        match pool.choose(rng) {
            Some(&variant) => (variant, "no"),
            None => (phrase, "yes"),
        }
    };
    let what = asked.with_article();
    let prompt = match rng.random_range(0..3) {
        0 => format!("is there {what} in the image ?"),
        _ => format!("is there {what} ?"),
    };
    (prompt, answer)
}

/// A relation that holds strictly, or whose reverse does, between two objects with unique phrases.
fn relation_question<R: Rng + ?Sized>(scene: &Scene, rng: &mut R) -> Option<(String, &'static str)> {
    let mut pairs = Vec::new();
    for a in scene.objects() {
        for b in scene.objects() {
            // Each relation with the coordinates it compares; the smaller one is on the left or above.
            let (x, y) = ((a.place.column(), b.place.column()), (a.place.row(), b.place.row()));
            let all = [("left of", x.0, x.1), ("right of", x.1, x.0), ("above", y.0, y.1), ("below", y.1, y.0)];
            pairs.extend(all.into_iter().filter(|r| r.1 != r.2).map(|r| (a, b, r.0, r.1 < r.2)));
        }
    }
    pairs.shuffle(rng);
    pairs.into_iter().find_map(|(a, b, relation, holds)| {
        let a = Phrase::unique(scene, a, |_| true).choose(rng)?.text();
        let b = Phrase::unique(scene, b, |_| true).choose(rng)?.text();
        let sideways = relation.ends_with("of");
        let relation = match rng.random_range(0..3) {
            0 if sideways => format!("to the {relation}"),
            _ => relation.to_owned(),
        };
        Some((format!("is the {a} {relation} the {b} ?"), if holds { "yes" } else { "no" }))
    })
}
