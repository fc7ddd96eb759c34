//! Plans a run before it starts: parameters by part, steps, tokens, and memory by purpose, from the recipe, its data
//! and the models' config.json alone. `basic train RECIPE --plan` prints the plan.

mod budget;
mod data;
mod memory;
mod parts;
#[cfg(test)]
mod tests;
mod text;
mod wide;

use basic_core::{DeviceSpec, ObjectiveError};
use basic_models::checkpoint::EncoderFiles;
use basic_models::{CheckpointError, LlavaConfig};
use burn::tensor::{DType, Device};
use serde::Serialize;
use thiserror::Error;

pub use budget::Budget;
pub use data::Lengths;
pub use memory::{Load, Memory};
pub use parts::PartCounts;

use crate::recipe::{Recipe, Stage};

/// What the command line adds to a plan.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// A device's memory in bytes, if the backend does not report it or another device is meant.
    pub memory: Option<u64>,
    /// The number of samples, if the data is not available.
    pub samples: Option<u64>,
    /// The number of devices that share a batch; 0 counts as 1.
    pub devices: usize,
}

/// The size of a run: parameters, steps, tokens and memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The stage.
    pub stage: Stage,
    /// The device.
    pub device: DeviceSpec,
    /// The number of devices that share a batch.
    pub devices: usize,
    /// `float32` or `bfloat16`.
    pub dtype: &'static str,
    /// The model's parts.
    pub parts: Vec<PartCounts>,
    /// Number of parameters, without adapters.
    pub parameters: u64,
    /// Number of trained parameters, adapters included.
    pub trained: u64,
    /// Number of visual tokens per image.
    pub visual_tokens: u64,
    /// Number of samples per step, over all devices.
    pub batch_size: u64,
    /// Number of steps; `None` if it depends on an unknown number of samples.
    pub steps: Option<u64>,
    /// The number of samples and their lengths.
    pub data: Lengths,
    /// An estimate of the number of tokens over the whole run, including visual tokens but no padding.
    pub tokens: Option<u64>,
    /// What goes through the network at once on one device.
    pub load: Load,
    /// An estimate of the bytes that one device needs.
    pub memory: Memory,
    /// The estimate with the opposite setting of `train.recompute`.
    pub memory_otherwise: Memory,
    /// The memory that the device has; `None` if it is not known.
    pub budget: Option<Budget>,
    /// Whether the run fits into it; `None` if that is not known.
    pub fits: Option<bool>,
    /// The assumptions made, with reasons.
    pub notes: Vec<String>,
}

/// Why a plan could not be made.
#[derive(Debug, Error)]
pub enum PlanError {
    /// A configuration could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A setting of the objective does not fit the model.
    #[error("objective: {0}")]
    Objective(#[from] ObjectiveError),
    /// A size exceeds 64 bits.
    #[error("{what} takes more than 2^64 bytes, which no device has: {ways} in the recipe")]
    TooLarge {
        /// What needs so much memory.
        what: &'static str,
        /// The settings that would reduce it.
        ways: &'static str,
    },
}

impl Plan {
    /// Makes the plan of a recipe: reads the models' config.json and measures samples of the data. The networks are
    /// laid out on `host` without allocating anything.
    ///
    /// # Errors
    ///
    /// [`PlanError`] that names the file. Data that cannot be read is not an error; the plan then notes what it
    /// assumes.
    pub fn new(recipe: &Recipe, options: &PlanOptions, host: &Device) -> Result<Self, PlanError> {
        let config = recipe.model.config(recipe.seed)?;
        let mut notes = Vec::new();
        let measured = Lengths::measure(recipe, &config);
        let data = measured.unwrap_or_else(|error| {
            let assumed = Lengths::assumed(recipe, &config, options.samples);
            let longest = assumed.longest;
            notes.push(format!("the data was not read, {longest} positions a sample are assumed: {error}"));
            assumed
        });
        Self::of(recipe, &config, data, options, host, notes)
    }

