//! Tries one damaged input of a target after another.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::attempt::{Limits, Verdict, attempt};
use crate::mutate::damaged;
use crate::outputs::{Leaves, SAME};
use crate::targets::{Target, copy};

/// The options of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The path of the binary.
    pub basic: PathBuf,
    /// The path of another binary to try on the same inputs, for comparison.
    pub before: Option<PathBuf>,
    /// The time for each target.
    pub time: Duration,
    /// The most inputs of each target.
    pub count: u64,
    /// The seed. The n-th input of a target depends only on the seed and n.
    pub seed: u64,
    /// The limits of a command.
    pub limits: Limits,
    /// The folder where failing inputs are kept.
    pub keep: PathBuf,
}

/// An input that failed.
#[derive(Debug)]
pub struct Failure {
    /// How the command misbehaved.
    pub reason: String,
    /// The path of the damaged file.
    pub input: PathBuf,
}

/// The results of a target.
#[derive(Debug, Default)]
pub struct Tally {
    /// The number of inputs that were accepted.
    pub accepted: usize,
    /// The number of inputs that were refused with a message.
    pub refused: usize,
    /// The inputs that failed.
    pub failures: Vec<Failure>,
    /// The longest time that an input took.
    pub slowest: Duration,
    /// The most memory that an input took, in bytes.
    pub largest: u64,
    /// The inputs that failed with the other binary.
    pub before: Vec<Failure>,
    /// The reason why the other binary was not tried: it does not accept the undamaged input.
    pub before_cannot: Option<String>,
}

impl Tally {
    /// The number of inputs that were tried.
    pub fn tried(&self) -> usize {
        self.accepted + self.refused + self.failures.len()
    }
}

/// A target whose files have been written to a folder.
struct Laid<'a> {
    target: &'a Target,
    folder: tempfile::TempDir,
    /// The path of the damaged file in the working folder, and its undamaged content.
    place: PathBuf,
    whole: Vec<u8>,
    /// Each binary's result for the undamaged input, if results are compared.
    results: Vec<(PathBuf, Vec<u8>)>,
}

impl<'a> Laid<'a> {
    fn new(target: &'a Target, basic: &Path, limits: &Limits) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        // Commands record the paths of their files, so everything is made in the folder where it will be read.
        let dir = folder.path().join("work");
        fs::create_dir(&dir)?;
        target.lay(&dir)?;
        for line in &target.made_by {
            let made = Command::new(basic).args(*line).current_dir(&dir).output()?;
            if !made.status.success() {
                let said = String::from_utf8_lossy(&made.stderr).into_owned();
                return Err(io::Error::other(format!("{}: `basic {}`: {said}", target.name, line.join(" "))));
            }
        }
        target.adjust(&dir)?;
        let place = target.place(&dir)?;
        let whole = fs::read(dir.join(&place))?;
        let kept = folder.path().join("kept");
        fs::rename(&dir, &kept)?;
        let mut this = Self { target, folder, place, whole, results: Vec::new() };
        match this.untaken(basic, limits)? {
            None => Ok(this),
            Some(reason) => Err(io::Error::other(format!("{}: the whole input is not taken: {reason}", target.name))),
        }
    }

    /// The reason why a binary does not accept the undamaged input; if it does, its result is kept for comparison.
    fn untaken(&mut self, basic: &Path, limits: &Limits) -> io::Result<Option<String>> {
        Ok(match self.attempt(basic, limits, &self.whole)?.0 {
            Verdict::Accepted => {
                if let Leaves::Same(name) = self.target.leaves {
                    self.results.push((basic.into(), fs::read(self.work().join(name))?));
                }
                None
            }
            Verdict::Refused(reason) | Verdict::Failed(reason) => Some(reason),
        })
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Tries an input. Each attempt begins with a fresh copy of the folder, without the output of earlier ones.
    fn attempt(&self, basic: &Path, limits: &Limits, input: &[u8]) -> io::Result<(Verdict, Duration, u64)> {
        let work = self.work();
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        copy(&self.folder.path().join("kept"), &work)?;
        if let Some((_, result)) = self.results.iter().find(|(made_by, _)| made_by == basic) {
            fs::write(work.join(SAME), result)?;
        }
        fs::write(work.join(&self.place), input)?;
        attempt(self.target, basic, limits, &work)
    }
}

/// Tries damaged inputs of a target until its time is up.
///
/// # Errors
///
/// The operating system's error if files cannot be written or the binary cannot be started, and an error if the binary
/// does not accept the undamaged input.
pub fn fuzz(target: &Target, options: &Options) -> io::Result<Tally> {
    let mut laid = Laid::new(target, &options.basic, &options.limits)?;
    let mut tally = Tally::default();
    if let Some(before) = &options.before {
        tally.before_cannot = laid.untaken(before, &options.limits)?;
    }
    let begun = Instant::now();
    for number in 0..options.count {
        if begun.elapsed() >= options.time {
            break;
        }
        let input = input(target, &laid.whole, options.seed, number);
        let (verdict, time, memory) = laid.attempt(&options.basic, &options.limits, &input)?;
        (tally.slowest, tally.largest) = (tally.slowest.max(time), tally.largest.max(memory));
        match verdict {
            Verdict::Failed(reason) => {
                tally
                    .failures
                    .push(Failure { reason, input: keep(&options.keep, target, options.seed, number, &input)? });
            }
            Verdict::Accepted => tally.accepted += 1,
            Verdict::Refused(_) => tally.refused += 1,
        }
        if let Some(before) = options.before.as_ref().filter(|_| tally.before_cannot.is_none())
            && let Verdict::Failed(reason) = laid.attempt(before, &options.limits, &input)?.0
        {
            let input = keep(&options.keep.join("before"), target, options.seed, number, &input)?;
            tally.before.push(Failure { reason, input });
        }
    }
    Ok(tally)
}

/// Saves an input and returns its path.
fn keep(folder: &Path, target: &Target, seed: u64, number: u64, input: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{}-{seed}-{number}", target.folder()));
    fs::write(&path, input)?;
    Ok(path)
}

/// The n-th input of a target.
fn input(target: &Target, whole: &[u8], seed: u64, number: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number);
    damaged(target.kind, whole, &mut random)
}

/// Tries these inputs of a target, such as those that failed once.
///
/// # Errors
///
/// As for [`fuzz`].
pub fn replay(target: &Target, options: &Options, inputs: &[PathBuf]) -> io::Result<Tally> {
    let laid = Laid::new(target, &options.basic, &options.limits)?;
    let mut tally = Tally::default();
    for path in inputs {
        match laid.attempt(&options.basic, &options.limits, &fs::read(path)?)?.0 {
            Verdict::Failed(reason) => tally.failures.push(Failure { reason, input: path.clone() }),
            Verdict::Accepted => tally.accepted += 1,
            Verdict::Refused(_) => tally.refused += 1,
        }
    }
    Ok(tally)
}
