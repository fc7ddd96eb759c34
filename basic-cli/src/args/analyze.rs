//! The options of `basic analyze` (the token lens).

use std::path::PathBuf;

use basic_core::{Basic, LayerWeights};
use basic_data::StyleChoice;
use basic_eval::lens::Rule;
use basic_models::processor::DEFAULT_MAX_PIXELS;
use clap::{ArgGroup, Args as ClapArgs};

use super::data::{Reading, conversation};
use super::{DeviceArg, Dtype, layer_weights};

/// The help text about the rules for meaningful embeddings.
const RULES: &str = "An embedding is meaningful if its nearest token (by cosine with the embedding table) is, by the \
rule 'caption', a content word of the caption or the answers; by 'labels', a word that is true of the object that \
covers the patch (Shapes); by 'word', any whole word. docs/lens.md has the exact rules.";

#[derive(Debug, ClapArgs)]
#[command(after_help = RULES, group = ArgGroup::new("what").required(true).args(["image", "data"]))]
pub struct Analyze {
    /// A directory with a LLaVA checkpoint.
    pub checkpoint: PathBuf,
    /// An image; repeat the flag for each further <image> of the prompt, in order.
    #[arg(long, requires = "prompt")]
    pub image: Vec<PathBuf>,
    /// The prompt, with one <image> for each image; \n is a line break.
    #[arg(long, requires = "image")]
    pub prompt: Option<String>,
    /// Instead of an image: a data set of any format, or a file of questions with answers as for `basic eval`.
    #[arg(long, conflicts_with_all = ["image", "prompt"])]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub reading: Reading,
    /// Allow a question file's images below this folder too; by default they must lie below the folder that paths are
    /// relative to.
    #[arg(long, value_name = "DIR", requires = "data")]
    pub image_root: Option<PathBuf>,
    /// Take only the first N images; with --replace, the first N questions about images.
    #[arg(long, value_name = "N", requires = "data", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// How conversations are turned into text: auto, template, or one of LLaVA's styles such as plain or vicuna_v1.
    #[arg(long, default_value = "auto", value_parser = conversation)]
    pub conversation: StyleChoice,
    /// A second checkpoint, shown beside the first.
    #[arg(long, value_name = "CHECKPOINT")]
    pub compare: Option<PathBuf>,
    /// The directory that lens.html and lens.json are written to; with --data, survey.json and, with --replace,
    /// replaced.jsonl.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How many tokens are shown for each visual embedding.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub top: u16,
    /// Show only these layers, such as 0,8,16; 0 is the projector's output.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub layers: Vec<usize>,
    /// The number of supervising layers (k); by default half of the decoder's layers.
    #[arg(long)]
    pub k: Option<usize>,
    /// How the supervising layers are weighted: increasing, constant or decreasing.
    #[arg(long, default_value = "increasing", value_parser = layer_weights)]
    pub layer_weights: LayerWeights,
    /// The rule by which an embedding counts as meaningful: caption, labels or word (see below). By default labels if
    /// --labels is given, else caption, or word for an image without --caption.
    #[arg(long, value_name = "RULE")]
    pub meaningful: Option<Rule>,
    /// A caption of the image, for the rule caption.
    #[arg(long, value_name = "TEXT", requires = "image")]
    pub caption: Option<String>,
    /// The scenes.jsonl of a Shapes data set, for the rule labels; by default the one beside DATA.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// A meaningful embedding's cosine with its nearest token must be at least this.
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true)]
    pub min_similarity: Option<f32>,
    /// Also answer with each visual embedding replaced by the embedding of its nearest token.
    #[arg(long)]
    pub replace: bool,
    /// The most tokens of an answer; by default 64, or 16 with --data.
    #[arg(long, value_name = "N", requires = "replace")]
    pub max_new_tokens: Option<usize>,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The data type of the parameters.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl Analyze {
    /// The rule for meaningful embeddings.
    ///
    /// # Errors
    ///
    /// A message that says which flag the rule needs.
    pub fn rule(&self) -> Result<Rule, String> {
        let rule = match (self.meaningful, &self.data) {
            (Some(rule), _) => rule,
            (None, Some(_)) if self.labels.is_some() => Rule::Labels,
            (None, Some(_)) => Rule::Caption,
            (None, None) if self.labels.is_some() => Rule::Labels,
            (None, None) if self.caption.is_some() => Rule::Caption,
            (None, None) => Rule::Word,
        };
        match (rule, &self.data) {
            (Rule::Caption, None) if self.caption.is_none() => {
                Err("--meaningful caption needs --caption TEXT: what the image shows".into())
            }
            (Rule::Labels, None) if self.labels.is_none() => {
                Err("--meaningful labels needs --labels FILE: the scenes.jsonl beside the image's data set".into())
            }
            _ => Ok(rule),
        }
    }

    /// The settings of BASIC's losses that the lens needs.
    pub fn basic(&self) -> Basic {
        Basic { k: self.k, layer_weights: self.layer_weights, ..Basic::default() }
    }
}
