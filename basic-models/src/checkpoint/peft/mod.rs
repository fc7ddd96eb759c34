//! Adapters on disk, in the format of `peft`: `adapter_config.json` and `adapter_model.safetensors`.

mod config;
mod fold;
mod patterns;
mod read;
mod save;
mod scaling;

pub use read::AdapterFiles;
pub use save::save_adapters;

/// The file of tensors.
const TENSORS: &str = "adapter_model.safetensors";

/// The file that describes them.
const CONFIG: &str = "adapter_config.json";
