//! Any resolution (LLaVA-NeXT): how an image is cut into tiles, and which visual tokens it gets; and grids of patches that
//! follow an image's aspect ratio (SigLIP 2 NaFlex).
//!
//! The whole image, scaled to a square, is its base image. Beside it the image is scaled to the best of several
//! resolutions (`image_grid_pinpoints`), padded, and cut into tiles of the vision encoder's size. The patches that lie
//! in the padding are dropped, and a newline embedding ends each row of patches of the tiles together.

use std::ops::Range;

use super::{ConfigError, most};

/// How a model cuts images into tiles. A model that does not cut has no resolutions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    /// The visual tokens of a base image, or of an image that is not cut.
    tokens: usize,
    /// The pixels along a side of a tile.
    pixels: usize,
    /// The patches along a side of a tile.
    patches: usize,
    /// The resolutions, as height and width in pixels; empty for a model that does not cut.
    pinpoints: Vec<[usize; 2]>,
    /// The pixels along a side of a patch, if an image's grid follows its aspect ratio; it has at most `tokens` patches.
    flexible: Option<usize>,
}

impl Tiling {
    /// Images that are not cut and have `tokens` visual tokens.
    pub fn none(tokens: usize) -> Self {
        Self { tokens, pixels: 0, patches: 0, pinpoints: Vec::new(), flexible: None }
    }

    /// Images that are not cut, and have as many patches of `patch` x `patch` pixels as fit with their aspect ratio, at most
    /// `most`.
    pub(crate) fn flexible(patch: usize, most: usize) -> Self {
        Self { flexible: Some(patch), ..Self::none(most) }
    }

    /// Images that are cut into tiles of `pixels` x `pixels` pixels and `patches` x `patches` patches.
    pub(crate) fn new(pixels: usize, patches: usize, pinpoints: Vec<[usize; 2]>) -> Self {
        Self { tokens: patches * patches, pixels, patches, pinpoints, flexible: None }
    }

    /// Whether images are cut into tiles.
    pub fn cuts(&self) -> bool {
        !self.pinpoints.is_empty()
    }

    /// Whether the number of an image's visual tokens depends on its size.
    pub fn varies(&self) -> bool {
        self.cuts() || self.flexible.is_some()
    }

    /// The tiles of an image of `[height, width]` pixels; the size is looked at only if [`Tiling::varies`].
    pub fn of(&self, size: [usize; 2]) -> Tiles {
        if let Some(patch) = self.flexible {
            let [rows, columns] = flexible_grid(size, patch, self.tokens);
            return Tiles { base: rows * columns, held: self.tokens, grid: None };
        }
        let Some([height, width]) = best_resolution(size, &self.pinpoints) else { return Tiles::whole(self.tokens) };
        let grid = [height / self.pixels, width / self.pixels];
        let [rows, columns] = unpadded(size, grid.map(|tiles| tiles * self.patches));
        Tiles {
            base: self.tokens,
            held: self.tokens,
            grid: Some(Grid { tiles: grid, side: self.patches, rows, columns }),
        }
    }

    /// The most visual tokens that an image can have.
    pub fn most_tokens(&self) -> usize {
        self.all().map(|tiles| tiles.tokens()).max().unwrap_or(self.tokens)
    }

    /// The most tiles that an image can have, the base image included.
    pub fn most_tiles(&self) -> usize {
        self.all().map(|tiles| tiles.count()).max().unwrap_or(1)
    }

    /// The tiles of images that fill each resolution.
    fn all(&self) -> impl Iterator<Item = Tiles> {
        self.pinpoints.iter().map(|size| self.of(*size))
    }

    /// Checks that the resolutions are whole tiles, and that no image gets too many visual tokens.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.pinpoints.len() > most::PINPOINTS {
            return Err(ConfigError::TooLarge {
                key: "image_grid_pinpoints (number of resolutions)".into(),
                value: self.pinpoints.len().to_string(),
                most: most::PINPOINTS,
            });
        }
        for [height, width] in &self.pinpoints {
            let side = self.pixels.max(1);
            let whole = |length: usize| length > 0 && length <= most::SIDE && length.is_multiple_of(side);
            if !whole(*height) || !whole(*width) {
                return Err(ConfigError::Inconsistent(format!(
                    "image_grid_pinpoints has [{height}, {width}]: both must be multiples of the vision encoder's image \
                     size, {side}, of at most {}",
                    most::SIDE
                )));
            }
            let patches = (height / side * self.patches).saturating_mul(width / side * self.patches);
            if patches > most::VISUAL {
                return Err(ConfigError::TooLarge {
                    key: format!("image_grid_pinpoints [{height}, {width}] (patches)"),
                    value: patches.to_string(),
                    most: most::VISUAL,
                });
            }
        }
        Ok(())
    }
}

/// The tiles of one image, and its visual tokens: those of the base image, then row by row the patches of the other
/// tiles, each row with a newline at its end. An image that is not cut is its own base image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    base: usize,
    /// The rows of features that the encoder makes of a tile: those of padding first, then one for each patch.
    held: usize,
    grid: Option<Grid>,
}

