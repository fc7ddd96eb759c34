//! The demo on real backbones and pictures: the headline of `studies/real.toml`, in directories that `studies/real` has
//! made or whose models come from the hub.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use basic_core::DeviceSpec;
use toml::{Table, Value};

use super::DemoError;
use crate::pages::numbers::{fixed, signed, thousands};
use crate::studies::{
    AblateError, AblateOptions, Ablated, Event, Moved, Observer, Study, Summary, ablate_study, list_study,
};

/// How many seeds are run unless another number is asked for: what an hour allows.
pub const REAL_SEEDS: u16 = 1;

/// How long a run of one arm with one seed takes on two cores of an AMD EPYC that have nothing else to do, in minutes: the
/// mean of the two arms (`docs/demo.md`).
pub const MINUTES_A_RUN: usize = 28;

/// The study's file, as messages name it.
const STUDY: &str = "studies/real.toml";
/// The setting and the arms, baseline first, of the study's headline.
const SETTING: &str = "49";
const CELLS: [&str; 2] = ["none", "both"];
/// The measure of the headline.
const RANK: &str = "choices.rank";

/// What the study reads below its directory.
const PARTS: [&str; 7] = [
    "vision/config.json",
    "smollm2/config.json",
    "data",
    "study/pretrain.json",
    "study/captions_eval.json",
    "study/choices_eval.jsonl",
    "study/lens_eval.json",
];

/// What to run.
#[derive(Debug, Clone)]
pub struct RealConfig {
    /// The backbones, pictures and questions.
    pub dir: PathBuf,
    /// Where everything is written. What is there from an earlier run is not computed again.
    pub out: PathBuf,
    /// Seeds 0 to n - 1.
    pub seeds: usize,
    /// Where to compute.
    pub device: DeviceSpec,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Once it is set, the running stage saves its state and the demo ends.
    pub stop: Arc<AtomicBool>,
}

/// How it ended.
#[derive(Debug)]
pub struct RealEnded {
    /// What the study found.
    pub summary: Summary,
    /// What its seeds show, as a sentence; none where not one was done in both arms.
    pub shown: Option<String>,
    /// Whether it was asked to stop.
    pub stopped: bool,
}

/// Runs the headline's two arms as `basic ablate` would, and writes the same tables.
///
/// # Errors
///
/// [`DemoError`] that names the file and the way out.
pub fn run_real(config: &RealConfig, observer: Observer) -> Result<RealEnded, DemoError> {
    let study = study(config)?;
    let steps = study.recipe.get("train").and_then(|train| train.get("steps")).and_then(Value::as_integer);
    let steps = usize::try_from(steps.unwrap_or_default()).unwrap_or_default();
    observer(Event::Part("demo", steps * runs_left(config)?));
    let Ablated { summary, stopped } = ablate_study(Path::new(STUDY), study, &options(config), observer)?;
    Ok(RealEnded { shown: shown(&summary, steps), summary, stopped })
}

/// How many runs, of one arm with one seed each, have no result yet.
///
/// # Errors
///
/// Those of [`run_real`] that come before anything is run.
pub fn runs_left(config: &RealConfig) -> Result<usize, DemoError> {
    let listed = list_study(Path::new(STUDY), study(config)?, &options(config))?;
    Ok(listed.iter().filter(|run| run.stages.iter().any(|(_, _, done)| !done)).count())
}

fn options(config: &RealConfig) -> AblateOptions {
    AblateOptions {
        out: config.out.clone(),
        sets: Vec::new(),
        only: Vec::new(),
        devices: vec![config.device],
        group: None,
        stop: config.stop.clone(),
        revision: config.revision.clone(),
    }
}

/// The study's headline, with the directory in the place of `real/`.
fn study(config: &RealConfig) -> Result<Study, DemoError> {
    let dir = std::path::absolute(&config.dir).map_err(AblateError::io(&config.dir))?;
    let wrong = |reason: String| AblateError::Study { path: config.dir.clone(), reason };
    if let Some(missing) = PARTS.iter().find(|part| !dir.join(part).exists()) {
        let dir = config.dir.display();
        return Err(wrong(format!(
            "has no {missing}: `bash studies/real/packages/make.sh {dir}` makes backbones and pictures, and then `python3 \
             studies/real/make_data.py {dir} {dir}/study` the questions"
        ))
        .into());
    }
    if dir.to_str().is_none() {
        return Err(wrong("is no path in UTF-8: choose another directory".into()).into());
    }
    let read = |source| AblateError::Toml { path: STUDY.into(), source };
    let table: Table = toml::from_str(include_str!("../../../studies/real.toml")).map_err(read)?;
    let mut study: Study = Value::Table(table).try_into().map_err(read)?;
    study.moved = Some(Moved { from: "real/".into(), to: dir });
    study.seeds = (0..config.seeds as u64).collect();
    study.settings.retain(|setting| setting.name == SETTING);
    study.factors.iter_mut().for_each(|factor| factor.cells.retain(|cell| CELLS.contains(&cell.name.as_str())));
    // The encoder's features go where the results go.
    let store = std::path::absolute(&config.out).map_err(AblateError::io(&config.out))?.join("features");
    if let (Some(Value::Table(train)), Some(store)) = (study.recipe.get_mut("train"), store.to_str()) {
        train.insert("vision_store".into(), Value::String(store.into()));
    }
    Ok(study)
}

