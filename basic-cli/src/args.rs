//! The command line.

mod ablate;
mod analyze;
mod checkpoint;
mod data;
mod devices;
mod eval;
mod generate;

use std::path::PathBuf;
use std::time::Duration;

pub use ablate::Ablate;
pub use analyze::Analyze;
use basic_core::{Basic, DeviceSpec, LayerWeights, Objective, PatchWeights};
use basic_models::checkpoint::parse_size;
use basic_models::outside::{FileLimits, set_file_limits};
pub use checkpoint::{Assemble, Convert, Inspect, Merge, Output};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
pub use data::{Check, Conversations, Data, Export, ImagesArg, OnErrorArg, Shapes, Show};
pub use devices::Devices;
pub use eval::{Compare, Eval, Report};
pub use generate::{Chat, Generate, MAX_NEW_TOKENS, Tokens};

/// Trains multimodal LLMs with direct visual supervision (BASIC, ICCV 2025).
#[derive(Debug, Parser)]
#[command(name = "basic", version, about, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// What reading one outside file may cost (docs/limits.md).
#[derive(Debug, Clone, ClapArgs)]
pub struct LimitArgs {
    /// Memory that may be made of one outside file (a tokenizer, an archive, a table), such as 4GB; by default 1 GiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, help_heading = "Limits")]
    pub file_bytes: Option<u64>,
    /// Seconds that reading one outside file may take; by default 120.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub file_seconds: Option<u64>,
}

impl LimitArgs {
    /// Puts them in force.
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

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train LLaVA's baseline and BASIC side by side on the embedded world and report.
    Demo(Demo),
    /// Train by a recipe.
    Train(Train),
    /// Answer a file of questions and score exact match, or run benchmarks.
    Eval(Eval),
    /// Train and measure the cells of a study, and write tables of what they differ in.
    Ablate(Ablate),
    /// Compare two evaluations question by question, with a paired test.
    Compare(Compare),
    /// Write a page about training runs and evaluations, side by side.
    Report(Report),
    /// What the vocabulary says of every visual embedding, layer by layer: of an image, or of a data set.
    Analyze(Box<Analyze>),
    /// Answer one prompt about its images.
    Generate(Generate),
    /// Talk about an image.
    Chat(Chat),
    /// The losses of given samples, and the projector's gradients by loss.
    Losses(Losses),
    /// Put a vision tower and a decoder together as a new LLaVA checkpoint.
    Assemble(Assemble),
    /// Write a checkpoint anew, in another type or other shards.
    Convert(Convert),
    /// Fold adapters into the checkpoint below them.
    Merge(Merge),
    /// Say what a directory holds and whether it would load.
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
    /// List the devices of this build and machine, or try one of them.
    Devices(Devices),
}

/// Where to compute.
#[derive(Debug, ClapArgs)]
pub struct DeviceArg {
    /// auto, cpu, ndarray, wgpu[:i] or cuda[:i].
    #[arg(long, default_value = "auto")]
    pub device: DeviceSpec,
}

/// How a run shows its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ui {
    /// A bar on standard error.
    Bar,
    /// Lines on standard output.
    Plain,
}

/// The parameters' type.
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
pub struct Demo {
    /// Where everything is written.
    #[arg(long, default_value = "runs/demo")]
    pub out: PathBuf,
    /// Repeat with this many seeds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub seeds: u16,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Replace a demo that is there.
    #[arg(long)]
    pub overwrite: bool,
    /// Run one setting alone: few or many.
    #[arg(long)]
    pub only: Option<String>,
    /// BASIC's weight of the directional loss, instead of each setting's own.
    #[arg(long)]
    pub lambda_das: Option<f64>,
    /// BASIC's weight of the semantic loss, instead of each setting's own.
    #[arg(long)]
    pub lambda_sds: Option<f64>,
    /// Ask the validation split every so many steps of the pretrain stage.
    #[arg(long, default_value_t = 40)]
    pub validate_every: usize,
    /// Steps of the pretrain stage, instead of each setting's own.
    #[arg(long)]
    pub pretrain_steps: Option<usize>,
    /// Steps of the finetune stage, instead of each setting's own.
    #[arg(long)]
    pub finetune_steps: Option<usize>,
    /// Learning rate of the pretrain stage.
    #[arg(long)]
    pub pretrain_lr: Option<f64>,
    /// Instead of the demo, compare pairs of lambdas on the validation split after the pretrain stage of the setting that
    /// --only names: --sweep 0:0 --sweep 0.05:0.3 …
    #[arg(long, value_name = "DAS:SDS", value_parser = lambda_pair, requires = "only")]
    pub sweep: Vec<(f64, f64)>,
    /// Print summary.json's object instead of the table.
    #[arg(long)]
    pub json: bool,
}

fn lambda_pair(text: &str) -> Result<(f64, f64), String> {
    let pair = text.split_once(':').and_then(|(das, sds)| Some((das.parse().ok()?, sds.parse().ok()?)));
    pair.ok_or_else(|| "write two numbers, such as 0.05:0.3".into())
}

