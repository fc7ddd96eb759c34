//! Data sets, recipes, the training stages, evaluation, analysis and reports.

pub mod backbones;
pub mod optim;
pub mod shapes;
