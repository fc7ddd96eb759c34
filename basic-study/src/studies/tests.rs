//! From a study's text to its cells, hashes and tables.

use std::collections::BTreeSet;
use std::path::Path;

use super::AblateError;
use super::column::Better;
use super::expand::{Cell, Expanded, expand};
use super::layout::Layout;
use super::places::Moved;
use super::result::StageResult;
use super::schedule::{Results, jobs};
use super::study::Study;
use super::summary::summarize;
use super::table::{csv, markdown};

const STUDY: &str = r#"
name = "Tiny"
seeds = [0, 1, 2]
baseline = "none"
world = { train = 4, validation = 2, eval = 2 }

[recipe]
train.batch_size = 4
train.steps = 3

[[stages]]
name = "align"
recipe = { stage = "pretrain", model.vision = "world:backbones/vision", model.llm = "world:backbones/llm", data.path = "world:data/pretrain.json" }

[[stages]]
name = "tune"
recipe = { stage = "finetune", data.path = "world:data/finetune.json" }

[evaluation]
questions = "world:data/eval.jsonl"

[[factors]]
name = "losses"
cells = [
    { name = "none", set = { objective.das = false, objective.sds = false } },
    { name = "das", set = { objective.sds = false } },
    { name = "both" },
]

[[factors]]
name = "k"
key = "objective.k"
values = [1, 3]

[[factors]]
name = "rates"
cells = [{ name = "slow tune", set = { tune.optimizer.lr = 1e-6 } }]
"#;

fn read(text: &str) -> Result<Expanded, AblateError> {
    let path = Path::new("tiny.toml");
    let study = toml::from_str::<Study>(text).map_err(|source| AblateError::Toml { path: path.into(), source })?;
    expand(path, study, Path::new("nowhere"), &[], Layout::Hashed)
}

fn cell<'a>(study: &'a Expanded, id: &str) -> &'a Cell {
    study.cells.iter().find(|cell| cell.id == id).unwrap_or_else(|| panic!("no {id}"))
}

fn hashes(study: &Expanded, id: &str) -> Vec<Vec<String>> {
    let stages = |chain: &super::expand::Chain| chain.stages.iter().map(|stage| stage.hash.clone()).collect();
    cell(study, id).chains.iter().map(stages).collect()
}

#[test]
fn a_moved_directory_has_the_results_of_the_one_that_the_study_names() {
    let text = STUDY.replace("world = {", "# world = {").replace("world:", "here/");
    let dirs = ["a", "b", "c"].map(|picture| {
        let dir = tempfile::tempdir().unwrap();
        let sample = format!(
            r#"[{{"id": "0", "image": "{picture}.png", "conversations": [{{"from": "human", "value": "<image>"}}, {{"from": "gpt", "value": "x"}}]}}]"#
        );
        for (name, text) in [("vision/config.json", "{}"), ("llm/config.json", "{}"), ("eval.jsonl", "")] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        for name in ["pretrain.json", "finetune.json"] {
            // The third has another text.
            std::fs::write(dir.path().join(name), sample.replace("b.png", "a.png")).unwrap();
        }
        dir
    });
    let text = text.replace("here/data/", "here/").replace("here/backbones/", "here/");
    let study = |to: &Path| {
        let mut study = toml::from_str::<Study>(&text).unwrap();
        study.moved = Some(Moved { from: "here/".into(), to: to.into() });
        expand(Path::new("tiny.toml"), study, Path::new("nowhere"), &[], Layout::Hashed).unwrap()
    };
    let [a, b, c] = [0, 1, 2].map(|at: usize| study(dirs[at].path()));
    let planned = &cell(&a, "losses/both").chains[0].stages[0];
    assert_eq!(planned.recipe.placed.model.llm, Some(dirs[0].path().join("llm")));
    assert_eq!(planned.recipe.named.model.llm, Some("here/llm".into()));
    assert!(!planned.key.to_string().contains(dirs[0].path().to_str().unwrap()), "{}", planned.key);
    assert_eq!(hashes(&a, "losses/both"), hashes(&b, "losses/both"));
    assert_ne!(hashes(&a, "losses/both"), hashes(&c, "losses/both"), "other data");
}

