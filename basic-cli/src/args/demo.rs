//! The options of `basic demo`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::DeviceArg;

#[derive(Debug, ClapArgs)]
pub struct Demo {
    /// The directory that everything is written to; by default runs/demo, with --real runs/demo-real.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Instead of the embedded world, take SmolLM2-135M, CLIP ViT-B/16 and real pictures from this directory, which
    /// studies/real/README.md says how to make. Takes about an hour a seed on two cores; the same command goes on with one
    /// that was stopped.
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "full", "only", "sweep", "overwrite", "validate_every", "pretrain_steps", "pretrain_lr", "finetune_steps",
        "lambda_das", "lambda_sds",
    ])]
    pub real: Option<PathBuf>,
    /// Compare with this many seeds; by default 32, with --full 3, with --sweep or --real 1.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub seeds: Option<u16>,
    /// Run both settings and both stages, and show all measures in tables.
    #[arg(long, conflicts_with = "sweep")]
    pub full: bool,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Replace an earlier demo in the output directory.
    #[arg(long)]
    pub overwrite: bool,
    /// Run only one of the settings few and many, which differ in the number of captioned images.
    #[arg(long)]
    pub only: Option<String>,
    /// BASIC's weight of the directional alignment loss (das), instead of each setting's own.
    #[arg(long)]
    pub lambda_das: Option<f64>,
    /// BASIC's weight of the semantic distribution loss (sds), instead of each setting's own.
    #[arg(long)]
    pub lambda_sds: Option<f64>,
    /// With --full or --sweep: evaluate on the validation split after every so many steps of the pretrain stage; by
    /// default 40.
    #[arg(long)]
    pub validate_every: Option<usize>,
    /// The number of steps of the pretrain stage, instead of each setting's own.
    #[arg(long)]
    pub pretrain_steps: Option<usize>,
    /// With --full: the number of steps of the finetune stage, instead of each setting's own.
    #[arg(long, requires = "full")]
    pub finetune_steps: Option<usize>,
    /// The learning rate of the pretrain stage.
    #[arg(long)]
    pub pretrain_lr: Option<f64>,
    /// Instead of the demo, compare pairs of loss weights (lambda_das:lambda_sds) on the validation split, after the
    /// pretrain stage of the setting that --only names: --sweep 0:0 --sweep 0.05:0.3 …
    #[arg(long, value_name = "DAS:SDS", value_parser = lambda_pair, requires = "only")]
    pub sweep: Vec<(f64, f64)>,
    /// Print the content of summary.json instead of the results.
    #[arg(long)]
    pub json: bool,
}

fn lambda_pair(text: &str) -> Result<(f64, f64), String> {
    let pair = text.split_once(':').and_then(|(das, sds)| Some((das.parse().ok()?, sds.parse().ok()?)));
    pair.ok_or_else(|| "write two numbers, such as 0.05:0.3".into())
}
