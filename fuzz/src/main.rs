//! `cargo run -p fuzz -- target/debug/basic [SECONDS A TARGET] [SEED] [TARGET]`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use fuzz::{Options, fuzz, targets};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(basic) = args.next() else {
        eprintln!("usage: fuzz BASIC [SECONDS A TARGET, 60] [SEED, 0] [TARGET]");
        return ExitCode::from(2);
    };
    let (Ok(seconds), Ok(seed)) = (args.next().map_or(Ok(60), |n| n.parse()), args.next().map_or(Ok(0), |n| n.parse()))
    else {
        eprintln!("error: seconds and seed are whole numbers");
        return ExitCode::from(2);
    };
    let only = args.next();
    let options = Options {
        basic: Path::new(&basic).canonicalize().unwrap_or_else(|_| basic.into()),
        time: Duration::from_secs(seconds),
        seed,
        memory: 8 << 30,
        patience: Duration::from_secs(60),
        keep: PathBuf::from("fuzz/failures"),
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut failed = 0;
    for target in targets(&fixtures).iter().filter(|target| only.as_deref().is_none_or(|only| only == target.name)) {
        match fuzz(target, &options) {
            Ok(tally) => {
                let tried = tally.accepted + tally.refused + tally.failures.len();
                let (accepted, refused) = (tally.accepted, tally.refused);
                println!(
                    "{:24} {tried:7} tried {accepted:7} accepted {refused:7} refused {:4} failed",
                    target.name,
                    tally.failures.len()
                );
                failed += tally.failures.len();
                tally.failures.iter().for_each(|f| println!("    {}: {}", f.input.display(), f.reason.trim()));
            }
            Err(error) => {
                println!("{:24} {error}", target.name);
                failed += 1;
            }
        }
    }
    ExitCode::from(u8::from(failed > 0))
}
