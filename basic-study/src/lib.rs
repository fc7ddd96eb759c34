//! Experiments of several runs, and the pages that show what came out.
//!
//! [`studies`] reads a study's TOML file, trains each of its cells with several seeds, measures them and writes tables,
//! figures and a page (`basic ablate`). [`demo`] trains LLaVA's baseline and BASIC side by side on the embedded world of
//! shapes, from backbones that [`backbones`] pretrains. [`report`] puts runs, evaluations and studies into one HTML file.

#![warn(missing_docs)]

pub mod backbones;
pub mod demo;
pub mod pages;
pub mod report;
pub mod studies;
