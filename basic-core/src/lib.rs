//! The method BASIC (ICCV 2025, arXiv 2508.06895): direct visual supervision of a multimodal LLM's projector.
//!
//! While the decoder runs, a [`Supervision`] observer adds up the supervisory embeddings `V^` and the patch weights `a`
//! from its shallow layers; afterwards two losses pull the projector's output `v` towards `V^`:
//! [`directional_alignment`] by angle, [`semantic_distribution`] by the distribution over the vocabulary. These and the
//! other operations of a training step ([`ops`]) are fused, with closed-form gradients.
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
//! Nothing here knows networks, files, tokens or images.

#![warn(missing_docs)]

pub mod check;
mod device;
mod losses;
pub mod methods;
pub mod ops;
mod supervision;

pub use device::{
    DeviceError, DeviceInfo, DeviceSpec, available_devices, check_nccl, kernel_folder, memory_used, missing_parts,
    quantizes,
};
pub use losses::{LM, LossValue, Losses, TOTAL, Term};
pub use methods::basic::{Basic, LayerWeights, PatchWeights};
pub use methods::viral::Viral;
pub use methods::{Heads, ModelShape, Objective, ObjectiveError};
pub use ops::{directional_alignment, semantic_distribution};
pub use supervision::{ImageSpan, Observed, Seen, Supervised, Supervision, SupervisionLayout, Targets};
