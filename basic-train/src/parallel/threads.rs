//! Replicas as threads of one process on any devices. CUDA's devices have NCCL for their tensors.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::exchange::{Brought, Exchange};
use super::{Collective, CollectiveError};

/// A replica that is a thread. Sums are taken in rank order, so every run gives the same bits.
#[derive(Debug, Clone)]
pub struct Threads {
    exchange: Arc<Exchange>,
    rank: usize,
}

impl Threads {
    /// The collectives of `world` replicas, by rank. A replica that stops before the others leaves them waiting unless
    /// [`Replicas::run`](super::Replicas::run) runs it.
    pub fn new(world: usize) -> Vec<Self> {
        Self::over(&Arc::new(Exchange::new(world)))
    }

    pub(super) fn over(exchange: &Arc<Exchange>) -> Vec<Self> {
        (0..exchange.world()).map(|rank| Self { exchange: exchange.clone(), rank }).collect()
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.exchange.world()
    }

    fn sum(&self, tensors: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError> {
        let world = self.world();
        let Some(device) = tensors.first().map(Tensor::device) else {
            self.exchange.meet(self.rank, Brought::Tensors(tensors))?;
            return Ok(Vec::new());
        };
        let all = self.exchange.meet(self.rank, Brought::Tensors(tensors))?;
        let count = all[0].tensors().len();
        // Each replica sums every `world`-th tensor for all, so that no sum is computed twice.
        let sum = |i: usize| {
            let parts = all.iter().map(|brought| brought.tensors()[i].clone().to_device(&device));
            parts.reduce(|sum, part| sum + part)
        };
        let mine: Vec<Tensor<1>> = (self.rank..count).step_by(world).filter_map(sum).collect();
        drop(all);
        let shares = self.exchange.meet(self.rank, Brought::Shares(mine))?;
        Ok((0..count).map(|i| shares[i % world].tensors()[i / world].clone().to_device(&device)).collect())
    }

    fn reduce_scatter(&self, whole: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        let (device, length) = (whole.device(), whole.dims()[0] / self.world());
        let mine = self.rank * length..(self.rank + 1) * length;
        let all = self.exchange.meet(self.rank, Brought::Tensors(vec![whole]))?;
        let part = |brought: &Brought| brought.tensors()[0].clone().slice([mine.clone()]).to_device(&device);
        let sum = all.iter().map(part).reduce(|sum, part| sum + part);
        // Every replica brings a tensor, so there is a sum.
        Ok(sum.unwrap_or_else(|| Tensor::zeros([length], &device)))
    }

    fn all_gather(&self, part: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        let device = part.device();
        let all = self.exchange.meet(self.rank, Brought::Tensors(vec![part]))?;
        Ok(Tensor::cat(all.iter().map(|brought| brought.tensors()[0].clone().to_device(&device)).collect(), 0))
    }

    fn broadcast(&self, tensor: Tensor<1>, root: usize) -> Result<Tensor<1>, CollectiveError> {
        let device = tensor.device();
        let all = self.exchange.meet(self.rank, Brought::Tensors(vec![tensor]))?;
        Ok(all[root].tensors()[0].clone().to_device(&device))
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.exchange.gather_bytes(self.rank, mine)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.exchange.sum_f64(self.rank, values)
    }
}
