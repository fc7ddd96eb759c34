//! Data-parallel training on several devices: each has a replica of the model, and a thread or a process that works on
//! it, and a small trait is what they do together.
//!
//! In a step, each replica takes its share of the global batch and backpropagates losses that are divided by the
//! *global* counts of target tokens and image samples ([`Collective::sum_f64`]). Then the gradients are added up
//! ([`sum_gradients`]), and every replica takes the same optimizer step; or [`shard`] gives each replica a part of the
//! sums, it updates the same part of the parameters, and all gather the result. Burn's own hook in the backward pass is
//! not used: it sums a parameter over the devices that used it in this pass, so a replica whose share is text only would
//! be left out of the projector's sum, or the others would wait for it.
//!
//! | collective | replicas | sums |
//! |---|---|---|
//! | [`Solo`] | a single one | none needed |
//! | [`Threads`] | threads on any devices | in rank order, by copies between devices; every run gives the same bits |
//! | `Mpi` (feature `mpi`) | processes on any devices and machines | in rank order, through host memory; the bits of [`Threads`] |
//! | `Line` | processes of `torchrun` | host values alone, over sockets |
//! | `Nccl` (feature `cuda`) | any of these on CUDA devices | by NCCL, from device to device, in its own order |
//!
//! [`Replicas::run`] starts the threads and chooses the collective; [`Group::join`] connects processes that were
//! launched together.

mod exchange;
mod failure;
mod gradients;
mod launch;
mod line;
mod links;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "cuda")]
mod nccl;
mod replicas;
pub mod shard;
#[cfg(test)]
mod tests;
mod threads;
mod together;

use std::time::Duration;

use burn::tensor::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use gradients::sum_gradients;
pub use launch::{Group, GroupError, Launch, LaunchError, Launcher, TIME_LIMIT};
pub use links::{Link, links};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "cuda")]
pub use nccl::Nccl;
pub use replicas::text as panic_text;
pub use replicas::{Replicas, ReplicasError};
pub use threads::Threads;
pub use together::{share, together};

/// Why replicas could not work together. Each of these ends the run, because the replicas are no longer at the same
/// step.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CollectiveError {
    /// Another replica failed; this one stops with its message.
    #[error("{}{message}", failed(*rank))]
    Replica {
        /// The replica that failed first.
        rank: usize,
        /// Its error message.
        message: String,
    },
    /// Another replica ended while this one waits for it.
    #[error(
        "replica {rank} has ended while others wait for it: it was killed, or the replicas are not at the same step"
    )]
    Ended {
        /// The replica that ended.
        rank: usize,
    },
    /// The replicas did not make the same call.
    #[error("the replicas are not at the same step: replica {rank} brings {found}, replica 0 {expected}")]
    Mismatch {
        /// The first replica that differs.
        rank: usize,
        /// What it contributed.
        found: String,
        /// What replica 0 contributed.
        expected: String,
    },
    /// Processes that did not come to the same operation in time.
    #[error(
        "{} did not answer within {seconds} s: it hangs or has ended, or it needs longer than [parallel] timeout_s allows; `basic train --resume` goes on from the last state",
        ranks_named(ranks)
    )]
    Silent {
        /// Those that did not; empty where all have given up waiting for each other.
        ranks: Vec<usize>,
        /// How long the others waited, in seconds.
        seconds: u64,
    },
    /// Values could not be brought from one replica to another.
    #[error("values could not be brought from one replica to another: {0}")]
    Transfer(String),
    /// A gradient came after its bucket was reduced, which is an error of this program.
    #[error("a gradient of {bucket} came after the gradients of {bucket} were summed: please report this")]
    Late {
        /// The bucket.
        bucket: String,
    },
    /// The system could not start a thread.
    #[error("no thread could be started for replica {rank}: {message}")]
    Thread {
        /// The replica.
        rank: usize,
        /// The system's error.
        message: String,
    },
}

/// Whose a failure is, among processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Another process has told of it, or fails with the same message and reports it.
    Heard,
    /// All processes fail with the same message, and this one reports it.
    Alike,
    /// This process alone has failed.
    Alone,
}

/// The beginning of the error of a replica that stops because another has failed.
fn failed(rank: usize) -> String {
    format!("replica {rank} failed: ")
}

fn ranks_named(ranks: &[usize]) -> String {
    match ranks {
        [] => "no rank".into(),
        [rank] => format!("rank {rank}"),
        _ => format!("ranks {}", ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The operations that the replicas of a run perform together. Every replica calls the same methods in the same order.
/// A call returns when all replicas have made it, or with an error on all of them when one has failed.
pub trait Collective: Send + Sync {
    /// This replica's number, from 0. Replica 0 writes the files.
    fn rank(&self) -> usize;

    /// The number of replicas.
    fn world(&self) -> usize;

    /// Whether the replicas are processes, each with its own data loader. Threads share one.
    fn separate(&self) -> bool {
        false
    }

    /// Whether it moves tensors of every device. The processes of `torchrun` have NCCL alone for that.
    fn moves_tensors(&self) -> bool {
        true
    }

    /// Sets how long a process waits for the others before it gives up. Threads wait until one ends.
    fn set_time_limit(&self, _: Duration) {}

    /// Tells the other processes that this one has failed, so that they stop with its message, and waits a moment for
    /// them to end. Threads are told by [`Replicas::run`].
    fn fail(&self, _message: &str) -> Failure {
        Failure::Alike
    }

    /// Sums tensors over the replicas, one by one. Every replica contributes the same number of tensors, of the same
    /// lengths and type, and receives the sums on its own device.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn sum(&self, tensors: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError>;

    /// Sums a tensor over the replicas and gives each replica its part of the sum: replica r has the r-th of
    /// [`world`](Self::world) equal parts. The length is the same on every replica, and a multiple of their number.
    /// The sums are taken in rank order, but for NCCL's.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn reduce_scatter(&self, whole: Tensor<1>) -> Result<Tensor<1>, CollectiveError>;

    /// Gives every replica the parts of all, joined in rank order. The parts have the same length and type.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn all_gather(&self, part: Tensor<1>) -> Result<Tensor<1>, CollectiveError>;

    /// Gives every replica the tensor of replica `root`, on its own device. All bring one of the same length and type.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn broadcast(&self, tensor: Tensor<1>, root: usize) -> Result<Tensor<1>, CollectiveError>;

    /// Gives every replica the bytes of all, by rank. They may differ in length.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

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
    /// Gives every replica the values of all, by rank.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`], also if a value has no JSON form.
    pub fn share<T: Serialize + DeserializeOwned>(&self, mine: &T) -> Result<Vec<T>, CollectiveError> {
        let wrong = |error: serde_json::Error| CollectiveError::Transfer(error.to_string());
        let all = self.gather_bytes(&serde_json::to_vec(mine).map_err(wrong)?)?;
        all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(wrong)).collect()
    }

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

/// A single device, for which every sum equals its input.
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

    fn reduce_scatter(&self, whole: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        Ok(whole)
    }

    fn all_gather(&self, part: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        Ok(part)
    }

    fn broadcast(&self, tensor: Tensor<1>, _: usize) -> Result<Tensor<1>, CollectiveError> {
        Ok(tensor)
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![mine.to_vec()])
    }

    fn sum_f64(&self, _: &mut [f64]) -> Result<(), CollectiveError> {
        Ok(())
    }
}
