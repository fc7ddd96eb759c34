//! Times training steps of preset sizes on random weights and data (`basic bench`), with the presets and JSON keys of
//! the reference script.

use std::ops::Add;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use basic_core::{DeviceSpec, Objective, ObjectiveError, memory_used};
use basic_models::adapters::{AdapterError, LoraConfig, attach};
use basic_models::nn::{Llava, LossCounts};
use basic_models::{Batch, Checkpoint, CheckpointError, ConfigError, ImageTokens, LlavaConfig};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorReadError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;
use thiserror::Error;

use crate::optim::{Optimizer, OptimizerConfig};
use crate::parallel::shard::StepGradients;
use crate::parallel::{Collective, CollectiveError};
use crate::recipe::{Part, Shard, Stage};
use crate::train::backward_into;
use crate::trainable::set_trainable;

/// A model size of the reference script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// The preset's name.
    pub name: &'static str,
    decoder: [usize; 5], // hidden, layers, heads, key-value heads, intermediate
    vision: [usize; 5],  // hidden, layers, heads, image, patch
    vocabulary: usize,
    text: usize,
    batch: usize,
}

/// The reference script's presets.
pub const PRESETS: [Preset; 5] = [
    Preset {
        name: "tiny",
        decoder: [128, 6, 4, 4, 344],
        vision: [128, 4, 4, 64, 8],
        vocabulary: 2048,
        text: 48,
        batch: 8,
    },
    Preset {
        name: "small",
        decoder: [512, 8, 8, 8, 1376],
        vision: [256, 6, 4, 224, 16],
        vocabulary: 32000,
        text: 64,
        batch: 4,
    },
    Preset {
        name: "smollm2",
        decoder: [576, 30, 9, 3, 1536],
        vision: [768, 12, 12, 224, 16],
        vocabulary: 49152,
        text: 24,
        batch: 8,
    },
    Preset {
        name: "1b",
        decoder: [2048, 22, 32, 4, 5632],
        vision: [1024, 24, 16, 336, 14],
        vocabulary: 32000,
        text: 128,
        batch: 16,
    },
    Preset {
        name: "7b",
        decoder: [4096, 32, 32, 32, 11008],
        vision: [1024, 24, 16, 336, 14],
        vocabulary: 32000,
        text: 128,
        batch: 16,
    },
];

const MIB: f64 = (1 << 20) as f64;

/// Options of [`bench()`].
#[derive(Debug, Clone)]
pub struct BenchConfig {
    /// The model size.
    pub preset: Preset,
    /// Whether BASIC's losses are computed, or LLaVA's alone.
    pub supervised: bool,
    /// The stage, which decides what is trained.
    pub stage: Stage,
    /// Number of threads; only reported, since the caller has set it.
    pub threads: usize,
    /// Number of steps before timing starts.
    pub warmup: usize,
    /// Number of timed steps.
    pub steps: usize,
    /// The type of the parameters.
    pub dtype: DType,
    /// The device; used for the report and to read its memory.
    pub spec: DeviceSpec,
    /// A LLaVA directory whose sizes and weights replace the preset's; text length and batch size remain the preset's.
    pub checkpoint: Option<PathBuf>,
    /// Adapters on the decoder, whose own weights are then frozen.
    pub adapters: Option<LoraConfig>,
    /// Whether the activations inside the decoder's layers are recomputed in the backward pass.
    pub recompute: bool,
    /// Number of samples in memory at once; 0 for all that a rank has.
    pub micro_batch: usize,
    /// What each of several ranks holds a share of.
    pub shard: Shard,
}

/// The result of [`bench()`], with the reference script's keys.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// `basic` and its version.
    pub engine: String,
    /// The preset's name.
    pub preset: &'static str,
    /// The checkpoint that replaced the preset's sizes and weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// `llava` or `basic`.
    pub arm: &'static str,
    /// The stage.
    pub stage: Stage,
    /// Number of threads.
    pub threads: usize,
    /// The device.
    pub device: String,
    /// The type of the parameters.
    pub dtype: &'static str,
    /// The decoder's adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<LoraConfig>,
    /// Whether activations were recomputed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Number of samples per step, over all ranks.
    pub batch: usize,
    /// Number of ranks that share them, if there are several.
    #[serde(skip_serializing_if = "is_one")]
    pub ranks: usize,
    /// What each rank holds a share of, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Median seconds per step.
    pub step_s: f64,
    /// Samples per second.
    pub samples_per_s: f64,
    /// Peak memory that the run held on a CUDA device, in MiB, sampled every few milliseconds; the largest of the ranks'.
    pub peak_gpu_mib: Option<f64>,
    /// Peak resident memory of the process in MiB, on systems that report it; the largest of the ranks'.
    pub peak_rss_mib: Option<f64>,
}

fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

/// Why the benchmark failed.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The preset's configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A setting of the objective does not fit the model.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// The adapters do not fit the preset.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The device failed.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// The ranks could not work together.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// Times whole training steps: encode, project, decode, losses, backward, update. The ranks of `collective` share the
/// samples; each calls this with a device of its own. `progress` is called
/// after each step with its number and its seconds.
///
/// # Errors
///
/// [`BenchError`] if the checkpoint, the adapters, the device or another rank fail.
pub fn bench(
    config: &BenchConfig,
    collective: &dyn Collective,
    device: &Device,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<BenchReport, BenchError> {
    let device = device.clone().autodiff();
    let watch = MemoryWatch::start(&config.spec);
    let (mut model, model_config) = model(config, &device)?;
    if let Some(adapters) = &config.adapters {
        model.language_model = attach(model.language_model, "language_model", adapters, 0, config.dtype)?;
    }
    let (preset, ranks) = (&config.preset, collective.world());
    let samples = samples(preset, &model_config);
    let share = samples.len().div_ceil(ranks);
    let samples = samples.chunks(share).nth(collective.rank()).unwrap_or_default();
    let together = if config.micro_batch == 0 { share } else { config.micro_batch };
    let shape = model_config.image_shape();
    let batches = samples.chunks(together).map(|part| Batch::collate(part, 0, shape, &device));
    let batches: Vec<Batch> = batches.collect();
    let own = batches.iter().map(LossCounts::of).fold(LossCounts::default(), LossCounts::add);
    let mut counts = [own.tokens as f64, own.image_samples as f64];
    collective.sum_f64(&mut counts)?;
    let counts = LossCounts { tokens: counts[0] as usize, image_samples: counts[1] as usize };
    let objective = if config.supervised { Objective::default() } else { Objective::llava() };
    let mut optimizer = Optimizer::new(&OptimizerConfig { max_grad_norm: 0.0, ..OptimizerConfig::default() });
    let mut seconds = Vec::with_capacity(config.steps);
    for step in 0..config.warmup + config.steps.max(1) {
        collective.barrier()?;
        let start = Instant::now();
        let mut gradients = StepGradients::begin(collective, config.shard, &model, batches.len())?;
        let mut totals = Vec::with_capacity(batches.len());
        for batch in &batches {
            let found = backward_into(&model, batch, &objective, counts, config.recompute, &mut gradients)?;
            gradients.end_pass(&model)?;
            totals.push(found.losses.total());
        }
        let gradients = gradients.reduce(&model)?;
        // Reading back this one value waits for the whole backward pass; the next step waits for the update.
        let readout = gradients.read_out::<_, BenchError>(&model, collective, totals)?;
        model = optimizer.apply_reduced(model, gradients, &readout, 1e-3, collective)?;
        let took = start.elapsed().as_secs_f64();
        progress(step + 1, took);
        if step >= config.warmup {
            seconds.push(took);
        }
    }
    let held = watch.map(|watch| watch.most() as f64 / MIB);
    let peaks: Vec<[Option<f64>; 2]> = collective.share(&[held, peak_rss_mib()])?;
    let most = |i: usize| peaks.iter().filter_map(|peaks| peaks[i]).reduce(f64::max);
    seconds.sort_by(f64::total_cmp);
    // The median; for an even number of steps the mean of the middle two, as in the reference script.
    let step_s = (seconds[(seconds.len() - 1) / 2] + seconds[seconds.len() / 2]) / 2.0;
    Ok(BenchReport {
        engine: format!("basic {}", env!("CARGO_PKG_VERSION")),
        preset: preset.name,
        checkpoint: config.checkpoint.clone(),
        arm: if config.supervised { "basic" } else { "llava" },
        stage: config.stage,
        threads: config.threads,
        device: config.spec.to_string(),
        dtype: match config.dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        },
        adapters: config.adapters.clone(),
        recompute: config.recompute,
        batch: preset.batch,
        ranks,
        shard: (ranks > 1).then_some(config.shard),
        step_s,
        samples_per_s: preset.batch as f64 / step_s,
        peak_gpu_mib: most(0),
        peak_rss_mib: most(1),
    })
}

