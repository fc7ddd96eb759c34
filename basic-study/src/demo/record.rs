//! What a demo writes and tells while it runs: after every seed its results so far.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use basic_eval::questions::read_questions;

use super::conclusion::{Conclusion, PairedSeed};
use super::summary::Summary;
use super::{ARMS, DemoConfig, DemoError, outcome, report, write};
use crate::studies::embedded_study::CellRun;
use crate::studies::{AblateError, Study};

/// A seed that both arms have done.
#[derive(Debug)]
pub struct SeedDone<'a> {
    /// Its two scores.
    pub scores: PairedSeed,
    /// What all seeds so far show.
    pub so_far: &'a Conclusion,
    /// How many there will be.
    pub of: usize,
    /// How long the rest may take, by how long this much took.
    pub seconds_left: f64,
}

impl SeedDone<'_> {
    /// `seed 3: LLaVA 47.9, BASIC 51.2 (+3.3); so far +2.1 [−0.5, +4.7], 4 of 32 seeds; about 5 min left`
    #[must_use]
    pub fn line(&self) -> String {
        let PairedSeed { seed, llava, basic } = self.scores;
        let own = report::points(self.scores.difference());
        let (so_far, done) = (self.so_far.so_far(), self.so_far.seeds.len());
        let left = match self.seconds_left / 60.0 {
            _ if done == self.of => String::new(),
            minutes if minutes < 1.0 => "; less than a minute left".to_owned(),
            minutes => format!("; about {minutes:.0} min left"),
        };
        format!(
            "seed {seed}: LLaVA {llava:.1}, BASIC {basic:.1} ({own}); so far {so_far}, {done} of {} seeds{left}",
            self.of
        )
    }
}

/// Writes a demo's results as they come.
pub(super) struct Record<'a> {
    config: &'a DemoConfig,
    start: Instant,
    workers: usize,
    /// Pairs of runs: seeds in every setting.
    pairs: usize,
    told: &'a (dyn Fn(&SeedDone) + Sync),
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// So many pairs were done when the results were last written.
    written: usize,
    seeds: BTreeSet<u64>,
    recipes: BTreeSet<PathBuf>,
    summary: Option<Summary>,
    failed: Option<DemoError>,
}

impl<'a> Record<'a> {
    pub fn new(config: &'a DemoConfig, study: &Study, workers: usize, told: &'a (dyn Fn(&SeedDone) + Sync)) -> Self {
        let pairs = study.seeds.len() * study.settings.len().max(1);
        Self { config, start: Instant::now(), workers, pairs, told, state: Mutex::default() }
    }

    /// Hears how far the runs are. What cannot be written stops them.
    pub fn hear(&self, runs: &[CellRun]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failed.is_none()
            && let Err(error) = self.note(&mut state, runs)
        {
            state.failed = Some(error);
            self.config.stop.store(true, Ordering::SeqCst);
        }
    }

    /// What was written last.
    pub fn end(self) -> Result<Option<Summary>, DemoError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.failed.map_or(Ok(state.summary), Err)
    }

    fn note(&self, state: &mut State, runs: &[CellRun]) -> Result<(), DemoError> {
        for stage in runs.iter().flat_map(|run| &run.stages) {
            let path = stage.run.join("recipe.toml");
            if state.recipes.insert(path.clone()) {
                let text = toml::to_string(&stage.recipe).map_err(|error| std::io::Error::other(error.to_string()));
                write(&path, text)?;
            }
        }
        let done = pairs(runs);
        if done == state.written {
            return Ok(());
        }
        state.written = done;
        let summary = self.summary(runs)?;
        self.write(&summary)?;
        if let Some(so_far) = &summary.conclusion {
            let rest = self.pairs.saturating_sub(done) as f64;
            let seconds_left = summary.seconds / done as f64 * rest;
            for scores in so_far.seeds.iter().filter(|scores| state.seeds.insert(scores.seed)) {
                (self.told)(&SeedDone { scores: *scores, so_far, of: self.config.seeds, seconds_left });
            }
        }
        state.summary = Some(summary);
        Ok(())
    }

    fn summary(&self, runs: &[CellRun]) -> Result<Summary, DemoError> {
        let questions = read_questions(&self.data().join("eval.jsonl")).map_err(AblateError::from)?;
        let settings = outcome::settings(runs, questions.len())?;
        Ok(Summary {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: self.config.revision.clone(),
            device: runs
                .iter()
                .flat_map(|run| &run.stages)
                .next()
                .map(|stage| stage.result.device.clone())
                .unwrap_or_default(),
            workers: self.workers,
            seconds: self.start.elapsed().as_secs_f64(),
            seeds: self.config.seeds,
            conclusion: Conclusion::of(&settings, self.config.seeds),
            settings,
            majority: outcome::majority(&questions),
        })
    }

    fn write(&self, summary: &Summary) -> Result<(), DemoError> {
        let json = serde_json::to_string_pretty(summary).map_err(|error| std::io::Error::other(error.to_string()));
        write(&self.config.out.join("summary.json"), json.map(|json| json + "\n"))?;
        write(&self.config.out.join("report.html"), Ok(report::render_html(summary, &self.data())?))
    }

    fn data(&self) -> PathBuf {
        Path::new(&self.config.out).join("data")
    }
}

/// How many seeds, over all settings, both arms have done.
fn pairs(runs: &[CellRun]) -> usize {
    let whole = |arm: &str| -> BTreeSet<(Option<&str>, u64)> {
        let done = runs.iter().filter(|run| run.whole && run.cell == arm);
        done.map(|run| (run.setting.as_deref(), run.seed)).collect()
    };
    whole(ARMS[0]).intersection(&whole(ARMS[1])).count()
}
