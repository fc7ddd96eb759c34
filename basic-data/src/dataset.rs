//! The data of a run: all the sets that a configuration names, combined into one.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::format::{Opening, Reader};
use super::mixture::Mixture;
use super::stamps::{Change, ShortStamps, Stamps};
use super::{DataConfig, DataError, Format, Sample, Samples, SeenImages, SetConfig, fingerprint};

/// The sets of a run, mixed by weight; see [`SetConfig::weight`].
#[derive(Debug)]
pub struct DataSet {
    sets: Vec<OneSet>,
    mixture: Mixture,
    /// A hash of everything besides the files that decides which sample an index stands for.
    choice: u64,
    /// The image files that have been read so far.
    seen: SeenImages,
}

/// One data set of any format.
#[derive(Debug)]
pub struct OneSet {
    path: PathBuf,
    format: Format,
    reader: Box<dyn Reader>,
    /// The state of its data files before they were read.
    stamps: Stamps,
    /// The state of its image and caption files, when the set is a folder of images.
    many: ShortStamps,
}

/// The largest difference assumed between the clocks of machines that share files.
const AHEAD: Duration = Duration::from_secs(60);

impl DataSet {
    /// Indexes every set. `seed` chooses the samples of sets that an epoch uses only in part. No sample is read here: a
    /// broken sample is reported when it is read.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that is missing, damaged, of no known format, or without a sample.
    pub fn open(config: &DataConfig, seed: u64) -> Result<Self, DataError> {
        if let Some(reason) = config.contradiction() {
            return Err(DataError::Set { path: config.path.clone().unwrap_or_default(), reason });
        }
        let configs = config.all_sets();
        let opened = SystemTime::now();
        let sets: Vec<OneSet> = configs.iter().map(OneSet::open).collect::<Result<_, _>>()?;
        let sizes: Vec<(usize, f64)> = sets.iter().zip(&configs).map(|(set, c)| (set.len(), c.weight)).collect();
        let mixture = Mixture::new(&sizes, seed).map_err(|reason| {
            let path = configs.first().map(|set| set.path.clone()).unwrap_or_default();
            DataError::Set { path, reason: format!("data.sets: {reason}") }
        })?;
        if mixture.len() == 0 {
            let reason = "data.sets: the weights are so small that an epoch takes no sample: raise them".into();
            return Err(DataError::Set { path: configs[0].path.clone(), reason });
        }
        let parts = sizes.iter().any(|(_, weight)| weight.fract() != 0.0);
        let numbers = sizes.iter().flat_map(|(len, weight)| [*len as u64, weight.to_bits()]);
        let choice = fingerprint::combine(numbers.chain([if parts { seed } else { 0 }]));
        // If the file system's clock is a little ahead, the latest file time stands in for the time of opening.
        let latest = sets
            .iter()
            .filter_map(|set| set.stamps.latest().max(set.many.latest()))
            .filter(|at| *at < opened + AHEAD)
            .max();
        let seen = SeenImages::new(latest.map_or(opened, |latest| latest.max(opened)), mixture.len());
        Ok(Self { sets, mixture, choice, seen })
    }

    /// The sets, in the order of the configuration.
    pub fn sets(&self) -> &[OneSet] {
        &self.sets
    }

    /// How many samples of an epoch come from each set.
    pub fn taken(&self) -> Vec<usize> {
        self.mixture.taken()
    }

    /// The set that `index` falls into, and the index within that set.
    fn at(&self, index: usize) -> Result<(&OneSet, usize), DataError> {
        let (set, sample) = self.mixture.at(index).ok_or_else(|| {
            let reason = format!("an epoch takes {} samples, from 0: there is no sample {index}", self.mixture.len());
            DataError::Set { path: self.sets[0].path.clone(), reason }
        })?;
        Ok((&self.sets[set], sample))
    }

