//! Replicas as processes that MPI connects, on one machine or many.
//!
//! Every operation is a non-blocking one of MPI, and this process looks at its completion and at what the others say in
//! turns. So a process that fails can tell the others why, in a message beside the operation, and they stop waiting for
//! it; and one that waits for longer than the time limit finds out which processes do not answer.
//!
//! Sums are an all-to-all of the parts, which each rank then adds up in rank order: as many bytes as a ring's
//! reduce-scatter moves, and the bits of [`Threads`](super::Threads). Values pass through host memory on every device.

#![allow(unsafe_code)]

mod operations;

use std::mem::ManuallyDrop;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Tensor, TensorData};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use mpi::{Tag, Threading};

use operations::pause;

use super::failure::{ANSWER, reporter};
use super::launch::LaunchError;
use super::{Collective, CollectiveError, Failure};

/// Messages beside the operations: a failure's text, and the number of the operation that a process gives up on.
const FAILED: Tag = 1;
const GIVES_UP: Tag = 2;
/// The most bytes that an operation moves from or to a process at once; MPI counts them in 32 bits.
const BLOCK: usize = 1 << 30;
/// MPI, from the first [`Mpi::open`] to [`close`]. It cannot be started again.
static UNIVERSE: Mutex<Option<Universe>> = Mutex::new(None);

/// A process that MPI connects to the others of its launch.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    world: usize,
    state: Mutex<State>,
}

struct State {
    // Not freed: that is an operation of all ranks, which a failure would cut short.
    all: ManuallyDrop<SimpleCommunicator>,
    /// For the end alone, so that it cannot be taken for an operation that a failure cut short.
    end: ManuallyDrop<SimpleCommunicator>,
    limit: Duration,
    /// Counts the operations.
    number: u64,
    /// Why there are no further operations.
    failure: Option<CollectiveError>,
}

// SAFETY: a communicator is a handle, which may move between threads; MPI is initialized for calls from any thread, one
// at a time, and the mutex around the state sees to that.
unsafe impl Send for State {}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("number", &self.number).field("failure", &self.failure).finish_non_exhaustive()
    }
}

/// What an operation is, which must be the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Operation {
    Sum = 1,
    ReduceScatter,
    AllGather,
    Broadcast,
    Bytes,
}

impl Operation {
    fn describe(code: u64, length: u64) -> String {
        let all = [Self::Sum, Self::ReduceScatter, Self::AllGather, Self::Broadcast, Self::Bytes];
        match all.into_iter().find(|operation| *operation as u64 == code) {
            Some(operation) => format!("{operation:?} of {length} bytes"),
            None => format!("operation {code} of {length} bytes"),
        }
    }
}

impl Mpi {
    /// Starts MPI, or takes part in it again, and waits for an answer of the others for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Mpi`]
    pub fn open(limit: Duration) -> Result<Self, LaunchError> {
        let mut universe = UNIVERSE.lock().unwrap_or_else(PoisonError::into_inner);
        if universe.is_none() {
            let started = mpi::initialize_with_threading(Threading::Serialized);
            let (started, threading) =
                started.ok_or_else(|| LaunchError::Mpi("it has been started and ended before".into()))?;
            if threading < Threading::Serialized {
                return Err(LaunchError::Mpi(format!("the library allows {threading:?} threads, not Serialized")));
            }
            *universe = Some(started);
        }
        let all = SimpleCommunicator::world();
        let (rank, world) = (all.rank() as usize, all.size() as usize);
        let own = || ManuallyDrop::new(all.duplicate());
        let state = State { all: own(), end: own(), limit, number: 0, failure: None };
        Ok(Self { rank, world, state: Mutex::new(state) })
    }

    /// The name and version of the MPI library.
    pub fn library() -> String {
        let name = mpi::environment::library_version().unwrap_or_default();
        name.split([',', '\n', '\0']).next().unwrap_or_default().trim().to_string()
    }

    /// This process's number among those on the same machine.
    pub fn local_rank(&self) -> usize {
        self.lock().all.split_shared(self.rank as i32).rank() as usize
    }

    // No code that can panic leaves the state inconsistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one operation, after it was seen that all ranks are about to run the same.
    fn together<T>(
        &self,
        operation: Operation,
        length: usize,
        run: impl FnOnce(&mut State) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.number += 1;
        let header = [operation as u64, length as u64, state.number];
        let result = state.agree(header).and_then(|()| run(&mut state));
        if let Err(failure) = &result {
            state.failure = Some(failure.clone());
        }
        result
    }
}

/// The values of a tensor in host memory.
fn bytes(tensor: &Tensor<1>) -> Result<Vec<u8>, CollectiveError> {
    let data = tensor.clone().try_into_data().map_err(|error| CollectiveError::Transfer(error.to_string()))?;
    Ok(data.as_bytes().to_vec())
}

