//! Maps the visual embeddings of an image to the places that they stand for.

use basic_models::LlavaConfig;
use serde::{Serialize, Serializer};

/// The part of the image that a visual embedding stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A patch, or a square of patches that the projector's pixel shuffle merged.
    Patch {
        /// The row in the grid, from 0 at the top.
        row: usize,
        /// The column in the grid, from 0 at the left.
        column: usize,
    },
    /// The vision encoder's CLS token, which stands for the whole image.
    Cls,
    /// A register token of DINOv2, with its number from 0.
    Register(usize),
    /// A learned query of a resampler, which reads the whole image, with its number from 0.
    Query(usize),
}

impl Serialize for Place {
    /// Writes `[row, column]`, `"CLS"`, `"register 0"` or `"query 0"`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Patch { row, column } => [row, column].serialize(serializer),
            Self::Cls => serializer.serialize_str("CLS"),
            Self::Register(number) => serializer.collect_str(&format_args!("register {number}")),
            Self::Query(number) => serializer.collect_str(&format_args!("query {number}")),
        }
    }
}

/// The places of an image's visual embeddings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grid {
    /// The number of rows, which is also the number of columns.
    pub side: usize,
    /// The place of each visual embedding, in order.
    pub places: Vec<Place>,
}

impl Grid {
    /// The grid of a model. It depends on the patch and image size, on the positions that are projected
    /// (`vision_feature_select_strategy`), and on whether the projector merges squares of patches or has queries of its own.
    pub fn of(config: &LlavaConfig) -> Self {
        let vision = &config.vision_config;
        let (patches, special) = (vision.grid(), vision.special_positions());
        if let Some(queries) = config.projector.queries() {
            // Squares of a pooled grid are places in it; what other queries read lies anywhere.
            return match config.projector.pooled_side() {
                Some(side) => {
                    let place = |square| Place::Patch { row: square / side, column: square % side };
                    Self { side, places: (0..queries).map(place).collect() }
                }
                None => Self { side: patches, places: (0..queries).map(Place::Query).collect() },
            };
        }
        let side = patches / config.projector.shuffle();
        let first = config.dropped(vision);
        let place = |embedding: usize| {
            let position = first + embedding;
            match position.checked_sub(special) {
                Some(patch) => Place::Patch { row: patch / side, column: patch % side },
                None if position == 0 => Place::Cls,
                None => Place::Register(position - 1),
            }
        };
        Self { side, places: (0..config.visual_tokens()).map(place).collect() }
    }
}

#[cfg(test)]
mod tests {
    use basic_models::config::{ProjectorKind, SelectStrategy, VisionFamily};
    use basic_models::{LlavaConfig, VisionConfig};
    use serde_json::json;

    use super::{Grid, Place};

    fn grid(family: &str, registers: usize, strategy: SelectStrategy, projector: ProjectorKind) -> Grid {
        let (family, _) = VisionFamily::of(Some(family)).unwrap();
        let vision_config =
            VisionConfig { family, registers, image_size: 28, patch_size: 7, ..VisionConfig::default() };
        let vision_feature_select_strategy = strategy;
        Grid::of(&LlavaConfig { vision_config, projector, vision_feature_select_strategy, ..LlavaConfig::default() })
    }

    fn patch(row: usize, column: usize) -> Place {
        Place::Patch { row, column }
    }

    #[test]
    fn without_cls_every_embedding_is_a_patch_in_reading_order() {
        for (family, strategy) in [("clip", SelectStrategy::Default), ("siglip", SelectStrategy::Full)] {
            let grid = grid(family, 0, strategy, ProjectorKind::LLAVA);
            assert_eq!((grid.side, grid.places.len()), (4, 16));
            assert_eq!((grid.places[0], grid.places[5], grid.places[15]), (patch(0, 0), patch(1, 1), patch(3, 3)));
        }
    }

    #[test]
    fn what_is_no_patch_has_no_place_in_the_grid() {
        let full = grid("clip", 0, SelectStrategy::Full, ProjectorKind::LLAVA);
        assert_eq!((full.places.len(), full.places[0], full.places[1]), (17, Place::Cls, patch(0, 0)));
        let registers = grid("dinov2", 2, SelectStrategy::Default, ProjectorKind::LLAVA);
        assert_eq!(registers.places[..3], [Place::Register(0), Place::Register(1), patch(0, 0)]);
        assert_eq!(json!(full.places[..2]), json!(["CLS", [0, 0]]));
        assert_eq!(json!(registers.places[1]), json!("register 1"));
        // `default` drops the first position, which for SigLIP is a patch, because SigLIP has no CLS token.
        let dropped = grid("siglip", 0, SelectStrategy::Default, ProjectorKind::LLAVA);
        assert_eq!((dropped.places.len(), dropped.places[0]), (15, patch(0, 1)));
    }

    #[test]
    fn a_pooled_grid_has_places_and_queries_have_none() {
        let pooled = grid("clip", 0, SelectStrategy::Default, ProjectorKind::Ldp { queries: 4 });
        assert_eq!((pooled.side, pooled.places.len(), pooled.places[3]), (2, 4, patch(1, 1)));
        let queries = ProjectorKind::Perceiver { queries: 3, layers: 1 };
        let queries = grid("clip", 0, SelectStrategy::Full, queries);
        assert_eq!(json!(queries.places), json!(["query 0", "query 1", "query 2"]));
    }

    #[test]
    fn a_pixel_shuffle_makes_the_grid_smaller() {
        let shuffle = ProjectorKind::PixelShuffle { factor: 2, layers: 2 };
        let grid = grid("clip", 0, SelectStrategy::Default, shuffle);
        assert_eq!((grid.side, grid.places.len()), (2, 4));
        assert_eq!(grid.places[2], patch(1, 0));
    }
}
