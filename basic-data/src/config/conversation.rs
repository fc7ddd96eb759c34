//! How conversations are rendered as text: a recipe's `data.conversation`.

use basic_models::Checkpoint;
use basic_models::processor::{self, ProcessorError, Style};
use serde::{Deserialize, Serialize};

/// How conversations are rendered as text: in a recipe `"auto"`, `"template"`, or the name of one of LLaVA's styles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StyleChoice {
    /// LLaVA's choice: `plain` in the pretrain stage; in the finetune stage and in evaluation the checkpoint's chat
    /// template, or `vicuna_v1` if it has none.
    #[default]
    Auto,
    /// The checkpoint's chat template.
    Template,
    /// One of [`processor::LlavaStyle::names`]: `plain`, `vicuna_v1`, `llama_2`, ..
    Named(&'static processor::LlavaStyle),
}

impl TryFrom<String> for StyleChoice {
    type Error = ProcessorError;

    fn try_from(name: String) -> Result<Self, ProcessorError> {
        match name.as_str() {
            "auto" => Ok(Self::Auto),
            "template" => Ok(Self::Template),
            name => processor::LlavaStyle::by_name(name).map(Self::Named),
        }
    }
}

impl From<StyleChoice> for String {
    fn from(style: StyleChoice) -> Self {
        match style {
            StyleChoice::Auto => "auto",
            StyleChoice::Template => "template",
            StyleChoice::Named(style) => style.name(),
        }
        .into()
    }
}

impl StyleChoice {
    /// The style for a checkpoint; `captions` says whether the stage trains on captions alone.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::MissingFile`] if the template is requested and the checkpoint has none.
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
