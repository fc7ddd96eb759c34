//! The commands of `basic`: parse, call, print. Everything worth a unit test lives in the libraries.

mod args;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;

/// The git revision that the binary was built from, where known.
pub(crate) fn revision() -> Option<String> {
    option_env!("BASIC_REVISION").map(String::from)
}

/// Parses the command line and runs it: exit code 0 on success, 2 on a usage error, 1 on any other failure, with one
/// line on standard error.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A message of several lines (a TOML excerpt) becomes one.
            let text = format!("{error:#}");
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            eprintln!("error: {}", lines.join(" "));
            ExitCode::from(1)
        }
    }
}
