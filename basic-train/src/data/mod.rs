//! LLaVA's data: conversations about images, from JSON to token ids and labels.

mod config;
mod dataset;
mod error;
mod llava;
mod mixture;
mod order;
mod prepare;
mod sample;
mod vision;

pub use config::{DataConfig, Format, OnError, SetConfig};
pub use dataset::DataSet;
pub use error::DataError;
pub use llava::LlavaData;
pub use order::Order;
pub use prepare::{ConversationStyle, Prepared, prepare};
pub use sample::{ImageSource, Sample, Samples};
pub use vision::VisionCache;
