//! Patch features of a frozen vision encoder, computed once an image as long as they fit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use basic_models::nn::Llava;
use basic_models::{Checkpoint, CheckpointError};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::ImageSource;

/// Images encoded together.
const CHUNK: usize = 32;

/// Patch features by image file, up to a budget.
#[derive(Debug)]
pub struct VisionCache {
    budget: usize,
    used: usize,
    held: HashMap<PathBuf, Tensor<2>>,
}

impl VisionCache {
    /// An empty cache of at most `mib` MiB; 0 caches nothing.
    pub fn new(mib: usize) -> Self {
        Self { budget: mib << 20, used: 0, held: HashMap::new() }
    }

    /// The features of `images`, in order, without gradient; `None` for no images.
    ///
    /// # Shapes
    /// - output: `[images * m, vision hidden]`
    ///
    /// # Errors
    ///
    /// Names the image that could not be read.
    pub fn features(
        &mut self,
        model: &Llava,
        checkpoint: &Checkpoint,
        images: &[ImageSource],
    ) -> Result<Option<Tensor<2>>, CheckpointError> {
        if images.is_empty() {
            return Ok(None);
        }
        let mut new: Vec<&ImageSource> = images.iter().filter(|i| !self.held.contains_key(i.name())).collect();
        new.sort_unstable();
        new.dedup();
        let mut fresh: HashMap<&Path, Tensor<2>> = HashMap::new();
        let [c, h, w] = checkpoint.image_shape();
        for chunk in new.chunks(CHUNK) {
            let pixels: Result<Vec<_>, _> = chunk.par_iter().map(|image| image.pixels(checkpoint)).collect();
            let flat: Vec<f32> = pixels?.into_iter().flat_map(|p| p.data).collect();
            let device = model.device().without_autodiff();
            let pixels = Tensor::<4>::from_data(TensorData::new(flat, [chunk.len(), c, h, w]), &device);
            let features = model.encode(pixels).without_autodiff();
            let rows = features.dims()[0] / chunk.len();
            for (index, image) in chunk.iter().enumerate() {
                fresh.insert(image.name(), features.clone().narrow(0, index * rows, rows));
            }
        }
        let found = images.iter().filter_map(|i| self.held.get(i.name()).or_else(|| fresh.get(i.name())).cloned());
        let all = Tensor::cat(found.collect(), 0);
        for (path, features) in fresh {
            let bytes = features.dims().iter().product::<usize>() * 4;
            if self.used + bytes <= self.budget {
                self.used += bytes;
                // A copy of its own: a slice would keep its whole chunk alive.
                self.held.insert(path.to_path_buf(), features.mul_scalar(1.0));
            }
        }
        Ok(Some(all))
    }
}
