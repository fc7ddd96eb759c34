//! How many samples a run has and how long they are, from a look at its data.

use std::path::Path;

use basic_data::{DataError, DataSet, Sample, Samples};
use basic_models::LlavaConfig;
use basic_models::processor::{PLACEHOLDER, TokenIds, Tokenizer};
use serde::Serialize;

use crate::recipe::{Recipe, Stage};

/// Samples and their lengths in tokens, visual ones included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Lengths {
    /// Samples; `None` where the data is not here and nobody said.
    pub samples: Option<u64>,
    /// The mean length.
    pub mean: f64,
    /// The longest one, at most what the model takes.
    pub longest: u64,
    /// The most images in a sample.
    pub images: u64,
    /// How many samples were looked at; 0 where lengths are assumed.
    pub measured: u64,
}

/// Samples that are looked at, evenly spread over the data.
const LOOKED_AT: usize = 512;
/// Text tokens of a sample where the data is not here: a caption, and a conversation that fills LLaVA's 2048 positions.
const CAPTION: u64 = 128;
const CONVERSATION: u64 = 2048;
/// Tokens that a style writes around a turn.
const AROUND_A_TURN: u64 = 6;
/// Bytes of text to a token, where there is no tokenizer to ask.
const BYTES_A_TOKEN: f64 = 4.0;

impl Lengths {
    /// Assumed lengths.
    pub fn assumed(recipe: &Recipe, config: &LlavaConfig, samples: Option<u64>) -> Self {
        let (visual, most) = (config.visual_tokens() as u64, limit(recipe, config));
        let longest = match recipe.stage {
            Stage::Pretrain => visual + CAPTION,
            Stage::Finetune => CONVERSATION.max(visual + CAPTION),
        };
        let longest = longest.min(most);
        // No better guess: as if all were as long.
        Self { samples, mean: longest as f64, longest, images: 1, measured: 0 }
    }

    /// Looks at the recipe's data.
    ///
    /// # Errors
    ///
    /// [`DataError`] where it cannot be read.
    pub fn measure(recipe: &Recipe, config: &LlavaConfig) -> Result<Self, DataError> {
        let data = DataSet::open(&recipe.data, recipe.seed)?;
        let (tokenizer, most) = (tokenizer(recipe), limit(recipe, config));
        let count = data.len().min(LOOKED_AT);
        let (mut sum, mut longest, mut images) = (0u64, 0u64, 0u64);
        for index in 0..count {
            let sample = data.sample(index * data.len() / count)?;
            // Longer ones are cut, left out, or end the run.
            let length = length(&sample, config, tokenizer.as_ref()).min(most);
            (sum, longest) = (sum + length, longest.max(length));
            images = images.max(sample.images.len() as u64);
        }
        Ok(Self {
            samples: Some(data.len() as u64),
            mean: sum as f64 / count.max(1) as f64,
            longest,
            images,
            measured: count as u64,
        })
    }
}

/// Tokens that a sample may have, or a packed row.
pub(super) fn limit(recipe: &Recipe, config: &LlavaConfig) -> u64 {
    let context = config.text_config.context();
    recipe.loader.max_length.unwrap_or(context).min(context) as u64
}

/// The decoder's tokenizer, where there is one.
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
    texts + (sample.images.len() * config.visual_tokens()) as u64
}
