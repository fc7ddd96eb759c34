//! Defines the command line: the commands and their options.

mod ablate;
mod analyze;
mod checkpoint;
mod data;
mod demo;
mod devices;
mod eval;
mod export_metrics;
mod generate;
#[cfg(feature = "serve")]
mod serve;

use std::path::PathBuf;
use std::time::Duration;

pub use ablate::Ablate;
pub use analyze::Analyze;
use basic_core::{Basic, DeviceSpec, LayerWeights, Objective, PatchWeights, Target};
use basic_models::checkpoint::parse_size;
use basic_models::outside::{FileLimits, set_file_limits};
pub use checkpoint::{Assemble, Convert, Inspect, Merge, Output, QuantArg};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
pub use data::{Check, Conversations, Data, Export, ImagesArg, OnErrorArg, Shapes, Show};
pub use demo::Demo;
pub use devices::Devices;
pub use eval::{Choices, Compare, Eval, Report};
pub use export_metrics::{ExportMetrics, MetricsFormat};
pub use generate::{Chat, Generate, MAX_NEW_TOKENS, Tokens};
#[cfg(feature = "serve")]
pub use serve::Serve;

/// Trains multimodal LLMs with direct visual supervision (BASIC, ICCV 2025).
#[derive(Debug, Parser)]
#[command(name = "basic", version, about, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Models that are named as on the Hugging Face hub (docs/checkpoints.md).
#[derive(Debug, Clone, ClapArgs)]
pub struct HubArgs {
    /// Fetch models that are named as on the Hugging Face hub (org/name or org/name@revision) into its local cache first;
    /// without it only the cache is read.
    #[arg(long, global = true, help_heading = "Hub")]
    pub download: bool,
}

/// The memory and time that reading one file from outside may take (docs/limits.md).
#[derive(Debug, Clone, ClapArgs)]
pub struct LimitArgs {
    /// The most memory that reading one file from outside (a tokenizer, an archive, a table) may take, such as 4GB; by
    /// default 1 GiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, help_heading = "Limits")]
    pub file_bytes: Option<u64>,
    /// The most seconds that reading one file from outside may take; by default 120.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub file_seconds: Option<u64>,
}

impl LimitArgs {
    /// Applies the limits to this process.
    pub fn apply(&self) {
        let mut limits = FileLimits::DEFAULT;
        if let Some(bytes) = self.file_bytes {
            limits.bytes = bytes;
        }
        if let Some(seconds) = self.file_seconds {
            limits.time = Duration::from_secs(seconds);
        }
        set_file_limits(limits);
    }
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train LLaVA's baseline and BASIC side by side on the embedded world (scenes of shapes), and write a report.
    Demo(Demo),
    /// Train one stage as a recipe describes it, or resume a run.
    Train(Train),
    /// Answer a file of questions and score exact match, or run benchmarks.
    Eval(Eval),
    /// Train and measure the cells of a study over several seeds, and write tables with paired intervals.
    Ablate(Ablate),
    /// Compare two evaluations question by question, with a paired test.
    Compare(Compare),
    /// Write a page about training runs and evaluations, side by side.
    Report(Report),
    /// Write a run's metrics as files for Weights & Biases, MLflow, or anything that reads CSV.
    ExportMetrics(ExportMetrics),
    /// Show the nearest vocabulary tokens of each visual embedding, layer by layer, for an image or over a data set.
    Analyze(Box<Analyze>),
    /// Answer one prompt about one or more images.
    Generate(Generate),
    /// Hold a conversation about an image.
    Chat(Chat),
    /// Serve checkpoints over HTTP as OpenAI's API does, with a page to chat on.
    #[cfg(feature = "serve")]
    Serve(Serve),
    /// Compute the losses of given samples, and the projector's gradients of each loss.
    Losses(Losses),
    /// Put a vision encoder and a language model together as a new LLaVA checkpoint.
    Assemble(Assemble),
    /// Write a checkpoint in another data type, in files of another size, or for llama.cpp (GGUF).
    Convert(Convert),
    /// Fold adapters into the checkpoint that they were trained on.
    Merge(Merge),
    /// Report what a directory holds and whether it would load.
    Inspect(Inspect),
    /// Process one image as the checkpoint's image processor does.
    Preprocess(Preprocess),
    /// Time training steps of a preset size on random data.
    Bench(Bench),
    /// Make, check, show and convert data sets.
    Data {
        #[command(subcommand)]
        command: Data,
    },
    /// Pretrain the demo's small backbones.
    Backbones(Backbones),
    /// List the devices of this build and machine, or check or time one of them.
    Devices(Devices),
}

