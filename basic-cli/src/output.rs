//! What the commands print: one JSON object on standard output, or progress on standard error.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// What standard output comes to.
enum Output {
    /// Somebody reads it, as far as is known.
    Read,
    /// The reader has seen enough (`| head`) and went away, which is no failure.
    Gone,
    /// It could not be written: by its first error, which `finish` tells.
    Lost(io::Error),
}

static OUTPUT: Mutex<Output> = Mutex::new(Output::Read);

fn output() -> MutexGuard<'static, Output> {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// Does something with standard output, unless that is of no use any more.
    fn attempt(&mut self, work: impl FnOnce() -> io::Result<()>) {
        if let Self::Read = self {
            *self = match work() {
                Ok(()) => Self::Read,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Self::Gone,
                Err(error) => Self::Lost(error),
            };
        }
    }
}

/// `println!` for a reader who may have seen enough, which is no reason to panic. What could not be written ends a command
/// as an error, once it has done its work.
macro_rules! say {
    ($($part:tt)*) => { crate::output::say_line(format_args!($($part)*)) };
}
pub(crate) use say;

/// The same on standard error, where a line stays one line.
macro_rules! tell {
    ($($part:tt)*) => { crate::output::tell_line(format_args!($($part)*)) };
}
pub(crate) use tell;

/// The line of `say!`.
pub fn say_line(text: Arguments<'_>) {
    output().attempt(|| writeln!(io::stdout(), "{text}"));
}

/// The line of `tell!`. Nobody can be told that this failed.
pub fn tell_line(text: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", presentable(&text.to_string()));
}

/// Prints one JSON object.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print_text(&(serde_json::to_string(value)? + "\n"));
    Ok(())
}

/// Prints text as it is, at once.
pub fn print_text(text: &str) {
    output().attempt(|| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    });
}

/// Writes what clap says of itself (help, the version) on standard output.
pub fn print_help(help: &clap::Error) {
    output().attempt(|| help.print());
}

/// Whether printing more is of no use: the reader is gone, or the output is lost.
pub fn closed() -> bool {
    !matches!(*output(), Output::Read)
}

/// Writes what is still held back, at the end of a command.
///
/// # Errors
///
/// The first of all errors of standard output.
pub fn finish() -> io::Result<()> {
    let mut output = output();
    output.attempt(|| io::stdout().flush());
    match std::mem::replace(&mut *output, Output::Gone) {
        Output::Lost(error) => Err(error),
        Output::Read | Output::Gone => Ok(()),
    }
}

/// What is kept of the head and of the tail of a line that is too long, in bytes.
const HEAD: usize = 1000;
const TAIL: usize = 400;

/// A line for a terminal, whatever somebody else's file put into it: its lines joined, other control characters (and those
/// that turn the direction of writing) escaped, and only head and tail of a very long one.
pub fn presentable(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut said = String::new();
    for (place, line) in lines.enumerate() {
        if place > 0 {
            said.push(' ');
        }
        for c in line.chars() {
            match c.is_control() || matches!(c, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}') {
                true => said.extend(c.escape_default()),
                false => said.push(c),
            }
        }
    }
    shortened(said)
}

fn shortened(text: String) -> String {
    // Where the words between the two would be longer than what they replace, nothing is gained.
    if text.len() <= HEAD + TAIL + 60 {
        return text;
    }
    let boundary = |at: usize, step: fn(usize) -> usize| {
        let mut at = at;
        while !text.is_char_boundary(at) {
            at = step(at);
        }
        at
    };
    let (head, tail) = (boundary(HEAD, |at| at - 1), boundary(text.len() - TAIL, |at| at + 1));
    format!("{}… ({} bytes left out) …{}", &text[..head], tail - head, &text[tail..])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_it_quotes() {
        assert_eq!(presentable("a file:\n  key = 1\r\n\n  is wrong\n"), "a file: key = 1 is wrong");
        assert_eq!(presentable("a\rb\u{1b}[31mc\u{85}d\u{2028}e\tf"), "a\\rb\\u{1b}[31mc\\u{85}d\\u{2028}e\\tf");
        assert_eq!(presentable("gpj.\u{202e}exe"), "gpj.\\u{202e}exe");
        assert_eq!(presentable("naïve 図.png"), "naïve 図.png");
    }

    #[test]
    fn a_long_line_keeps_its_head_and_its_tail() {
        let long = format!("config.json: hidden_act: {}: use silu", "図".repeat(100_000));
        let said = presentable(&long);
        assert!(said.starts_with("config.json: hidden_act: 図") && said.ends_with("図: use silu"), "{said}");
        assert!(said.len() < 1500 && said.contains(" bytes left out) "), "{} bytes", said.len());
        // Escapes count as they are shown.
        assert!(presentable(&"\u{1}".repeat(2000)).len() < 1500);
        let short = "x".repeat(1400);
        assert_eq!(presentable(&short), short);
    }

    #[test]
    fn the_first_error_is_kept_and_a_reader_who_went_away_is_none() {
        let failed = |kind: ErrorKind| move || Err(io::Error::from(kind));
        let mut output = Output::Read;
        output.attempt(|| Ok(()));
        output.attempt(failed(ErrorKind::StorageFull));
        output.attempt(|| panic!("nothing more is written"));
        assert!(matches!(&output, Output::Lost(error) if error.kind() == ErrorKind::StorageFull));
        let mut output = Output::Read;
        output.attempt(failed(ErrorKind::BrokenPipe));
        output.attempt(failed(ErrorKind::StorageFull));
        assert!(matches!(output, Output::Gone));
    }
}
