//! A short run of the fuzzing harness: every format, damaged, for a second or two each.

use std::path::Path;
use std::time::Duration;

use fuzz::{Options, fuzz, targets};

#[test]
fn damaged_files_of_every_format_are_taken_or_refused_and_nothing_else() {
    let kept = tempfile::tempdir().unwrap();
    let options = Options {
        basic: env!("CARGO_BIN_EXE_basic-under-test").into(),
        time: Duration::from_millis(1500),
        seed: 7,
        memory: 8 << 30,
        patience: Duration::from_secs(120),
        keep: kept.path().into(),
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for target in targets(&fixtures) {
        let tally = fuzz(&target, &options).unwrap();
        assert!(tally.failures.is_empty(), "{}: {:?}", target.name, tally.failures);
        assert!(tally.accepted + tally.refused > 0, "{}", target.name);
    }
}
