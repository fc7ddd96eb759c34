//! Samples as training by a recipe would see them.

use basic_data::Preparer;

use super::TrainError;
use super::model::open_model;
use crate::recipe::{Recipe, Stage};

/// A preparer for a recipe's model, stage, conversation style and length. No weights are read.
///
/// # Errors
///
/// A model that is not there or not whole, a style that it cannot give, a length that it cannot take.
pub fn preparer(recipe: &Recipe, warn: &mut dyn FnMut(&str)) -> Result<Preparer, TrainError> {
    let checkpoint = open_model(recipe)?;
    checkpoint.warnings().iter().for_each(|warning| warn(warning));
    let style = recipe.data.conversation.resolve(&checkpoint, recipe.stage == Stage::Pretrain)?;
    Ok(Preparer::new(&checkpoint, style, &recipe.loader)?)
}
