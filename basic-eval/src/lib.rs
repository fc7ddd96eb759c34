//! What a trained model knows: questions with exact match, the benchmarks of the field with their official scorers, the
//! comparison of two evaluations, and looks inside.
//!
//! [`questions`] asks a model and keeps its predictions; [`benchmarks`] does it with the prompts and rules of VQAv2, GQA,
//! POPE and others; [`compare`] pairs what two models said, question by question. [`lens`] names the nearest vocabulary
//! tokens of each visual embedding, layer by layer; [`measures`] counts over many scenes how often they are true.
//! [`losses`] computes the losses and gradients of given samples (`basic losses`). Nothing here trains.

#![warn(missing_docs)]

pub mod benchmarks;
pub mod compare;
pub mod lens;
pub mod losses;
pub mod measures;
pub mod page;
pub mod questions;
pub mod statistics;
