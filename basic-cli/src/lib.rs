//! The commands of `basic`: parse, call, print. Everything worth a unit test lives in the libraries.

// A reader who goes away must not end a command by a panic: `say!` and `tell!`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod memory;
mod output;
mod signals;

use std::process::ExitCode;

use anyhow::Context;
use basic_models::outside::excerpt;
use clap::Parser;

/// The git revision that the binary was built from, where known.
pub(crate) fn revision() -> Option<String> {
    option_env!("BASIC_REVISION").map(String::from)
}

/// Parses the command line and runs it: exit code 0 on success, 2 on a usage error, 1 on any other failure, with one
/// line on standard error. Output that is lost is a failure; a reader who goes away is none.
pub fn main() -> ExitCode {
    memory::keep_freed_pages();
    memory::small_pages();
    signals::keep_write_errors();
    let done = match args::Args::try_parse() {
        Ok(args) => {
            args.limits.apply();
            commands::run(args.command)
        }
        Err(help) if !help.use_stderr() => {
            output::print_help(&help);
            Ok(())
        }
        Err(error) => return usage(&error),
    };
    let lost = output::finish().context("standard output");
    match done.and(lost) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::tell!("error: {}", message(&error));
            ExitCode::from(1)
        }
    }
}

/// Tells how the command line is wrong.
fn usage(error: &clap::Error) -> ExitCode {
    let mut text = error.to_string();
    // clap repeats a value before it names the flag, which a long one would push out of the line.
    for arg in std::env::args_os().skip(1).filter_map(|arg| arg.into_string().ok()) {
        let value = if arg.starts_with("--") { arg.split_once('=').map_or("", |(_, value)| value) } else { &arg };
        if value.len() > 200 {
            text = text.replace(value, &excerpt(value));
        }
    }
    if text.starts_with("error: ") {
        // clap begins a paragraph for the usage and another for the help.
        let paragraphs: Vec<String> = text.trim().split("\n\n").map(one_line).collect();
        output::tell!("{}", paragraphs.join("; "));
    } else {
        // The help in place of a missing command, which has many lines.
        let _ = error.print();
    }
    ExitCode::from(2)
}

/// The error with its causes, but for those that its text holds already (the libraries' errors are whole sentences).
pub(crate) fn message(error: &anyhow::Error) -> String {
    error.chain().map(|cause| one_line(&cause.to_string())).fold(String::new(), |text, cause| match text.is_empty() {
        true => cause,
        false if text.contains(&cause) => text,
        false => format!("{text}: {cause}"),
    })
}

/// A message of several lines (a TOML excerpt, a list of arguments) as one.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}
