//! Runs `basic report`.

use anyhow::Result;
use basic_study::report::{Options, write};

use crate::args::Report;
use crate::output::{print_json, say};

/// Runs `basic report`.
pub fn report(args: Report) -> Result<()> {
    let options = Options { samples: args.samples, image_root: args.image_root };
    let written = write(&args.runs, &args.out, &options)?;
    if args.json {
        return print_json(&written);
    }
    let counts = [(written.runs.len(), "run", "runs"), (written.studies.len(), "study", "studies")];
    let told = counts.iter().filter(|(count, ..)| *count > 0);
    let told = told.map(|(count, one, several)| format!("{count} {}, ", if *count == 1 { one } else { several }));
    say!("report: {} ({}{} KB)", written.page.display(), told.collect::<String>(), written.bytes.div_ceil(1000));
    Ok(())
}