/// The device of a command.
#[derive(Debug, ClapArgs)]
pub struct DeviceArg {
    /// Where to compute: auto, cpu, ndarray, wgpu[:i] or cuda[:i].
    #[arg(long, default_value = "auto")]
    pub device: DeviceSpec,
}

/// How a run shows its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ui {
    /// A progress bar on standard error.
    Bar,
    /// Lines on standard output.
    Plain,
}

/// The data type of the parameters.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Dtype {
    #[value(alias = "f32")]
    Float32,
    #[value(alias = "bf16")]
    Bfloat16,
    #[value(alias = "f16")]
    Float16,
}

#[derive(Debug, ClapArgs)]
pub struct Train {
    /// The recipe, a TOML file.
    #[arg(required_unless_present = "resume")]
    pub recipe: Option<PathBuf>,
    /// Change a key of the recipe: --set optimizer.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Resume the run in this directory, with its own recipe, from its latest saved state.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["recipe", "sets", "out", "overwrite"])]
    pub resume: Option<PathBuf>,
    /// Where to compute, instead of the recipe's device.
    #[arg(long)]
    pub device: Option<DeviceSpec>,
    /// Train on several devices, each with its share of every batch: --devices cuda:0,cuda:1
    #[arg(long, value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<DeviceSpec>,
    /// Show progress as a bar on standard error or as lines on standard output; by default a bar on a terminal, else
    /// lines.
    #[arg(long)]
    pub ui: Option<Ui>,
    /// When progress is shown as lines: print a line every so many steps, and for the first and the last step.
    #[arg(long, value_name = "STEPS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: u64,
    /// The output directory, instead of the recipe's.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Replace an earlier run in the output directory.
    #[arg(long)]
    pub overwrite: bool,
    /// Train even if the plan says that the run does not fit into the device's memory.
    #[arg(long)]
    pub force: bool,
    /// Don't train: print what would be trained, in how many steps, and how much memory it takes. No weights are read.
    #[arg(long)]
    pub plan: bool,
    /// Print the plan as one JSON object.
    #[arg(long, requires = "plan")]
    pub json: bool,
    /// The device's memory, such as 80GB, if the device does not report it.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// The number of samples in the data set, if the data is not on this machine.
    #[arg(long, value_name = "N", requires = "plan")]
    pub samples: Option<u64>,
    /// The number of ranks, one on each device, that would share every batch; by default as many as --devices names.
    #[arg(long, value_name = "N", requires = "plan", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub ranks: Option<u32>,
}

#[derive(Debug, ClapArgs)]
pub struct Losses {
    /// A directory with a LLaVA checkpoint.
    pub checkpoint: PathBuf,
    /// A file of samples, one JSON object per line: image (a path, a list of paths, or none), prompt, answer.
    pub samples: PathBuf,
    /// Allow images below this folder too; by default they must lie below the folder of the file of samples.
    #[arg(long, value_name = "DIR")]
    pub image_root: Option<PathBuf>,
    #[command(flatten)]
    pub knobs: Knobs,
    /// Write the gradients of lm, das and sds with respect to the visual embeddings v and the projector.
    #[arg(long, value_name = "OUT.safetensors")]
    pub grads: Option<PathBuf>,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = basic_models::processor::DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The data type of the parameters.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    /// Print one JSON object: lm, das, sds, total, tokens, attention, grad_norms.
    #[arg(long)]
    pub json: bool,
}

/// The settings of BASIC's losses.
#[derive(Debug, ClapArgs)]
pub struct Knobs {
    /// The number of supervising layers (k); by default half of the decoder's layers.
    #[arg(long)]
    pub k: Option<usize>,
    /// How the supervising layers are weighted: increasing, constant or decreasing.
    #[arg(long, default_value = "increasing", value_parser = layer_weights)]
    pub layer_weights: LayerWeights,
    /// How the patches are weighted: attention or uniform.
    #[arg(long, default_value = "attention", value_parser = patch_weights)]
    pub patch_weights: PatchWeights,
    /// What the visual embeddings are compared with: refined (V^) or refinement (V^ - v).
    #[arg(long, default_value = "refined", value_parser = target)]
    pub target: Target,
    /// The weight of the directional alignment loss (das).
    #[arg(long, default_value_t = 1.0)]
    pub lambda_das: f64,
    /// The weight of the semantic distribution loss (sds).
    #[arg(long, default_value_t = 0.01)]
    pub lambda_sds: f64,
}