#[derive(Debug, ClapArgs)]
pub struct Train {
    /// The recipe, a TOML file.
    #[arg(required_unless_present = "resume")]
    pub recipe: Option<PathBuf>,
    /// Change a key of the recipe: --set optimizer.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Go on with the run in this directory, by its own recipe, from its latest state.
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
    /// With lines: one every so many steps, besides the first and the last.
    #[arg(long, value_name = "STEPS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: u64,
    /// Where to write, instead of the recipe's output.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Replace a run that is there.
    #[arg(long)]
    pub overwrite: bool,
    /// Train even where the plan says that the device cannot hold the run.
    #[arg(long)]
    pub force: bool,
    /// Don't train: say what would be trained, in how many steps, and what memory it takes. No weights are read.
    #[arg(long)]
    pub plan: bool,
    /// The plan as one JSON object.
    #[arg(long, requires = "plan")]
    pub json: bool,
    /// What memory a device has, such as 80GB, where it does not tell itself.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// How many samples the data has, where it is not here.
    #[arg(long, value_name = "N", requires = "plan")]
    pub samples: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub struct Losses {
    /// A LLaVA directory.
    pub checkpoint: PathBuf,
    /// Samples, one JSON object a line: image (a path, a list, or none), prompt, answer.
    pub samples: PathBuf,
    /// Take images also from below this folder; by default they lie below the file's folder.
    #[arg(long, value_name = "DIR")]
    pub image_root: Option<PathBuf>,
    #[command(flatten)]
    pub knobs: Knobs,
    /// Write the gradients of lm, das and sds with respect to v and the projector.
    #[arg(long, value_name = "OUT.safetensors")]
    pub grads: Option<PathBuf>,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = basic_models::processor::DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The parameters' type.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    /// Print one JSON object: lm, das, sds, total, tokens, attention, grad_norms.
    #[arg(long)]
    pub json: bool,
}

/// The method's knobs.
#[derive(Debug, ClapArgs)]
pub struct Knobs {
    /// Supervising layers; by default half of the decoder's.
    #[arg(long)]
    pub k: Option<usize>,
    /// increasing, constant or decreasing.
    #[arg(long, default_value = "increasing", value_parser = layer_weights)]
    pub layer_weights: LayerWeights,
    /// attention or uniform.
    #[arg(long, default_value = "attention", value_parser = patch_weights)]
    pub patch_weights: PatchWeights,
    /// Weight of the directional loss.
    #[arg(long, default_value_t = 1.0)]
    pub lambda_das: f64,
    /// Weight of the semantic loss.
    #[arg(long, default_value_t = 0.01)]
    pub lambda_sds: f64,
}

impl Knobs {
    /// The objective with these knobs.
    pub fn objective(&self) -> Objective {
        Basic {
            lambda_das: self.lambda_das,
            lambda_sds: self.lambda_sds,
            k: self.k,
            layer_weights: self.layer_weights,
            patch_weights: self.patch_weights,
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

#[derive(Debug, ClapArgs)]
pub struct Preprocess {
    /// A LLaVA directory.
    pub checkpoint: PathBuf,
    /// The image.
    pub image: PathBuf,
    /// Where pixel_values [3, H, W] is written.
    pub out: PathBuf,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = basic_models::processor::DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
}

/// Which losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArmArg {
    Llava,
    Basic,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StageArg {
    Pretrain,
    Finetune,
}

#[derive(Debug, ClapArgs)]
pub struct Bench {
    /// tiny, small, smollm2, 1b or 7b.
    #[arg(long, default_value = "small", value_parser = ["tiny", "small", "smollm2", "1b", "7b"])]
    pub preset: String,
    /// A LLaVA directory whose sizes and weights are taken; text and batch stay the preset's.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "basic")]
    pub arm: ArmArg,
    #[arg(long, value_enum, default_value = "pretrain")]
    pub stage: StageArg,
    /// CPU threads.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// In the finetune stage: adapters of this rank on the decoder, instead of training it whole.
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u16).range(1..))]
    pub lora: Option<u16>,
    /// Quantize the matrices below the adapters to 8 or 4 bits.
    #[arg(long, requires = "lora")]
    pub bits: Option<u8>,
    /// Outputs that share a scale; divides those of every matrix (1376 is one of small's).
    #[arg(long, requires = "bits", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..))]
    pub block: u8,
    /// Compute the activations inside the decoder's layers again in the backward pass.
    #[arg(long)]
    pub recompute: bool,
    /// Samples in memory together; 0 for the whole batch.
    #[arg(long, value_name = "SAMPLES", default_value_t = 0)]
    pub micro_batch: usize,
    /// Steps timed.
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Steps before the clock starts.
    #[arg(long, default_value_t = 1)]
    pub warmup: usize,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The parameters' type.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    /// Print one JSON object, with the reference script's keys.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Backbones {
    /// Where vision/, llm/ and scores.json are written.
    #[arg(long)]
    pub out: PathBuf,
    /// Seed of weights and data.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Steps of the decoder.
    #[arg(long, default_value_t = 12000)]
    pub language_steps: usize,
    /// Steps of the vision tower.
    #[arg(long, default_value_t = 300)]
    pub tower_steps: usize,
    /// Replace backbones that are there.
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub device: DeviceArg,
}
