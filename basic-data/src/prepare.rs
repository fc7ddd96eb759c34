//! Turns a sample into token ids, labels and image positions.

use basic_models::config::Tiles;
use basic_models::processor::{Style, Tokenizer, render, tokenize};
use basic_models::{Checkpoint, ImageTokens};

use crate::config::TooLong;
use crate::{DataError, ImageSource, Sample};

/// A sample that is ready for a batch except for its pixel values.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The ids, labels and image positions, without pixel values.
    pub tokens: ImageTokens,
    /// The images.
    pub images: Vec<ImageSource>,
}

/// Renders and tokenizes a sample, which may be as long as the model's context.
///
/// # Errors
///
/// [`DataError`] that names the file and the sample if no token bears loss, the context is too short, or the template
/// fails, or if an image cannot be read.
pub fn prepare(sample: &Sample, checkpoint: &Checkpoint, style: &Style) -> Result<Prepared, DataError> {
    let tiles = ImageSource::tiles_of(&sample.images, checkpoint).map_err(|error| sample.image_error(error))?;
    let prepared = tokens(sample, &checkpoint.tokenizer, style, &tiles)?;
    let context = checkpoint.config.text_config.context();
    fitting(sample, prepared, Limit { max_length: context, context, too_long: TooLong::Error })
}

/// The length limit for samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub max_length: usize,
    pub context: usize,
    pub too_long: TooLong,
}

/// Tokenizes the sample, whose images have the given tiles, without a length limit.
pub(crate) fn tokens(
    sample: &Sample,
    tokenizer: &Tokenizer,
    style: &Style,
    tiles: &[Tiles],
) -> Result<Prepared, DataError> {
    let conversation =
        |source| DataError::Conversation { path: sample.file.to_path_buf(), place: sample.place.clone(), source };
    let pieces = render(style, &sample.messages, tokenizer.specials()).map_err(conversation)?;
    let example = tokenize(tokenizer, &pieces, tiles).map_err(conversation)?;
    Ok(Prepared { tokens: example.into(), images: sample.images.clone() })
}

/// Applies `limit` to the sample: returns it if it is short enough, cuts it, or fails.
pub(crate) fn fitting(sample: &Sample, mut prepared: Prepared, limit: Limit) -> Result<Prepared, DataError> {
    let (path, place) = (sample.file.to_path_buf(), sample.place.clone());
    let length = prepared.tokens.ids.len();
    let Limit { max_length, context, too_long } = limit;
    if length > max_length {
        if too_long != TooLong::Truncate {
            return Err(DataError::TooLong { path, place, length, max_length, context });
        }
        let kept = prepared.tokens.cut(max_length);
        prepared.images.truncate(kept);
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
