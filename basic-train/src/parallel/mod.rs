//! Data-parallel training on the devices of one machine: a replica of the model on each device, one thread a replica,
//! and sums over the replicas behind a small trait.
//!
//! A step over N replicas is: each replica takes its share of the global batch and backpropagates losses that are
//! divided by the *global* counts ([`Collective::sum_f64`] of target tokens and image samples); then
//! [`sum_gradients`] adds the gradients up, and every replica takes the same optimizer step on the same sums. Burn's own
//! hook in the backward pass is not used: it reduces a parameter over the devices that used it in this pass, so that a
//! replica whose share is text alone would be left out of the projector's sum, or waited for.
//!
//! | collective | replicas are | sums |
//! |---|---|---|
//! | [`Solo`] | one | nothing to do |
//! | [`Threads`] | threads on any devices | in rank order, by copies between the devices: the same bits on every run |
//! | [`Nccl`] | threads on CUDA devices | Burn's `all_reduce` (NCCL) |
//!
//! [`Replicas::run`] starts the threads and picks the collective.

mod exchange;
mod gradients;
mod nccl;
mod replicas;
#[cfg(test)]
mod tests;
mod threads;

use burn::tensor::Tensor;
use thiserror::Error;

pub use gradients::sum_gradients;
pub use nccl::Nccl;
pub use replicas::text as panic_text;
pub use replicas::{Replicas, ReplicasError};
pub use threads::Threads;

/// Why replicas could not work together. After any of these a run is over: the replicas are no longer at the same step.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CollectiveError {
    /// Another replica failed; this one stops with its message.
    #[error("replica {rank} failed: {message}")]
    Replica {
        /// The replica that failed first.
        rank: usize,
        /// What it said.
        message: String,
    },
    /// Another replica ended while this one waits for it.
    #[error("replica {rank} has ended while others wait for it: the replicas are not at the same step")]
    Ended {
        /// The replica that ended.
        rank: usize,
    },
    /// The replicas do not do the same thing.
    #[error("the replicas are not at the same step: replica {rank} brings {found}, replica 0 {expected}")]
    Mismatch {
        /// The first replica that differs.
        rank: usize,
        /// What it brings.
        found: String,
        /// What replica 0 brings.
        expected: String,
    },
    /// The system gave no thread.
    #[error("no thread could be started for replica {rank}: {message}")]
    Thread {
        /// The replica.
        rank: usize,
        /// The system's reason.
        message: String,
    },
}

/// What the replicas of a run do together. Every replica calls the same methods in the same order; a call returns when
/// all have called, or with an error on all of them when one has failed.
pub trait Collective: Send + Sync {
    /// This replica's number, from 0. Replica 0 writes the files.
    fn rank(&self) -> usize;

    /// How many replicas there are.
    fn world(&self) -> usize;

    /// Sums tensors over the replicas, one by one: every replica brings as many, of the same lengths and type, and gets
    /// the sums on its own device.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn sum(&self, tensors: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError>;

    /// Sums host values over the replicas, in place, in rank order.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError>;

    /// Waits for all replicas.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn barrier(&self) -> Result<(), CollectiveError> {
        self.sum_f64(&mut [])
    }
}

impl dyn Collective + '_ {
    /// [`sum_gradients`] over this collective.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn sum_gradients<M: burn::module::Module>(
        &self,
        module: &M,
        grads: burn::optim::GradientsParams,
    ) -> Result<burn::optim::GradientsParams, CollectiveError> {
        sum_gradients(self, module, grads)
    }
}

/// One device: every sum is what it is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn sum(&self, tensors: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError> {
        Ok(tensors)
    }

    fn sum_f64(&self, _: &mut [f64]) -> Result<(), CollectiveError> {
        Ok(())
    }
}
