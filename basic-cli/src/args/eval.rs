//! The command line of evaluation.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::DeviceArg;

#[derive(Debug, ClapArgs)]
pub struct Eval {
    /// A LLaVA directory.
    pub checkpoint: PathBuf,
    /// Questions, one JSON object a line: image, text, answer, category.
    #[arg(required_unless_present = "bench")]
    pub data: Option<PathBuf>,
    /// Instead of a file of questions, benchmarks: vqav2, vqav2-val, gqa, vizwiz, textvqa, scienceqa, mmbench,
    /// mmbench_cn, mm-vet, pope.
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "root", conflicts_with_all = ["data", "images"])]
    pub bench: Vec<String>,
    /// The benchmarks' folders, laid out as LLaVA's playground/data/eval.
    #[arg(long, value_name = "DIR", requires = "bench")]
    pub root: Option<PathBuf>,
    /// Answer every question of the benchmarks anew.
    #[arg(long, requires = "bench")]
    pub fresh: bool,
    /// What image paths are relative to; by default the data file's folder.
    #[arg(long)]
    pub images: Option<PathBuf>,
    /// Where the predictions are kept; by default CHECKPOINT/eval/DATA.predictions.jsonl. With --bench a folder, by
    /// default CHECKPOINT/eval, with a folder in it for each benchmark.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Questions answered together.
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,
    /// At most this many tokens an answer; by default 16, and with --bench LLaVA's number for the benchmark.
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = basic_models::processor::DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
