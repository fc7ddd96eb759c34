//! The memory of CUDA devices: the size of its pages, and how much of it is in use.

// The driver is in C; the comment at each call says what it writes.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn_cubecl::CubeDevice;
use cubecl_runtime::device::CudaDevice;
use cudarc::driver::result as driver;

use crate::ops::block_budget;

/// Makes CubeCL allocate a device's memory in pages that hold the largest block of scores or logits. CubeCL makes a
/// page as large as the largest allocation so far and places nothing new on smaller ones. If the first block of logits
/// came after a whole forward pass, the memory for all that the pass keeps would be allocated twice.
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
    // A device whose memory holds only a few blocks is better off with small pages.
    if block <= all / 16 {
        drop(client.empty(usize::try_from(block).unwrap_or_default()));
    }
}

/// The bytes of each device's memory that were already in use when it was opened, by the driver and by other programs.
static TAKEN_BEFORE: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

/// Bytes of a device's memory that came into use since it was opened.
pub fn memory_used(index: usize) -> Option<u64> {
    let before = TAKEN_BEFORE.lock().unwrap_or_else(PoisonError::into_inner).get(&index).copied();
    Some(memory_taken(index)?.saturating_sub(before.unwrap_or_default()))
}

fn memory_taken(index: usize) -> Option<u64> {
    let device = driver::device::get(i32::try_from(index).ok()?).ok()?;
    // SAFETY: CubeCL keeps the same primary context alive; it is retained and released in pairs.
    let (free, total) = unsafe {
        let context = driver::primary_ctx::retain(device).ok()?;
        let asked = driver::ctx::set_current(context).and_then(|()| driver::mem_get_info());
        driver::primary_ctx::release(device).ok()?;
        asked.ok()?
    };
    Some((total - free) as u64)
}
