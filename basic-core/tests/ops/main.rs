//! Compares the operations of `basic_core::ops` with plain compositions of Burn tensors under Burn's own autodiff, with
//! central differences and with known values, on every CPU backend of this build.

mod attention;
mod capped;
mod compare;
mod cross_entropy;
mod elementwise;
mod extremes;
mod gradients;
mod half;
mod harness;
mod losses;
mod optimizer;
mod reference;
