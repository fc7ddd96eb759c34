//! Limits the memory of the windows of a data set that are decoded at the same time.
//!
//! Each window may take a whole file's budget, and all reading threads together would take that many budgets. The
//! windows therefore share one [`Room`]. When it is exhausted, one window at a time may continue beyond it, and the
//! others wait.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use basic_models::outside::{Budget, OverBudget};

/// How long a window waits before it checks its time limit again.
const PATIENCE: Duration = Duration::from_millis(200);

/// The memory that the windows being decoded may take together, apart from the one window that may exceed it.
#[derive(Debug)]
pub(super) struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    left: u64,
    /// Whether a window is currently exceeding the room.
    beside: bool,
}

impl Room {
    pub fn new(bytes: u64) -> Self {
        Self { state: Mutex::new(State { left: bytes, beside: false }), changed: Condvar::new() }
    }
}

/// The budget of one window, which also takes from the room until it is [settled](Purse::settle).
#[derive(Debug)]
pub(super) struct Purse {
    budget: Budget,
    room: Arc<Room>,
    share: Mutex<Share>,
}

#[derive(Debug, Default)]
struct Share {
    taken: u64,
    beside: bool,
    settled: bool,
    /// The first error of the budget, kept because the library only passes on its text.
    over: Option<OverBudget>,
}

impl Purse {
    pub fn new(budget: Budget, room: Arc<Room>) -> Self {
        Self { budget, room, share: Mutex::default() }
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes bytes from the budget, then from the room, waiting until it has them.
    pub fn take(&self, bytes: u64) -> Result<(), OverBudget> {
        let taken = self.budget.take(bytes).and_then(|()| self.enter(bytes));
        taken.inspect_err(|over| {
            self.share().over.get_or_insert_with(|| over.clone());
        })
    }

    fn enter(&self, bytes: u64) -> Result<(), OverBudget> {
        let mut share = self.share();
        if share.beside || share.settled {
            return Ok(());
        }
        let mut state = self.room.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(left) = state.left.checked_sub(bytes) {
                state.left = left;
                share.taken = share.taken.saturating_add(bytes);
                return Ok(());
            }
            if !state.beside {
                (state.beside, share.beside) = (true, true);
                state.left = state.left.saturating_add(std::mem::take(&mut share.taken));
                self.room.changed.notify_all();
                return Ok(());
            }
            self.budget.check_time()?;
            let waited = self.room.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives back what [`Purse::take`] took.
    pub fn give_back(&self, bytes: u64) {
        self.budget.give_back(bytes);
        let mut share = self.share();
        let back = share.taken.min(bytes);
        share.taken -= back;
        self.leave(back, false);
    }

    fn leave(&self, bytes: u64, beside: bool) {
        let mut state = self.room.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = state.left.saturating_add(bytes);
        if beside {
            state.beside = false;
        }
        self.room.changed.notify_all();
    }

    /// Leaves the room; what is still held is counted by the cache from then on.
    pub fn settle(&self) {
        let mut share = self.share();
        share.settled = true;
        let (taken, beside) = (std::mem::take(&mut share.taken), std::mem::take(&mut share.beside));
        self.leave(taken, beside);
    }

    pub fn left(&self) -> u64 {
        self.budget.left()
    }

    pub fn check_time(&self) -> Result<(), OverBudget> {
        self.budget.check_time().inspect_err(|over| {
            self.share().over.get_or_insert_with(|| over.clone());
        })
    }

    /// The first error of the budget, if there was one.
    pub fn over(&self) -> Option<OverBudget> {
        self.share().over.clone()
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use basic_models::outside::{Budget, FileLimits};

    use super::{Purse, Room};

    fn purse(room: &Arc<Room>) -> Purse {
        let limits = FileLimits { bytes: 100, time: Duration::from_secs(60) };
        Purse::new(Budget::within("a.parquet", limits), room.clone())
    }

    #[test]
    fn windows_share_the_room_and_one_at_a_time_goes_beside_it() {
        let room = Arc::new(Room::new(50));
        let (held, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let purse = purse(&room);
                    for _ in 0..9 {
                        purse.take(10).unwrap();
                        most.fetch_max(held.fetch_add(10, Ordering::SeqCst) + 10, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    held.fetch_sub(90, Ordering::SeqCst);
                    purse.settle();
                });
            }
        });
        let most = most.load(Ordering::SeqCst);
        assert!(most <= 150, "{most}");
        assert_eq!(room.state.lock().unwrap().left, 50, "everything came back");
    }

    #[test]
    fn what_is_over_the_budget_is_remembered_and_leaves_the_room_as_it_was() {
        let room = Arc::new(Room::new(1000));
        let purse = purse(&room);
        assert!(purse.over().is_none());
        purse.take(60).unwrap();
        assert!(purse.take(60).is_err() && purse.over().is_some());
        assert_eq!(room.state.lock().unwrap().left, 940);
        purse.give_back(60);
        purse.settle();
        purse.give_back(60);
        assert_eq!(room.state.lock().unwrap().left, 1000);
    }
}
