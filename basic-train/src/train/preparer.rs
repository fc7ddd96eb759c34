//! Samples as training by a recipe would see them.

use super::Preparer;
use crate::recipe::{Recipe, Stage};
use crate::train::{TrainError, open_model};

impl Preparer {
    /// A preparer for a recipe's model, stage, conversation style and length. No weights are read.
    ///
    /// # Errors
    ///
    /// A model that is not there or not whole, a style that it cannot give, a length that it cannot take.
    pub fn of_recipe(recipe: &Recipe, warn: &mut dyn FnMut(&str)) -> Result<Self, TrainError> {
        let checkpoint = open_model(recipe)?;
        checkpoint.warnings().iter().for_each(|warning| warn(warning));
        let style = recipe.data.conversation.resolve(&checkpoint, recipe.stage == Stage::Pretrain)?;
        Ok(Self::new(&checkpoint, style, &recipe.loader)?)
    }
}