/// The tiles beside the base image, which together show the image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grid {
    /// The tiles in a column and in a row.
    tiles: [usize; 2],
    /// The patches along a side of a tile.
    side: usize,
    /// The rows and columns of patches that show the image and not the padding.
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Tiles {
    /// An image that is not cut, with so many visual tokens.
    pub fn whole(tokens: usize) -> Self {
        Self { base: tokens, held: tokens, grid: None }
    }

    /// The number of tiles, the base image included: what the vision encoder sees of the image.
    pub fn count(&self) -> usize {
        1 + self.grid.as_ref().map_or(0, |grid| grid.tiles[0] * grid.tiles[1])
    }

    /// The number of the image's positions in a sequence: its patches and its newlines.
    pub fn tokens(&self) -> usize {
        self.patches() + self.newlines().len()
    }

    /// The number of visual embeddings (m): the patches, without the newlines.
    pub fn patches(&self) -> usize {
        self.base + self.grid.as_ref().map_or(0, |grid| grid.rows.len() * grid.columns.len())
    }

    /// The positions of the newlines, counted from the image's first position.
    pub fn newlines(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
        let (base, rows, columns) = match &self.grid {
            Some(grid) => (self.base, grid.rows.len(), grid.columns.len()),
            None => (0, 0, 0),
        };
        (0..rows).map(move |row| base + row * (columns + 1) + columns)
    }

    /// The positions of the patches, counted from the image's first position.
    pub fn places(&self) -> Vec<usize> {
        let row = self.grid.as_ref().map_or(0, |grid| grid.columns.len());
        let newline = |place: &usize| *place >= self.base && (place - self.base) % (row + 1) == row;
        (0..self.tokens()).filter(|place| self.grid.is_none() || !newline(place)).collect()
    }

    /// The number of patches of all tiles, the padding's included: the rows of the features that the encoder makes.
    pub fn encoded(&self) -> usize {
        self.held * self.count()
    }

    /// For each visual embedding the row of the tiles' features that it is made of.
    pub fn rows(&self) -> Vec<usize> {
        let base = self.held - self.base..self.held;
        let Some(Grid { tiles, side, rows, columns }) = &self.grid else { return base.collect() };
        let row = |(y, x): (usize, usize)| {
            let tile = 1 + y / side * tiles[1] + x / side;
            tile * side * side + y % side * side + x % side
        };
        let patches = rows.clone().flat_map(|y| columns.clone().map(move |x| (y, x)));
        base.chain(patches.map(row)).collect()
    }
}

/// The rows and columns of patches that an image of `[height, width]` pixels is scaled to: as many as fit with its aspect
/// ratio (transformers' `get_image_size_for_max_num_patches`, which searches the scale by halving).
pub fn flexible_grid(size: [usize; 2], patch: usize, most: usize) -> [usize; 2] {
    const EPSILON: f64 = 1e-5;
    let at = |scale: f64| size.map(|length| ((length as f64 * scale / patch as f64).ceil() as usize).max(1));
    let (mut low, mut high) = (EPSILON / 10.0, 100.0);
    while high - low >= EPSILON {
        let scale = (low + high) / 2.0;
        let [rows, columns] = at(scale);
        if rows.saturating_mul(columns) <= most { low = scale } else { high = scale }
    }
    let [rows, columns] = at(low);
    // An image that is longer than `most` patches at the least scale does not occur: its sides are bounded.
    [rows.min(most), columns.min((most / rows.min(most)).max(1))]
}

/// The resolution, as height and width, in which most of an image's pixels are kept and the least is padding
/// (transformers' `select_best_resolution`); `None` without resolutions.
pub fn best_resolution(size: [usize; 2], pinpoints: &[[usize; 2]]) -> Option<[usize; 2]> {
    let [height, width] = size.map(|length| length.max(1));
    let mut best: Option<([usize; 2], u64, u64)> = None;
    for [rows, columns] in pinpoints {
        let scale = (*columns as f64 / width as f64).min(*rows as f64 / height as f64);
        let kept = (width as f64 * scale) as u64 * (height as f64 * scale) as u64;
        let kept = kept.min(height as u64 * width as u64);
        let wasted = (rows * columns) as u64 - kept.min((rows * columns) as u64);
        if best.is_none_or(|(_, most, least)| kept > most || (kept == most && wasted < least)) {
            best = Some(([*rows, *columns], kept, wasted));
        }
    }
    best.map(|(size, ..)| size)
}

