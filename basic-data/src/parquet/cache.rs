//! Caches the most recently decoded windows of rows.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use basic_models::outside::file_limits;

use super::compact::kept;

/// The windows of a set may keep this fraction (one part in `SHARE`) of a file's budget.
const SHARE: u64 = 4;

/// Identifies a window of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub file: usize,
    pub group: usize,
    pub window: usize,
    pub outline: bool,
}

#[derive(Debug, Default)]
struct Slot {
    window: Mutex<Option<Arc<Vec<RecordBatch>>>>,
    /// The bytes that the window keeps; 0 until it is decoded.
    bytes: AtomicU64,
}

/// The most recently used windows: as many as there are threads, at least 8, and no more bytes than a quarter of a
/// file's budget.
#[derive(Debug, Default)]
pub(super) struct Cache {
    slots: Mutex<VecDeque<(Key, Arc<Slot>)>>,
}

impl Cache {
    /// The window `key`. If it is not cached, `decode` makes it, only once even if several threads request it.
    pub fn get<E>(
        &self,
        key: Key,
        decode: impl FnOnce() -> Result<Vec<RecordBatch>, E>,
    ) -> Result<Arc<Vec<RecordBatch>>, E> {
        let slot = {
            let mut slots = self.slots();
            let held = slots.iter().position(|(held, _)| *held == key).and_then(|place| slots.remove(place));
            let entry = held.unwrap_or_else(|| (key, Arc::default()));
            let slot = entry.1.clone();
            slots.push_back(entry);
            while slots.len() > rayon::current_num_threads().max(8) {
                slots.pop_front();
            }
            slot
        };
        let mut window = slot.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(batches) = &*window {
            return Ok(batches.clone());
        }
        let made = window.insert(Arc::new(decode()?)).clone();
        slot.bytes.store(kept(&made), Ordering::Relaxed);
        let mut slots = self.slots();
        // Windows of large rows may exceed the budget; the window that was just requested always stays.
        while slots.len() > 1 && held(&slots) > file_limits().bytes / SHARE {
            let oldest = slots.iter().position(|(held, slot)| *held != key && slot.bytes.load(Ordering::Relaxed) > 0);
            let Some(oldest) = oldest else { break };
            slots.remove(oldest);
        }
        Ok(made)
    }

    /// The bytes that the cached windows keep.
    #[cfg(test)]
    pub fn kept(&self) -> u64 {
        held(&self.slots())
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, VecDeque<(Key, Arc<Slot>)>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held(slots: &VecDeque<(Key, Arc<Slot>)>) -> u64 {
    slots.iter().fold(0, |sum, (_, slot)| sum.saturating_add(slot.bytes.load(Ordering::Relaxed)))
}
