//! Data sets: conversations about images, from files of several formats to token ids, labels and batches.
//!
//! [`DataSet::open`] indexes what a configuration names; [`Samples::sample`] reads one sample. No set is in memory whole.

mod base;
mod check;
mod config;
mod dataset;
mod error;
mod export;
mod fingerprint;
mod folder;
mod format;
mod formats;
mod greeting;
mod llava;
mod loader;
mod loader_batch;
mod loader_config;
mod loader_error;
mod loader_queue;
mod locate;
mod media;
mod mixture;
mod of_recipe;
mod order;
mod pack;
mod parquet;
mod prepare;
mod record;
mod root;
mod sample;
mod sampler;
mod scan;
mod seen;
mod show;
mod skip_limit;
mod source;
mod stamps;
mod vision;
mod webdataset;

#[cfg(test)]
mod loader_fixture;
#[cfg(test)]
mod loader_tests;
#[cfg(test)]
mod sampler_tests;

pub use base::{ImageBase, ImageNameError};
pub use check::{Bucket, CheckOptions, CheckReport, Problem, Reason, TokenReport, check};
pub use config::{DataConfig, OnError, SetConfig, SkipLimit};
pub use dataset::{DataSet, OneSet};
pub use error::DataError;
pub use export::{ExportError, ExportOptions, Exported, Images, export};
pub(crate) use fingerprint::of_contents as content_hash;
pub use folder::FolderData;
pub use formats::Format;
pub use llava::LlavaData;
pub use loader::{Loader, MicroBatch, Skipped, StepSamples};
pub use loader_config::{DrawOrder, LoaderConfig, MAX_BATCH, Plan, TooLong};
pub use loader_error::LoaderError;
pub use loader_queue::{Loaded, LoadedImage};
pub use order::Order;
pub use pack::pack;
pub use parquet::ParquetData;
pub use prepare::{ConversationStyle, Prepared, Preparer, prepare};
pub use sample::{Hint, ImageSource, Sample, Samples};
pub use sampler::Sampler;
pub use seen::SeenImages;
pub use show::{Token, tokens};
pub(crate) use stamps::Watched;
pub use vision::{FeatureKeys, VisionCache};
pub use webdataset::WebDataset;
