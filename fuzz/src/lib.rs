//! Fuzzes the binary `basic` with damaged inputs: valid files of every format that it reads, with a few changes.
//!
//! Each input is tried in a process of its own, with limits on memory and time, so that a stack overflow or an
//! unbounded allocation is found like any other failure. A command may accept an input and leave complete files, or
//! refuse it with exit code 1 and one line and leave nothing. Everything else is a failure, and the input is kept.

#![warn(missing_docs)]

mod attempt;
mod mutate;
mod outputs;
mod run;
mod targets;

pub use attempt::{Limits, Verdict};
pub use mutate::{Kind, damaged};
pub use outputs::Leaves;
pub use run::{Failure, Options, Tally, fuzz, replay};
pub use targets::{Target, regressions, targets};