#[test]
fn the_same_recipe_has_the_same_hash_and_a_changed_key_another() {
    let study = read(STUDY).unwrap();
    let both = hashes(&study, "losses/both");
    // Half of the six layers is the default.
    assert_eq!(hashes(&study, "k/3"), both);
    let (slow, one, none) = (hashes(&study, "rates/slow tune"), hashes(&study, "k/1"), hashes(&study, "losses/none"));
    for seed in 0..3 {
        assert_eq!(slow[seed][0], both[seed][0], "the first stage is shared");
        assert_ne!(slow[seed][1], both[seed][1]);
        assert_ne!(one[seed][0], both[seed][0]);
        assert_ne!(one[seed][1], both[seed][1], "a later stage depends on the first");
        assert_ne!(none[seed][0], both[seed][0]);
    }
    assert_ne!(both[0], both[1], "seeds differ");
    assert_eq!(jobs(&study, &[]).len(), 5 * 3, "cells of the same recipe are run once");
    // What has no effect is no difference: lambdas without losses.
    let text = STUDY.replace("objective.das = false, ", "objective.das = false, objective.lambda_das = 7.0, ");
    assert_eq!(hashes(&read(&text).unwrap(), "losses/none"), none);
    // Where the stages' names or the number of questions differ, something else is measured or trained.
    let text = STUDY.replace("[evaluation]", "[evaluation]\nlimit = 3");
    let (limited, all) =
        (read(&text).unwrap(), |id| -> BTreeSet<String> { hashes(&study, id).into_iter().flatten().collect() });
    let limited: BTreeSet<String> = hashes(&limited, "losses/both").into_iter().flatten().collect();
    assert!(limited.is_disjoint(&all("losses/both")));
}

#[test]
fn later_stages_start_from_the_one_before_and_stage_names_choose_one() {
    let study = read(STUDY).unwrap();
    let chain = &cell(&study, "rates/slow tune").chains[1];
    let [first, second] = &chain.stages[..] else { panic!("two stages") };
    assert_eq!((first.recipe.placed.seed, second.recipe.placed.seed), (1, 1));
    assert_eq!((first.recipe.named.lr(), second.recipe.named.lr()), (1e-3, 1e-6));
    assert!(second.recipe.placed.model.checkpoint.is_some() && second.recipe.placed.model.vision.is_none());
    assert!(first.recipe.placed.data.path.as_ref().unwrap().starts_with("nowhere"));
}

#[test]
fn settings_repeat_every_factor_and_a_grid_combines_its_axes() {
    let settings = "[[settings]]\nname = \"few\"\nset = { data.limit = 2 }\n[[settings]]\nname = \"all\"\n";
    let study = read(&format!("{STUDY}{settings}")).unwrap();
    assert_eq!(study.cells.len(), 12);
    assert_eq!(cell(&study, "few/k/1").chains[0].stages[1].recipe.named.data.limit, Some(2));
    assert_eq!(study.cells[cell(&study, "all/k/1").baseline].id, "all/losses/none");
    // Cells stand for numbers by themselves, and may change more than one key.
    let named = "[[factors]]\nname = \"samples\"\ncells = [{ name = \"a\", x = 2, set = { data.limit = 2 } }, \
                 { name = \"b\", x = 4.5, set = { data.limit = 4, align.train.steps = 9 } }]\n";
    let study = read(&format!("{STUDY}{named}")).unwrap();
    let (group, b) = (study.groups.last().unwrap(), cell(&study, "samples/b"));
    assert_eq!((group.axis.as_deref(), b.x), (Some("samples"), Some(4.5)));
    assert_eq!(b.chains[0].stages.iter().map(|s| s.recipe.named.train.steps.unwrap()).collect::<Vec<_>>(), [9, 3]);
    let wrong = named.replace("x = 4.5", "x = nan");
    assert!(read(&format!("{STUDY}{wrong}")).unwrap_err().to_string().contains("cell b: x is no number"));
    let grid = "[grid]\nbaseline = { arm = \"llava\" }\naxes = [\n{ name = \"samples\", key = \"data.limit\", values = [2, 4] },\n\
                { name = \"arm\", cells = [{ name = \"llava\", set = { objective.das = false } }, { name = \"basic\" }] },\n]\n";
    let study = read(&format!("{STUDY}{grid}")).unwrap();
    let basic = cell(&study, "grid/4, basic");
    assert_eq!((basic.x, basic.series.as_str()), (Some(4.0), "basic"));
    assert_eq!(study.cells[basic.baseline].id, "grid/4, llava");
    assert!(Expanded::chosen(basic, &["grid".into()]) && !Expanded::chosen(basic, &["gri".into()]));
}

