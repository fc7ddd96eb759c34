//! The tensors of one or more directories, by this project's names.

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;

use super::CheckpointError;
use super::files::{self, Found};
use super::floats::FloatType;
use super::fused::FusedPart;
use super::laid_over::LaidOver;
use super::names::Layout;
use super::source::{Entry, SourceFile, Stored};
use crate::parameters::slots;

/// The tensors of a directory, or of several directories that override each other, by this project's names.
#[derive(Debug, Default)]
pub struct TensorFiles {
    pub(super) dirs: Vec<(PathBuf, Layout)>,
    pub(super) files: Vec<SourceFile>,
    pub(super) tensors: BTreeMap<String, Entry>,
    pub(super) grows: Option<(usize, usize)>,
    /// Adapters that are merged into the weights as they are read.
    pub(super) adapters: Option<Box<dyn LaidOver>>,
}

/// The matrices that have one row for each token.
pub(super) const VOCABULARY: [&str; 2] = ["language_model.embed_tokens.weight", "lm_head.weight"];

impl TensorFiles {
    /// Opens a directory's tensors (safetensors, or PyTorch's `.bin`; one file, or shards with an index), or one such
    /// file, and checks the headers. No weight is read.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file and the tensor.
    pub fn open(dir: &Path, layout: Layout) -> Result<Self, CheckpointError> {
        let Found { paths, index } = files::find(dir)?;
        let mut this = Self { dirs: vec![(dir.into(), layout)], ..Self::default() };
        let mut held: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
        for path in paths {
            let names = this.add(path.clone(), layout)?;
            held.insert(path, names);
        }
        if let Some((path, map)) = index {
            for (tensor, shard) in map {
                if !held.get(&dir.join(&shard)).is_some_and(|names| names.contains(&tensor)) {
                    return Err(CheckpointError::Index {
                        path,
                        reason: format!("shard {shard} does not hold tensor {tensor}"),
                    });
                }
            }
        }
        Ok(this)
    }

    fn add(&mut self, path: PathBuf, layout: Layout) -> Result<BTreeSet<String>, CheckpointError> {
        let (file, mut entries) = SourceFile::open(path, self.files.len())?;
        // Sorted, so that an error always names the same tensor.
        entries.sort_by(|a, b| a.disk.cmp(&b.disk));
        self.files.push(file);
        let names = entries.iter().map(|entry| entry.disk.clone()).collect();
        for entry in entries {
            let Some(name) = layout.canonical(&entry.disk) else { continue };
            match self.tensors.entry(name) {
                Place::Vacant(place) => {
                    place.insert(entry);
                }
                Place::Occupied(place) => {
                    let (first, file) = (place.get(), |n: usize| self.files[n].path.clone());
                    return Err(CheckpointError::Duplicate {
                        name: entry.disk,
                        first: file(first.file),
                        second: file(entry.file),
                        other: first.disk.clone(),
                    });
                }
            }
        }
        Ok(names)
    }

    /// These tensors, and those of `base` that these lack.
    pub fn over(mut self, base: Self) -> Self {
        let shift = self.files.len();
        self.dirs.extend(base.dirs);
        self.files.extend(base.files);
        for (name, entry) in base.tensors {
            self.tensors.entry(name).or_insert(Entry { file: entry.file + shift, ..entry });
        }
        self.grows = self.grows.or(base.grows);
        self.adapters = self.adapters.or(base.adapters);
        self
    }

    /// The same tensors, with another prefix of their names.
    pub(super) fn renamed(mut self, from: &str, to: &str) -> Self {
        let rename = |name: String| match name.strip_prefix(from) {
            Some(rest) => format!("{to}{rest}"),
            None => name,
        };
        self.tensors = self.tensors.into_iter().map(|(name, entry)| (rename(name), entry)).collect();
        self
    }

    /// Only the tensors whose names begin with `prefix`.
    pub(super) fn only(self, prefix: &str) -> Self {
        self.keep(&|name| name.starts_with(prefix))
    }

    /// Only the tensors whose names are `wanted`.
    pub(super) fn keep(mut self, wanted: &dyn Fn(&str) -> bool) -> Self {
        self.tensors.retain(|name, _| wanted(name));
        self
    }

    /// Lets the embedding table and the head grow from the given number of rows to another. New rows get the mean of
    /// the existing ones, as in transformers' `resize_token_embeddings` (which draws them from a normal distribution
    /// around that mean with a billionth of the old rows' covariance).
    pub fn growing(mut self, rows: Option<(usize, usize)>) -> Self {
        self.grows = rows;
        self
    }

    /// The tensors that no parameter of `module` uses, by their names on disk.
    pub fn unexpected<M: Module>(&self, module: &M, prefix: &str) -> Vec<String> {
        let wanted = slots(module, prefix);
        let mut known: BTreeSet<String> = wanted.iter().map(|slot| slot.name.clone()).collect();
        known.extend(wanted.iter().filter_map(|slot| Some(FusedPart::of(&slot.name)?.whole())));
        // A model without a head of its own uses the table, which some files contain twice.
        known.insert("lm_head.weight".into());
        // Tensors of adapters without a place are an error when the adapters are read.
        known.extend(self.adapters.iter().flat_map(|adapters| adapters.whole_names()));
        let unknown = self.tensors.iter().filter(|(name, _)| !known.contains(*name));
        unknown.map(|(_, entry)| entry.disk.clone()).collect()
    }

    /// The tensor with this project's name `name`.
    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// The file of a tensor.
    pub(super) fn path(&self, entry: &Entry) -> &Path {
        &self.files[entry.file].path
    }

    /// Whether there is a tensor with this project's name `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether there is a tensor whose name begins with `prefix`.
    pub fn contains_any(&self, prefix: &str) -> bool {
        self.tensors.range(prefix.to_string()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The shape of the tensor with this project's name `name`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// The type of most of the parameters; f32 if there are none.
    pub(super) fn stored(&self) -> FloatType {
        let mut bytes: BTreeMap<FloatType, usize> = BTreeMap::new();
        for entry in self.tensors.values() {
            if let Stored::Float(float) = entry.dtype {
                *bytes.entry(float).or_default() += entry.bytes / float.size();
            }
        }
        bytes.into_iter().max_by_key(|(_, count)| *count).map_or(FloatType::F32, |(float, _)| float)
    }

    /// All tensors with this project's names, in the order of these names.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// All files that weights come from, including the adapters'.
    pub(super) fn all_paths(&self) -> Vec<PathBuf> {
        let factors = self.adapters.iter().flat_map(|adapters| adapters.paths());
        self.paths().map(Path::to_path_buf).chain(factors).collect()
    }

    /// The files, in the order of [`Entry::file`].
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }
}
