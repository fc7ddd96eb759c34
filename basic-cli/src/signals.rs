//! Signals that must not end a command in the middle of a write.

#![allow(unsafe_code)]

/// A file that grows beyond the process's limit (`ulimit -f`) is a write error, which names the file, and no death by
/// signal, which leaves a half-written file behind.
#[cfg(unix)]
pub fn keep_write_errors() {
    // SAFETY: ignores a signal, before any other thread exists; the write that it comes with then gives EFBIG.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Other systems have no such signal.
#[cfg(not(unix))]
pub fn keep_write_errors() {}
