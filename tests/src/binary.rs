//! Runs the binary, and checks what must hold for every run.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;

/// The time limit of a command. On the tiny fixtures, one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// A finished run.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` if a signal ended the process.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Arguments of different types in one list.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$(::std::ffi::OsString::from(&$arg)),*] };
}

/// Runs the binary at `path` to its end.
pub fn run(path: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
    finish(Command::new(path).args(args))
}

/// Runs the binary behind shell commands that set up its process (`ulimit`, `trap`).
pub fn run_in_shell(setup: &str, path: &str, args: impl IntoIterator<Item = OsString>) -> Ran {
    let line = format!("{setup}; exec \"$0\" \"$@\"");
    finish(Command::new("sh").arg("-c").arg(line).arg(path).args(args))
}

fn finish(command: &mut Command) -> Ran {
    let output = command.timeout(PATIENCE).output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the binary prints UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Ran {
    /// The run, which must have succeeded and printed nothing on standard error.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        assert_eq!(self.stderr, "", "a run that succeeds has nothing to complain about");
        self
    }

    /// The one JSON object that a successful run with `--json` printed.
    #[track_caller]
    pub fn json(self) -> Value {
        let ran = self.succeeded();
        let value: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.stdout));
        assert!(value.is_object(), "{value}");
        value
    }

    /// The message of a run that must have failed with `code`, without a panic, with nothing on standard output and one
    /// line on standard error. The line must begin with "error:", contain all `mentions` and repeat nothing.
    #[track_caller]
    pub fn refused(self, code: i32, mentions: &[&str]) -> String {
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.stdout, "");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        for mention in mentions {
            assert!(self.stderr.contains(mention), "{mention:?} is not in: {}", self.stderr);
        }
        let said = self.stderr.trim_end();
        for (at, _) in said.match_indices(": ") {
            assert!(!said[..at].ends_with(&said[at..]), "{:?} is said twice: {said}", &said[at..]);
        }
        self.stderr
    }
}
