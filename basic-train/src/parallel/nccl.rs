//! Replicas on CUDA devices, whose tensors NCCL moves: threads of one process, or processes on one machine or many.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use basic_core::nccl::{Id, Member, new_id};
use burn::tensor::{DType, Tensor};

use super::launch::TIME_LIMIT;
use super::{Collective, CollectiveError, Failure};

/// A replica on a CUDA device. NCCL moves its tensors; host values go as those of the collective below it do.
///
/// Before each of NCCL's operations the replicas tell each other on the host what they are about to do, so one that has
/// failed, or does something else, stops the others instead of leaving them in an operation that never ends. Only the
/// hosts wait there: the operation itself is queued on the device. A replica that is killed while the devices are in an
/// operation leaves the others waiting until the launcher ends them, as is usual with NCCL.
pub struct Nccl {
    host: Arc<dyn Collective>,
    /// The number of the CUDA device.
    index: usize,
    state: Mutex<State>,
}

struct State {
    /// The device's place in NCCL's group, from the first operation on.
    member: Option<Member>,
    limit: Duration,
}

impl Nccl {
    /// The CUDA device of number `index` as a replica of `host`.
    pub fn over(host: Arc<dyn Collective>, index: usize) -> Self {
        Self { host, index, state: Mutex::new(State { member: None, limit: TIME_LIMIT }) }
    }

    /// Connects the devices, which every operation does that finds them unconnected.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn connect(&self) -> Result<Member, CollectiveError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = &state.member {
            return Ok(member.clone());
        }
        let own = if self.rank() == 0 { new_id().map_err(CollectiveError::Transfer)?.to_vec() } else { Vec::new() };
        let ids = self.host.gather_bytes(&own)?;
        let id = ids.first().and_then(|id| Id::try_from(&id[..]).ok());
        let id = id.ok_or_else(|| CollectiveError::Transfer("replica 0 brought no id of NCCL's".into()))?;
        let member = Member::join(self.index, id, self.rank(), self.world(), state.limit);
        let member = member.map_err(CollectiveError::Transfer)?;
        state.member = Some(member.clone());
        Ok(member)
    }

    /// Waits until all replicas are about to run the same operation.
    fn meet(&self, operation: &str, tensor: &Tensor<1>) -> Result<Member, CollectiveError> {
        let mine = format!("{operation} of {:?}[{}]", tensor.dtype(), tensor.dims()[0]);
        let all = self.host.gather_bytes(mine.as_bytes())?;
        match all.iter().position(|brought| *brought != all[0]) {
            Some(rank) => {
                let text = |rank: usize| String::from_utf8_lossy(&all[rank]).into_owned();
                Err(CollectiveError::Mismatch { rank, found: text(rank), expected: text(0) })
            }
            None => self.connect(),
        }
    }
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nccl({} of {} on cuda:{})", self.rank(), self.world(), self.index)
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn world(&self) -> usize {
        self.host.world()
    }

    fn separate(&self) -> bool {
        self.host.separate()
    }

    fn set_time_limit(&self, limit: Duration) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).limit = limit;
        self.host.set_time_limit(limit);
    }

    fn fail(&self, message: &str) -> Failure {
        self.host.fail(message)
    }

    fn sum(&self, mut tensors: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError> {
        if tensors.len() <= 1 {
            let Some(only) = tensors.pop() else { return Ok(tensors) };
            let (member, dtype) = (self.meet("Sum", &only)?, only.dtype());
            return member.all_reduce(only).map(|sum| vec![sum.cast(dtype)]).map_err(CollectiveError::Transfer);
        }
        let kinds: Vec<(usize, DType)> = tensors.iter().map(|tensor| (tensor.dims()[0], tensor.dtype())).collect();
        // As one operation, and with sums in f32.
        let flat = Tensor::cat(tensors.into_iter().map(|tensor| tensor.cast(DType::F32)).collect(), 0);
        let member = self.meet("Sum", &flat)?;
        let sums = member.all_reduce(flat).map_err(CollectiveError::Transfer)?;
        let mut start = 0;
        let sums = kinds.into_iter().map(|(length, dtype)| {
            start += length;
            sums.clone().narrow(0, start - length, length).cast(dtype)
        });
        Ok(sums.collect())
    }

    fn reduce_scatter(&self, whole: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        let (member, dtype) = (self.meet("ReduceScatter", &whole)?, whole.dtype());
        member.reduce_scatter(whole).map(|part| part.cast(dtype)).map_err(CollectiveError::Transfer)
    }

    fn all_gather(&self, part: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        self.meet("AllGather", &part)?.all_gather(part).map_err(CollectiveError::Transfer)
    }

    fn broadcast(&self, tensor: Tensor<1>, root: usize) -> Result<Tensor<1>, CollectiveError> {
        self.meet("Broadcast", &tensor)?.broadcast(tensor, root).map_err(CollectiveError::Transfer)
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.host.gather_bytes(mine)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.host.sum_f64(values)
    }
}
