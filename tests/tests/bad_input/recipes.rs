//! Invalid recipes and directories of runs.

use std::fs;

use tests::args;
use tests::fixtures::{fixture, names, tree};

use crate::broken::{Run, assert_no_checkpoint, basic, good_sample, recipe};

#[test]
fn a_recipe_with_an_unknown_key_names_the_line_and_the_key() {
    let run = Run::new(&[good_sample()]);
    let text = recipe(&fixture("plain"), "data.json");
    run.recipe(&text.replace("batch_size = 1", "batch_size = 1\nbatchsize = 2"));
    // The lines before it are stage, device, [model], checkpoint, [data], path, images, conversation, [train],
    // batch_size.
    run.refused(&["recipe.toml", "line 11", "batchsize"]);
    run.recipe(&format!("{text}[optimiser]\nlr = 0.1\n"));
    run.refused(&["recipe.toml", "line 12", "optimiser"]);
}

#[test]
fn a_recipe_with_a_wrong_type_names_the_line() {
    let run = Run::new(&[good_sample()]);
    let text = recipe(&fixture("plain"), "data.json");
    run.recipe(&text.replace("steps = 2", "steps = \"two\""));
    run.refused(&["recipe.toml", "line 11", "string \"two\""]);
    run.recipe(&text.replace("device = \"cpu\"", "device = \"gpu\""));
    run.refused(&["recipe.toml", "line 2", "unknown device 'gpu'"]);
    run.recipe(&text.replace("\"finetune\"", "\"fine-tune\""));
    run.refused(&["recipe.toml", "line 1", "fine-tune"]);
}

#[test]
fn a_recipe_that_contradicts_itself_says_what_to_change() {
    let run = Run::new(&[good_sample()]);
    let text = recipe(&fixture("plain"), "data.json");
    run.recipe(&text.replace("batch_size = 1", "batch_size = 0"));
    run.refused(&["recipe.toml", "batch_size"]);
    run.recipe(&text.replace("steps = 2", "steps = 2\nepochs = 1.0"));
    run.refused(&["recipe.toml", "steps", "epochs"]);
    run.recipe(&text.replace("[data]", "vision = \"x\"\n[data]"));
    run.refused(&["recipe.toml", "checkpoint", "vision"]);
    run.recipe(&format!("{text}[parts.decoder]\nmode = \"lora\"\nadapters = \"x\"\nalpha = 8.0\n"));
    run.refused(&["recipe.toml", "parts.decoder.alpha", "leave it out"]);
    run.recipe(&format!("{text}[parallel]\nshard = \"parameters\"\n"));
    run.refused(&["recipe.toml", "line 13", "parameters", "`gradients`"]);
    run.recipe(&format!("{text}[parallel]\ntimeout_s = 0\n"));
    run.refused(&["recipe.toml", "parallel.timeout_s is 0", "at most 86400"]);
    basic(args!["train", "gone.toml"]).refused(1, &["gone.toml", "No such file"]);
}

#[test]
fn a_recipe_that_extends_another_names_the_file_at_fault() {
    let run = Run::new(&[good_sample()]);
    let text = recipe(&fixture("plain"), "data.json").replace("DIR", run.dir.path().to_str().unwrap());
    let base = |text: &str| fs::write(run.dir.path().join("base.toml"), text).unwrap();
    run.recipe("extends = \"base.toml\"\n[optimizer]\nlr = 1e-4\n");
    run.refused(&["recipe.toml: extends = base.toml: No such file"]);
    base(&text.replace("batch_size = 1", "batch_size = 1\nbatchsize = 2"));
    run.refused(&["base.toml", "line 11", "batchsize"]);
    base(&text.replace("batch_size = 1", "batch_size = 0"));
    run.refused(&["base.toml", "batch_size"]);
    base(&format!("extends = \"recipe.toml\"\n{text}"));
    run.refused(&["base.toml: extends = recipe.toml", "cannot extend itself"]);
    base(&text);
    run.recipe("extends = \"base.toml\"\n[optimizer]\nrate = 1e-4\n");
    run.refused(&["recipe.toml", "line 3", "rate"]);
    run.recipe("extends = true\n");
    run.refused(&["recipe.toml: extends = true", "relative to this file"]);
    // The run records the merged recipe.
    run.recipe("extends = \"base.toml\"\nseed = 7\nschedule.warmup_ratio = 0.0\n");
    run.train(&[]).succeeded();
    let kept = fs::read_to_string(run.out().join("run.json")).unwrap();
    assert!(kept.contains("\"seed\": 7") && kept.contains("data.json") && !kept.contains("extends"), "{kept}");
    // The run resumes without the files.
    fs::remove_file(run.dir.path().join("base.toml")).unwrap();
    fs::remove_file(run.dir.path().join("recipe.toml")).unwrap();
    basic(args!["train", "--resume", run.out()]).succeeded();
}

#[test]
fn a_set_that_does_not_fit_is_named() {
    let run = Run::new(&[good_sample()]);
    for (set, mention) in [
        ("optimizer.rate=1", "rate"),
        ("nothing=1", "nothing"),
        ("train.steps=many", "many"),
        ("train.steps.more=1", "table"),
        ("steps", "key=value"),
        ("=1", "key"),
    ] {
        run.train(&["--set", set]).refused(1, &[&format!("--set {set}"), mention]);
        assert!(!run.out().exists());
    }
}

#[test]
fn a_directory_that_holds_a_run_is_refused_untouched_and_replaced_with_overwrite() {
    let run = Run::new(&[good_sample()]);
    run.train(&[]).succeeded();
    let before = tree(&run.out());
    run.train(&["--set", "train.steps=3"]).refused(1, &["out", "--overwrite"]);
    assert_eq!(tree(&run.out()), before);
    run.train(&["--set", "train.steps=3", "--overwrite"]).succeeded();
    let lines = fs::read_to_string(run.out().join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3);
    // An event file's name contains the time, which is ignored.
    let plain = |name: String| name.split_once("events.out").map_or(name.clone(), |(folder, _)| folder.into());
    let left: Vec<String> = names(&run.out()).into_iter().map(plain).collect();
    assert_eq!(left, before.iter().map(|(name, _)| plain(name.display().to_string())).collect::<Vec<_>>());
}

#[test]
fn overwrite_leaves_the_run_that_is_there_when_the_new_one_cannot_start() {
    let run = Run::new(&[good_sample()]);
    run.train(&[]).succeeded();
    let before = tree(&run.out());
    fs::write(run.dir.path().join("data.json"), "[]").unwrap();
    run.train(&["--overwrite"]).refused(1, &["data.json"]);
    assert_eq!(tree(&run.out()), before);
}

#[test]
fn a_folder_of_other_files_is_not_taken_for_an_output() {
    let run = Run::new(&[good_sample()]);
    fs::create_dir(run.out()).unwrap();
    fs::write(run.out().join("thesis.tex"), "years of work").unwrap();
    run.train(&[]).refused(1, &["out", "--overwrite"]);
    assert_eq!(names(&run.out()), ["thesis.tex"]);
}

#[test]
fn a_run_whose_loss_is_no_number_stops_at_that_step_without_a_checkpoint() {
    let run = Run::new(&[good_sample()]);
    run.train(&["--set", "optimizer.lr=1e30", "--set", "train.steps=8"]).refused(1, &["step ", "not finite"]);
    assert_no_checkpoint(&run.out());
}
