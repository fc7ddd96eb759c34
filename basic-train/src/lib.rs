//! Data sets, recipes, the training stages, evaluation, analysis and reports.

#![warn(missing_docs)]

pub mod ablate;
pub mod analysis;
pub mod backbones;
pub mod bench;
pub mod benchmarks;
pub mod compare;
pub mod data;
pub mod demo;
pub mod evaluate;
pub mod files;
pub mod held;
pub mod inspect;
pub mod lens;
pub mod optim;
pub mod pages;
pub mod parallel;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod shapes;
pub mod statistics;
pub mod train;
pub mod watch;
