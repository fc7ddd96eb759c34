//! What can be wrong with a checkpoint.

use std::path::PathBuf;

use thiserror::Error;

use crate::adapters::AdapterError;
use crate::config::ConfigError;
use crate::outside::excerpt;
use crate::processor::ProcessorError;

/// What can be wrong with a checkpoint directory.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration is not usable.
    #[error("{path}: {source}", path = path.display())]
    Config {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// No file of tensors.
    #[error("{path}: holds neither model.safetensors nor pytorch_model.bin, nor an index of shards of either", path = .0.display())]
    NoWeights(PathBuf),
    /// A hub name that the local cache doesn't have.
    #[error(
        "{name}: no such directory, and not in the Hugging Face cache: {reason}; download it there (hf download {name}), or say where the cache lies with HF_HOME or HF_HUB_CACHE"
    )]
    NotCached {
        /// The name.
        name: String,
        /// Where was looked, and what was missing there.
        reason: String,
    },
    /// Not safetensors, or cut short.
    #[error("{path}: not a whole safetensors file ({reason}): fetch or save it again", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// Not PyTorch's format, cut short, or with objects in it that are no tensors.
    #[error("{path}: not a PyTorch file of tensors that can be read: {reason}", path = path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        reason: String,
    },
    /// A tensor that is there twice.
    #[error("{first} and {second} both hold a parameter, as {other} and as {name}: remove one", first = first.display(), second = second.display(), other = excerpt(other), name = excerpt(name))]
    Duplicate {
        /// The file that came first.
        first: PathBuf,
        /// Its name there.
        other: String,
        /// The file that came second.
        second: PathBuf,
        /// Its name there.
        name: String,
    },
    /// An index that is not one.
    #[error("{path}: not a shard index: {reason}", path = path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Tensors that the model needs and the files lack.
    #[error("{path}: {count} tensors are missing: {names}", path = path.display(), count = .names.len(), names = listed(.names, ", "))]
    Missing {
        /// The directory.
        path: PathBuf,
        /// All of them, by their names on disk.
        names: Vec<String>,
    },
    /// Tensors of the wrong shape.
    #[error("{path}: wrong shapes, the config asks for others: {list}", path = path.display(), list = listed(.shapes, "; "))]
    Shapes {
        /// The directory.
        path: PathBuf,
        /// All of them: name, shape found, shape expected.
        shapes: Vec<String>,
    },
    /// A type that is not f32, f16 or bf16.
    #[error("{path}: tensor {name} is {dtype}: only F32, F16 and BF16 are read", path = path.display(), name = excerpt(name), dtype = excerpt(dtype))]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// Tokenizer, image processor or chat template.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// Adapters that the model has no place for.
    #[error(transparent)]
    Adapters(#[from] AdapterError),
    /// An `adapter_config.json` that asks for what is not built.
    #[error("{path}: {key}: {reason}", path = path.display())]
    AdapterConfig {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The directory to write exists.
    #[error("{path}: exists already: choose another directory or pass --overwrite", path = .0.display())]
    Exists(PathBuf),
    /// A directory that `--overwrite` would replace holds something that this program has not written.
    #[error("{dir}: holds {entry}, which {reason}, and --overwrite takes nothing else away: move it elsewhere, or choose another directory", dir = dir.display(), entry = excerpt(&entry.to_string_lossy()))]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// The first such entry, relative to it.
        entry: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file beside the tensors that could not be written as it is.
    #[error("{path}: {reason}", path = path.display())]
    Beside {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A directory that is something else than a LLaVA checkpoint.
    #[error("{path}: {what}", path = path.display())]
    NotLlava {
        /// The directory.
        path: PathBuf,
        /// What it is, and what to do with it.
        what: String,
    },
    /// Two parts that don't fit each other.
    #[error("{0}")]
    Mismatch(String),
    /// A file that takes more than one may.
    #[error(transparent)]
    OverBudget(#[from] crate::outside::OverBudget),
    /// Finite values that the type to write, or to compute in, makes infinite.
    #[error("{path}: {values} values of {tensors} tensors (first: {first}) do not fit float16, whose largest is 65504: take bfloat16 or float32 (--dtype, or dtype in [train] of a recipe)", path = path.display())]
    Overflow {
        /// The directory or file to write, or the directory to read.
        path: PathBuf,
        /// How many values.
        values: usize,
        /// Of how many tensors.
        tensors: usize,
        /// The first of them, by its name on disk.
        first: String,
    },
    /// A merge that is not finite though all that goes into it is.
    #[error("{path}: merged into {name}, the adapter gives values that are not finite: lora_alpha or the factors are too large (scale {scale:e})", path = path.display())]
    NotFinite {
        /// The directory of the adapters.
        path: PathBuf,
        /// The weight, by our name.
        name: String,
        /// The adapter's scale.
        scale: f64,
    },
}

/// The names that a message has room for.
const LISTED: usize = 200;

/// A list, each of its texts cut to an excerpt, and how many more there are.
fn listed(texts: &[String], separator: &str) -> String {
    let mut list: Vec<String> = texts.iter().take(LISTED).map(|text| excerpt(text)).collect();
    if texts.len() > LISTED {
        list.push(format!("and {} more", texts.len() - LISTED));
    }
    list.join(separator)
}

impl CheckpointError {
    /// Wraps an I/O error with its file.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
