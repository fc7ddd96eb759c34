//! Prepares samples as training with a recipe would.

use basic_data::Preparer;

use super::TrainError;
use super::model::open_model;
use crate::recipe::{Recipe, Stage};

/// A preparer with a recipe's model, stage, conversation style and length limit. No weights are read.
///
/// # Errors
///
/// [`TrainError`] if the model is missing or incomplete, or if it does not support the style or the length.
pub fn preparer(recipe: &Recipe, warn: &mut dyn FnMut(&str)) -> Result<Preparer, TrainError> {
    let checkpoint = open_model(recipe)?;
    checkpoint.warnings().iter().for_each(|warning| warn(warning));
    let style = recipe.data.conversation.resolve(&checkpoint, recipe.stage == Stage::Pretrain)?;
    Ok(Preparer::new(&checkpoint, style, &recipe.loader)?)
}