fn tensor(bytes: Vec<u8>, dtype: DType, device: &burn::tensor::Device) -> Tensor<1> {
    let length = bytes.len() / dtype.size();
    Tensor::from_data(TensorData::from_bytes_vec(bytes, [length], dtype), (device, dtype))
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn separate(&self) -> bool {
        true
    }

    fn set_time_limit(&self, limit: Duration) {
        self.lock().limit = limit;
    }

    fn sum(&self, tensors: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError> {
        let Some(device) = tensors.first().map(Tensor::device) else { return Ok(tensors) };
        let kinds: Vec<(usize, DType)> = tensors.iter().map(|tensor| (tensor.dims()[0], tensor.dtype())).collect();
        let length: usize = kinds.iter().map(|(length, _)| length).sum();
        let padding = length.next_multiple_of(self.world) - length;
        let mut flat: Vec<Tensor<1>> = tensors.into_iter().map(|tensor| tensor.cast(DType::F32)).collect();
        flat.push(Tensor::zeros([padding], (&device, DType::F32)));
        let part = self.reduced(Operation::Sum, Tensor::cat(flat, 0))?;
        let whole = self.gathered(Operation::Sum, part)?;
        let mut start = 0;
        let sums = kinds.into_iter().map(|(length, dtype)| {
            start += length;
            whole.clone().narrow(0, start - length, length).cast(dtype)
        });
        Ok(sums.collect())
    }

    fn reduce_scatter(&self, whole: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        self.reduced(Operation::ReduceScatter, whole)
    }

    fn all_gather(&self, part: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        self.gathered(Operation::AllGather, part)
    }

    fn broadcast(&self, given: Tensor<1>, root: usize) -> Result<Tensor<1>, CollectiveError> {
        let (device, dtype, own) = (given.device(), given.dtype(), bytes(&given)?);
        let sent = self.together(Operation::Broadcast, own.len(), |state| state.broadcast(own, root))?;
        Ok(tensor(sent, dtype, &device))
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.together(Operation::Bytes, 0, |state| {
            let lengths = state.all_gather((mine.len() as u64).to_le_bytes().to_vec())?;
            let (lengths, _) = lengths.as_chunks::<8>();
            let lengths: Vec<usize> = lengths.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize).collect();
            let longest = lengths.iter().copied().max().unwrap_or(0);
            let mut padded = mine.to_vec();
            padded.resize(longest, 0);
            let all = state.all_gather(padded)?;
            Ok(lengths.iter().enumerate().map(|(rank, length)| all[rank * longest..][..*length].to_vec()).collect())
        })
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        let mine: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.together(Operation::Bytes, mine.len(), |state| state.all_gather(mine))?;
        let (all, _) = all.as_chunks::<8>();
        let count = values.len();
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().skip(i).step_by(count).map(|bytes| f64::from_le_bytes(*bytes)).sum();
        }
        Ok(())
    }

    fn fail(&self, message: &str) -> Failure {
        let mut state = self.lock();
        let tell = |text: &str| state.tell(FAILED, text.as_bytes());
        let heard = |patience: Duration| {
            let start = Instant::now();
            loop {
                match state.heard() {
                    Some(CollectiveError::Replica { rank, message }) => return Some((rank, message)),
                    _ if start.elapsed() >= patience => return None,
                    _ => pause(start.elapsed()),
                }
            }
        };
        let failure = reporter((self.rank, self.world), state.failure.as_ref(), message, tell, heard);
        let message = message.to_string();
        state.failure.get_or_insert(CollectiveError::Replica { rank: self.rank, message });
        // All that still can end together: a launcher kills the others when it sees the first end.
        let (mut request, start) = (Some(state.end.immediate_barrier()), Instant::now());
        while let Some(waiting) = request.take() {
            match waiting.test() {
                Err(waiting) if start.elapsed() < ANSWER => request = Some(waiting),
                Err(waiting) => std::mem::forget(waiting),
                Ok(_) => {}
            }
            pause(start.elapsed());
        }
        failure
    }
}

impl Mpi {
    /// Sums a tensor over the ranks in rank order, in f32, and gives this rank's part.
    fn reduced(&self, operation: Operation, whole: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        let (device, dtype) = (whole.device(), whole.dtype());
        let parts = bytes(&whole.cast(DType::F32))?;
        let length = parts.len() / DType::F32.size() / self.world;
        let received = self.together(operation, parts.len(), |state| state.all_to_all(parts))?;
        let received = tensor(received, DType::F32, &device);
        let part = |rank: usize| received.clone().narrow(0, rank * length, length);
        let sum = (1..self.world).fold(part(0), |sum, rank| sum + part(rank));
        Ok(sum.cast(dtype))
    }

    fn gathered(&self, operation: Operation, part: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        let (device, dtype, own) = (part.device(), part.dtype(), bytes(&part)?);
        let all = self.together(operation, own.len(), |state| state.all_gather(own))?;
        Ok(tensor(all, dtype, &device))
    }
}

/// Ends MPI, if it was started and no rank has failed: `failed` says so. To be called once, at the end of the process.
pub(super) fn close(failed: bool) {
    let universe = UNIVERSE.lock().unwrap_or_else(PoisonError::into_inner).take();
    match universe {
        // Its end would wait for operations that are never done.
        Some(universe) if failed => std::mem::forget(universe),
        universe => drop(universe),
    }
}
