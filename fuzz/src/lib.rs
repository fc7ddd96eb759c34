//! Damaged inputs for the binary `basic`: whole files of every format that it reads, with a few things changed.
//!
//! Each input is tried in a process of its own, with a limit on memory and time, so that an overflowing stack or an
//! allocation without end is a finding like any other. A command may take an input, and then leaves whole files, or refuse
//! it with exit code 1 and one line, and then leaves nothing. All else is a failure, and the input is kept.

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
