//! Damaged inputs for the binary `basic`: whole files of every format that it reads, with a few bytes changed.
//!
//! Each input is tried in a process of its own, with a limit on memory and time, so that an overflowing stack or an
//! allocation without end is a finding like any other. A command may accept an input or refuse it with exit code 1 and one
//! line; a panic, a signal, another code, too long a run or too much memory is a failure, and the input is kept.

#![warn(missing_docs)]

mod mutate;
mod run;
mod targets;

pub use run::{Failure, Options, Tally, fuzz};
pub use targets::{Target, targets};
