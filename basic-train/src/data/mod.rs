//! LLaVA's data: conversations about images, from JSON to token ids and labels, and batches of them.

mod error;
mod llava;
mod loader;
mod loader_batch;
mod loader_config;
mod loader_error;
mod loader_queue;
mod order;
mod pack;
mod prepare;
mod sample;
mod sampler;
mod vision;

#[cfg(test)]
mod loader_tests;
#[cfg(test)]
mod sampler_tests;

pub use error::DataError;
pub use llava::LlavaData;
pub use loader::{Loader, MicroBatch, Skipped, StepSamples};
pub use loader_config::{DrawOrder, LoaderConfig, Plan, TooLong};
pub use loader_error::LoaderError;
pub use loader_queue::{Loaded, LoadedImage};
pub use order::Order;
pub use pack::pack;
pub use prepare::{ConversationStyle, Prepared, Preparer, prepare};
pub use sample::{Hint, ImageSource, Sample, Samples};
pub use sampler::Sampler;
pub use vision::{FeatureKeys, VisionCache};
