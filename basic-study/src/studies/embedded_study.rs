//! Studies that come with the binary, run for what each of their runs says: their files have names for people, and a few
//! answers are kept to be shown.

use std::path::{Path, PathBuf};

use super::expand::{Expanded, expand};
use super::layout::Layout;
use super::schedule::Results;
use super::study::Study;
use super::{AblateError, AblateOptions, Observer, StageResult, conduct};
use basic_train::recipe::Recipe;

/// A study, ready to be run.
pub(crate) struct Embedded(Expanded);

/// A cell with one seed, run.
pub(crate) struct CellRun {
    pub setting: Option<String>,
    pub cell: String,
    pub seed: u64,
    /// Those that are done.
    pub stages: Vec<StageRun>,
    /// Whether these are all.
    pub whole: bool,
}

/// A stage of it.
pub(crate) struct StageRun {
    /// The recipe that repeats it.
    pub recipe: Recipe,
    /// Its run: checkpoint, metrics and record.
    pub run: PathBuf,
    pub result: StageResult,
}

impl Embedded {
    /// The study as changed by `sets`, recipe keys as `KEY=VALUE`, for an output directory. `samples` of the answers to its
    /// questions are kept.
    pub fn new(study: Study, out: &Path, sets: &[String], samples: usize) -> Result<Self, AblateError> {
        let path = PathBuf::from(format!("the study \"{}\"", study.name));
        if let Some(reason) = study.check() {
            return Err(AblateError::Study { path, reason });
        }
        let expanded = expand(&path, study, out, sets, Layout::Named)?;
        Ok(Self(Expanded { samples, ..expanded }))
    }

    /// The training steps of all its runs.
    pub fn steps(&self) -> usize {
        let chains = self.0.cells.iter().flat_map(|cell| &cell.chains);
        chains.flat_map(|chain| &chain.stages).filter_map(|stage| stage.recipe.placed.train.steps).sum()
    }

    /// Runs it. `told` is given all runs as far as they are, in the order of settings, cells and seeds, after every stage.
    /// Returns them, and whether it was asked to stop.
    pub fn run(
        &self,
        options: &AblateOptions,
        observer: Observer,
        told: &(dyn Fn(&[CellRun]) + Sync),
    ) -> Result<(Vec<CellRun>, bool), AblateError> {
        let write = |results: &Results| {
            told(&self.runs(results, options));
            Ok(())
        };
        let (results, stopped) = conduct(&self.0, options, observer, &write)?;
        Ok((self.runs(&results, options), stopped))
    }

    fn runs(&self, results: &Results, options: &AblateOptions) -> Vec<CellRun> {
        let mut runs = Vec::new();
        for group in &self.0.groups {
            for cell in group.cells.iter().map(|at| &self.0.cells[*at]) {
                for chain in &cell.chains {
                    let stages = chain.stages.iter().enumerate().filter_map(|(at, stage)| {
                        let mut recipe = stage.recipe.placed.clone();
                        if let Some(before) = at.checked_sub(1) {
                            recipe.model.checkpoint = Some(chain.stages[before].run.clone());
                        }
                        recipe.device = options.devices.first().copied().unwrap_or(recipe.device);
                        recipe.output = Some(stage.run.clone());
                        Some(StageRun { recipe, run: stage.run.clone(), result: results.get(&stage.hash)?.clone() })
                    });
                    let stages: Vec<StageRun> = stages.collect();
                    let whole = stages.len() == chain.stages.len();
                    let (setting, cell) = (group.setting.clone(), cell.name.clone());
                    runs.push(CellRun { setting, cell, seed: chain.seed, stages, whole });
                }
            }
        }
        runs
    }
}
