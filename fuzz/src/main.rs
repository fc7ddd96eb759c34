//! The command line of the fuzzer: `cargo run -p fuzz -- target/debug/basic --seconds 60`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use fuzz::{Limits, Options, Tally, Target, fuzz, replay, targets};

const USAGE: &str = "usage: fuzz BASIC [--seconds N (a format; 60)] [--count N (inputs of a format)] [--seed N (0)] [--patience SECONDS (60)] \
    [--only TARGET or FORMAT] [--before OTHER_BASIC] [--replay FILE (an input that was kept, with --only)]";

struct Line {
    options: Options,
    only: Option<String>,
    replayed: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let Some(line) = line(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let all = targets(&fixtures);
    let wanted =
        |target: &&Target| line.only.as_deref().is_none_or(|only| only == target.name || only == target.format);
    let (mut tried, mut failed) = (0, 0);
    for target in all.iter().filter(wanted) {
        let done = match line.replayed.is_empty() {
            true => {
                fuzz(target, &share(&line.options, all.iter().filter(|other| other.format == target.format).count()))
            }
            false => replay(target, &line.options, &line.replayed),
        };
        match done {
            Ok(tally) => {
                print(target, &tally, line.options.before.is_some());
                tried += tally.tried();
                failed += tally.failures.len();
            }
            Err(error) => {
                println!("{:12} {:36} {error}", target.format, target.name);
                failed += 1;
            }
        }
        let _ = std::io::stdout().flush();
    }
    println!("{tried} inputs, {failed} failures");
    ExitCode::from(u8::from(failed > 0))
}

/// A target's share of its format's time and inputs.
fn share(options: &Options, targets: usize) -> Options {
    let time = options.time.checked_div(targets as u32).unwrap_or(options.time);
    Options { time, count: options.count.div_ceil(targets as u64), ..options.clone() }
}

fn print(target: &Target, tally: &Tally, compared: bool) {
    let (tried, accepted, refused) = (tally.tried(), tally.accepted, tally.refused);
    let before = match &tally.before_cannot {
        _ if !compared => String::new(),
        Some(reason) => format!(", before: does not take the whole input ({})", reason.trim()),
        None => format!(", before: {} failed", tally.before.len()),
    };
    let (format, name, failed) = (target.format, target.name, tally.failures.len());
    let (slowest, largest) = (tally.slowest.as_secs_f64(), tally.largest >> 20);
    println!(
        "{format:14} {name:36} {tried:6} tried {accepted:6} accepted {refused:6} refused {failed:4} failed, at most \
         {slowest:.1} s, {largest} MiB{before}"
    );
    tally.failures.iter().for_each(|f| println!("    {}: {}", f.input.display(), f.reason.trim().replace('\n', "\\n")));
    let mut reasons: Vec<&str> = tally.before.iter().map(|f| f.reason.split(':').next().unwrap_or_default()).collect();
    reasons.sort_unstable();
    reasons.chunk_by(|a, b| a == b).for_each(|same| println!("    before, {} times: {}", same.len(), same[0]));
}

fn line(mut args: impl Iterator<Item = String>) -> Option<Line> {
    let whole = |path: String| Path::new(&path).canonicalize().unwrap_or_else(|_| path.into());
    let mut line = Line {
        options: Options {
            basic: whole(args.next().filter(|first| !first.starts_with('-'))?),
            before: None,
            time: Duration::from_secs(60),
            count: u64::MAX,
            seed: 0,
            limits: Limits::DEFAULT,
            keep: PathBuf::from("fuzz/failures"),
        },
        only: None,
        replayed: Vec::new(),
    };
    while let Some(flag) = args.next() {
        let value = args.next()?;
        match flag.as_str() {
            "--seconds" => line.options.time = Duration::from_secs(value.parse().ok()?),
            "--count" => {
                line.options.count = value.parse().ok()?;
                line.options.time = Duration::MAX;
            }
            "--patience" => line.options.limits.patience = Duration::from_secs(value.parse().ok()?),
            "--seed" => line.options.seed = value.parse().ok()?,
            "--only" => line.only = Some(value),
            "--before" => line.options.before = Some(whole(value)),
            "--replay" => line.replayed.push(whole(value)),
            _ => return None,
        }
    }
    Some(line)
}
