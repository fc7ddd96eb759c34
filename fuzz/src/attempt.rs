//! Runs one command in a process of its own with limits, and judges how it ended.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Target;
use crate::outputs::{whole, without_leftovers};

/// The limits of a command.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The peak resident memory, in bytes. Reading one file may take 1 GiB (docs/limits.md).
    pub resident: u64,
    /// The address space, in bytes. An allocation beyond it fails.
    pub addresses: u64,
    /// The time that it may run.
    pub patience: Duration,
}

impl Limits {
    /// 2 GiB of memory, 6 GiB of address space, and a minute.
    pub const DEFAULT: Self = Self { resident: 2 << 30, addresses: 6 << 30, patience: Duration::from_secs(60) };
}

/// The largest file that a command may write, in bytes.
const FILE: u64 = 1 << 28;

/// The most bytes of a line on standard error.
const LINE: usize = 2000;
/// The most bytes on standard error.
const ALL: usize = 100_000;

/// The result of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The command accepted it.
    Accepted,
    /// The command refused it with this message.
    Refused(String),
    /// The command misbehaved, in this way.
    Failed(String),
}

/// Runs the target's command in `dir`; returns the verdict, the time, and the peak memory in bytes.
pub(crate) fn attempt(
    target: &Target,
    basic: &Path,
    limits: &Limits,
    dir: &Path,
) -> io::Result<(Verdict, Duration, u64)> {
    let begun = Instant::now();
    let (out, err) = (dir.join("stdout.txt"), dir.join("stderr.txt"));
    let mut command = Command::new(basic);
    command.args(target.line).current_dir(dir).stdin(Stdio::null());
    command.stdout(File::create(&out)?).stderr(File::create(&err)?);
    let Some(ended) = ended(&mut command, limits)? else {
        let late = format!("ran for more than {} s", limits.patience.as_secs());
        return Ok((Verdict::Failed(late), begun.elapsed(), 0));
    };
    let time = begun.elapsed();
    let (said, told) = (fs::read(&out)?, fs::read(&err)?);
    fs::remove_file(out)?;
    fs::remove_file(err)?;
    Ok((judged(target, &ended, limits, dir, &said, &told), time, ended.resident))
}

fn judged(target: &Target, ended: &Ended, limits: &Limits, dir: &Path, said: &[u8], told: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(told);
    let failed = |reason: String| Verdict::Failed(format!("{reason}: {}", text.chars().take(400).collect::<String>()));
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    let taken = match (ended.code, ended.signal) {
        (Some(0), _) => true,
        (Some(1), _) => false,
        (Some(code), _) => return failed(format!("exit code {code}")),
        (None, signal) => return failed(format!("signal {}", signal.unwrap_or_default())),
    };
    if text.contains("panicked") || text.contains("has overflowed its stack") {
        return failed("a panic".into());
    }
    if std::str::from_utf8(told).is_err() || std::str::from_utf8(said).is_err() {
        return failed("output that is not UTF-8".into());
    }
    if ended.resident > limits.resident {
        return failed(format!("{} MiB of memory", ended.resident >> 20));
    }
    if let Some(long) = text.lines().find(|line| line.len() > LINE) {
        return failed(format!("a line of {} bytes", long.len()));
    }
    if told.len() > ALL {
        return failed(format!("{} bytes on standard error", told.len()));
    }
    // Other lines may show progress or warnings, but the error must be the last one.
    if errors.len() != usize::from(!taken) || (!taken && !text.lines().last().is_some_and(|l| l.starts_with("error: ")))
    {
        return failed(format!("{} lines of errors", errors.len()));
    }
    match without_leftovers(dir).and_then(|()| whole(target.leaves, dir, taken)) {
        Err(reason) => failed(reason),
        Ok(()) if taken => Verdict::Accepted,
        Ok(()) => Verdict::Refused(errors.concat()),
    }
}

/// How a process ended.
struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
    resident: u64,
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn ended(command: &mut Command, limits: &Limits) -> io::Result<Option<Ended>> {
    limited(command, limits);
    let child = command.spawn()?;
    let pid = child.id() as libc::pid_t;
    let begun = Instant::now();
    let (mut status, mut pause) = (0, Duration::from_micros(500));
    // SAFETY: rusage is a struct of integers, for which zero is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        let late = begun.elapsed() > limits.patience;
        // SAFETY: `pid` is a child that nothing else waits for; the pointers are valid for the call.
        let found = unsafe {
            if late {
                libc::kill(pid, libc::SIGKILL);
            }
            libc::wait4(pid, &mut status, if late { 0 } else { libc::WNOHANG }, &mut usage)
        };
        match found {
            0 => std::thread::sleep(pause),
            -1 => return Err(io::Error::last_os_error()),
            _ if late => return Ok(None),
            _ => break,
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    }
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    Ok(Some(Ended {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        resident: usage.ru_maxrss as u64 * unit,
    }))
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn limited(command: &mut Command, limits: &Limits) {
    use std::os::unix::process::CommandExt;
    let addresses = limits.addresses;
    // SAFETY: between fork and exec only setrlimit runs, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for (what, most) in [(libc::RLIMIT_AS, addresses), (libc::RLIMIT_FSIZE, FILE), (libc::RLIMIT_CORE, 0)] {
                let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
                if libc::setrlimit(what, &limit) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

#[cfg(not(unix))]
fn ended(command: &mut Command, _limits: &Limits) -> io::Result<Option<Ended>> {
    Ok(Some(Ended { code: command.status()?.code(), signal: None, resident: 0 }))
}
