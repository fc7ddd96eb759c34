//! Direct visual supervision of a multimodal LLM: the method BASIC (ICCV 2025, arXiv 2508.06895), other methods beside
//! it, and the operations of a training step.
//!
//! While the decoder runs, a [`Supervision`] collects from its layers what the methods of an [`Objective`] need
//! ([`methods`], one file for each); afterwards [`Objective::losses`] returns one named [`Term`] for each of their
//! losses. BASIC sums the supervisory embeddings `V^` and the patch weights `a` over the shallow layers, and two losses
//! pull the projector's output `v` towards `V^`: [`directional_alignment`] by direction, [`semantic_distribution`] by
//! the distribution over the vocabulary. `docs/method.md` in the repository defines all symbols. These losses and the
//! other operations of a training step ([`ops`]) are fused and have closed-form gradients; any program that uses Burn
//! can call them on its own tensors:
//!
//! ```
//! use basic_core::{DeviceSpec, directional_alignment};
//! use burn::tensor::Tensor;
//!
//! let device = "cpu".parse::<DeviceSpec>()?.open()?;
//! let v = Tensor::<2>::from_floats([[3.0, 0.0], [0.0, 1.0]], &device);
//! let target = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, -2.0]], &device);
//! let weights = Tensor::<1>::from_floats([0.5, 0.5], &device);
//! // The first row points the same way (0), the second the opposite way (|u - t|^2 = 4).
//! let loss: f32 = directional_alignment(v, target, weights).into_scalar();
//! assert!((loss - 2.0).abs() < 1e-6);
//! # Ok::<(), basic_core::DeviceError>(())
//! ```
//!
//! `examples/losses.rs` trains with both losses. This crate contains no networks and reads no files, text or images.

#![warn(missing_docs)]

#[cfg(feature = "cuda")]
mod beside;
pub mod check;
#[cfg(feature = "cuda")]
mod cuda_parts;
mod device;
mod losses;
pub mod methods;
#[cfg(feature = "cuda")]
pub mod nccl;
pub mod ops;
mod supervision;

pub use device::{
    DeviceError, DeviceInfo, DeviceSpec, available_devices, check_nccl, kernel_folder, memory_used, missing_parts,
    quantizes,
};
pub use losses::{LM, LossValue, Losses, TOTAL, Term};
pub use methods::basic::{Basic, LayerWeights, PatchWeights, Target};
pub use methods::viral::Viral;
pub use methods::{Heads, ModelShape, Objective, ObjectiveError};
pub use ops::{directional_alignment, semantic_distribution};
pub use supervision::{ImageSpan, Observed, Seen, Supervised, Supervision, SupervisionLayout, Targets};
