//! Scenes: objects with a shape, a colour and a size in distinct cells of a 3 x 3 grid.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::ShapesError;

/// The largest number of objects in a scene.
pub const MAX_OBJECTS: usize = 4;

/// Defines an enum whose variants are words of the data set's language, also in serde.
macro_rules! word_enum {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`")] #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word or words for the variant in texts.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

word_enum! {
    /// The shape of an object.
    Shape {
        Circle = "circle",
        Square = "square",
        Triangle = "triangle",
        Star = "star",
        Cross = "cross",
        Diamond = "diamond",
    }
}

word_enum! {
    /// The colour of an object.
    Colour {
        Red = "red",
        Green = "green",
        Blue = "blue",
        Yellow = "yellow",
        Purple = "purple",
        Orange = "orange",
        White = "white",
        Cyan = "cyan",
    }
}

word_enum! {
    /// The size of an object: small is about 8 to 12 pixels across, large 14 to 20.
    Size {
        Small = "small",
        Large = "large",
    }
}

word_enum! {
    /// A cell of the 3 x 3 grid, in reading order.
    Place {
        TopLeft = "top left",
        Top = "top",
        TopRight = "top right",
        Left = "left",
        Center = "center",
        Right = "right",
        BottomLeft = "bottom left",
        Bottom = "bottom",
        BottomRight = "bottom right",
    }
}

impl Shape {
    /// The plural of the shape's word.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Star => "stars",
            Self::Cross => "crosses",
            Self::Diamond => "diamonds",
        }
    }
}

impl Place {
    /// The row of the cell, 0 (top) to 2.
    pub fn row(self) -> usize {
        self as usize / 3
    }

    /// The column of the cell, 0 (left) to 2.
    pub fn column(self) -> usize {
        self as usize % 3
    }
}

/// One object of a scene. Objects are ordered by place first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// The cell that contains the object.
    pub place: Place,
    /// The object's size.
    pub size: Size,
    /// The object's colour.
    pub colour: Colour,
    /// The object's shape.
    pub shape: Shape,
}

/// One to [`MAX_OBJECTS`] objects in distinct cells, in the order of their places.
///
/// In JSON: `{"objects": [{"place": "top left", "size": "small", "colour": "red", "shape": "circle"}]}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Objects")]
pub struct Scene {
    objects: Vec<Object>,
}

/// A scene as it is deserialized, before it is validated.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Objects {
    objects: Vec<Object>,
}

impl TryFrom<Objects> for Scene {
    type Error = ShapesError;

    fn try_from(raw: Objects) -> Result<Self, ShapesError> {
        Self::new(raw.objects)
    }
}

impl Scene {
    /// A scene with these objects, given in any order.
    ///
    /// # Errors
    /// [`ShapesError::InvalidScene`] without objects, with more than [`MAX_OBJECTS`], or with two in a cell.
    pub fn new(mut objects: Vec<Object>) -> Result<Self, ShapesError> {
        let invalid = |reason: String| Err(ShapesError::InvalidScene { reason });
        if objects.is_empty() || objects.len() > MAX_OBJECTS {
            return invalid(format!("{} objects where 1 to {MAX_OBJECTS} are allowed", objects.len()));
        }
        objects.sort_unstable();
        if let Some(pair) = objects.windows(2).find(|pair| pair[0].place == pair[1].place) {
            return invalid(format!("two objects at {}", pair[0].place.word()));
        }
        Ok(Self { objects })
    }

    /// A random scene: one object in a tenth of the cases, otherwise two, three or four with equal probability. All
    /// attributes and places are uniform and independent.
    pub(super) fn random<R: Rng + ?Sized>(rng: &mut R) -> Self {
        let count = if rng.random_ratio(1, 10) { 1 } else { rng.random_range(2..=MAX_OBJECTS) };
        let mut places = Place::ALL.to_vec();
        places.shuffle(rng);
        let mut objects: Vec<Object> = places[..count]
            .iter()
            .map(|&place| Object {
                place,
                size: pick(Size::ALL, rng),
                colour: pick(Colour::ALL, rng),
                shape: pick(Shape::ALL, rng),
            })
            .collect();
        objects.sort_unstable();
        Self { objects }
    }

    /// The objects in the order of their places; object indices elsewhere refer to this order.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// The canonical description, equal for equal scenes. Splits depend on its hash, so its format must never change:
    /// `small red circle at top left;large blue square at center`.
    pub fn key(&self) -> String {
        let parts: Vec<String> = self
            .objects
            .iter()
            .map(|o| format!("{} {} {} at {}", o.size.word(), o.colour.word(), o.shape.word(), o.place.word()))
            .collect();
        parts.join(";")
    }
}

/// A uniformly drawn item; `items` is one of this module's constant, non-empty lists.
pub(super) fn pick<T: Copy, R: Rng + ?Sized>(items: &[T], rng: &mut R) -> T {
    *items.choose(rng).unwrap_or(&items[0])
}
