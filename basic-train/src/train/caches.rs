//! The image features that one replica keeps.

use basic_data::{HeldFeatures, VisionCache};

use crate::recipe::{Mode, Part, Recipe};

/// The caches of one replica, each of at most `train.vision_cache_mib` MiB.
#[derive(Debug, Default)]
pub struct Caches {
    /// Features of the model's own vision encoder; `None` where it is trained, so that they change with every step.
    pub(super) own: Option<VisionCache>,
    /// Features of the other encoder that a supervision method compares with.
    pub(super) other: VisionCache,
}

impl Caches {
    /// Empty caches for a recipe's run.
    pub fn new(recipe: &Recipe) -> Self {
        let mib = recipe.train.vision_cache_mib;
        let frozen = recipe.mode(Part::Vision) == Mode::Frozen;
        Self { own: frozen.then(|| VisionCache::new(mib)), other: VisionCache::new(mib) }
    }

    /// The images whose features they hold, as they grow.
    pub fn held(&self) -> HeldFeatures {
        let own = self.own.as_ref().map(VisionCache::keys).unwrap_or_default();
        HeldFeatures { own, other: self.other.keys() }
    }
}
