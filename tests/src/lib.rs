//! Code that the end-to-end tests share: running the binary as a user does, fixtures, and tensors on disk.
//!
//! `CARGO_BIN_EXE_basic-under-test` exists only in integration tests, so each test passes the binary's path.

pub mod benchmarks;
pub mod benchmarks_beyond_llava;
pub mod binary;
pub mod browser;
pub mod fixtures;
pub mod gradients;
pub mod hub;
pub mod losses;
pub mod project;
pub mod runs;
pub mod serving;
pub mod tensors;

pub use binary::{Ran, run, run_in_shell};
