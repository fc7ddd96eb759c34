//! One damaged input after another.

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

/// How to try.
#[derive(Debug, Clone)]
pub struct Options {
    /// The binary.
    pub basic: PathBuf,
    /// Another binary that reads the same inputs, to compare with.
    pub before: Option<PathBuf>,
    /// How long each target is tried.
    pub time: Duration,
    /// How many inputs are tried at most.
    pub count: u64,
    /// Same seed, same inputs: the n-th of a target depends on nothing else.
    pub seed: u64,
    /// What a command may take.
    pub limits: Limits,
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
    /// The longest time that an input took.
    pub slowest: Duration,
    /// The most memory, in bytes.
    pub largest: u64,
    /// Inputs that failed with the other binary.
    pub before: Vec<Failure>,
    /// Why the other binary read none of them: it does not take the whole input.
    pub before_cannot: Option<String>,
}

impl Tally {
    /// Inputs that were tried.
    pub fn tried(&self) -> usize {
        self.accepted + self.refused + self.failures.len()
    }
}

/// A target with its files laid out.
struct Laid<'a> {
    target: &'a Target,
    folder: tempfile::TempDir,
    /// The damaged file, in the folder and whole.
    place: PathBuf,
    whole: Vec<u8>,
    /// What binaries make of the whole input, where that is compared.
    results: Vec<(PathBuf, Vec<u8>)>,
}

impl<'a> Laid<'a> {
    fn new(target: &'a Target, basic: &Path, limits: &Limits) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        // Commands remember where their files lie: all is made where it is read, and then kept.
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

    /// What a binary says against the whole input; what it makes of it is kept, to compare with.
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

    /// Tries an input. What commands left before must not meet it: each begins with the folder as it was laid out.
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
/// The operating system's, where files cannot be laid out or the binary cannot be started; the whole input is not taken.
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

/// Keeps an input; where.
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
