//! The errors of settings of supervision methods.

use thiserror::Error;

/// A setting that is out of its range.
#[derive(Debug, Error, PartialEq)]
pub enum ObjectiveError {
    /// A number of layers that is 0, which is wrong for every decoder.
    #[error("{name} is 0, it must be between 1 and the decoder's layers")]
    NoLayer {
        /// The key.
        name: &'static str,
    },
    /// A number of layers that the decoder does not have.
    #[error("{name} = {value} is outside 1 to {layers}, the decoder's layers")]
    Layers {
        /// The key.
        name: &'static str,
        /// The value.
        value: usize,
        /// The decoder's layers.
        layers: usize,
    },
    /// A weight that is negative or not a finite number.
    #[error("{name} = {value} must be a finite number, at least 0")]
    Weight {
        /// The key.
        name: &'static str,
        /// The value.
        value: f64,
    },
    /// A size that is out of its range.
    #[error("{name} = {value} must be at least 1 and at most {most}")]
    Size {
        /// The key.
        name: &'static str,
        /// The value.
        value: usize,
        /// The largest value that is allowed.
        most: usize,
    },
    /// Another encoder's features for a model that cuts images into tiles.
    #[error(
        "{name}: the model cuts images into tiles, whose patches another encoder's cannot be compared with: use the \
         model's own vision encoder (\"vision\")"
    )]
    Tiles {
        /// The key.
        name: &'static str,
    },
    /// Patch features that do not lie on a square grid.
    #[error("{name}: {positions} positions an image do not lie on a square grid: {way}")]
    Grid {
        /// The key.
        name: &'static str,
        /// The number of positions.
        positions: usize,
        /// What to change.
        way: &'static str,
    },
    /// A method that compares with patches, and positions that are none.
    #[error(
        "{name} compares the positions of an image with patches, and this projector's are queries that read the whole \
         image: leave the table out, or take a projector whose embeddings are patches"
    )]
    Queries {
        /// The table.
        name: &'static str,
    },
}

impl ObjectiveError {
    /// Checks a weight.
    pub(super) fn weight(name: &'static str, value: f64) -> Result<(), Self> {
        if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(Self::Weight { name, value }) }
    }
}
