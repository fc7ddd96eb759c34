//! The data of a run: every set that a configuration names, as one.

use super::mixture::Mixture;
use super::{DataConfig, DataError, LlavaData, Sample, Samples};

/// The sets of a run, mixed by weight.
#[derive(Debug)]
pub struct DataSet {
    sets: Vec<LlavaData>,
    mixture: Mixture,
}

impl DataSet {
    /// Opens every set; `seed` chooses the samples of sets that an epoch takes in part.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file: one that is missing, of no known format, or without a sample.
    pub fn open(config: &DataConfig, seed: u64) -> Result<Self, DataError> {
        let open = |set: &super::SetConfig| LlavaData::open(&set.path, set.images.as_deref(), set.limit);
        let configs = config.all_sets();
        let sets: Vec<LlavaData> = configs.iter().map(open).collect::<Result<_, _>>()?;
        let sizes: Vec<(usize, f64)> = sets.iter().zip(&configs).map(|(set, c)| (set.len(), c.weight)).collect();
        Ok(Self { sets, mixture: Mixture::new(&sizes, seed) })
    }
}

impl Samples for DataSet {
    fn len(&self) -> usize {
        self.mixture.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let (set, sample) = self.mixture.at(index).unwrap_or_default();
        self.sets[set].sample(sample)
    }
}
