//! Data sets, recipes, the training stages, evaluation, analysis and reports.

pub mod backbones;
pub mod analysis;
pub mod data;
pub mod demo;
pub mod evaluate;
pub mod files;
pub mod inspect;
pub mod optim;
pub mod recipe;
pub mod shapes;
pub mod train;