/// What the seeds that both arms have done show.
fn shown(summary: &Summary, steps: usize) -> Option<String> {
    let column = summary.columns.iter().position(|column| column.metric == RANK)?;
    let row = |name: &str| summary.groups.iter().flat_map(|group| &group.rows).find(|row| row.name == name);
    let entry = |name: &str| row(name)?.entries.get(column).copied().flatten();
    let (llava, basic) = (entry(CELLS[0])?, entry(CELLS[1])?);
    let difference = basic.difference?;
    let seeds = if difference.seeds == 1 { "one seed".to_owned() } else { format!("{} seeds", difference.seeds) };
    let places = fixed(difference.mean.abs(), 2);
    let verdict = match (difference.excludes_zero(), difference.seeds) {
        (Some(false), _) => format!("BASIC ranks it {places} places higher than LLaVA"),
        (Some(true), _) => format!("BASIC ranks it {places} places lower than LLaVA"),
        (None, 1) => format!("the arms are {places} places apart, which one seed cannot tell from chance"),
        (None, _) => "no difference between BASIC and LLaVA can be told from chance".to_owned(),
    };
    let interval = difference.interval.map_or_else(
        || "no interval with one seed".to_owned(),
        |[low, high]| format!("95% interval {} to {}, paired by seed", signed(low, 2), signed(high, 2)),
    );
    Some(format!(
        "With {seeds} of {} steps, the true name of a picture of a concept that was held out stands on place {} of 20 with \
         BASIC and on place {} with LLaVA, on average (10.5 by chance): {verdict} ({} places, {interval}).",
        thousands(steps),
        fixed(basic.value.mean, 2),
        fixed(llava.value.mean, 2),
        signed(difference.mean, 2),
    ))
}

#[cfg(test)]
mod tests {
    use basic_eval::statistics::{Difference, Spread};

    use super::*;
    use crate::studies::{Better, Column, Entry, Rows, SummaryRow, Unit};

    fn config(dir: &Path) -> RealConfig {
        RealConfig {
            dir: dir.into(),
            out: dir.join("out"),
            seeds: 2,
            device: DeviceSpec::Cpu,
            revision: None,
            stop: Arc::default(),
        }
    }

    #[test]
    fn the_study_is_the_headline_with_the_directorys_paths() {
        let dir = tempfile::tempdir().unwrap();
        let error = study(&config(dir.path())).unwrap_err().to_string();
        assert!(error.contains("has no vision/config.json") && error.contains("make.sh"), "{error}");
        for part in PARTS {
            let path = dir.path().join(part);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(runs_left(&config(dir.path())).unwrap(), 4);
        let study = study(&config(dir.path())).unwrap();
        assert_eq!((study.seeds.as_slice(), study.check()), (&[0, 1][..], None));
        let cells: Vec<&str> = study.factors[0].cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!((cells, study.settings.len(), study.settings[0].name.as_str()), (vec!["none", "both"], 1, "49"));
        assert_eq!(study.moved.map(|moved| moved.to), Some(dir.path().to_path_buf()));
        assert_eq!(study.recipe["model"]["llm"].as_str(), Some("real/smollm2"));
        assert_eq!(study.recipe["train"]["vision_store"].as_str(), dir.path().join("out/features").to_str());
    }

    fn summary(pairs: &[[f64; 2]]) -> Summary {
        let column = |metric: &str| Column {
            stage: "pretrain".into(),
            metric: metric.into(),
            label: metric.into(),
            unit: Unit::Plain,
            better: Better::Lower,
            main: true,
            layer: None,
        };
        let row = |arm: usize| {
            let values: Vec<f64> = pairs.iter().map(|pair| pair[arm]).collect();
            let differences: Vec<f64> = pairs.iter().map(|pair| pair[1] - pair[0]).collect();
            let difference = (arm == 1).then(|| Difference::of(&differences)).flatten();
            let entry = Spread::of(&values).map(|value| Entry { value, difference });
            let cell = |arm: usize| format!("49/losses/{}", CELLS[arm]);
            SummaryRow {
                cell: cell(arm),
                name: CELLS[arm].into(),
                x: None,
                series: String::new(),
                baseline: cell(0),
                runs: Vec::new(),
                entries: vec![None, entry],
            }
        };
        let rows = vec![row(0), row(1)];
        Summary {
            study: "Real backbones".into(),
            description: String::new(),
            version: "0".into(),
            revision: None,
            seeds: (0..pairs.len() as u64).collect(),
            done: 2,
            of: 2,
            columns: vec![column("caption_loss"), column(RANK)],
            groups: vec![Rows {
                setting: Some(SETTING.into()),
                name: "losses".into(),
                axis: None,
                rows,
                means: Vec::new(),
            }],
        }
    }

    #[test]
    fn the_sentence_follows_from_the_seeds() {
        let one = shown(&summary(&[[5.6, 5.67]]), 1000).unwrap();
        assert!(one.contains("one seed of 1,000 steps") && one.contains("cannot tell from chance"), "{one}");
        assert!(one.contains("place 5.67 of 20 with BASIC and on place 5.60 with LLaVA"), "{one}");
        let better = shown(&summary(&[[6.0, 5.0], [6.1, 5.0], [6.0, 5.1]]), 1000).unwrap();
        assert!(
            better.contains("3 seeds") && better.contains("BASIC ranks it 1.00 places higher than LLaVA"),
            "{better}"
        );
        let worse = shown(&summary(&[[5.0, 6.0], [5.0, 6.1], [5.1, 6.0]]), 1000).unwrap();
        assert!(worse.contains("places lower than LLaVA"), "{worse}");
        let neither = shown(&summary(&[[5.0, 6.0], [6.0, 5.0], [5.0, 5.1]]), 1000).unwrap();
        assert!(neither.contains("no difference between BASIC and LLaVA"), "{neither}");
        assert_eq!(shown(&summary(&[]), 1000), None);
    }
}
