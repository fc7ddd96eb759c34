//! The errors of reading and writing checkpoints.

use std::path::PathBuf;

use thiserror::Error;

use crate::adapters::AdapterError;
use crate::config::ConfigError;
use crate::outside::excerpt;
use crate::processor::ProcessorError;

/// An error of a checkpoint directory.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The configuration cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Config {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: ConfigError,
    },
    /// There is no file of tensors.
    #[error("{path}: holds neither model.safetensors nor pytorch_model.bin, nor an index of shards of either", path = .0.display())]
    NoWeights(PathBuf),
    /// A hub name that is not in the local cache.
    #[error(
        "{name}: no such directory, and not in the Hugging Face cache: {reason}; add --download to fetch it from the hub, or say where the cache lies with HF_HOME or HF_HUB_CACHE"
    )]
    NotCached {
        /// The name.
        name: String,
        /// Where it was looked for, and what was missing there.
        reason: String,
    },
    /// A model that could not be fetched from the hub.
    #[error("{name}: {reason}")]
    Hub {
        /// The name.
        name: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// A file that is not safetensors, or that is truncated.
    #[error("{path}: not a whole safetensors file ({reason}): fetch or save it again", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        reason: String,
    },
    /// A file that is not in PyTorch's format, is truncated, or contains objects other than tensors.
    #[error("{path}: not a PyTorch file of tensors that can be read: {reason}", path = path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The reader's message.
        reason: String,
    },
    /// A tensor that exists twice.
    #[error("{first} and {second} both hold a parameter, as {other} and as {name}: remove one", first = first.display(), second = second.display(), other = excerpt(other), name = excerpt(name))]
    Duplicate {
        /// The file that came first.
        first: PathBuf,
        /// Its name in that file.
        other: String,
        /// The file that came second.
        second: PathBuf,
        /// Its name in that file.
        name: String,
    },
    /// A file that is not a shard index.
    #[error("{path}: not a shard index: {reason}", path = path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Tensors that the model needs and the files lack.
    #[error("{path}: {count} tensors are missing: {names}", path = path.display(), count = .names.len(), names = listed(.names, ", "))]
    Missing {
        /// The directory.
        path: PathBuf,
        /// Their names on disk.
        names: Vec<String>,
    },
    /// Tensors of the wrong shape.
    #[error("{path}: wrong shapes, the config asks for others: {list}", path = path.display(), list = listed(.shapes, "; "))]
    Shapes {
        /// The directory.
        path: PathBuf,
        /// For each tensor: its name, its shape, and the expected shape.
        shapes: Vec<String>,
    },
    /// A tensor whose type is not f32, f16 or bf16.
    #[error("{path}: tensor {name} is {dtype}: only F32, F16 and BF16 are read", path = path.display(), name = excerpt(name), dtype = excerpt(dtype))]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// An error of the tokenizer, the image processor or the chat template.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// Adapters for which the model has no place.
    #[error(transparent)]
    Adapters(#[from] AdapterError),
    /// An `adapter_config.json` with something that is not supported.
    #[error("{path}: {key}: {reason}", path = path.display())]
    AdapterConfig {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it, and what would be accepted.
        reason: String,
    },
    /// The directory to write exists already.
    #[error("{path}: exists already: choose another directory or pass --overwrite", path = .0.display())]
    Exists(PathBuf),
    /// A directory that `--overwrite` would replace contains something that this program has not written.
    #[error("{dir}: holds {entry}, which {reason}, and --overwrite takes nothing else away: move it elsewhere, or choose another directory", dir = dir.display(), entry = excerpt(&entry.to_string_lossy()))]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// The first such entry, as a path relative to the directory.
        entry: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file beside the tensors that cannot be written as it is.
    #[error("{path}: {reason}", path = path.display())]
    Beside {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what would be accepted.
        reason: String,
    },
    /// A directory that is not a LLaVA checkpoint.
    #[error("{path}: {what}", path = path.display())]
    NotLlava {
        /// The directory.
        path: PathBuf,
        /// What it is, and what to do with it.
        what: String,
    },
    /// A GGUF file that cannot be read or written.
    #[error(transparent)]
    Gguf(#[from] super::gguf::GgufError),
    /// Two parts that do not fit together.
    #[error("{0}")]
    Mismatch(String),
    /// Reading a file would take more than the limits for one file.
    #[error(transparent)]
    OverBudget(#[from] crate::outside::OverBudget),
    /// Finite values that become infinite in the type to write or to compute with.
    #[error("{path}: {values} values of {tensors} tensors (first: {first}) do not fit float16, whose largest is 65504: take bfloat16 or float32 (--dtype, or dtype in [train] of a recipe)", path = path.display())]
    Overflow {
        /// The directory or file to write, or the directory that is read.
        path: PathBuf,
        /// The number of values.
        values: usize,
        /// The number of tensors that they are in.
        tensors: usize,
        /// The first of these tensors, by its name on disk.
        first: String,
    },
    /// Merging an adapter gives values that are not finite, although all inputs are.
    #[error("{path}: merged into {name}, the adapter gives values that are not finite: lora_alpha or the factors are too large (scale {scale:e})", path = path.display())]
    NotFinite {
        /// The directory of the adapters.
        path: PathBuf,
        /// The weight, by its module path.
        name: String,
        /// The adapter's scale.
        scale: f64,
    },
}

/// The most names that a message lists.
const LISTED: usize = 200;

/// Lists texts, each cut to an excerpt, and says how many more there are.
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
