//! Replicas on the CUDA devices of one process, summed by NCCL through Burn's `all_reduce`.
//!
//! Type-checked, but not run so far, because it needs two NVIDIA GPUs and NCCL's library (libnccl); if that is missing,
//! [`Replicas::open`](super::Replicas::open) reports it. Burn's `DistributedContext` is not needed: it serves the hook
//! in the backward pass.

use std::sync::Arc;

use burn::tensor::distributed::{CollectiveTensor, ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor};

use super::exchange::Exchange;
use super::{Collective, CollectiveError};

/// A replica on a CUDA device. Host values are exchanged within the process; tensors are summed between the devices.
///
/// The replicas wait for each other on the host before each NCCL call, so a replica that has failed by then stops the
/// others. If a device fails *during* the call, the other devices keep waiting, as is usual with NCCL.
#[derive(Debug, Clone)]
pub struct Nccl {
    exchange: Arc<Exchange>,
    rank: usize,
    devices: Vec<Device>,
}

impl Nccl {
    pub(super) fn over(exchange: &Arc<Exchange>, devices: &[Device]) -> Vec<Self> {
        // NCCL identifies a group by the devices' ids and their order, which must be the same on all replicas.
        let devices: Vec<Device> = devices.iter().map(|device| device.clone().without_autodiff()).collect();
        let one = |rank| Self { exchange: exchange.clone(), rank, devices: devices.clone() };
        (0..devices.len()).map(one).collect()
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.devices.len()
    }

    fn sum(&self, tensors: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError> {
        self.barrier()?;
        let reduce = |tensor| all_reduce(tensor, ReduceOperation::Sum, self.devices.clone());
        // All sums are started before the first one is awaited.
        let started: Vec<CollectiveTensor<1>> = tensors.into_iter().map(reduce).collect();
        Ok(started.into_iter().map(CollectiveTensor::resolve).collect())
    }

    // Burn has no other collective operation than the sum: these move more bytes than they need to.
    fn reduce_scatter(&self, whole: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        let length = whole.dims()[0] / self.world();
        let mut sums = self.sum(vec![whole])?;
        let own = self.rank * length..(self.rank + 1) * length;
        Ok(sums.remove(0).slice([own]))
    }

    fn all_gather(&self, part: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        let (length, device) = (part.dims()[0], part.device());
        let whole = Tensor::zeros([length * self.world()], (&device, part.dtype()));
        let own = self.rank * length..(self.rank + 1) * length;
        let whole = whole.slice_assign([own], part);
        Ok(self.sum(vec![whole])?.remove(0))
    }

    fn broadcast(&self, tensor: Tensor<1>, root: usize) -> Result<Tensor<1>, CollectiveError> {
        let own = if self.rank == root { tensor } else { tensor.zeros_like() };
        Ok(self.sum(vec![own])?.remove(0))
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.exchange.gather_bytes(self.rank, mine)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.exchange.sum_f64(self.rank, values)
    }
}
