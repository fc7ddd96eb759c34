//! From a sample to token ids, labels and image positions.

use basic_models::processor::{self, ImageProcessor, PixelValues, ProcessorError, Style, Tokenizer, render, tokenize};
use basic_models::{Checkpoint, ImageTokens};
use serde::{Deserialize, Serialize};

use super::{DataError, ImageSource, LoaderConfig, LoaderError, Sample, TooLong};

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
    /// One of [`processor::LlavaStyle::names`]: `plain`, `vicuna_v1`, `llama_2`, ..
    Named(&'static processor::LlavaStyle),
}

impl TryFrom<String> for ConversationStyle {
    type Error = ProcessorError;

    fn try_from(name: String) -> Result<Self, ProcessorError> {
        match name.as_str() {
            "auto" => Ok(Self::Auto),
            "template" => Ok(Self::Template),
            name => processor::LlavaStyle::by_name(name).map(Self::Named),
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

/// Renders and tokenizes a sample, which may be as long as the model's context.
///
/// # Errors
///
/// [`DataError`] that names the file and the sample: no target, a context that is too short, a template's failure.
pub fn prepare(sample: &Sample, checkpoint: &Checkpoint, style: &Style) -> Result<Prepared, DataError> {
    let prepared = tokens(sample, &checkpoint.tokenizer, style, checkpoint.visual_tokens())?;
    let context = checkpoint.config.text_config.context();
    fitting(sample, prepared, Limit { max_length: context, context, too_long: TooLong::Error })
}

/// What it takes to make a sample ready for a batch: a checkpoint's tokenizer and image processor, no weights.
#[derive(Debug, Clone)]
pub struct Preparer {
    tokenizer: Tokenizer,
    images: ImageProcessor,
    style: Style,
    visual_tokens: usize,
    limit: Limit,
    pad: u32,
    image_shape: [usize; 3],
}

/// How long a sample may be.
#[derive(Debug, Clone, Copy)]
struct Limit {
    max_length: usize,
    context: usize,
    too_long: TooLong,
}

impl Preparer {
    /// A preparer for `checkpoint`, whose conversations are written in `style`.
    ///
    /// # Errors
    ///
    /// [`LoaderError::MaxLength`].
    pub fn new(checkpoint: &Checkpoint, style: Style, config: &LoaderConfig) -> Result<Self, LoaderError> {
        let context = checkpoint.config.text_config.context();
        let max_length = config.max_length.unwrap_or(context);
        if max_length == 0 || max_length > context {
            return Err(LoaderError::MaxLength { max_length, context });
        }
        Ok(Self {
            tokenizer: checkpoint.tokenizer.clone(),
            images: checkpoint.images.clone(),
            style,
            visual_tokens: checkpoint.visual_tokens(),
            limit: Limit { max_length, context, too_long: config.too_long },
            pad: checkpoint.pad_id(),
            image_shape: checkpoint.image_shape(),
        })
    }

    /// Renders and tokenizes a sample; one that is too long is an error or cut.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the sample: no target, too long, a template's failure.
    pub fn prepare(&self, sample: &Sample) -> Result<Prepared, DataError> {
        fitting(sample, tokens(sample, &self.tokenizer, &self.style, self.visual_tokens)?, self.limit)
    }

    /// Decodes and processes an image.
    ///
    /// # Errors
    ///
    /// Names the image.
    pub fn pixels(&self, image: &ImageSource) -> Result<PixelValues, ProcessorError> {
        image.process(&self.images)
    }

    /// The tokens that a sample and a packed row may have.
    pub fn max_length(&self) -> usize {
        self.limit.max_length
    }

    /// The tokens that the model takes.
    pub fn context(&self) -> usize {
        self.limit.context
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How conversations are written.
    pub fn style(&self) -> &Style {
        &self.style
    }

    /// What happens to longer samples.
    pub fn too_long(&self) -> TooLong {
        self.limit.too_long
    }

    /// What an image takes of a sequence.
    pub fn visual_tokens(&self) -> usize {
        self.visual_tokens
    }

    /// The id of padding.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The side lengths of an image's pixel values: channels, height, width.
    pub fn image_shape(&self) -> [usize; 3] {
        self.image_shape
    }
}

fn tokens(sample: &Sample, tokenizer: &Tokenizer, style: &Style, visual: usize) -> Result<Prepared, DataError> {
    let conversation =
        |source| DataError::Conversation { path: sample.file.to_path_buf(), place: sample.place.clone(), source };
    let pieces = render(style, &sample.messages, tokenizer.specials()).map_err(conversation)?;
    let example = tokenize(tokenizer, &pieces, visual, sample.images.len()).map_err(conversation)?;
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

/// The sample, if it is not too long, or what `limit` leaves of it.
fn fitting(sample: &Sample, mut prepared: Prepared, limit: Limit) -> Result<Prepared, DataError> {
    let (path, place) = (sample.file.to_path_buf(), sample.place.clone());
    let length = prepared.tokens.ids.len();
    let Limit { max_length, context, too_long } = limit;
    if length > max_length {
        if too_long != TooLong::Truncate {
            return Err(DataError::TooLong { path, place, length, max_length, context });
        }
        cut(&mut prepared, max_length);
    }
    if prepared.tokens.targets() == 0 {
        let left = prepared.tokens.ids.len();
        let reason = match left == length {
            true => format!("none of its {length} tokens bears a loss: give it an answer or leave it out"),
            false => format!(
                "is {length} tokens long, and none of the {left} that loader.max_length = {max_length} leaves bears a \
                 loss: raise it or leave the sample out"
            ),
        };
        return Err(DataError::Sample { path, place, reason });
    }
    Ok(prepared)
}

/// Cuts a sample from the right to `max_length` tokens, or to where an image begins that would be cut through.
fn cut(prepared: &mut Prepared, max_length: usize) {
    let Prepared { tokens, images } = prepared;
    let whole = |positions: &Vec<usize>| positions.last().is_none_or(|last| *last < max_length);
    let kept = tokens.images.iter().take_while(|positions| whole(positions)).count();
    let next = tokens.images.get(kept).and_then(|positions| positions.first().copied());
    let end = next.unwrap_or(max_length).min(max_length);
    tokens.ids.truncate(end);
    tokens.labels.truncate(end);
    tokens.images.truncate(kept);
    images.truncate(kept);
}
