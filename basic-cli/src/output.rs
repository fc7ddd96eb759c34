//! What the commands print: one JSON object on standard output, or progress on standard error.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Prints one JSON object.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print_text(&(serde_json::to_string(value)? + "\n"))
}

/// `println!` for a reader who may have seen enough (`| head`), which is no reason to panic.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}
pub(crate) use say;

/// The same on standard error.
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}
pub(crate) use tell;

/// Prints text to whoever reads it: a reader who has seen enough (`| head`) is no failure.
pub fn print_text(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// A bar on standard error: label, bar, position, message, time left. Hidden where standard error is no terminal.
pub fn bar(label: &str, length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    let style = ProgressStyle::with_template("{prefix:32!} {bar:24} {pos:>5}/{len:<5} {msg} left {eta}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("█▌ "));
    }
    bar.set_prefix(label.to_string());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
