//! Lets replicas that are threads of one process exchange data: each contributes something and receives what all
//! contributed. A replica that fails or ends wakes those that wait for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;

use super::CollectiveError;

/// What a replica contributes to an exchange.
#[derive(Debug)]
pub(super) enum Brought {
    /// Host values.
    Values(Vec<f64>),
    /// Bytes, whose number may differ between the replicas.
    Bytes(Vec<u8>),
    /// Tensors without autodiff, as many on every replica.
    Tensors(Vec<Tensor<1>>),
    /// Tensors whose number may differ between the replicas.
    Shares(Vec<Tensor<1>>),
}

impl Brought {
    /// A description that must be equal on all replicas.
    fn describe(&self) -> String {
        match self {
            Self::Values(values) => format!("{} values", values.len()),
            Self::Bytes(_) => "bytes".into(),
            Self::Tensors(tensors) => {
                let of = |t: &Tensor<1>| format!("{:?}[{}]", t.dtype(), t.dims()[0]);
                format!("{} tensors ({})", tensors.len(), tensors.iter().map(of).collect::<Vec<_>>().join(", "))
            }
            Self::Shares(_) => "its share of the sums".into(),
        }
    }

    pub(super) fn values(&self) -> &[f64] {
        match self {
            Self::Values(values) => values,
            Self::Bytes(_) | Self::Tensors(_) | Self::Shares(_) => &[],
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Values(_) | Self::Tensors(_) | Self::Shares(_) => &[],
        }
    }

    pub(super) fn tensors(&self) -> &[Tensor<1>] {
        match self {
            Self::Values(_) | Self::Bytes(_) => &[],
            Self::Tensors(tensors) | Self::Shares(tensors) => tensors,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    brought: Vec<Option<Brought>>,
    arrived: usize,
    /// Counts the exchanges, so that a waiting replica can tell that its own is over.
    round: u64,
    /// What the replicas contributed to the last exchange, or why it failed; kept until all have taken it.
    outcome: Option<Result<Arc<Vec<Brought>>, CollectiveError>>,
    taken: usize,
    failure: Option<CollectiveError>,
    ended: Vec<bool>,
}

/// The shared state of the replicas' exchanges.
#[derive(Debug)]
pub(super) struct Exchange {
    world: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Exchange {
    pub(super) fn new(world: usize) -> Self {
        let brought = (0..world).map(|_| None).collect();
        let state = State { brought, ended: vec![false; world], ..State::default() };
        Self { world, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn world(&self) -> usize {
        self.world
    }

    // No code that can panic runs under the lock, so even a poisoned state is consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Contributes `mine`, waits for all others, and returns what all contributed, by rank.
    pub(super) fn meet(&self, rank: usize, mine: Brought) -> Result<Arc<Vec<Brought>>, CollectiveError> {
        let mut state = self.lock();
        let round = state.round;
        state.brought[rank] = Some(mine);
        state.arrived += 1;
        if state.arrived == self.world {
            let all: Vec<Brought> = state.brought.iter_mut().filter_map(Option::take).collect();
            state.outcome = Some(alike(&all).map(|()| Arc::new(all)));
            state.arrived = 0;
            state.taken = 0;
            state.round += 1;
            self.changed.notify_all();
        }
        while state.round == round {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if let Some(rank) = state.ended.iter().position(|ended| *ended) {
                return Err(CollectiveError::Ended { rank });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.taken += 1;
        let last = state.taken == self.world;
        // The last replica takes the outcome, so that nothing is kept alive until the next exchange.
        let outcome = if last { state.outcome.take() } else { state.outcome.clone() };
        outcome.unwrap_or(Err(CollectiveError::Ended { rank }))
    }

    /// Sums host values in rank order, in place.
    pub(super) fn sum_f64(&self, rank: usize, values: &mut [f64]) -> Result<(), CollectiveError> {
        let all = self.meet(rank, Brought::Values(values.to_vec()))?;
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|brought| brought.values()[i]).sum();
        }
        Ok(())
    }

    /// The bytes of all replicas, by rank.
    pub(super) fn gather_bytes(&self, rank: usize, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let all = self.meet(rank, Brought::Bytes(mine.to_vec()))?;
        Ok(all.iter().map(|brought| brought.bytes().to_vec()).collect())
    }

    /// Records that replica `rank` has failed; all replicas that wait or arrive later get this error. Only the first
    /// failure is kept.
    pub(super) fn fail(&self, rank: usize, message: String) {
        self.lock().failure.get_or_insert(CollectiveError::Replica { rank, message });
        self.changed.notify_all();
    }

    /// Records that replica `rank` has ended and will not take part again.
    pub(super) fn end(&self, rank: usize) {
        self.lock().ended[rank] = true;
        self.changed.notify_all();
    }

    /// The replica that failed first.
    pub(super) fn failed(&self) -> Option<CollectiveError> {
        self.lock().failure.clone()
    }
}

fn alike(all: &[Brought]) -> Result<(), CollectiveError> {
    let Some(first) = all.first().map(Brought::describe) else { return Ok(()) };
    match all.iter().position(|brought| brought.describe() != first) {
        Some(rank) => Err(CollectiveError::Mismatch { rank, found: all[rank].describe(), expected: first }),
        None => Ok(()),
    }
}
