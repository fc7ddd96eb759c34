//! Adapters on disk, as `peft` saves them: `adapter_config.json` and `adapter_model.safetensors`.

mod config;
mod save;

pub use save::save_adapters;