#[test]
fn a_grid_along_numbers_has_the_mean_of_each_of_its_lines() {
    let grid = "[grid]\nbaseline = { arm = \"none\" }\naxes = [\n{ name = \"samples\", key = \"data.limit\", values = [2, 4] },\n\
                { name = \"arm\", cells = [{ name = \"none\", set = { objective.das = false } }, { name = \"basic\" }] },\n]\n";
    let study = read(&format!("{STUDY}{grid}")).unwrap();
    let mut results = made_up(&study);
    // Cells are called "2, none" and so on: all of them have the same gains, but for these.
    for (id, gain) in [("grid/2, basic", 0.04), ("grid/4, basic", 0.01)] {
        for chain in &cell(&study, id).chains {
            let value = |accuracy: f64| [("accuracy".to_string(), accuracy)].into();
            let base = 0.5 + 0.06 * chain.seed as f64;
            results.get_mut(&chain.stages[0].hash).unwrap().values = value(base + gain + 0.01 * chain.seed as f64);
        }
    }
    let summary = summarize(&study, &results, None);
    let group = summary.groups.last().unwrap();
    let [none, basic] = &group.means[..] else { panic!("{:?}", group.means) };
    assert_eq!((none.name.as_str(), basic.name.as_str()), ("mean over samples, none", "mean over samples, basic"));
    assert!(none.is_baseline() && none.entries[0].unwrap().difference.is_none());
    // The means over both numbers are 0.025 above, and 0.01 more with each seed: 0.025, 0.035, 0.045.
    let difference = basic.entries[0].unwrap().difference.unwrap();
    assert!((difference.mean - 0.035).abs() < 1e-12, "{difference:?}");
    let [low, high] = difference.interval.unwrap();
    assert!((high - low - 2.0 * 4.302_652_729_7 * 0.01 / 3.0_f64.sqrt()).abs() < 1e-9);
    assert!(markdown(&summary).contains("| mean over samples, none (baseline) | 3 | 56.0 ± 6.0 |"));
    // And figures of how far they are apart, of both stages.
    let page = super::page::render(&summary).unwrap();
    assert_eq!(page.matches("<figcaption>align: accuracy, %, difference</figcaption>").count(), 1);
    assert_eq!(page.matches(", difference</figcaption>").count(), 2);
    // Without a line to compare with at the same number there is nothing to average.
    assert!(summary.groups[..3].iter().all(|group| group.means.is_empty()));
    // A number that lacks a seed leaves it out of the mean.
    results.remove(&cell(&study, "grid/4, basic").chains[2].stages[0].hash);
    let basic = summarize(&study, &results, None).groups.last().unwrap().means[1].clone();
    assert_eq!(basic.entries[0].unwrap().value.seeds, 2);
}

#[test]
fn wrong_studies_name_the_key() {
    for (from, to, mention) in [
        ("baseline = \"none\"", "", "baseline: name the cell"),
        ("baseline = \"none\"", "baseline = \"x\"", "\"x\" is no cell"),
        ("name = \"das\"", "name = \"none\"", "two cells are called \"none\""),
        ("name = \"tune\"", "name = \"train\"", "train"),
        ("tune.optimizer.lr = 1e-6", "tine.optimizer.lr = 1e-6", "cell rates/slow tune: \"tine\" is neither"),
        ("tune.optimizer.lr = 1e-6", "tune.optimizer.ls = 1e-6", "optimizer.ls: unknown field"),
        ("train.steps = 3", "train.stops = 3", "stage align: recipe: unknown field `stops`"),
        ("key = \"objective.k\"", "", "needs either `cells`, or `key` and `values`"),
        ("values = [1, 3]", "values = [1, 7]", "k = 7 is outside 1 to 6"),
        ("world = { train = 4, validation = 2, eval = 2 }", "", "needs a [world] table"),
        ("world = { train = 4,", "world = { train = 1_000_001,", "world: at most 1000000 scenes of a split"),
        ("[evaluation]", "[[settings]]\nname = \"few\"\nx = 2\n\n[evaluation]", "\"few\" cannot have an x"),
        ("train.steps = 3", "train.steps = 0", "stage align: [train] needs either `steps` or `epochs`"),
    ] {
        assert!(STUDY.contains(from), "{from}");
        let text = STUDY.replace(from, to);
        let said = match toml::from_str::<Study>(&text) {
            Ok(study) => match study.check() {
                Some(reason) => reason,
                None => read(&text).expect_err(to).to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert!(said.contains(mention), "{to}: {said}");
    }
}

#[test]
fn a_study_names_what_it_measures_nothing_on() {
    let unmeasured = |evaluation: &str, measure: &str| {
        let text = STUDY.replace("[evaluation]", &format!("[evaluation]\n{evaluation}"));
        let text = text.replace("name = \"align\"\n", &format!("name = \"align\"\n{measure}\n"));
        toml::from_str::<Study>(&text).unwrap().unmeasured()
    };
    assert!(unmeasured("", "").is_empty());
    let lens = "lens = { data = \"x.json\" }\nshapes = \"world:data\"";
    let said = unmeasured(lens, "");
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0], "nothing is measured on evaluation.lens: no stage's `measure` has lens");
    assert!(said[1].contains("evaluation.shapes") && said[1].contains("or grounding"), "{said:?}");
    assert!(unmeasured(lens, "measure = [\"lens\", \"v_norm\"]").is_empty());
    // Both stages list what they measure, and neither the questions.
    let text = STUDY.replace("recipe = {", "measure = []\nrecipe = {");
    let said = toml::from_str::<Study>(&text).unwrap().unmeasured();
    assert!(said.len() == 1 && said[0].contains("evaluation.questions") && said[0].contains("accuracy"), "{said:?}");
}

