//! What a trained model knows: questions with exact match, the benchmarks of the field with their official scorers, the
//! comparison of two evaluations, and looks inside.
//!
//! [`questions`] asks a model and keeps its predictions; [`benchmarks`] does it with the prompts and rules of VQAv2, GQA,
//! POPE and others; [`compare`] pairs what two models said, question by question. [`lens`] names the nearest vocabulary
//! tokens of each visual embedding, layer by layer; [`measures`] counts over many scenes how often they are true.
//! [`losses`] computes the losses and gradients of given samples (`basic losses`). Nothing here trains.
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
//! `examples/own_benchmark.rs` scores answers by a rule of one's own.

#![warn(missing_docs)]

pub mod benchmarks;
pub mod compare;
pub mod lens;
pub mod losses;
pub mod measures;
pub mod page;
pub mod questions;
pub mod statistics;
