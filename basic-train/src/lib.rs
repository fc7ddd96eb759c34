//! Data sets, recipes, the training stages, evaluation, analysis and reports.

#![warn(missing_docs)]

pub mod ablate;
pub mod backbones;
pub mod bench;
pub mod demo;
pub mod directory_lock;
pub mod optim;
pub mod parallel;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod train;
pub mod watch;
