//! The options of `basic eval`, `basic compare` and `basic report`.

use std::path::PathBuf;

use basic_core::DeviceSpec;
use basic_data::StyleChoice;
use clap::{Args as ClapArgs, ValueEnum};

use super::data::conversation;
use super::{DeviceArg, Dtype};

#[derive(Debug, ClapArgs)]
pub struct Eval {
    /// A directory with a LLaVA checkpoint.
    pub checkpoint: PathBuf,
    /// A file of questions, one JSON object per line: image, text, answer, category; choices with --choices.
    #[arg(required_unless_present = "bench")]
    pub data: Option<PathBuf>,
    /// Rank each question's choices by their likelihood instead of generating an answer. The questions of the file must
    /// have "choices". Scores the most likely choice, also with the likelihood divided by the choice's length, and the rank
    /// of the true answer. With --bench, the options of multiple-choice questions are ranked too, beside the generated
    /// answers.
    #[arg(long, value_name = "HOW", value_enum)]
    pub choices: Option<Choices>,
    /// Rank the choices with each visual embedding replaced by the embedding of its nearest token.
    #[arg(long, requires = "choices", conflicts_with = "bench")]
    pub replace: bool,
    /// Run benchmarks instead of a file of questions: vqav2, vqav2-val, gqa, vizwiz, vizwiz-val, textvqa, scienceqa,
    /// mmbench, mmbench_cn, mm-vet, pope, mmstar, ai2d, chartqa, docvqa, docvqa-test, mme, seed_bench, realworldqa, mmmu,
    /// mmvp, cv-bench, hallusion_bench, llava-bench-in-the-wild.
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "root", conflicts_with_all = ["data", "images"])]
    pub bench: Vec<String>,
    /// The folder of the benchmarks, laid out as LLaVA's playground/data/eval.
    #[arg(long, value_name = "DIR", requires = "bench")]
    pub root: Option<PathBuf>,
    /// Answer all questions of the benchmarks again, instead of continuing from stored answers.
    #[arg(long, requires = "bench")]
    pub fresh: bool,
    /// The folder that image paths are relative to; by default the data file's folder.
    #[arg(long)]
    pub images: Option<PathBuf>,
    /// Allow images below this folder too; by default they must lie below the folder that paths are relative to, and those
    /// of benchmarks below --root.
    #[arg(long, value_name = "DIR")]
    pub image_root: Option<PathBuf>,
    /// The file that predictions are written to; by default CHECKPOINT/eval/DATA.predictions.jsonl. With --bench a folder, by
    /// default CHECKPOINT/eval, with a folder in it for each benchmark.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// How many questions are answered in one batch.
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,
    /// The most tokens of an answer; by default 16, and with --bench LLaVA's number for the benchmark.
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// How a question is turned into a prompt: "template" for the checkpoint's chat template, or the name of one of
    /// LLaVA's styles; by default the template, or vicuna_v1 if the checkpoint has none.
    #[arg(long, default_value = "auto", hide_default_value = true, value_parser = conversation)]
    pub conversation: StyleChoice,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = basic_models::processor::DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Share a benchmark's questions among several devices, each with its copy of the model: --devices cuda:0,cuda:1
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "bench", conflicts_with = "device")]
    pub devices: Vec<DeviceSpec>,
    /// The data type of the parameters.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// How a question's choices are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choices {
    /// By the likelihood that the model gives to each of them as the answer.
    Likelihood,
}

#[derive(Debug, ClapArgs)]
pub struct Compare {
    /// What `basic eval` wrote for the first model: a folder of benchmarks, the folder of one benchmark, a checkpoint
    /// with such a folder eval/, or a file of predictions.
    pub run_a: PathBuf,
    /// The same for the second model.
    pub run_b: PathBuf,
    /// If the two have different questions or benchmarks, compare those that both have.
    #[arg(long)]
    pub common: bool,
    /// Show at most N questions of each benchmark whose score changed.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub changed: usize,
    /// Print one JSON object, with all questions that changed.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Report {
    /// Directories of training runs, results of `basic eval` (as for `basic compare`), and output directories of
    /// `basic ablate`.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The HTML file that is written.
    #[arg(long, default_value = "report.html")]
    pub out: PathBuf,
    /// Show at most N answered questions of each benchmark.
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub samples: usize,
    /// Show images below this folder too; by default only those below the answers' folder or the folders that `basic
    /// eval` recorded are shown, and of others only the name.
    #[arg(long, value_name = "DIR")]
    pub image_root: Option<PathBuf>,
    /// Print one JSON object: the page's path, its runs and studies, its size in bytes.
    #[arg(long)]
    pub json: bool,
}