    /// [`Plan::new`] for a known configuration and known data.
    ///
    /// # Errors
    ///
    /// [`PlanError::Objective`] if a setting does not fit the model, [`PlanError::Checkpoint`] if another encoder
    /// cannot be opened.
    pub fn of(
        recipe: &Recipe,
        config: &LlavaConfig,
        data: Lengths,
        options: &PlanOptions,
        host: &Device,
        mut notes: Vec<String>,
    ) -> Result<Self, PlanError> {
        recipe.objective.check(&config.shape())?;
        recipe.check_encoders(config)?;
        let encoder = recipe.objective.encoder().map(EncoderFiles::open).transpose()?;
        let devices = options.devices.max(1);
        let batch = recipe.train.batch_size;
        let share = batch.div_ceil(devices);
        let micro = recipe.train.micro_batch.unwrap_or(share).min(share) as u64;
        let bf16 = recipe.train.dtype.dtype() == DType::BF16;
        let gpu = budget::is_gpu(recipe.device);
        let budget = options.memory.map(Budget::given).or_else(|| Budget::of(recipe.device));
        // A packed row is assumed to be full, with as many samples as fit into it.
        let (positions, images) = match recipe.loader.packing {
            true => {
                let row = data::limit(recipe, config);
                (row, data.images.max((row as f64 * data.images as f64 / data.mean.max(1.0)).ceil() as u64))
            }
            false => (data.longest, data.images),
        };
        let cache = (recipe.train.vision_cache_mib as u64).checked_mul(1 << 20);
        let load = Load {
            element: if bf16 { 2 } else { 4 },
            samples: micro,
            positions,
            images: micro.saturating_mul(images),
            accumulates: micro < share as u64,
            ranks: devices as u64,
            shard: recipe.parallel.shard(devices),
            recompute: recipe.train.recompute,
            supervised: recipe.objective.supervises(),
            vision_cache: cache.ok_or(PlanError::TooLarge {
                what: "the vision encoder's cache",
                ways: "make train.vision_cache_mib smaller",
            })?,
            encoder: encoder.map_or(0, |encoder| encoder.parameters(host)),
            gpu,
            device: budget.as_ref().map_or(0, |budget| budget.bytes),
        };
        let parts = parts::count(recipe, config, recipe.compared_width(config)?, host);
        let memory = Memory::of(config, &parts, &load);
        let otherwise = Memory::of(config, &parts, &Load { recompute: !load.recompute, ..load });
        let largest = |(_, bytes): &(&str, u64)| *bytes == u64::MAX;
        let all = ("a step", memory.total.max(otherwise.total));
        if let Some((what, _)) = memory.items().into_iter().chain(otherwise.items()).chain([all]).find(largest) {
            let ways =
                "make train.batch_size, train.micro_batch, train.vision_cache_mib or the ranks of adapters smaller";
            return Err(PlanError::TooLarge { what, ways });
        }
        let steps = match (recipe.train.steps, data.samples) {
            (Some(steps), _) => Some(steps as u64),
            (None, Some(samples)) => Some(recipe.steps(samples as usize) as u64),
            (None, None) => None,
        };
        if steps.is_none() {
            notes.push("how many steps an epoch has depends on the data: --samples N says how many samples".into());
        }
        if budget.is_none() {
            notes.push("the backend does not tell how much memory the device has: --memory 80GB says it".into());
        }
        Ok(Self {
            stage: recipe.stage,
            device: recipe.device,
            devices,
            dtype: if bf16 { "bfloat16" } else { "float32" },
            parameters: parts.iter().map(|part| part.parameters).sum(),
            trained: parts.iter().fold(0, |sum, part| part.trained.saturating_add(sum)),
            visual_tokens: config.tiling().most_tokens() as u64,
            batch_size: batch as u64,
            steps,
            tokens: steps.map(|steps| (steps as f64 * batch as f64 * data.mean) as u64),
            data,
            load,
            memory,
            memory_otherwise: otherwise,
            fits: budget.as_ref().map(|budget| memory.total <= budget.bytes),
            budget,
            parts,
            notes,
        })
    }

    /// Whether a device with `budget` bytes can hold the run.
    pub fn fits(&self, budget: u64) -> bool {
        self.memory.total <= budget
    }
}
