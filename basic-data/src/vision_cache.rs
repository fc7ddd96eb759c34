//! Caches the patch features of a frozen vision encoder: each image is encoded once, as long as the cache has room, and
//! not at all if a store on disk has its features.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use basic_models::checkpoint::{FrozenEncoder, PatchEncoder};
use basic_models::nn::Llava;
use basic_models::processor::{ImageProcessor, ProcessorError};
use basic_models::{Checkpoint, CheckpointError};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::{EncoderStore, FeatureKey, ImageSource, KnownFeatures};

/// Number of images that are encoded together.
const CHUNK: usize = 32;

/// The images whose features a [`VisionCache`] holds, and the store on disk behind it, so that others need not decode
/// them again. Entries are never removed.
#[derive(Debug, Clone, Default)]
pub struct FeatureKeys {
    held: Arc<RwLock<HashSet<PathBuf>>>,
    store: Option<EncoderStore>,
}

impl FeatureKeys {
    /// Whether the image's features are cached.
    pub fn contains(&self, image: &Path) -> bool {
        self.held.read().unwrap_or_else(PoisonError::into_inner).contains(image)
    }

    /// The store on disk, if there is one.
    pub fn store(&self) -> Option<&EncoderStore> {
        self.store.as_ref()
    }

    fn insert(&self, image: &Path) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).insert(image.into());
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

/// An image whose features are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The image.
    pub source: &'a ImageSource,
    /// What is known of its features, where a store was asked already.
    pub known: Option<&'a KnownFeatures>,
}

impl<'a> From<&'a ImageSource> for Wanted<'a> {
    fn from(source: &'a ImageSource) -> Self {
        Self { source, known: None }
    }
}

/// Patch features by image file, up to a budget, in memory; behind it there may be a store on disk.
#[derive(Debug, Default)]
pub struct VisionCache {
    budget: usize,
    used: usize,
    held: HashMap<PathBuf, Tensor<2>>,
    keys: FeatureKeys,
    encoded: u64,
}

impl VisionCache {
    /// An empty cache of at most `mib` MiB; with 0 nothing is cached.
    pub fn new(mib: usize) -> Self {
        Self { budget: mib << 20, used: 0, held: HashMap::new(), keys: FeatureKeys::default(), encoded: 0 }
    }

    /// The same with a store on disk behind it, if one is given. Its encoder must stay as it is: the store identifies it
    /// by its first image, if not earlier.
    #[must_use]
    pub fn with_store(mut self, store: Option<EncoderStore>) -> Self {
        self.keys.store = store;
        self
    }

    /// A shared view of the images whose features are cached, which grows with the cache.
    pub fn keys(&self) -> FeatureKeys {
        self.keys.clone()
    }

    /// The number of images that were encoded, because neither the cache nor the store had their features.
    pub fn encoded(&self) -> u64 {
        self.encoded
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
        let wanted: Vec<Wanted> = images.iter().map(Wanted::from).collect();
        self.features_of(model, &checkpoint.images, checkpoint.image_shape(), &wanted, |image, read| {
            Ok(read.unwrap_or(&images[image]).pixels(checkpoint)?.data)
        })
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
        let wanted: Vec<Wanted> = images.iter().map(Wanted::from).collect();
        self.features_of(encoder, encoder.images(), encoder.image_shape(), &wanted, |image, read| {
            Ok(read.unwrap_or(&images[image]).process(encoder.images())?.data)
        })
    }

