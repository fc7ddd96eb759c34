//! The sequences that wait for a place in the batch.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

use super::Job;

/// A queue of at most `most` jobs, from many requests to one engine.
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    most: usize,
    length: Gauge,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// Why jobs were not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

impl Queue {
    pub fn new(most: usize, length: Gauge) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), most, length }
    }

    /// Puts all of `jobs` at the end, or none of them. Jobs whose client went away make room.
    pub fn push(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.jobs.len().saturating_add(jobs.len()) > self.most {
            state.jobs.retain(|job| !job.abandoned());
        }
        if state.jobs.len().saturating_add(jobs.len()) > self.most {
            return Err(Refused::Full);
        }
        state.jobs.extend(jobs);
        self.show(&state);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next job of a client that is still there, if there is one.
    pub fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        let job = Self::next(&mut state);
        self.show(&state);
        job
    }

    /// The next job, as soon as there is one; `None` when the queue is closed.
    pub fn wait(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            let job = Self::next(&mut state);
            self.show(&state);
            if job.is_some() || state.closed {
                return job;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no further jobs. Those that wait are dropped, by which their requests end.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.jobs.clear();
        self.show(&state);
        self.arrived.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn next(state: &mut State) -> Option<Job> {
        std::iter::from_fn(|| state.jobs.pop_front()).find(|job| !job.abandoned())
    }

    fn show(&self, state: &State) {
        self.length.set(i64::try_from(state.jobs.len()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
