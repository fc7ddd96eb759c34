//! Determines how many samples a run has and how long they are, from a part of its data.

use std::path::Path;

use basic_data::{DataError, DataSet, Sample, Samples};
use basic_models::LlavaConfig;
use basic_models::processor::{PLACEHOLDER, TokenIds, Tokenizer};
use serde::Serialize;

use crate::recipe::{Recipe, Stage};

/// The number of samples and their lengths in tokens, visual tokens included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Lengths {
    /// Number of samples; `None` if the data cannot be read and the user gave no number.
    pub samples: Option<u64>,
    /// The mean length.
    pub mean: f64,
    /// The largest length, at most what the model accepts.
    pub longest: u64,
    /// The largest number of images in a sample.
    pub images: u64,
    /// Number of samples that were measured; 0 if the lengths are assumed.
    pub measured: u64,
}

/// The largest number of samples that are measured, evenly spread over the data.
const LOOKED_AT: usize = 512;
/// The text tokens assumed per sample if the data cannot be read: a caption, or a conversation that fills LLaVA's 2048
/// positions.
const CAPTION: u64 = 128;
const CONVERSATION: u64 = 2048;
/// The tokens that a conversation style adds to each turn.
const AROUND_A_TURN: u64 = 6;
/// Bytes of text per token, if there is no tokenizer.
const BYTES_A_TOKEN: f64 = 4.0;

impl Lengths {
    /// The lengths assumed for data that cannot be read.
    pub fn assumed(recipe: &Recipe, config: &LlavaConfig, samples: Option<u64>) -> Self {
        let (visual, most) = (config.tiling().most_tokens() as u64, limit(recipe, config));
        let longest = match recipe.stage {
            Stage::Pretrain => visual + CAPTION,
            Stage::Finetune => CONVERSATION.max(visual + CAPTION),
        };
        let longest = longest.min(most);
        // Without a better estimate, all samples are assumed to be this long.
        Self { samples, mean: longest as f64, longest, images: 1, measured: 0 }
    }

    /// Measures samples of the recipe's data.
    ///
    /// # Errors
    ///
    /// [`DataError`] if the data cannot be read.
    pub fn measure(recipe: &Recipe, config: &LlavaConfig) -> Result<Self, DataError> {
        let data = DataSet::open(&recipe.data, recipe.seed)?;
        let (tokenizer, most) = (tokenizer(recipe), limit(recipe, config));
        let count = data.len().min(LOOKED_AT);
        let skips = recipe.data.skip_limit(data.len()) > 0;
        let (mut measured, mut sum, mut longest, mut images) = (0u64, 0u64, 0u64, 0u64);
        for index in 0..count {
            let sample = match data.sample(index * data.len() / count) {
                // Training leaves it out, too.
                Err(error) if skips && error.is_sample() => continue,
                sample => sample?,
            };
            measured += 1;
            // Longer samples are truncated or skipped, or they end the run.
            let length = length(&sample, config, tokenizer.as_ref()).min(most);
            (sum, longest) = (sum + length, longest.max(length));
            images = images.max(sample.images.len() as u64);
        }
        let samples = Some(data.len() as u64);
        if measured == 0 {
            return Ok(Self::assumed(recipe, config, samples));
        }
        Ok(Self { samples, mean: sum as f64 / measured as f64, longest, images, measured })
    }
}

/// The largest number of tokens of a sample or of a packed row.
pub(super) fn limit(recipe: &Recipe, config: &LlavaConfig) -> u64 {
    let context = config.text_config.context();
    recipe.loader.max_length.unwrap_or(context).min(context) as u64
}

/// The decoder's tokenizer, if there is one.
fn tokenizer(recipe: &Recipe) -> Option<Tokenizer> {
    let dir = recipe.model.checkpoint.as_deref().or(recipe.model.llm.as_deref())?;
    let dir = basic_models::checkpoint::resolve(dir).ok()?;
    Tokenizer::load(Path::new(&dir), &TokenIds::default()).ok()
}

fn length(sample: &Sample, config: &LlavaConfig, tokenizer: Option<&Tokenizer>) -> u64 {
    let text = |text: &str| {
        let text = text.replace(PLACEHOLDER, "");
        let counted = tokenizer.and_then(|tokenizer| tokenizer.encode(&text, false).ok()).map(|ids| ids.len() as u64);
        counted.unwrap_or((text.len() as f64 / BYTES_A_TOKEN).ceil() as u64) + AROUND_A_TURN
    };
    let texts: u64 = sample.messages.iter().map(|message| text(&message.content)).sum();
    texts + (sample.images.len() * config.tiling().most_tokens()) as u64
}
