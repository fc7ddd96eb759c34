//! Noun phrases that identify the objects of a scene.

use super::scene::{Colour, Object, Scene, Shape, Size};
use super::split::HELD_OUT_PAIRS;

/// Attributes that identify objects, as in `small red circle`, `red object` or `circle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Phrase {
    pub(super) size: Option<Size>,
    pub(super) colour: Option<Colour>,
    pub(super) shape: Option<Shape>,
}

impl Phrase {
    /// The phrases that name some of an object's attributes, from none to all three.
    pub(super) fn all_of(object: &Object) -> [Self; 8] {
        std::array::from_fn(|named| Self {
            size: (named & 1 != 0).then_some(object.size),
            colour: (named & 2 != 0).then_some(object.colour),
            shape: (named & 4 != 0).then_some(object.shape),
        })
    }

    /// The phrases that match this object alone and that `allowed` accepts.
    pub(super) fn unique(scene: &Scene, object: &Object, allowed: impl Fn(&Self) -> bool) -> Vec<Self> {
        Self::all_of(object).into_iter().filter(|p| p.count(scene) == 1 && allowed(p)).collect()
    }

    fn matches(&self, object: &Object) -> bool {
        self.size.is_none_or(|size| size == object.size)
            && self.colour.is_none_or(|colour| colour == object.colour)
            && self.shape.is_none_or(|shape| shape == object.shape)
    }

    /// Number of objects in the scene that the phrase matches.
    pub(super) fn count(&self, scene: &Scene) -> usize {
        scene.objects().iter().filter(|object| self.matches(object)).count()
    }

    /// Whether the phrase names a colour and a shape that never occur together in a train scene.
    pub(super) fn is_held_out(&self) -> bool {
        self.colour.zip(self.shape).is_some_and(|pair| HELD_OUT_PAIRS.contains(&pair))
    }

    /// The phrase without an article: `small star`, `red object`.
    pub(super) fn text(&self) -> String {
        let words =
            [self.size.map(Size::word), self.colour.map(Colour::word), Some(self.shape.map_or("object", Shape::word))];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// The phrase with an article: `a small star`, `an orange object`.
    pub(super) fn with_article(&self) -> String {
        let text = self.text();
        let article = if text.starts_with('o') { "an" } else { "a" };
        format!("{article} {text}")
    }

    /// The phrases that differ from this one in the value of one of its attributes.
    pub(super) fn variants(&self) -> Vec<Self> {
        let mut variants = Vec::new();
        if self.size.is_some() {
            variants.extend(Size::ALL.iter().map(|&size| Self { size: Some(size), ..*self }));
        }
        if self.colour.is_some() {
            variants.extend(Colour::ALL.iter().map(|&colour| Self { colour: Some(colour), ..*self }));
        }
        if self.shape.is_some() {
            variants.extend(Shape::ALL.iter().map(|&shape| Self { shape: Some(shape), ..*self }));
        }
        variants.retain(|variant| variant != self);
        variants
    }

    /// Whether each attribute that the phrase names belongs to some object in the scene.
    pub(super) fn is_of_present_attributes(&self, scene: &Scene) -> bool {
        let present = |alone: Self| alone.count(scene) > 0;
        present(Self { size: self.size, ..Self::default() })
            && present(Self { colour: self.colour, ..Self::default() })
            && present(Self { shape: self.shape, ..Self::default() })
    }
}