/// The rows and columns of a grid of patches that an image of `size` covers when it is scaled into the grid's middle
/// (transformers' `unpad_image`).
fn unpadded([height, width]: [usize; 2], [rows, columns]: [usize; 2]) -> [Range<usize>; 2] {
    let (height, width) = (height.max(1) as f64, width.max(1) as f64);
    // Python's round(x, 7), then int.
    let rounded = |x: f64| format!("{x:.7}").parse::<f64>().unwrap_or(x) as usize;
    let middle = |all: usize, covered: usize| {
        let padding = all.saturating_sub(covered) / 2;
        padding..all - padding
    };
    if width / height > columns as f64 / rows as f64 {
        let covered = rounded(height * (columns as f64 / width));
        [middle(rows, covered), 0..columns]
    } else {
        let covered = rounded(width * (rows as f64 / height));
        [0..rows, middle(columns, covered)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles of 28 pixels and 4 patches along a side.
    fn tiling() -> Tiling {
        Tiling::new(28, 4, vec![[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]])
    }

    #[test]
    fn an_image_that_is_not_cut_has_one_row_of_features_for_each_token() {
        let tiles = Tiling::none(16).of([300, 4]);
        assert_eq!((tiles.count(), tiles.tokens(), tiles.patches(), tiles.encoded()), (1, 16, 16, 16));
        assert_eq!(tiles.newlines().len(), 0);
        assert!(tiles.rows().into_iter().eq(0..16) && tiles.places().into_iter().eq(0..16));
    }

    #[test]
    fn patches_of_a_row_lie_in_neighbouring_tiles_and_a_newline_ends_it() {
        // Two tiles side by side, filled: 16 patches of the base image, then 4 rows of 8 and a newline each.
        let tiles = tiling().of([28, 56]);
        assert_eq!((tiles.count(), tiles.patches(), tiles.tokens()), (3, 16 + 32, 16 + 36));
        assert_eq!(tiles.newlines().collect::<Vec<_>>(), [24, 33, 42, 51]);
        let rows = tiles.rows();
        assert_eq!(rows[16..24], [16, 17, 18, 19, 32, 33, 34, 35]);
        assert_eq!(rows[24..26], [20, 21]);
        let places = tiles.places();
        assert_eq!(places.len(), rows.len());
        assert!(tiles.newlines().all(|newline| !places.contains(&newline)));
        assert_eq!(places[23..25], [23, 25]);
    }

    #[test]
    fn patches_in_the_padding_are_dropped() {
        // 20 x 80 pixels scaled to 84 columns are 21 rows of 28, or 3 of 4 rows of patches: (4 - 3) / 2 are dropped.
        assert_eq!(unpadded([20, 80], [4, 12]), [0..4, 0..12]);
        // 10 x 80 pixels are 10.5 rows of 28: 1 of 4 rows of patches, and (4 - 1) / 2 are dropped on either side.
        assert_eq!(unpadded([10, 80], [4, 12]), [1..3, 0..12]);
        assert_eq!(unpadded([80, 10], [12, 4]), [0..12, 1..3]);
        let tiles = tiling().of([10, 80]);
        assert_eq!((tiles.count(), tiles.tokens()), (4, 16 + 2 * 13));
        assert_eq!(tiles.rows()[16..20], [20, 21, 22, 23], "the second row of the first tile");
    }

    #[test]
    fn a_flexible_grid_keeps_the_aspect_ratio_and_its_padding_comes_first() {
        // transformers: get_image_size_for_max_num_patches(height, width, 8, 16) / 8
        for (size, grid) in
            [([28, 28], [4, 4]), ([61, 97], [3, 5]), ([118, 45], [6, 2]), ([10, 80], [1, 8]), ([1, 900], [1, 16])]
        {
            assert_eq!(flexible_grid(size, 8, 16), grid, "{size:?}");
        }
        let tiling = Tiling::flexible(8, 16);
        assert!(tiling.varies() && !tiling.cuts());
        assert_eq!((tiling.most_tokens(), tiling.most_tiles()), (16, 1));
        let tiles = tiling.of([10, 80]);
        assert_eq!((tiles.tokens(), tiles.patches(), tiles.encoded(), tiles.count()), (8, 8, 16, 1));
        assert_eq!(tiles.rows(), (8..16).collect::<Vec<_>>());
        assert_eq!((tiles.places(), tiles.newlines().len()), ((0..8).collect(), 0));
    }

    #[test]
    fn the_best_resolution_keeps_the_most_pixels_and_then_wastes_the_fewest() {
        let pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];
        // transformers.image_processing_utils.select_best_resolution
        for (size, best) in [
            ([480, 640], [672, 672]),
            ([100, 100], [336, 672]),
            ([100, 1000], [336, 1008]),
            ([1000, 100], [1008, 336]),
            ([600, 300], [672, 336]),
            ([1, 100_000], [336, 672]),
        ] {
            assert_eq!(best_resolution(size, &pinpoints), Some(best), "{size:?}");
        }
        assert_eq!(best_resolution([1, 1], &[]), None);
    }

    #[test]
    fn the_most_is_that_of_the_largest_resolution() {
        assert_eq!((tiling().most_tiles(), tiling().most_tokens()), (5, 16 + 8 * 9));
        assert_eq!((Tiling::none(9).most_tiles(), Tiling::none(9).most_tokens()), (1, 9));
    }

    #[test]
    fn resolutions_that_are_no_whole_tiles_are_refused() {
        for wrong in [vec![[28, 30]], vec![[0, 28]], vec![[28 * 1000, 28]], vec![[28, 28]; 200]] {
            let error = Tiling::new(28, 4, wrong).validate().unwrap_err().to_string();
            assert!(error.contains("image_grid_pinpoints"), "{error}");
        }
        assert!(tiling().validate().is_ok());
    }
}
