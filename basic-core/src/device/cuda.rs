//! The memory of CUDA devices: in which pages it is cut, and how much of it is taken.

// The driver is C: each call says what it writes.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn_cubecl::CubeDevice;
use cubecl_runtime::device::CudaDevice;
use cudarc::driver::result as driver;

use crate::ops::block_budget;

/// Has CubeCL cut a device's memory into pages that hold the largest block of scores or logits. CubeCL makes pages as
/// large as the largest allocation so far and puts nothing new on smaller ones: where the first block of logits comes
/// after a whole forward pass, all that the pass kept is held twice.
pub fn size_pages(index: usize) {
    let mut taken = TAKEN_BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains_key(&index) {
        return;
    }
    let client = CubeDevice::Cuda(CudaDevice { index }).client();
    taken.insert(index, memory_taken(index).unwrap_or_default());
    let memory = &client.properties().memory;
    let Some(all) = memory.max_memory() else { return };
    let block = u64::try_from(block_budget(all)).unwrap_or(u64::MAX).min(memory.max_page_size);
    // A device with room for a few blocks alone is better off with small pages.
    if block <= all / 16 {
        drop(client.empty(usize::try_from(block).unwrap_or_default()));
    }
}

/// What of each device's memory was taken when it was opened: the driver's own share, and other programs'.
static TAKEN_BEFORE: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

/// Bytes of a device's memory that were taken since it was opened.
pub fn memory_used(index: usize) -> Option<u64> {
    let before = TAKEN_BEFORE.lock().unwrap_or_else(PoisonError::into_inner).get(&index).copied();
    Some(memory_taken(index)?.saturating_sub(before.unwrap_or_default()))
}

fn memory_taken(index: usize) -> Option<u64> {
    let device = driver::device::get(i32::try_from(index).ok()?).ok()?;
    // SAFETY: the primary context is CubeCL's too, which keeps it; retained and released in pairs.
    let (free, total) = unsafe {
        let context = driver::primary_ctx::retain(device).ok()?;
        let asked = driver::ctx::set_current(context).and_then(|()| driver::mem_get_info());
        driver::primary_ctx::release(device).ok()?;
        asked.ok()?
    };
    Some((total - free) as u64)
}
