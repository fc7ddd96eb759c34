//! Evaluates trained models: exact match on question files, the field's benchmarks with their official scoring rules,
//! the comparison of two evaluations, and an analysis of the visual embeddings.
//!
//! [`questions`] asks a model the questions of a file and keeps its predictions; [`benchmarks`] does the same with the
//! prompts and scoring rules of VQAv2, GQA, POPE and others; [`compare`] pairs the answers of two models question by
//! question. [`lens`] finds the nearest vocabulary tokens of each visual embedding, layer by layer; [`measures`] counts
//! over many scenes how often these tokens are true of the image. [`losses`] computes the losses and gradients of given
//! samples (`basic losses`). Nothing in this crate trains.
//!
//! ```
//! use basic_eval::statistics::Difference;
//!
//! // The accuracies of two arms with three seeds, paired by seed.
//! let (one, other) = ([50.0, 51.0, 49.0], [52.0, 53.5, 50.5]);
//! let differences: Vec<f64> = one.iter().zip(other).map(|(a, b)| b - a).collect();
//! let difference = Difference::of(&differences).expect("there are seeds");
//! assert!((difference.mean - 2.0).abs() < 1e-9);
//! // Its 95% interval by Student's t lies above 0.
//! assert_eq!(difference.excludes_zero(), Some(true));
//! ```
//!
//! `examples/own_benchmark.rs` shows how to score answers by your own rule.

#![warn(missing_docs)]

pub mod benchmarks;
pub mod compare;
pub mod lens;
pub mod losses;
pub mod measures;
pub mod page;
pub mod questions;
pub mod statistics;
