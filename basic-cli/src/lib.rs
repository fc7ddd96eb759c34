//! The command line of `basic`: it parses the arguments, calls the libraries and prints the results.

// `println!` panics if the reader of a pipe closes it. `say!` and `tell!` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod downloads;
mod memory;
mod output;
mod signals;

use std::process::ExitCode;

use anyhow::Context;
use basic_models::outside::excerpt;
use basic_train::parallel::GroupError;
use clap::Parser;

/// The git revision that the binary was built from, if it is known.
pub(crate) fn revision() -> Option<String> {
    option_env!("BASIC_REVISION").map(String::from)
}

/// Parses the command line and runs the command. The exit code is 0 on success, 2 on a usage error and 1 on any other
/// failure, with one line on standard error. Output that cannot be written is a failure, but a closed pipe is not.
pub fn main() -> ExitCode {
    memory::keep_freed_pages();
    memory::small_pages();
    signals::keep_write_errors();
    let done = match args::Args::try_parse() {
        Ok(args) => {
            args.limits.apply();
            let ready = if args.hub.download { downloads::allow() } else { Ok(()) };
            ready.and_then(|()| commands::run(args.command))
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
            if !matches!(error.downcast_ref(), Some(GroupError::Reported)) {
                output::tell!("error: {}", message(&error));
            }
            ExitCode::from(1)
        }
    }
}

/// Prints what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    let mut text = error.to_string();
    // clap repeats a value before it names the flag, so a long value would push the flag out of the shortened line.
    for arg in std::env::args_os().skip(1).filter_map(|arg| arg.into_string().ok()) {
        let value = if arg.starts_with("--") { arg.split_once('=').map_or("", |(_, value)| value) } else { &arg };
        if value.len() > 200 {
            text = text.replace(value, &excerpt(value));
        }
    }
    if text.starts_with("error: ") {
        // clap puts the usage and the pointer to the help into paragraphs of their own.
        let paragraphs: Vec<String> = text.trim().split("\n\n").map(one_line).collect();
        output::tell!("{}", paragraphs.join("; "));
    } else {
        // Without a command clap gives the help, which is printed with its line breaks.
        let _ = error.print();
    }
    ExitCode::from(2)
}

/// The error with its causes, except for causes that its text already contains, as with errors of our libraries.
pub(crate) fn message(error: &anyhow::Error) -> String {
    error.chain().map(|cause| one_line(&cause.to_string())).fold(String::new(), |text, cause| match text.is_empty() {
        true => cause,
        false if text.contains(&cause) => text,
        false => format!("{text}: {cause}"),
    })
}

/// Joins the lines of a message (a TOML excerpt, a list of arguments) to one line.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}
