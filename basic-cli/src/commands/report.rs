//! `basic report`.

use anyhow::Result;
use basic_train::report::{Options, write};

use crate::args::Report;
use crate::output::{print_json, say};

/// `basic report`.
pub fn report(args: Report) -> Result<()> {
    let written = write(&args.runs, &args.out, &Options { samples: args.samples })?;
    if args.json {
        return print_json(&written);
    }
    say!("report: {} ({} runs, {} KB)", written.page.display(), written.runs.len(), written.bytes.div_ceil(1000));
    Ok(())
}