impl Knobs {
    /// The objective with these settings.
    pub fn objective(&self) -> Objective {
        Basic {
            lambda_das: self.lambda_das,
            lambda_sds: self.lambda_sds,
            k: self.k,
            layer_weights: self.layer_weights,
            patch_weights: self.patch_weights,
            target: self.target,
            ..Basic::default()
        }
        .into()
    }
}

fn layer_weights(text: &str) -> Result<LayerWeights, String> {
    match text {
        "increasing" => Ok(LayerWeights::Increasing),
        "constant" => Ok(LayerWeights::Constant),
        "decreasing" => Ok(LayerWeights::Decreasing),
        _ => Err("use increasing, constant or decreasing".into()),
    }
}

fn patch_weights(text: &str) -> Result<PatchWeights, String> {
    match text {
        "attention" => Ok(PatchWeights::Attention),
        "uniform" => Ok(PatchWeights::Uniform),
        _ => Err("use attention or uniform".into()),
    }
}

fn target(text: &str) -> Result<Target, String> {
    match text {
        "refined" => Ok(Target::Refined),
        "refinement" => Ok(Target::Refinement),
        _ => Err("use refined or refinement".into()),
    }
}

#[derive(Debug, ClapArgs)]
pub struct Preprocess {
    /// A directory with a LLaVA checkpoint.
    pub checkpoint: PathBuf,
    /// The image file.
    pub image: PathBuf,
    /// The safetensors file that pixel_values [3, H, W] is written to.
    pub out: PathBuf,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = basic_models::processor::DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
}

/// The losses of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArmArg {
    Llava,
    Basic,
}

/// What each of several ranks holds a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShardArg {
    None,
    Optimizer,
    Gradients,
}

/// The stage of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StageArg {
    Pretrain,
    Finetune,
}

#[derive(Debug, ClapArgs)]
pub struct Bench {
    /// The size of the model: tiny, small, smollm2, 1b or 7b.
    #[arg(long, default_value = "small", value_parser = ["tiny", "small", "smollm2", "1b", "7b"])]
    pub preset: String,
    /// Take sizes and weights from this LLaVA directory; text and batch stay the preset's.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// The losses: llava has the language-model loss alone, basic also das and sds.
    #[arg(long, value_enum, default_value = "basic")]
    pub arm: ArmArg,
    /// What is trained: the projector alone in pretrain, projector and decoder in finetune.
    #[arg(long, value_enum, default_value = "pretrain")]
    pub stage: StageArg,
    /// The number of CPU threads.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// In the finetune stage: train LoRA adapters of this rank on the decoder, instead of the whole decoder.
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u16).range(1..))]
    pub lora: Option<u16>,
    /// Quantize the frozen matrices under the adapters to 8 or 4 bits.
    #[arg(long, requires = "lora")]
    pub bits: Option<u8>,
    /// How many outputs of a quantized matrix share a scale. It must divide the number of outputs of every matrix; the
    /// preset small has one with 1376.
    #[arg(long, requires = "bits", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..))]
    pub block: u8,
    /// Recompute the activations inside the decoder's layers in the backward pass, which saves memory.
    #[arg(long)]
    pub recompute: bool,
    /// How many samples go through the model at a time; 0 for all that a rank has.
    #[arg(long, value_name = "SAMPLES", default_value_t = 0)]
    pub micro_batch: usize,
    /// What each of several ranks holds a share of, as [parallel] shard in a recipe: of the processes that mpirun, srun
    /// or torchrun has launched, each takes its share of the batch.
    #[arg(long, value_enum, default_value = "gradients")]
    pub shard: ShardArg,
    /// How many steps are timed.
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// How many steps run before the timed ones.
    #[arg(long, default_value_t = 1)]
    pub warmup: usize,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The data type of the parameters.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    /// Print one JSON object, with the keys of tests/reference/basic_reference.py.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Backbones {
    /// The directory that vision/, llm/ and scores.json are written to.
    #[arg(long)]
    pub out: PathBuf,
    /// The seed of the weights and the data.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The number of training steps of the decoder.
    #[arg(long, default_value_t = 12000)]
    pub language_steps: usize,
    /// The number of training steps of the vision encoder.
    #[arg(long, default_value_t = 300)]
    pub vision_steps: usize,
    /// Replace earlier backbones in the output directory.
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub device: DeviceArg,
}
