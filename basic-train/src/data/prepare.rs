//! From a sample to token ids, labels and image positions.

use basic_models::processor::{self, ProcessorError, Style, render, tokenize};
use basic_models::{Checkpoint, ImageTokens};
use serde::{Deserialize, Serialize};

use super::{DataError, ImageSource, Sample};

/// How conversations become text: in a recipe `"auto"`, `"template"`, or the name of one of LLaVA's styles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConversationStyle {
    /// LLaVA's own: `plain` in the pretrain stage; in the finetune stage and in evaluation the checkpoint's chat
    /// template, or `vicuna_v1` where it has none.
    #[default]
    Auto,
    /// The checkpoint's chat template.
    Template,
    /// One of [`processor::ConversationStyle::names`]: `plain`, `vicuna_v1`, `llama_2`, ..
    Named(&'static processor::ConversationStyle),
}

impl TryFrom<String> for ConversationStyle {
    type Error = ProcessorError;

    fn try_from(name: String) -> Result<Self, ProcessorError> {
        match name.as_str() {
            "auto" => Ok(Self::Auto),
            "template" => Ok(Self::Template),
            name => processor::ConversationStyle::by_name(name).map(Self::Named),
        }
    }
}

impl From<ConversationStyle> for String {
    fn from(style: ConversationStyle) -> Self {
        match style {
            ConversationStyle::Auto => "auto",
            ConversationStyle::Template => "template",
            ConversationStyle::Named(style) => style.name(),
        }
        .into()
    }
}

impl ConversationStyle {
    /// The style for a checkpoint; `captions` says that the stage trains on captions alone.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::MissingFile`] where the template is asked for and the checkpoint has none.
    pub fn resolve(self, checkpoint: &Checkpoint, captions: bool) -> Result<Style, ProcessorError> {
        let template = || checkpoint.template.clone().map(Style::from);
        match self {
            Self::Named(style) => Ok(style.into()),
            Self::Auto if captions => Ok(Style::plain()),
            Self::Auto => Ok(template().unwrap_or(Style::vicuna_v1())),
            Self::Template => template().ok_or_else(|| ProcessorError::MissingFile {
                dir: checkpoint.dir.clone(),
                names: "chat_template.jinja",
            }),
        }
    }
}

/// A sample ready for a batch, but for its pixels.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Ids, labels, image positions; no pixels.
    pub tokens: ImageTokens,
    /// The images.
    pub images: Vec<ImageSource>,
}

/// Renders and tokenizes a sample.
///
/// # Errors
///
/// [`DataError`] that names the file and the sample: no target, a context that is too short, a template's failure.
pub fn prepare(sample: &Sample, checkpoint: &Checkpoint, style: &Style) -> Result<Prepared, DataError> {
    let conversation =
        |source| DataError::Conversation { path: sample.file.to_path_buf(), place: sample.place.clone(), source };
    let pieces = render(style, &sample.messages, checkpoint.tokenizer.specials()).map_err(conversation)?;
    let example = tokenize(&checkpoint.tokenizer, &pieces, checkpoint.visual_tokens(), sample.images.len())
        .map_err(conversation)?;
    let context = checkpoint.config.text_config.context();
    if example.ids.len() > context {
        return Err(DataError::Sample {
            path: sample.file.to_path_buf(),
            place: sample.place.clone(),
            reason: format!(
                "is {} tokens long, the model's context is {context}: shorten or leave it out",
                example.ids.len()
            ),
        });
    }
    Ok(Prepared {
        tokens: ImageTokens {
            ids: example.ids,
            labels: example.labels,
            images: example.image_positions.into_iter().map(Iterator::collect).collect(),
            pixels: Vec::new(),
        },
        images: sample.images.clone(),
    })
}
