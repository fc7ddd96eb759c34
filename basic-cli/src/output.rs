//! Prints results on standard output, and progress and messages on standard error.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// The state of standard output.
enum Output {
    /// It can be written, as far as is known.
    Read,
    /// The reader closed the pipe (`| head`), which is not a failure.
    Gone,
    /// It could not be written. This is the first error, which `finish` returns.
    Lost(io::Error),
}

static OUTPUT: Mutex<Output> = Mutex::new(Output::Read);

fn output() -> MutexGuard<'static, Output> {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// Writes to standard output, unless the reader is gone or an earlier write failed.
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

/// Like `println!`, but does not panic if the line cannot be written. A closed pipe is ignored; any other error makes
/// the command fail after it has done its work.
macro_rules! say {
    ($($part:tt)*) => { crate::output::say_line(format_args!($($part)*)) };
}
pub(crate) use say;

/// Like `say!` on standard error, with the text joined to one line.
macro_rules! tell {
    ($($part:tt)*) => { crate::output::tell_line(format_args!($($part)*)) };
}
pub(crate) use tell;

/// Prints the line of `say!`.
pub fn say_line(text: Arguments<'_>) {
    output().attempt(|| writeln!(io::stdout(), "{text}"));
}

/// Prints the line of `tell!`. A failure is ignored, because there is no place to report it.
pub fn tell_line(text: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", presentable(&text.to_string()));
}

/// Prints one JSON object.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print_text(&(serde_json::to_string(value)? + "\n"));
    Ok(())
}

/// Prints text unchanged and flushes it.
pub fn print_text(text: &str) {
    output().attempt(|| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    });
}

/// Prints clap's help or version on standard output.
pub fn print_help(help: &clap::Error) {
    output().attempt(|| help.print());
}

/// Whether further output would be lost, because the reader is gone or an earlier write failed.
pub fn closed() -> bool {
    !matches!(*output(), Output::Read)
}

/// Flushes standard output at the end of a command.
///
/// # Errors
///
/// The first error of standard output, if there was one.
pub fn finish() -> io::Result<()> {
    let mut output = output();
    output.attempt(|| io::stdout().flush());
    match std::mem::replace(&mut *output, Output::Gone) {
        Output::Lost(error) => Err(error),
        Output::Read | Output::Gone => Ok(()),
    }
}

/// How many bytes of the beginning and of the end of a too long line are kept.
const HEAD: usize = 1000;
const TAIL: usize = 400;

/// Makes text safe to print as one line on a terminal, whatever an untrusted file put into it: joins its lines, escapes
/// other control characters (also those that change the writing direction), and shortens a very long line.
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
    // Shortening is useless if the note in the middle would be longer than the text that it replaces.
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

/// A progress bar on standard error with a label, position, message and time left. Hidden if it is not a terminal.
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
        // Escaped characters count with the length of their escapes.
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
