//! Sets how the allocator and the kernel handle fresh and freed memory of this process.

#![allow(unsafe_code)]

use libmimalloc_sys::{mi_option_get, mi_option_set_default, mi_option_t};

/// The number of `mi_option_purge_delay` in the `mi_option_e` of mimalloc 2 and 3, which libmimalloc-sys does not name.
const PURGE_DELAY: mi_option_t = 15;

/// Keeps freed pages. By default mimalloc returns them to the system after a second, in the middle of a training step
/// that needs them again, and the kernel then clears each (docs/performance.md has the cost). `MIMALLOC_PURGE_DELAY`
/// (milliseconds; -1 for never) still overrides this.
pub fn keep_freed_pages() {
    // SAFETY: both calls access one number in mimalloc's option table and check its bounds themselves. No other thread
    // exists yet.
    unsafe {
        // The defaults of mimalloc 2 and 3 are 10 and 1000. Any other value was set by the user, or is another option.
        if matches!(mi_option_get(PURGE_DELAY), 10 | 1000) {
            mi_option_set_default(PURGE_DELAY, -1);
        }
    }
}

/// Disables transparent huge pages (2 MiB), which mimalloc requests. On a virtual machine whose kernel reports free
/// pages to its host, each one must be fetched from the host again, and they increase the memory in use, but training
/// is no faster with them (docs/performance.md has the figures). If `MIMALLOC_ALLOW_THP` is set, mimalloc decides.
#[cfg(target_os = "linux")]
pub fn small_pages() {
    if std::env::var_os("MIMALLOC_ALLOW_THP").is_none() {
        // SAFETY: sets a flag of this process that only affects how later page faults are served. A kernel without the
        // flag returns an error, which is harmless.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    }
}

/// Does nothing: other systems have no such setting.
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
