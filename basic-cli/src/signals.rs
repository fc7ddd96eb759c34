//! Signals: Ctrl-C ends a command at a good place, and those that would end it in the middle of a write are ignored.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::output::tell;

/// What the first Ctrl-C (or SIGTERM) sets; it says what is being done. The second does not wait for that.
///
/// # Errors
///
/// If the system takes no handler.
pub fn stop_at_ctrl_c(meanwhile: &'static str) -> Result<Arc<AtomicBool>, ctrlc::Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        tell!("{meanwhile}; once more ends at once");
    })?;
    Ok(stop)
}

/// Makes a write beyond the process's file size limit (`ulimit -f`) fail with an error that names the file. Without
/// this a signal would end the process and leave a half-written file behind.
#[cfg(unix)]
pub fn keep_write_errors() {
    // SAFETY: ignores a signal before any other thread exists; the write that causes it then returns EFBIG.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Does nothing: other systems have no such signal.
#[cfg(not(unix))]
pub fn keep_write_errors() {}
