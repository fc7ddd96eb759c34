//! One damaged input after another, each in a process of its own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::Target;
use crate::mutate::damaged;
use crate::targets::copy;

/// How to try.
#[derive(Debug, Clone)]
pub struct Options {
    /// The binary.
    pub basic: PathBuf,
    /// How long each target is tried.
    pub time: Duration,
    /// Same seed, same inputs.
    pub seed: u64,
    /// Memory that a command may take, in bytes of address space.
    pub memory: u64,
    /// How long a command may run.
    pub patience: Duration,
    /// Where inputs that failed are kept.
    pub keep: PathBuf,
}

/// An input that failed.
#[derive(Debug)]
pub struct Failure {
    /// What happened.
    pub reason: String,
    /// The damaged file.
    pub input: PathBuf,
}

/// What came of a target.
#[derive(Debug, Default)]
pub struct Tally {
    /// Inputs that were taken.
    pub accepted: usize,
    /// Inputs that were refused with a message.
    pub refused: usize,
    /// Inputs that failed.
    pub failures: Vec<Failure>,
}

/// Tries damaged inputs of a target until its time is up.
///
/// # Errors
///
/// The operating system's, where files cannot be laid out or the binary cannot be started.
pub fn fuzz(target: &Target, options: &Options) -> io::Result<Tally> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("work");
    let mut tally = Tally::default();
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    fs::create_dir(&dir)?;
    target.lay(&dir)?;
    prepare(target, options, &dir)?;
    let kept = folder.path().join("kept");
    copy(&dir, &kept)?;
    let whole = fs::read(dir.join(target.damaged))?;
    match attempt(target, options, &dir)? {
        (true, None) => {}
        (_, reason) => {
            let reason = reason.unwrap_or_else(|| "it is refused".into());
            return Err(io::Error::other(format!("{}: the whole input is not taken: {reason}", target.name)));
        }
    }
    // What the command leaves must not meet the next input: each begins with the folder as it was laid out.
    let begun = Instant::now();
    while begun.elapsed() < options.time {
        fs::remove_dir_all(&dir)?;
        copy(&kept, &dir)?;
        let bytes = damaged(&whole, &mut random);
        fs::write(dir.join(target.damaged), &bytes)?;
        match attempt(target, options, &dir)? {
            (_, Some(reason)) => {
                fs::create_dir_all(&options.keep)?;
                let name = format!("{}-{}-{}", target.name.replace(' ', "-"), options.seed, tally.failures.len());
                let input = options.keep.join(name);
                fs::write(&input, &bytes)?;
                tally.failures.push(Failure { reason, input });
            }
            (true, None) => tally.accepted += 1,
            (false, None) => tally.refused += 1,
        }
    }
    Ok(tally)
}

/// Has the binary write the file that is damaged, where its format is no text.
fn prepare(target: &Target, options: &Options, dir: &Path) -> io::Result<()> {
    if target.made_by.is_empty() {
        return Ok(());
    }
    let made = Command::new(&options.basic).args(target.made_by).current_dir(dir).output()?;
    match made.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned())),
    }
}

/// Whether the command took the input, and what is wrong with how it ended.
fn attempt(target: &Target, options: &Options, dir: &Path) -> io::Result<(bool, Option<String>)> {
    let (out, err) = (dir.join("stdout.txt"), dir.join("stderr.txt"));
    let mut command = Command::new(&options.basic);
    command.args(target.line).current_dir(dir).stdin(Stdio::null());
    command.stdout(File::create(out)?).stderr(File::create(&err)?);
    limit(&mut command, options.memory);
    let mut child = command.spawn()?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if begun.elapsed() > options.patience => {
                child.kill()?;
                child.wait()?;
                return Ok((false, Some(format!("ran for more than {} s", options.patience.as_secs()))));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let said = String::from_utf8_lossy(&fs::read(&err)?).into_owned();
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    Ok(match status.code() {
        Some(0) if !said.contains("panicked") => (true, None),
        Some(1) if errors == 1 && !said.contains("panicked") => (false, None),
        _ => (false, Some(format!("{status}: {}", said.chars().take(300).collect::<String>()))),
    })
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn limit(command: &mut Command, bytes: u64) {
    use std::os::unix::process::CommandExt;
    // SAFETY: setrlimit alone runs between fork and exec, which is safe there.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

#[cfg(not(unix))]
fn limit(_command: &mut Command, _bytes: u64) {}
