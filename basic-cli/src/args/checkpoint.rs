//! The command line of commands that read and write checkpoints.

use std::path::PathBuf;

use basic_models::checkpoint::parse_size;
use clap::Args as ClapArgs;

use super::Dtype;

/// How weights are written.
#[derive(Debug, ClapArgs)]
pub struct Output {
    /// The parameters' type; by default that of most of them on disk.
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// The most a file of weights holds.
    #[arg(long, default_value = "5GB", value_parser = parse_size)]
    pub shard_size: u64,
    /// Replace a directory that is there.
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Assemble {
    /// The vision encoder: a directory or a hub name.
    #[arg(long)]
    pub vision: PathBuf,
    /// The decoder: a directory or a hub name.
    #[arg(long)]
    pub llm: PathBuf,
    /// What stands between them.
    #[arg(long, default_value = "mlp2x_gelu")]
    pub projector: String,
    /// Trained weights for it, such as LLaVA's mm_projector.bin, instead of fresh ones.
    #[arg(long, value_name = "FILE")]
    pub projector_weights: Option<PathBuf>,
    /// Seed of the fresh ones.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Make the embedding table's rows a multiple of this, such as 64.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u16).range(1..))]
    pub pad_to_multiple_of: Option<u16>,
    /// Where the checkpoint is written.
    #[arg(long)]
    pub out: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct Convert {
    /// A LLaVA checkpoint, of Hugging Face's or LLaVA's own layout: a directory or a hub name.
    pub checkpoint: PathBuf,
    /// Where the new one is written.
    pub out: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct Merge {
    /// The LLaVA checkpoint below: a directory or a hub name.
    pub base: PathBuf,
    /// The adapters, as PEFT's or this program's: a directory or a hub name.
    pub adapter: PathBuf,
    /// Where the new checkpoint is written.
    pub out: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// A directory or a hub name: a LLaVA checkpoint, adapters, a vision encoder or a decoder, whole or broken.
    pub checkpoint: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
