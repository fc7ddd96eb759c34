//! The errors of reading and writing GGUF files.

use std::path::PathBuf;

use thiserror::Error;

use crate::outside::excerpt;

/// A GGUF file that cannot be read, or a checkpoint that cannot be written as one.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The file is not GGUF, is cut short, or contradicts itself.
    #[error("{path}: not a whole GGUF file ({reason}): fetch or convert it again", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key of the metadata is missing, or has a value that is not supported.
    #[error("{path}: {key}: {reason}", path = path.display(), key = excerpt(key))]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it, and what would be accepted.
        reason: String,
    },
    /// A tensor that cannot be read.
    #[error("{path}: tensor {tensor}: {reason}", path = path.display(), tensor = excerpt(tensor))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor, by its name in the file.
        tensor: String,
        /// What is wrong with it, and what would be accepted.
        reason: String,
    },
    /// A part of a checkpoint that llama.cpp cannot compute, so that nothing is written.
    #[error("{path}: {what} cannot be written as GGUF: {reason}", path = path.display(), what = excerpt(what))]
    Inexpressible {
        /// The checkpoint.
        path: PathBuf,
        /// The setting or the part, by its key and value.
        what: String,
        /// Why, and what would be accepted.
        reason: String,
    },
    /// Values that the type to write cannot represent.
    #[error("{path}: {values} values of {tensors} tensors (first: {first}) do not fit {quant}: they are infinite, not a number, or too large; take --quant f32", path = path.display())]
    Unrepresentable {
        /// The file to write.
        path: PathBuf,
        /// The number of values.
        values: usize,
        /// The number of tensors that they are in.
        tensors: usize,
        /// The first of these tensors, by its name in the file.
        first: String,
        /// The type.
        quant: &'static str,
    },
}
