//! The options of `basic ablate`.

use std::path::PathBuf;

use basic_core::DeviceSpec;
use clap::Args as ClapArgs;

#[derive(Debug, ClapArgs)]
pub struct Ablate {
    /// The study, a TOML file.
    pub study: PathBuf,
    /// The directory that results and tables are written to; by default runs/STUDY.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Run only these cells, given by the name of a cell or of a factor, or in full as `setting/factor/cell`.
    #[arg(long, value_name = "CELL", num_args = 1..)]
    pub only: Vec<String>,
    /// Show the cells and which of them are done, and run nothing.
    #[arg(long)]
    pub list: bool,
    /// Where to compute: auto, cpu, ndarray, wgpu[:i] or cuda[:i].
    #[arg(long, default_value = "auto")]
    pub device: DeviceSpec,
    /// Compute on several devices, one cell on each at a time: --devices cuda:0,cuda:1
    #[arg(long, value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<DeviceSpec>,
    /// Change a recipe key of every stage, or of one: --set train.steps=10 --set pretrain.data.limit=100. A key that a
    /// cell itself sets keeps the cell's value.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Print the content of results.json or, with --list, the cells as JSON.
    #[arg(long)]
    pub json: bool,
}