#[test]
fn a_result_depends_on_what_is_measured_after_its_stage_alone() {
    let text = STUDY.replace("name = \"align\"\n", "name = \"align\"\nmeasure = []\n");
    let study = read(&text).unwrap();
    let limited = read(&text.replace("[evaluation]", "[evaluation]\nlens = { data = \"x.json\" }")).unwrap();
    assert_eq!(hashes(&study, "losses/das"), hashes(&limited, "losses/das"), "nothing is measured on it");
    let others = text.replace("world:data/eval.jsonl", "world:data/validation.jsonl");
    let (ours, theirs) = (hashes(&study, "losses/das"), hashes(&read(&others).unwrap(), "losses/das"));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours[0], theirs[0], "align measures nothing");
        assert_ne!(ours[1], theirs[1], "tune answers the questions");
    }
}

#[test]
fn a_result_that_is_not_finite_is_read_again_and_shown() {
    let study = read(STUDY).unwrap();
    let mut results = made_up(&study);
    for result in results.values_mut() {
        result.values.insert("accuracy".into(), f64::NAN);
        let text = serde_json::to_string(result).unwrap();
        let again: StageResult = serde_json::from_str(&text).unwrap();
        assert!(again.values["accuracy"].is_nan());
    }
    let summary = summarize(&study, &results, None);
    assert!(markdown(&summary).contains("NaN"));
    assert!(super::page::render(&summary).unwrap().contains("NaN"));
}

/// Results whose accuracy is made up: `base` for the cell "none", more for the others.
fn made_up(study: &Expanded) -> Results {
    let mut results = Results::new();
    for (index, chain) in study.cells.iter().flat_map(|cell| cell.chains.iter().map(|chain| (&cell.name, chain))) {
        for stage in &chain.stages {
            let gain = if index == "none" { 0.0 } else { 0.10 + 0.01 * chain.seed as f64 };
            let values = [("accuracy".to_string(), 0.4 + 0.05 * chain.seed as f64 + gain)].into();
            results.insert(
                stage.hash.clone(),
                StageResult {
                    hash: stage.hash.clone(),
                    version: "0".into(),
                    revision: None,
                    device: "cpu".into(),
                    steps: 3,
                    train_seconds: 1.0,
                    step_seconds: 0.1,
                    measure_seconds: 1.0,
                    values,
                    samples: Vec::new(),
                    key: stage.key.clone(),
                },
            );
        }
    }
    results
}

#[test]
fn tables_pair_by_seed_and_mark_only_intervals_without_zero() {
    let study = read(STUDY).unwrap();
    let mut results = made_up(&study);
    let summary = summarize(&study, &results, None);
    assert_eq!(summary.done, summary.of);
    let entry = summary.groups[0].rows[2].entries[0].unwrap();
    // Differences 0.10, 0.11, 0.12: mean 0.11, deviation 0.01, t(2) = 4.302653.
    let difference = entry.difference.unwrap();
    let [low, high] = difference.interval.unwrap();
    assert!((difference.mean - 0.11).abs() < 1e-12);
    assert!((high - low - 2.0 * 4.302_652_729_7 * 0.01 / 3.0_f64.sqrt()).abs() < 1e-9);
    assert_eq!((entry.verdict(Better::Higher), entry.verdict(Better::Lower)), (Some(true), Some(false)));
    let text = markdown(&summary);
    assert!(text.contains("| none (baseline) | 3 | 45.0 ± 5.0 |"), "{text}");
    assert!(text.contains("56.0 ± 6.0<br>+11.0 [+8.5, +13.5] ▲"), "{text}");
    // The k factor is compared with a cell of another factor, which stands above it.
    assert_eq!(summary.groups[1].rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["none", "1", "3"]);
    let table = String::from_utf8(csv(&summary).unwrap()).unwrap();
    assert_eq!(table.lines().count(), 1 + 2 * (3 + 3 + 2));
    // Of four and five stage runs with three seeds (slow tune shares its first stage) the baseline's alone: the others
    // are dashes, and the table says so.
    let all: Vec<String> = results.keys().cloned().collect();
    all.iter().filter(|hash| !hashes(&study, "losses/none").concat().contains(hash)).for_each(|hash| {
        results.remove(hash);
    });
    let partial = markdown(&summarize(&study, &results, None));
    assert!(partial.contains("Partial: 6 of 27 stage runs"), "{partial}");
    assert!(partial.contains("| both | 0 | – | – |"), "{partial}");
    let page = super::page::render(&summarize(&study, &made_up(&study), None)).unwrap();
    assert!(page.contains("class=\"better\"") && page.contains("<svg"), "{page}");
}
