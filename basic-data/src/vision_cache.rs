//! Caches the patch features of a frozen vision encoder: each image is encoded once, as long as the cache has room, and
//! not at all if a store on disk has its features.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use basic_models::checkpoint::{FrozenEncoder, PatchEncoder};
use basic_models::nn::Llava;
use basic_models::processor::{ImageProcessor, PixelValues, ProcessorError};
use basic_models::{Checkpoint, CheckpointError};
use burn::tensor::{Device, Int, Tensor, TensorData};
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

    /// The number of images, or tiles of images, that were encoded, because neither the cache nor the store had their features.
    pub fn encoded(&self) -> u64 {
        self.encoded
    }

    /// The features of `images`, in order, without gradients; `None` if there are no images.
    ///
    /// # Shapes
    /// - output: `[M, vision hidden]`, the rows that the images' visual embeddings are made of
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
            read.unwrap_or(&images[image]).pixels(checkpoint)
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
            read.unwrap_or(&images[image]).process(encoder.images())
        })
    }

    /// Like [`VisionCache::features`], for images of which more is known. `pixels` returns the pixel values of image `i`,
    /// whose tiles are of `shape`, as `processor` makes them, and is called only for images whose features are not at hand; if it is
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
        pixels: impl Fn(usize, Option<&ImageSource>) -> Result<PixelValues, E> + Sync,
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
            let values: Result<Vec<PixelValues>, E> =
                chunk.par_iter().map(|looked| pixels(looked.image, looked.read.as_ref())).collect();
            let values = values?;
            self.encoded += values.iter().map(|image| image.tiles as u64).sum::<u64>();
            let features = encode(encoder, &values, [c, h, w], &device);
            if let Some(store) = &store {
                keep(store, chunk, &features);
            }
            fresh.extend(chunk.iter().map(|looked| name(looked.image)).zip(features));
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

/// The features of each image, without the rows that are not used.
fn encode(
    encoder: &impl PatchEncoder,
    images: &[PixelValues],
    [c, h, w]: [usize; 3],
    device: &Device,
) -> Vec<Tensor<2>> {
    let tiles: Vec<f32> = images.iter().flat_map(|image| image.data.iter().copied()).collect();
    let count = tiles.len() / (c * h * w).max(1);
    // No more tiles are encoded together than images that are not cut.
    let parts = tiles.chunks(CHUNK * c * h * w).map(|tiles| {
        let shape = [tiles.len() / (c * h * w).max(1), c, h, w];
        encoder.patches(Tensor::from_data(TensorData::new(tiles.to_vec(), shape), device)).without_autodiff()
    });
    let features = Tensor::cat(parts.collect(), 0);
    let rows = features.dims()[0] / count.max(1);
    let mut first = 0;
    let own = images.iter().map(|image| {
        let features = features.clone().narrow(0, first * rows, image.tiles * rows);
        first += image.tiles;
        match encoder.kept(image.image) {
            Some(rows) => {
                let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
                let n = rows.len();
                features.select(0, Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), device))
            }
            None => features,
        }
    });
    own.collect()
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
fn keep(store: &EncoderStore, images: &[Looked], features: &[Tensor<2>]) {
    let Ok(data) = Tensor::cat(features.to_vec(), 0).try_into_data() else { return };
    let mut ahead = data.as_bytes();
    let row = ahead.len() / features.iter().map(|rows| rows.dims()[0]).sum::<usize>().max(1);
    let own = features.iter().map(|rows| {
        let (own, rest) = ahead.split_at_checked(rows.dims()[0] * row).unwrap_or((ahead, &[]));
        ahead = rest;
        own
    });
    let own: Vec<&[u8]> = own.collect();
    images.par_iter().zip(own).for_each(|(image, bytes)| {
        if let Some(key) = &image.key {
            store.keep(key, bytes);
        }
    });
}
