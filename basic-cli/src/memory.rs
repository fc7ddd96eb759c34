//! What the system does for the process: what the allocator does with fresh and with freed memory, and how files that
//! are too large end.

#![allow(unsafe_code)]

use libmimalloc_sys::{mi_option_get, mi_option_set_default, mi_option_t};

/// `mi_option_purge_delay` in mimalloc 2's and 3's `mi_option_e`; libmimalloc-sys has no name for it.
const PURGE_DELAY: mi_option_t = 15;

/// Keeps freed pages. By default mimalloc gives them back to the system after a second, in the middle of a training step
/// that takes the same ones again, and the kernel clears each (docs/performance.md has what that costs).
/// `MIMALLOC_PURGE_DELAY` (milliseconds; -1 for never) still overrides it.
pub fn keep_freed_pages() {
    // SAFETY: both calls read and write one number of mimalloc's option table, whose bounds they check themselves. Done
    // before any other thread exists.
    unsafe {
        // Another number than the defaults of mimalloc 2 (10) and 3 (1000) is the user's, or another option's.
        if matches!(mi_option_get(PURGE_DELAY), 10 | 1000) {
            mi_option_set_default(PURGE_DELAY, -1);
        }
    }
}

/// Takes fresh memory in small pages. mimalloc asks for huge ones (2 MiB), which on a virtual machine whose kernel
/// reports free ones to its host are fetched from there each time, and round up what is in use; training is no faster
/// for them (docs/performance.md has the figures). A set `MIMALLOC_ALLOW_THP` leaves that to mimalloc.
#[cfg(target_os = "linux")]
pub fn small_pages() {
    if std::env::var_os("MIMALLOC_ALLOW_THP").is_none() {
        // SAFETY: sets a flag of this process that only affects how later page faults are served. A kernel without it
        // says so, which changes nothing.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    }
}

/// Other systems have no such switch.
#[cfg(not(target_os = "linux"))]
pub fn small_pages() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_purge_delay_is_where_mimalloc_has_it_and_is_switched_off() {
        // SAFETY: reads one number of mimalloc's option table.
        let before = unsafe { mi_option_get(PURGE_DELAY) };
        assert!(matches!(before, 10 | 1000 | -1), "{before} is not a default of the purge delay: the option has moved");
        keep_freed_pages();
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, -1);
    }
}
