//! Runs the fuzzing harness briefly: a few damaged inputs of every format, and the inputs that failed in the past.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fuzz::{Limits, Options, Target, fuzz, regressions, replay, targets};

/// The number of damaged inputs of each target: BASIC_FUZZ_INPUTS, which `.ci/run` sets, or 4. docs/fuzzing.md has the
/// way to run other seeds.
fn inputs() -> u64 {
    let said = std::env::var("BASIC_FUZZ_INPUTS").ok();
    said.map_or(4, |count| count.parse().expect("BASIC_FUZZ_INPUTS is a number"))
}

fn options(keep: &Path) -> Options {
    Options {
        basic: env!("CARGO_BIN_EXE_basic-under-test").into(),
        before: None,
        time: Duration::MAX,
        count: inputs(),
        seed: 7,
        limits: Limits { patience: Duration::from_secs(120), ..Limits::DEFAULT },
        keep: keep.into(),
    }
}

/// Does `work` for every target, on as many threads as there are processors.
fn each(work: impl Fn(&Target) + Sync) {
    let all = targets(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"));
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(target) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(target);
                }
            });
        }
    });
}

#[test]
fn damaged_files_of_every_format_are_taken_or_refused_and_nothing_else() {
    let kept = tempfile::tempdir().unwrap();
    let options = options(kept.path());
    each(|target| {
        let tally = fuzz(target, &options).unwrap();
        assert!(tally.failures.is_empty(), "{}: {:?}", target.name, tally.failures);
        assert_eq!(tally.tried() as u64, inputs(), "{}", target.name);
    });
}

#[test]
fn what_failed_once_fails_no_more() {
    let kept = tempfile::tempdir().unwrap();
    let options = options(kept.path());
    let tried = AtomicUsize::new(0);
    each(|target| {
        let inputs = regressions(target);
        if inputs.is_empty() {
            return;
        }
        let tally = replay(target, &options, &inputs).unwrap();
        assert!(tally.failures.is_empty(), "{}: {:?}", target.name, tally.failures);
        tried.fetch_add(tally.tried(), Ordering::Relaxed);
    });
    assert!(tried.into_inner() > 0, "no input is kept in fuzz/regressions");
}
