//! How much memory the portable implementations take for one block of scores or logits.

use super::Kernels;

/// The size of a block on every CPU, and on devices that do not report their memory: 64 MiB.
pub const BLOCK_BUDGET: usize = 64 << 20;

/// The largest size of a block: 1 GiB.
const LARGEST: u64 = 1 << 30;

/// The share of a device's memory that a block takes, as its reciprocal.
const BLOCKS_IN_MEMORY: u64 = 128;

/// The size in bytes of one block of scores or logits on a device with `memory` bytes of memory: a 128th of it, between
/// 64 MiB and 1 GiB. Few blocks mean few launches; about three exist at a time.
pub fn block_budget(memory: u64) -> usize {
    let bytes = (memory / BLOCKS_IN_MEMORY).clamp(BLOCK_BUDGET as u64, LARGEST);
    usize::try_from(bytes).unwrap_or(BLOCK_BUDGET)
}

/// The budget that the caller asked for, else the device's, else the operation's own.
pub(super) fn budget_or<B: Kernels>(asked: Option<usize>, device: &B::Device, own: usize) -> usize {
    asked.or_else(|| B::block_budget(device)).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BUDGET, block_budget};

    #[test]
    fn a_block_grows_with_the_memory_between_its_bounds() {
        let gib = |n: u64| n << 30;
        assert_eq!([0, gib(4), gib(8)].map(block_budget), [BLOCK_BUDGET; 3]);
        assert_eq!(block_budget(gib(80)), 640 << 20);
        assert_eq!([gib(128), u64::MAX].map(block_budget), [1 << 30; 2]);
    }
}
