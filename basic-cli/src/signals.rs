//! Ignores signals that would end a command in the middle of a write.

#![allow(unsafe_code)]

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
