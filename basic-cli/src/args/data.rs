//! The options of `basic data`.

use std::path::PathBuf;

use basic_data::{Format, SetConfig, SkipLimit, StyleChoice};
use basic_train::recipe::Stage;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

/// The subcommands of `basic data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Write the embedded world (synthetic scenes of shapes): images, captions and questions in LLaVA's format.
    Shapes(Shapes),
    /// Count what data sets hold, and what training would leave out and why.
    Check(Check),
    /// Show one sample: its turns, its images, and its tokens with those that bear loss.
    Show(Show),
    /// Write a data set in another format.
    Export(Export),
}

#[derive(Debug, ClapArgs)]
pub struct Shapes {
    /// The directory to write to, which must be empty or not exist yet.
    #[arg(long)]
    pub out: PathBuf,
    /// The number of training scenes.
    #[arg(long)]
    pub train: usize,
    /// The number of validation scenes, on which settings are chosen.
    #[arg(long, default_value_t = 100)]
    pub validation: usize,
    /// The number of evaluation scenes.
    #[arg(long)]
    pub eval: usize,
    /// The seed: the same seed gives the same bytes.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// How a data set is read.
#[derive(Debug, ClapArgs)]
pub struct Reading {
    /// The folder that image paths are relative to; by default the data file's folder.
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// The data's format, if it cannot be recognized by name and content: json, jsonl, webdataset, parquet, folder,
    /// classes, coco or karpathy.
    #[arg(long)]
    pub format: Option<Format>,
    /// The split of a file that holds several, as Karpathy's do: train, val, test or restval; several are joined by +. By
    /// default train.
    #[arg(long)]
    pub split: Option<String>,
}

impl Reading {
    /// The configuration of the data set at `path`.
    pub fn of(&self, path: &std::path::Path) -> SetConfig {
        let (images, split) = (self.images.clone(), self.split.clone());
        SetConfig { images, format: self.format, split, ..SetConfig::new(path) }
    }
}

/// How conversations are turned into text.
#[derive(Debug, ClapArgs)]
pub struct Conversations {
    /// A directory with a LLaVA checkpoint: tokenize as training on it would.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// With --checkpoint: how conversations are turned into text: auto, template, or one of LLaVA's styles such as
    /// plain or vicuna_v1.
    #[arg(long, default_value = "auto", value_parser = conversation, requires = "checkpoint")]
    pub conversation: StyleChoice,
    /// With --checkpoint: the stage whose style `auto` stands for: plain captions in pretrain, a chat in finetune.
    #[arg(long, value_enum, default_value = "finetune", requires = "checkpoint")]
    pub stage: StageArg,
    /// Tokenize as training by this recipe would: its model, stage, conversation style and length.
    #[arg(long, value_name = "R.toml", conflicts_with_all = ["checkpoint", "conversation", "stage"])]
    pub recipe: Option<PathBuf>,
}

/// The stage of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StageArg {
    Pretrain,
    Finetune,
}

impl From<StageArg> for Stage {
    fn from(stage: StageArg) -> Self {
        match stage {
            StageArg::Pretrain => Self::Pretrain,
            StageArg::Finetune => Self::Finetune,
        }
    }
}

/// What happens to a sample that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnErrorArg {
    Error,
    Skip,
}

pub(super) fn conversation(name: &str) -> Result<StyleChoice, String> {
    StyleChoice::try_from(name.to_string()).map_err(|error| error.to_string())
}

#[derive(Debug, ClapArgs)]
pub struct Check {
    /// Files, folders, or patterns such as 'shards-{000..003}.tar'.
    #[arg(required = true)]
    pub data: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: Reading,
    #[command(flatten)]
    pub conversations: Conversations,
    /// Check only this many samples of each set, drawn at random with a fixed seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Show {
    /// A file, a folder, or a pattern.
    pub data: PathBuf,
    /// The index of the sample, from 0.
    pub index: usize,
    #[command(flatten)]
    pub reading: Reading,
    #[command(flatten)]
    pub conversations: Conversations,
    /// Save the image as this PNG file, a second image as X-1.png, and so on.
    #[arg(long, value_name = "X.png")]
    pub out: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Where the images of an exported set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImagesArg {
    Copy,
    Reference,
}

#[derive(Debug, ClapArgs)]
pub struct Export {
    /// A file, a folder, or a pattern.
    pub data: PathBuf,
    /// The new format: json, jsonl, webdataset or parquet.
    #[arg(long, value_name = "FORMAT")]
    pub format: Format,
    /// The directory to write to.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Copy images into the new set, or (json and parquet) refer to them where they are.
    #[arg(long, value_enum, default_value = "copy")]
    pub images: ImagesArg,
    /// The folder that image paths of DATA are relative to; by default the data file's folder.
    #[arg(long, value_name = "DIR")]
    pub from_images: Option<PathBuf>,
    /// The format of DATA, if it cannot be recognized by name and content.
    #[arg(long, value_name = "FORMAT")]
    pub from_format: Option<Format>,
    /// The split of DATA that is exported, if it holds several; by default train.
    #[arg(long, value_name = "SPLIT")]
    pub from_split: Option<String>,
    /// Export only the first N samples.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// The number of samples in an archive or a Parquet file; by default 10000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub shard: Option<u32>,
    /// What happens at a broken sample: error ends the command, skip leaves the sample out and counts it.
    #[arg(long, value_enum, default_value = "error")]
    pub on_error: OnErrorArg,
    /// With --on-error skip: how many samples may be left out, a number or a share such as 1%, the default.
    #[arg(long, value_name = "N|P%")]
    pub max_skipped: Option<SkipLimit>,
    /// With --format webdataset: compress the archives with gzip.
    #[arg(long)]
    pub gzip: bool,
    /// Replace an earlier data set in the output directory.
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
