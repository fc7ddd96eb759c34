//! The options of the commands that read and write checkpoints.

use std::path::PathBuf;

use basic_models::checkpoint::parse_size;
use clap::{Args as ClapArgs, ValueEnum};

use super::Dtype;

/// How weights are written.
#[derive(Debug, ClapArgs)]
pub struct Output {
    /// The type of the parameters; by default the type that most of them have on disk.
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// The largest size of a weight file.
    #[arg(long, default_value = "5GB", value_parser = parse_size)]
    pub shard_size: u64,
    /// Replace an earlier checkpoint in the output directory.
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Assemble {
    /// The vision encoder: a directory or a name in the local Hugging Face cache. Given more than once, the encoders see
    /// each image side by side, and their features are joined by channel on the first one's grid of patches.
    #[arg(long, required = true)]
    pub vision: Vec<PathBuf>,
    /// The language model: a directory, a name in the local Hugging Face cache, or a GGUF file of llama.cpp (.gguf).
    #[arg(long)]
    pub llm: PathBuf,
    /// The projector between them: linear, mlp{N}x_gelu, pixel_shuffle{R}_mlp{N}x_gelu, fused_gelu_mlp (Prismatic's),
    /// identity, or a resampler:
    /// perceiver_q{Q}_l{L}, qformer_q{Q}_l{L}_w{W}, c_abstractor_q{Q}_l{L}_w{W} or ldpv2_q{Q}.
    #[arg(long, default_value = "mlp2x_gelu")]
    pub projector: String,
    /// Trained weights for the projector, such as LLaVA's mm_projector.bin, instead of random ones.
    #[arg(long, value_name = "FILE")]
    pub projector_weights: Option<PathBuf>,
    /// Trained weights for the projector and the language model together, such as Prismatic's latest-checkpoint.pt.
    #[arg(long, value_name = "FILE", conflicts_with = "projector_weights")]
    pub weights: Option<PathBuf>,
    /// Cut images into tiles (LLaVA-NeXT): the resolutions of which the best one for an image is cut, as HEIGHTxWIDTH
    /// with commas between them, such as 336x672,672x336,672x672. Both are multiples of the vision encoder's image size.
    #[arg(long, value_name = "HxW,...", value_delimiter = ',', value_parser = resolution)]
    pub image_grid_pinpoints: Vec<[usize; 2]>,
    /// The seed of the projector's random weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Pad the embedding table so that its number of rows is a multiple of this, such as 64.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u16).range(1..))]
    pub pad_to_multiple_of: Option<u16>,
    /// The directory that the checkpoint is written to.
    #[arg(long)]
    pub out: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// Reads HEIGHTxWIDTH.
fn resolution(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| text.trim().parse::<usize>().ok().filter(|side| (1..=8192).contains(side));
    text.split_once('x')
        .and_then(|(height, width)| Some([side(height)?, side(width)?]))
        .ok_or_else(|| "expected HEIGHTxWIDTH in pixels, of 1 to 8192, such as 336x672".into())
}

#[derive(Debug, ClapArgs)]
pub struct Convert {
    /// A LLaVA checkpoint, in Hugging Face's or LLaVA's own layout: a directory or a hub name.
    pub checkpoint: PathBuf,
    /// The directory that the new checkpoint is written to.
    pub out: PathBuf,
    /// Write the model for llama.cpp and Ollama: model.gguf, and mmproj.gguf with the vision encoder and the projector.
    #[arg(long, conflicts_with_all = ["dtype", "shard_size"])]
    pub gguf: bool,
    /// The type of the matrices in a GGUF file.
    #[arg(long, value_enum, default_value = "f16", requires = "gguf")]
    pub quant: QuantArg,
    #[command(flatten)]
    pub output: Output,
}

/// The type of the matrices in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantArg {
    /// 8 bits.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits; the embedding table and the head have 8 bits.
    #[value(name = "q4_0")]
    Q4_0,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

#[derive(Debug, ClapArgs)]
pub struct Merge {
    /// The LLaVA checkpoint that the adapters were trained on: a directory or a hub name.
    pub base: PathBuf,
    /// The adapters, in the layout of PEFT or of this program: a directory or a hub name.
    pub adapter: PathBuf,
    /// The directory that the new checkpoint is written to.
    pub out: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// A LLaVA checkpoint, adapters, a vision encoder or a language model, whole or broken: a directory, a hub name, or a decoder's GGUF file.
    pub checkpoint: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
