//! What the workspace's tests share: running the binary as a user does, the fixtures, and tensors on disk.
//!
//! `CARGO_BIN_EXE_basic-under-test` exists in integration tests alone, so each of them hands its path in.

pub mod benchmarks;
pub mod binary;
pub mod browser;
pub mod fixtures;
pub mod project;
pub mod runs;
pub mod tensors;

pub use binary::{Ran, run, run_in_shell};
