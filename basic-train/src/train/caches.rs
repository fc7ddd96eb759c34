//! The image features that one replica keeps, and those that all runs share on disk.

use basic_data::{DataError, EncoderStore, FeatureStore, HeldFeatures, VisionCache};
use basic_models::Llava;
use basic_models::processor::ImageProcessor;

use crate::recipe::Recipe;

/// The store on disk that a recipe names (`train.vision_store`), for each encoder that it is used for.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// For the model's own vision encoder; `None` where it is trained.
    pub own: Option<EncoderStore>,
    /// For the other encoder that a supervision method compares with.
    pub other: Option<EncoderStore>,
}

impl Stores {
    /// The stores of a recipe; none where it names no folder.
    ///
    /// # Errors
    ///
    /// [`DataError`] if what it names is no folder.
    pub fn open(recipe: &Recipe) -> Result<Self, DataError> {
        let Some(dir) = &recipe.train.vision_store else { return Ok(Self::default()) };
        let store = FeatureStore::open(dir, recipe.train.vision_store_mib())?;
        let used = |used: bool| used.then(|| EncoderStore::new(store.clone()));
        let frozen = recipe.freezes_encoders();
        Ok(Self { own: used(frozen), other: used(recipe.objective.encoder().is_some()) })
    }

    /// Why features could not be written, if that failed.
    pub fn problem(&self) -> Option<String> {
        self.own.iter().chain(&self.other).find_map(EncoderStore::problem)
    }
}

/// The caches of one replica, each of at most `train.vision_cache_mib` MiB.
#[derive(Debug, Default)]
pub struct Caches {
    /// Features of the model's own vision encoder; `None` where it is trained, so that they change with every step.
    pub(super) own: Option<VisionCache>,
    /// Features of the other encoder that a supervision method compares with.
    pub(super) other: VisionCache,
}

impl Caches {
    /// Empty caches for a recipe's run, over these stores, which all replicas share.
    pub fn new(recipe: &Recipe, stores: &Stores) -> Self {
        let cache =
            |store: &Option<EncoderStore>| VisionCache::new(recipe.train.vision_cache_mib).with_store(store.clone());
        let frozen = recipe.freezes_encoders();
        Self { own: frozen.then(|| cache(&stores.own)), other: cache(&stores.other) }
    }

    /// The images whose features they hold, as they grow.
    pub fn held(&self) -> HeldFeatures {
        let own = self.own.as_ref().map(VisionCache::keys).unwrap_or_default();
        HeldFeatures { own, other: self.other.keys() }
    }

    /// The number of images that the model's own encoder has encoded; `None` where it is trained.
    pub(super) fn encoded(&self) -> Option<u64> {
        self.own.as_ref().map(VisionCache::encoded)
    }
}

/// Lets the loader's workers ask the store for the features of the model's own encoder from the first step on.
pub(super) fn identify(stores: &Stores, model: &Llava, images: &ImageProcessor) {
    if let Some(own) = &stores.own {
        own.identify(model, images);
    }
}
