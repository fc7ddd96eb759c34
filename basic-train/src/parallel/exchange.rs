//! The meeting point of replicas that are threads of one process: everyone leaves something and gets what all left.
//! A replica that fails or ends wakes those that wait for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;

use super::CollectiveError;

/// What a replica brings to a meeting.
#[derive(Debug)]
pub(super) enum Brought {
    /// Host values.
    Values(Vec<f64>),
    /// Tensors without autodiff.
    Tensors(Vec<Tensor<1>>),
    /// Tensors of which each replica has its own number.
    Shares(Vec<Tensor<1>>),
}

impl Brought {
    /// What must be equal on all replicas.
    fn describe(&self) -> String {
        match self {
            Self::Values(values) => format!("{} values", values.len()),
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
            Self::Tensors(_) | Self::Shares(_) => &[],
        }
    }

    pub(super) fn tensors(&self) -> &[Tensor<1>] {
        match self {
            Self::Values(_) => &[],
            Self::Tensors(tensors) | Self::Shares(tensors) => tensors,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    brought: Vec<Option<Brought>>,
    arrived: usize,
    /// Counts the meetings, so that a waiter knows that its own is over.
    round: u64,
    /// What the last meeting's replicas brought, or why they could not meet, until all have taken it.
    outcome: Option<Result<Arc<Vec<Brought>>, CollectiveError>>,
    taken: usize,
    failure: Option<CollectiveError>,
    ended: Vec<bool>,
}

/// The meeting point.
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

    // No code that can panic runs under the lock: a poisoned state is still a whole one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves `mine` and waits for all others: what all brought, by rank.
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
        // The last one takes it along: nothing is kept alive until the next meeting.
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

    /// Replica `rank` has failed: everyone who waits, or comes later, hears of it. The first failure stays.
    pub(super) fn fail(&self, rank: usize, message: String) {
        self.lock().failure.get_or_insert(CollectiveError::Replica { rank, message });
        self.changed.notify_all();
    }

    /// Replica `rank` will not come again.
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