    /// Returns an error if a data file has changed since it was opened; `fingerprint` is the one taken at that time.
    /// The file system's metadata is compared first, and the contents only if the metadata has changed.
    ///
    /// # Errors
    ///
    /// [`DataError::Set`] that names the file.
    pub fn unchanged(&self, fingerprint: &str) -> Result<(), DataError> {
        let changed = self.sets.iter().filter_map(OneSet::changed).max_by_key(|(_, change)| *change);
        let Some((path, change)) = changed else { return Ok(()) };
        if change == Change::Touched {
            // The file may have been written again with the same contents, or renamed.
            if self.fingerprint()? == fingerprint {
                return Ok(());
            }
        }
        let reason = "was changed while it was read from: what was trained since the last state is of both: put the file \
                      back and go on from the last state with --resume, or start anew";
        Err(DataError::Set { path, reason: reason.into() })
    }

    /// A hash of 16 hexadecimal digits that changes when a data file or the mixture changes. It covers the sizes and
    /// contents of the data files (64 pieces spread over each file above 16 MiB), the number of samples and the weight
    /// of each set, and the seed if it chooses samples. It does not cover the files' names, places or times, except
    /// that a folder of images is hashed by names and sizes. Image files that a JSON or Parquet file refers to are not
    /// covered either; [`SeenImages`] records those that were read.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that could not be read.
    pub fn fingerprint(&self) -> Result<String, DataError> {
        let hashes: Vec<u64> = self.sets.iter().map(|set| set.reader.hash()).collect::<Result<_, _>>()?;
        Ok(format!("{:016x}", fingerprint::combine(hashes.into_iter().chain([self.choice]))))
    }
}

impl Samples for DataSet {
    fn len(&self) -> usize {
        self.mixture.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let (set, sample) = self.at(index)?;
        set.sample(sample)
    }

    fn outline(&self, index: usize) -> Result<Sample, DataError> {
        let (set, sample) = self.at(index)?;
        set.outline(sample)
    }

    fn seen(&self) -> Option<&SeenImages> {
        Some(&self.seen)
    }
}

impl OneSet {
    /// Indexes one set; its weight is ignored.
    ///
    /// # Errors
    ///
    /// Those of [`DataSet::open`].
    pub fn open(config: &SetConfig) -> Result<Self, DataError> {
        let path = &config.path;
        let format = config.format.map_or_else(|| Format::of(path), Ok)?;
        let (images, limit) = (config.images.as_deref(), config.limit);
        if limit == Some(0) {
            let reason = "data.limit is 0: a set needs at least one sample".into();
            return Err(DataError::Set { path: path.clone(), reason });
        }
        let spec = format.spec();
        let files = format.files(path)?;
        let mut stamps = Stamps::of(&files);
        if images.is_some() && spec.holds_images(path) {
            let reason = "holds its images itself: leave `images` out".into();
            return Err(DataError::Set { path: path.clone(), reason });
        }
        let split = config.split.as_deref();
        if split.is_some() && !spec.has_splits() {
            let reason = format!("is of the format {format}, which has no splits: leave `split` out");
            return Err(DataError::Set { path: path.clone(), reason });
        }
        let reader = spec.open(&Opening { path, files: &files, images, split, limit }, &mut stamps)?;
        let many = ShortStamps::of(&reader.many());
        Ok(Self { path: path.clone(), format, reader, stamps, many })
    }

    /// The file that has changed most since it was opened. In a folder of images the contents are not hashed, so a file
    /// that was written again counts as changed.
    fn changed(&self) -> Option<(PathBuf, Change)> {
        let many = || Some((self.many.changed(&self.reader.many())?.to_path_buf(), Change::Replaced));
        self.stamps.changed().map(|(path, change)| (path.to_path_buf(), change)).or_else(many)
    }

    /// The path, folder or pattern that the set was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The set's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The folder that its image files are relative to; `None` if the images are in the data files.
    pub fn root(&self) -> Option<&Path> {
        self.reader.root()
    }
}

impl Samples for OneSet {
    fn len(&self) -> usize {
        self.reader.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        self.reader.sample(index)
    }

    fn outline(&self, index: usize) -> Result<Sample, DataError> {
        self.reader.outline(index)
    }
}