/// Samples a device's memory while a benchmark runs.
struct MemoryWatch {
    stop: Sender<()>,
    watcher: JoinHandle<u64>,
}

impl MemoryWatch {
    /// `None` if the device does not report its memory.
    fn start(spec: &DeviceSpec) -> Option<Self> {
        const EVERY: Duration = Duration::from_millis(5);
        memory_used(spec)?;
        let (stop, stopped) = channel();
        let spec = *spec;
        let watcher = thread::spawn(move || {
            let mut most = 0;
            loop {
                let ended = stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout);
                most = most.max(memory_used(&spec).unwrap_or(0));
                if ended {
                    return most;
                }
            }
        });
        Some(Self { stop, watcher })
    }

    /// The largest number of bytes seen.
    fn most(self) -> u64 {
        drop(self.stop);
        self.watcher.join().unwrap_or_default()
    }
}

/// The checkpoint's model, or a random one with the preset's sizes.
fn model(config: &BenchConfig, device: &Device) -> Result<(Llava, LlavaConfig), BenchError> {
    let parts: &[Part] = match config.stage {
        Stage::Pretrain => &[Part::Projector],
        Stage::Finetune if config.adapters.is_some() => &[Part::Projector],
        Stage::Finetune => &[Part::Projector, Part::Decoder],
    };
    if let Some(checkpoint) = &config.checkpoint {
        let checkpoint = Checkpoint::open(checkpoint)?;
        return Ok((set_trainable(checkpoint.load(config.dtype, device)?, parts), checkpoint.config.clone()));
    }
    let [hidden, layers, heads, kv, intermediate] = config.preset.decoder;
    let [vision_hidden, vision_layers, vision_heads, image, patch] = config.preset.vision;
    let text = json!({
        "model_type": "llava", "image_token_index": config.preset.vocabulary - 1,
        "text_config": {
            "vocab_size": config.preset.vocabulary, "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        },
        "vision_config": {
            "hidden_size": vision_hidden, "intermediate_size": 2 * vision_hidden, "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads, "image_size": image, "patch_size": patch,
        },
    });
    let model_config = LlavaConfig::from_json(&text.to_string())?;
    device.seed(0);
    let mut random = Random { dtype: config.dtype, device: device.clone().without_autodiff() };
    Ok((set_trainable(model_config.init(device).map(&mut random), parts), model_config))
}

/// The preset's number of samples: one image each, followed by random text.
fn samples(preset: &Preset, config: &LlavaConfig) -> Vec<ImageTokens> {
    let patches = config.visual_tokens();
    let (image_id, vocabulary) = (config.image_token_index, config.text_config.vocab_size as u32);
    let values = config.image_shape().iter().product::<usize>();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let sample = |_| {
        let mut ids: Vec<u32> = (0..1 + patches + preset.text)
            .map(|_| rng.random_range(3.min(vocabulary - 1)..vocabulary))
            .map(|id| if id == image_id { id - 1 } else { id })
            .collect();
        ids[1..=patches].fill(image_id);
        let labels = ids.iter().enumerate().map(|(p, id)| if p > patches { i64::from(*id) } else { -100 });
        let labels = labels.collect();
        let pixels = (0..values).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        let images = vec![(1..=patches).collect()];
        ImageTokens { ids, labels, images, pixels: vec![pixels], ..ImageTokens::default() }
    };
    (0..preset.batch).map(sample).collect()
}

/// Fills every parameter with random values on the device; for billions of parameters the host would take minutes.
struct Random {
    dtype: DType,
    device: Device,
}

impl ModuleMapper for Random {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, shape) = (param.id, param.lazy_shape());
        // One-dimensional parameters are the weights of norms here, which should be close to one.
        let mean = if D == 1 { 1.0 } else { 0.0 };
        // Drawn directly in this type, because a temporary f32 tensor would leave the device's memory in larger pages.
        let tensor = Tensor::<D>::random(shape, Distribution::Normal(mean, 0.02), (&self.device, self.dtype));
        Param::initialized(id, tensor.autodiff()).set_require_grad(true)
    }
}

/// The largest resident memory of the process so far in MiB (Linux).
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
