//! Cuts an image into as many patches as fit with its aspect ratio, like transformers' `Siglip2ImageProcessor` with the
//! Pillow backend.

use image::RgbImage;

use super::config::Patches;
use super::resample::{self, ResizedPart};
use super::{ImageProcessor, PixelValues, Result};
use crate::config::flexible_grid;

impl ImageProcessor {
    /// The same processor for an encoder whose table of positions has so many rows and columns; of no meaning for a
    /// processor whose images all have the same grid.
    #[must_use]
    pub fn with_grid(self, grid: usize) -> Self {
        let mut config = self.config().clone();
        config.patches = config.patches.map(|patches| Patches { grid, ..patches });
        Self::new(config).with_max_pixels(self.max_pixels())
    }

    /// An image's patches, each as [`crate::VisionConfig::patch_values`] describes it, behind as much padding as makes up
    /// the most patches of an image.
    pub(super) fn patched(&self, image: &RgbImage, patches: Patches) -> Result<PixelValues> {
        let Patches { size, most, grid } = patches;
        let (width, height) = image.dimensions();
        let original = [height as usize, width as usize];
        let [rows, columns] = flexible_grid(original, size as usize, most);
        let target = (columns as u32 * size, rows as u32 * size);
        let pixels = u64::from(target.0) * u64::from(target.1);
        let whole = ResizedPart { x: 0..target.0, y: 0..target.1 };
        let limit = self.max_pixels().max(4 * pixels);
        let resized = match image.dimensions() == target {
            true => image.clone(),
            false => resample::resize(image, target, whole, self.config().resample, limit)
                .map_err(|pixels| self.too_many(image, target, pixels))?,
        };
        let values = 3 * (size * size) as usize + 2 * grid + 1;
        let mut data = vec![0f32; (most - rows * columns) * values];
        data.reserve(rows * columns * values);
        let (down, across) = (linear(grid, rows), linear(grid, columns));
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let corner = (column as u32 * size, row as u32 * size);
            for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y, x))) {
                let pixel = resized.get_pixel(corner.0 + x, corner.1 + y);
                data.extend(pixel.0.into_iter().enumerate().map(|(channel, value)| self.value(channel, value)));
            }
            data.extend_from_slice(&down[row * grid..][..grid]);
            data.extend_from_slice(&across[column * grid..][..grid]);
            data.push(1.0);
        }
        Ok(PixelValues { data, tiles: 1, height: 1, width: 1, image: original })
    }

    /// The pixel values of an image with a grid of its own as transformers' processor gives them: `[patches, channels *
    /// size^2]` with the padding behind the patches, and the rows and columns of the grid. `None` for any other image.
    pub fn padded_behind(&self, pixels: &PixelValues) -> Option<(Vec<f32>, [usize; 2])> {
        let Patches { size, most, grid } = self.config().patches?;
        let own = 3 * (size * size) as usize;
        let shape = flexible_grid(pixels.image, size as usize, most);
        let padding = most - shape[0] * shape[1];
        let patches = pixels.data.chunks(own + 2 * grid + 1).map(|patch| &patch[..own]);
        let values = patches.clone().skip(padding).chain(patches.take(padding)).flatten().copied();
        Some((values.collect(), shape))
    }
}

/// The bilinear weights of `old` positions in each of `new`, which average over what they cover (PyTorch's
/// `interpolate(mode="bilinear", antialias=True)`), `[new, old]`.
fn linear(old: usize, new: usize) -> Vec<f32> {
    let scale = old as f64 / new as f64;
    let mut all = Vec::with_capacity(new * old);
    for i in 0..new {
        let center = (i as f64 + 0.5) * scale - 0.5;
        let weight = |j: usize| (1.0 - (j as f64 - center).abs() / scale.max(1.0)).max(0.0);
        let sum: f64 = (0..old).map(weight).sum();
        all.extend((0..old).map(|j| (weight(j) / sum) as f32));
    }
    all
}
