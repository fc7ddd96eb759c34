//! Data sets: conversations about images, from files of several formats to token ids and labels.
//!
//! [`DataSet::open`] indexes what a configuration names; [`Samples::sample`] reads one sample. No set is in memory whole.

mod check;
mod config;
mod dataset;
mod error;
mod export;
mod fingerprint;
mod folder;
mod llava;
mod locate;
mod mixture;
mod order;
mod parquet;
mod prepare;
mod record;
mod root;
mod sample;
mod scan;
mod show;
mod source;
mod vision;
mod webdataset;

pub use check::{Bucket, CheckOptions, CheckReport, Problem, Reason, TokenReport, check};
pub use config::{DataConfig, Format, OnError, SetConfig};
pub use dataset::{DataSet, OneSet};
pub use error::DataError;
pub use export::{ExportError, ExportOptions, Exported, Images, export};
pub use folder::FolderData;
pub use llava::LlavaData;
pub use order::Order;
pub use parquet::ParquetData;
pub use prepare::{ConversationStyle, Prepared, prepare};
pub use sample::{ImageSource, Sample, Samples};
pub use show::{Token, tokens};
pub use vision::VisionCache;
pub use webdataset::WebDataset;
