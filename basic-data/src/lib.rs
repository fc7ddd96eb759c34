//! Data sets: conversations about images, from files of several formats to token ids, labels and batches.
//!
//! [`DataSet::open`] indexes the set or the weighted mixture that a configuration names, and [`Samples::sample`] reads
//! one sample. No set is held in memory as a whole. [`prepare`] renders and tokenizes a sample, [`Loader`] prepares
//! batches on worker threads ahead of the training loop, [`check`] finds samples that cannot be trained on, and
//! [`export`] writes a set in another format. [`shapes`] generates a synthetic data set of coloured shapes with
//! captions and questions, for demos and studies.
//!
//! ```
//! use basic_data::{DataConfig, DataSet, Samples};
//!
//! let dir = tempfile::tempdir()?;
//! let file = dir.path().join("data.json");
//! let turns = r#"[{"from": "human", "value": "what is red?"}, {"from": "gpt", "value": "a colour"}]"#;
//! std::fs::write(&file, format!(r#"[{{"id": "0", "conversations": {turns}}}]"#))?;
//! let data = DataSet::open(&DataConfig::new(file), 0)?;
//! assert_eq!(data.len(), 1);
//! assert_eq!(data.sample(0)?.messages[1].content, "a colour");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

mod captions;
mod check;
mod class_folder;
mod config;
mod dataset;
mod error;
mod export;
mod feature_store;
mod file_range;
mod fingerprint;
mod folder;
mod format;
mod formats;
mod greeting;
mod image_base;
mod image_root;
mod keys;
mod llava;
mod loader;
mod locate;
mod media;
mod mixture;
mod parquet;
mod prepare;
mod sample;
mod sample_record;
mod scan;
mod seen;
pub mod shapes;
mod show;
mod stamps;
mod vision_cache;
mod webdataset;

pub use captions::CaptionData;
pub use check::{Bucket, CheckOptions, CheckReport, Problem, Reason, TokenReport, check};
pub use class_folder::ClassData;
pub use config::{DataConfig, DrawOrder, LoaderConfig, MAX_BATCH, OnError, SetConfig, SkipLimit, StyleChoice, TooLong};
pub use dataset::{DataSet, OneSet};
pub use error::DataError;
pub use export::{ExportError, ExportOptions, Exported, Images, export};
pub use feature_store::{EncoderStore, FeatureKey, FeatureStore, KnownFeatures};
pub use fingerprint::of_contents as content_hash;
pub use folder::FolderData;
pub use formats::Format;
pub use image_base::{ImageBase, ImageNameError};
pub use llava::LlavaData;
pub use loader::{
    Loaded, LoadedImage, Loader, LoaderError, LoaderPlan, MicroBatch, Order, Preparer, Sampler, Skipped, StepSamples,
    pack,
};
pub use parquet::{ParquetData, ParquetRows};
pub use prepare::{Prepared, prepare};
pub use sample::{Hint, ImageSource, Sample, Samples};
pub use seen::SeenImages;
pub use show::{Token, tokens};
pub use stamps::Watched;
pub use vision_cache::{FeatureKeys, HeldFeatures, VisionCache, Wanted};
pub use webdataset::WebDataset;
