//! The operations of a training step, as differentiable backend extensions.
//!
//! Each operation has three layers: a function on [`Tensor`](burn::tensor::Tensor)s, which networks and losses call; a
//! method of [`FusedOps`], through which Burn's run-time dispatch reaches the backend and whose implementation for
//! `Autodiff` registers a closed-form backward pass; and a method of [`Kernels`], the computation itself. A kernel has
//! a portable implementation in the backend's primitives, so that every backend has every operation. Flex replaces
//! those for which that is worth it (`cpu/`), and so do the GPU backends (`cube/`, and `vendor/` on CUDA).

mod activation;
mod adamw;
mod array;
mod attention;
mod blocks;
#[cfg(feature = "cpu")]
mod cpu;
mod cross_entropy;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
mod directional;
mod distribution;
mod embedding;
#[cfg_attr(feature = "ndarray", allow(deprecated))] // NdArray, upstream since Burn 0.22
mod extension;
mod product;
mod rms_norm;
mod rotary;
mod swiglu;
mod tensors;
#[cfg(feature = "cuda")]
mod vendor;

pub use activation::{ActivationKind, gelu, gelu_tanh, quick_gelu, silu};
pub use adamw::{
    AdamWMoments, AdamWParameter, AdamWStep, AdamWUpdate, SQUARES_PART, SQUARES_TOGETHER, UPDATES_TOGETHER, adamw,
    adamw_each, adamw_with_master, squares_parts, sums_of_squares, sums_of_squares_of_each,
};
pub use attention::{Attention, attention, attention_mass, attention_to_all, capped_attention};
pub use blocks::{BLOCK_BUDGET, block_budget};
pub use cross_entropy::{HeadLayout, LINEAR_CROSS_ENTROPY_BUDGET, linear_cross_entropy, linear_cross_entropy_within};
pub use directional::directional_alignment;
pub use distribution::{SEMANTIC_DISTRIBUTION_BUDGET, semantic_distribution, semantic_distribution_within};
pub use embedding::embedding;
pub use extension::{FusedOps, Kernels, LossAndGrad, LossAndGrads};
pub use product::{linear, patches, product};
pub use rms_norm::rms_norm;
pub use rotary::rotate;
pub use swiglu::swiglu;
pub use tensors::Tensors;

/// Checks the environment variables that choose between kernels.
///
/// # Errors
///
/// Returns a sentence if a value is unknown or if what it asks for is not available.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn check_switches() -> Result<(), String> {
    cube::check()?;
    #[cfg(feature = "cuda")]
    vendor::check()?;
    Ok(())
}
