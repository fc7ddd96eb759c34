//! The options of `basic generate` and `basic chat`.

use std::path::PathBuf;

use basic_models::generate::{GenerationDefaults, Sampling};
use basic_models::processor::{DEFAULT_MAX_PIXELS, LlavaStyle};
use clap::Args as ClapArgs;

use super::{DeviceArg, Dtype};

/// The most new tokens of an answer, unless a flag says otherwise.
pub const MAX_NEW_TOKENS: usize = 512;

/// The help text about the settings that no flag gives.
const DEFAULTS: &str = "Tokens are chosen greedily unless --temperature, --top-k, --top-p, --min-p or --seed is given. \
The sampling settings that are not given, the repetition penalty and the stop strings come from the checkpoint's \
generation_config.json if it sets them; its do_sample is ignored, and so is transformers' own default of top-k 50. An \
answer ends at any end token that generation_config.json, config.json or the tokenizer names.";

#[derive(Debug, ClapArgs)]
#[command(after_help = DEFAULTS)]
pub struct Generate {
    /// A directory with a LLaVA checkpoint.
    pub checkpoint: PathBuf,
    /// The image; repeat the flag for each further <image> of the prompt, in order.
    #[arg(long, required = true)]
    pub image: Vec<PathBuf>,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    /// The prompt, with one <image> for each image; \n is a line break.
    #[arg(long)]
    pub prompt: String,
    /// The most new tokens; by default 512, and never more than fit into the context.
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The data type of the parameters.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    /// Print the answer piece by piece as it is generated, as on a terminal.
    #[arg(long, conflicts_with = "json")]
    pub stream: bool,
    /// Print one JSON object: ids, gaps, text, top5, finish_reason ("stop" or "length").
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tokens: Tokens,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = DEFAULTS)]
pub struct Chat {
    /// A directory with a LLaVA checkpoint.
    pub checkpoint: PathBuf,
    /// The image that the conversation is about; /image changes it.
    #[arg(long)]
    pub image: Option<PathBuf>,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    /// How turns are written: the name of one of LLaVA's conversation styles; by default the checkpoint's chat
    /// template, or vicuna_v1 if it has none.
    #[arg(long, value_name = "NAME", value_parser = style)]
    pub style: Option<&'static LlavaStyle>,
    /// Instructions before the conversation (the system text).
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// The most tokens of an answer; by default 512, and never more than fit into the context.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: Option<u32>,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The data type of the parameters.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    #[command(flatten)]
    pub tokens: Tokens,
}

/// How tokens are chosen. It must be the last of a command's arguments, because its heading applies to all that follow.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Choice of tokens")]
pub struct Tokens {
    /// Take the most likely token at every step; this is the default unless one of the flags below is given.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "seed"])]
    pub greedy: bool,
    /// Sample from the logits divided by this; values below 1 sharpen the distribution.
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Sample from the K most likely tokens; 0 means all.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens that hold this share of the probability; 1 means all.
    #[arg(long, value_name = "P", value_parser = share_over_0, allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Sample from tokens with at least this share of the most likely token's probability; 0 means all.
    #[arg(long, value_name = "P", value_parser = share, allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Penalize tokens that occur in the prompt or the answer: divide their positive logits by this and multiply
    /// negative ones by it; 1 means no penalty.
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f64>,
    /// End the answer before this text; may be given several times; \n is a line break.
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    pub stop: Vec<String>,
    /// The seed of sampling, 0 by default; the same seed gives the same answer.
    #[arg(long)]
    pub seed: Option<u64>,
}

impl Tokens {
    /// The sampling settings, with the checkpoint's defaults for those not given; `None` for greedy decoding.
    pub fn sampling(&self, defaults: &GenerationDefaults) -> Option<Sampling> {
        let drawn = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.seed.is_some();
        let base = defaults.sampling(Sampling { seed: self.seed.unwrap_or(0), ..Sampling::default() });
        drawn.then(|| Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            seed: base.seed,
        })
    }

    /// The texts that end an answer.
    pub fn stops(&self, defaults: &GenerationDefaults) -> Vec<String> {
        match self.stop.is_empty() {
            true => defaults.stop_strings.clone(),
            false => self.stop.iter().map(|stop| stop.replace("\\n", "\n")).collect(),
        }
    }
}

fn style(name: &str) -> Result<&'static LlavaStyle, String> {
    LlavaStyle::by_name(name).map_err(|error| error.to_string())
}

fn number(text: &str, expected: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse().ok().filter(|x| fits(*x)).ok_or_else(|| format!("expected {expected}"))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "a number over 0", |x| x > 0.0 && x.is_finite())
}

fn share_over_0(text: &str) -> Result<f64, String> {
    number(text, "a number over 0, at most 1", |x| x > 0.0 && x <= 1.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("a stop string holds at least one character".into()) } else { Ok(text.into()) }
}
