//! Shows downloads from the Hugging Face hub on standard error.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};
use basic_models::checkpoint::{DownloadEvent, allow_downloads};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::tell;

/// Allows downloads for this process, each with a bar where standard error is a terminal and else with a line.
pub fn allow() -> Result<()> {
    let bar: Mutex<Option<ProgressBar>> = Mutex::new(None);
    let show = move |event: DownloadEvent<'_>| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            DownloadEvent::File { name, bytes } => {
                // A file begins again where the connection was lost.
                let named = format!("{name} ");
                let same = bar.as_ref().is_some_and(|bar| bar.prefix() == named);
                if let Some(old) = bar.take() {
                    old.finish_and_clear();
                }
                let new = ProgressBar::new(bytes).with_prefix(named);
                let style = "{prefix}{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
                new.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
                if new.is_hidden() && !same {
                    tell!("fetching {name}, {}", indicatif::HumanBytes(bytes));
                }
                *bar = Some(new);
            }
            DownloadEvent::Bytes(bytes) => bar.iter().for_each(|bar| bar.inc(bytes)),
            DownloadEvent::Done => {
                if let Some(done) = bar.take() {
                    done.finish_and_clear();
                }
            }
        }
    };
    allow_downloads(show).map_err(|reason| anyhow!("--download: {reason}"))
}