    /// Like [`VisionCache::features`], for images of which more is known. `pixels` returns the pixel values of image `i`,
    /// of `shape`, as `processor` makes them, and is called only for images whose features are not at hand; if it is
    /// given an image, that is the one whose features go to the store, and must be the one that is decoded.
    ///
    /// # Errors
    ///
    /// Those of `pixels`.
    pub fn features_of<E: Send>(
        &mut self,
        encoder: &impl PatchEncoder,
        processor: &ImageProcessor,
        shape: [usize; 3],
        images: &[Wanted],
        pixels: impl Fn(usize, Option<&ImageSource>) -> Result<Vec<f32>, E> + Sync,
    ) -> Result<Option<Tensor<2>>, E> {
        if images.is_empty() {
            return Ok(None);
        }
        let name = |image: usize| images[image].source.name();
        let mut new: Vec<usize> = (0..images.len()).filter(|i| !self.held.contains_key(name(*i))).collect();
        new.sort_by_key(|i| name(*i));
        new.dedup_by_key(|i| name(*i));
        let mut fresh: HashMap<&Path, Tensor<2>> = HashMap::new();
        let device = encoder.device().without_autodiff();
        let store = self.keys.store.clone();
        if let (Some(store), false) = (&store, new.is_empty()) {
            store.identify(encoder, processor);
        }
        let looked: Vec<Looked> =
            new.par_iter().map(|image| Looked::at(*image, images[*image], store.as_ref())).collect();
        let (found, missing): (Vec<Looked>, Vec<Looked>) = looked.into_iter().partition(Looked::is_found);
        for Looked { image, features, .. } in found {
            let Some(features) = features else { continue };
            let dtype = features.dtype();
            fresh.insert(name(image), Tensor::from_data(features, (&device, dtype)));
        }
        let [c, h, w] = shape;
        for chunk in missing.chunks(CHUNK) {
            let values: Result<Vec<Vec<f32>>, E> =
                chunk.par_iter().map(|looked| pixels(looked.image, looked.read.as_ref())).collect();
            let values = Tensor::<4>::from_data(TensorData::new(values?.concat(), [chunk.len(), c, h, w]), &device);
            let features = encoder.patches(values).without_autodiff();
            let rows = features.dims()[0] / chunk.len();
            self.encoded += chunk.len() as u64;
            if let Some(store) = &store {
                keep(store, chunk, &features);
            }
            for (index, looked) in chunk.iter().enumerate() {
                fresh.insert(name(looked.image), features.clone().narrow(0, index * rows, rows));
            }
        }
        let of = |wanted: &Wanted| {
            let name = wanted.source.name();
            self.held.get(name).or_else(|| fresh.get(name)).cloned()
        };
        let all = Tensor::cat(images.iter().filter_map(of).collect(), 0);
        // In a fixed order, so that which images still fit into the budget does not depend on hashing.
        for image in new {
            let Some(features) = fresh.remove(name(image)) else { continue };
            let bytes = features.dims().iter().product::<usize>() * features.dtype().size();
            if self.used + bytes <= self.budget {
                self.used += bytes;
                // A copy, because a slice would keep the whole chunk in memory.
                self.held.insert(name(image).to_path_buf(), features.mul_scalar(1.0));
                self.keys.insert(name(image));
            }
        }
        Ok(Some(all))
    }
}

/// An image that the memory does not hold, after a look into the store.
struct Looked {
    image: usize,
    key: Option<FeatureKey>,
    features: Option<TensorData>,
    /// The image as its key was made from it.
    read: Option<ImageSource>,
}

impl Looked {
    fn at(image: usize, wanted: Wanted, store: Option<&EncoderStore>) -> Self {
        if let Some(KnownFeatures { key, features }) = wanted.known {
            return Self { image, key: Some(*key), features: features.clone(), read: None };
        }
        match store.and_then(|store| store.look(wanted.source)) {
            Some((KnownFeatures { key, features }, read)) => Self { image, key: Some(key), features, read: Some(read) },
            None => Self { image, key: None, features: None, read: None },
        }
    }

    fn is_found(&self) -> bool {
        self.features.is_some()
    }
}

/// Writes the features of images that were encoded together. If they cannot be read from the device, nothing is written:
/// whoever reads them next tells why.
fn keep(store: &EncoderStore, images: &[Looked], features: &Tensor<2>) {
    let Ok(data) = features.clone().try_into_data() else { return };
    let bytes = data.as_bytes();
    let size = bytes.len() / images.len();
    images.par_iter().zip(bytes.par_chunks_exact(size.max(1))).for_each(|(image, bytes)| {
        if let Some(key) = &image.key {
            store.keep(key, bytes);
        }
    });
}
