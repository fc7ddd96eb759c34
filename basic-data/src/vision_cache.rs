//! Caches the patch features of a frozen vision encoder: each image is encoded once, as long as the cache has room.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use basic_models::checkpoint::{FrozenEncoder, PatchEncoder};
use basic_models::nn::Llava;
use basic_models::processor::ProcessorError;
use basic_models::{Checkpoint, CheckpointError};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::ImageSource;

/// Number of images that are encoded together.
const CHUNK: usize = 32;

/// The images whose features a [`VisionCache`] holds, so that others need not decode them again. Entries are never
/// removed.
#[derive(Debug, Clone, Default)]
pub struct FeatureKeys(Arc<RwLock<HashSet<PathBuf>>>);

impl FeatureKeys {
    /// Whether the image's features are cached.
    pub fn contains(&self, image: &Path) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(image)
    }

    fn insert(&self, image: &Path) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(image.into());
    }
}

/// The images whose features one replica holds. Both are empty where nothing is cached.
#[derive(Debug, Clone, Default)]
pub struct HeldFeatures {
    /// Those of the model's own vision encoder; empty where it is trained.
    pub own: FeatureKeys,
    /// Those of the other encoder that a supervision method compares with.
    pub other: FeatureKeys,
}

/// Patch features by image file, up to a budget.
#[derive(Debug, Default)]
pub struct VisionCache {
    budget: usize,
    used: usize,
    held: HashMap<PathBuf, Tensor<2>>,
    keys: FeatureKeys,
}

impl VisionCache {
    /// An empty cache of at most `mib` MiB; with 0 nothing is cached.
    pub fn new(mib: usize) -> Self {
        Self { budget: mib << 20, used: 0, held: HashMap::new(), keys: FeatureKeys::default() }
    }

    /// A shared view of the images whose features are cached, which grows with the cache.
    pub fn keys(&self) -> FeatureKeys {
        self.keys.clone()
    }

    /// The features of `images`, in order, without gradients; `None` if there are no images.
    ///
    /// # Shapes
    /// - output: `[images * m, vision hidden]`
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that names the image that could not be read.
    pub fn features(
        &mut self,
        model: &Llava,
        checkpoint: &Checkpoint,
        images: &[ImageSource],
    ) -> Result<Option<Tensor<2>>, CheckpointError> {
        let names: Vec<&Path> = images.iter().map(ImageSource::name).collect();
        self.features_of(model, checkpoint.image_shape(), &names, |image| Ok(images[image].pixels(checkpoint)?.data))
    }

    /// Like [`VisionCache::features`], but with an encoder other than the model's, which processes the images itself.
    ///
    /// # Errors
    ///
    /// [`ProcessorError`] that names the image that could not be read.
    pub fn features_by(
        &mut self,
        encoder: &FrozenEncoder,
        images: &[ImageSource],
    ) -> Result<Option<Tensor<2>>, ProcessorError> {
        let names: Vec<&Path> = images.iter().map(ImageSource::name).collect();
        self.features_of(encoder, encoder.image_shape(), &names, |image| {
            Ok(images[image].process(encoder.images())?.data)
        })
    }

    /// Like [`VisionCache::features`], for images by name. `pixels` returns the pixel values of image `i`, of `shape`,
    /// and is called only for images that are not cached.
    ///
    /// # Errors
    ///
    /// Those of `pixels`.
    pub fn features_of<E: Send>(
        &mut self,
        encoder: &impl PatchEncoder,
        shape: [usize; 3],
        images: &[&Path],
        pixels: impl Fn(usize) -> Result<Vec<f32>, E> + Sync,
    ) -> Result<Option<Tensor<2>>, E> {
        if images.is_empty() {
            return Ok(None);
        }
        let mut new: Vec<usize> = (0..images.len()).filter(|i| !self.held.contains_key(images[*i])).collect();
        new.sort_by_key(|i| images[*i]);
        new.dedup_by_key(|i| images[*i]);
        let mut fresh: HashMap<&Path, Tensor<2>> = HashMap::new();
        let [c, h, w] = shape;
        for chunk in new.chunks(CHUNK) {
            let values: Result<Vec<Vec<f32>>, E> = chunk.par_iter().map(|image| pixels(*image)).collect();
            let device = encoder.device().without_autodiff();
            let values = Tensor::<4>::from_data(TensorData::new(values?.concat(), [chunk.len(), c, h, w]), &device);
            let features = encoder.patches(values).without_autodiff();
            let rows = features.dims()[0] / chunk.len();
            for (index, image) in chunk.iter().enumerate() {
                fresh.insert(images[*image], features.clone().narrow(0, index * rows, rows));
            }
        }
        let found = images.iter().filter_map(|name| self.held.get(*name).or_else(|| fresh.get(*name)).cloned());
        let all = Tensor::cat(found.collect(), 0);
        // In a fixed order, so that which images still fit into the budget does not depend on hashing.
        for image in new {
            let Some(features) = fresh.remove(images[image]) else { continue };
            let bytes = features.dims().iter().product::<usize>() * features.dtype().size();
            if self.used + bytes <= self.budget {
                self.used += bytes;
                // A copy, because a slice would keep the whole chunk in memory.
                self.held.insert(images[image].to_path_buf(), features.mul_scalar(1.0));
                self.keys.insert(images[image]);
            }
        }
        Ok(Some(all))
    }
}
