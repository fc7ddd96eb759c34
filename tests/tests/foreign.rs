//! Files that this program did not write are never deleted, whatever their names and wherever a user put them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::fixtures::entries;
use tests::project::Project;
use tests::runs::{change_record, killed};
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn train(project: &Project, out: &Path, more: &[&str]) -> Ran {
    let line = args!["train", project.path().join("recipe.toml"), "--out", out, "--ui", "bar"];
    run(BINARY, [line, more.iter().map(Into::into).collect()].concat())
}

fn resume(out: &Path) -> Ran {
    run(BINARY, args!["train", "--resume", out])
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn files_of_a_users_own_under_names_of_temporary_ones_stay() {
    let project = Project::new(BINARY, "pretrain", 3);
    let photo = "not really a photo, but long enough to be worth something to somebody who took it";
    for (name, text) in [
        (".tmpAbCdEf", "remember the milk"),
        (".basic-4294967295-aB3dE6", "{\"mine\": 1}"),
        (".basic-aB3dE6/holiday.jpg", photo),
        (".basic-photos/model.safetensors", photo),
        (".basic-stale-step-00000001/notes.md", "mine"),
        (".lock", "4711"),
    ] {
        // The file is alone in the output directory.
        let alone = project.path().join("alone");
        let file = write(alone.join(name), text);
        let top = name.split('/').next().unwrap();
        train(&project, &alone, &[]).refused(1, &["alone"]);
        train(&project, &alone, &["--overwrite"]).refused(1, &[top, "alone"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        fs::remove_dir_all(&alone).unwrap();
        // The file is in the directory of a run.
        let out = project.path().join("out");
        train(&project, &out, &["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"]).succeeded();
        let file = write(out.join(name), text);
        train(&project, &out, &["--overwrite"]).refused(1, &[top]);
        fs::remove_dir_all(out.join("checkpoints/step-00000003")).unwrap();
        killed(&out);
        resume(&out).succeeded();
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert!(out.join("config.json").is_file());
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_killed_runs_of_any_version_left_goes() {
    let project = Project::new(BINARY, "pretrain", 3);
    let record = "{\n  \"status\": \"running\",\n  \"recipe\": {\n    \"sta";
    let out = project.path().join("out");
    for text in ["", "{", "{\n", record] {
        for name in [".tmpAbCdEf", ".basic-4294967295-aB3dE6"] {
            write(out.join(name), text);
        }
        write(out.join(".lock"), "");
        resume(&out).refused(1, &["run.json"]);
        train(&project, &out, &["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"]).succeeded();
        let left = entries(&out);
        assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
        fs::remove_dir_all(&out).unwrap();
    }
    // Complete and truncated files of a state below a run.
    train(&project, &out, &["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"]).succeeded();
    let states = out.join("checkpoints");
    let state = states.join("step-00000003");
    fs::rename(&state, states.join(".basic-4294967295-aB3dE6")).unwrap();
    write(states.join(".basic-aB3dE6/trained.safetensors"), "cut");
    write(states.join(".basic-stale-step-00000001/state.json"), "{}");
    write(out.join(".basic-4294967295-xB3dE6/model.safetensors"), "");
    write(out.join(".tmpZzZzZz"), "{\"step\":1,\"lm\":");
    killed(&out);
    resume(&out).succeeded();
    assert_eq!(entries(&states), ["step-00000001", "step-00000002", "step-00000003"]);
    assert!(entries(&out).iter().all(|name| !name.starts_with('.')), "{:?}", entries(&out));
}

#[test]
fn a_state_with_files_of_a_users_own_stays_whole() {
    let project = Project::new(BINARY, "pretrain", 4);
    let out = project.path().join("out");
    train(&project, &out, &["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"]).succeeded();
    let states = out.join("checkpoints");
    ["step-00000003", "step-00000004"].iter().for_each(|name| fs::remove_dir_all(states.join(name)).unwrap());
    let notes = write(states.join("step-00000001/notes.md"), "the best so far");
    let before = entries(&states.join("step-00000001"));
    killed(&out);
    change_record(&out, |record| record["recipe"]["checkpoint"]["keep_last"] = 1.into());
    resume(&out).succeeded();
    assert_eq!(entries(&states), ["step-00000001", "step-00000004"]);
    assert_eq!(entries(&states.join("step-00000001")), before);
    assert_eq!(fs::read_to_string(notes).unwrap(), "the best so far");
    // Another run does not delete them either.
    train(&project, &out, &["--overwrite"]).refused(1, &["checkpoints/step-00000001/notes.md"]);
    assert_eq!(entries(&states.join("step-00000001")), before);
}

#[test]
fn what_a_user_keeps_among_the_records_of_a_failed_run_stays() {
    let project = Project::new(BINARY, "pretrain", 3);
    let (first, out) = (project.path().join("first"), project.path().join("out"));
    train(&project, &first, &[]).succeeded();
    train(&project, &out, &["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"]).succeeded();
    killed(&out);
    fs::rename(&first, out.join(".replaced")).unwrap();
    let notes = write(out.join("failed-checkpoints/step-00000002/why.md"), "it diverged");
    train(&project, &out, &["--overwrite"]).refused(1, &["failed-checkpoints/step-00000002/why.md"]);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "it diverged");
    assert_eq!(entries(&out.join("checkpoints")), ["step-00000001", "step-00000002", "step-00000003"]);
}

const STUDY: &str = r#"
name = "Tiny"
seeds = [0]
baseline = "none"
KEEP

[world]
train = 8
validation = 2
eval = 2

[recipe]
train.batch_size = 4
train.steps = 2

[[stages]]
name = "pretrain"
recipe = { stage = "pretrain", model.vision = "world:backbones/vision", model.llm = "world:backbones/llm", data.path = "world:data/pretrain.json" }

[evaluation]
questions = "world:data/eval.jsonl"
shapes = "world:data"
batch_size = 64
max_new_tokens = 4
limit = 2

[[factors]]
name = "losses"
cells = [{ name = "none", set = { objective.das = false, objective.sds = false } }]
"#;

#[test]
fn a_study_takes_away_its_own_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (study, out) = (dir.path().join("tiny.toml"), dir.path().join("out"));
    let keep = |keep: bool| fs::write(&study, STUDY.replace("KEEP", &format!("keep_checkpoints = {keep}"))).unwrap();
    let ablate = || run(BINARY, args!["ablate", study, "--out", out, "--device", "cpu"]);
    keep(true);
    let listed = run(BINARY, args!["ablate", study, "--out", out, "--list", "--json"]).json();
    let hash = listed["cells"][0]["stages"][0][1].as_str().unwrap().to_owned();
    let cell = out.join("cells").join(hash).join("run");

    // The place of a cell's run contains a user's file.
    let notes = write(cell.join("notes.md"), "mine");
    let said = ablate();
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.stderr.contains("notes.md") && said.stderr.contains("cells"), "{}", said.stderr);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
    fs::remove_file(&notes).unwrap();

    // An incomplete world contains a user's image.
    let world = fs::read_dir(&out).unwrap().flatten().map(|entry| entry.path());
    let world = world.into_iter().find(|path| path.join("world.json").is_file()).unwrap();
    fs::remove_file(world.join("world.json")).unwrap();
    let picture = write(world.join("data/images/cat.png"), "mine");
    let held = entries(&world.join("data/images"));
    ablate().refused(1, &["data/images/cat.png", "no study has written"]);
    assert_eq!(entries(&world.join("data/images")), held);
    fs::remove_file(&picture).unwrap();
    let partial = world.with_extension("partial");
    let picture = write(partial.join("cat.png"), "mine");
    ablate().refused(1, &["cat.png", "partial"]);
    fs::remove_file(&picture).unwrap();
    // Files that a killed study was writing are deleted.
    write(partial.join("data/images/.writing-aB3dE6"), "");
    write(cell.join("run.json"), "{\n  \"status\"");
    assert_eq!(ablate().code, Some(0));
    assert!(world.join("world.json").is_file() && !partial.exists() && cell.join("config.json").is_file());

    // Checkpoints that are not needed any more are deleted, but a user's file beside them is kept.
    let notes = write(cell.join("notes.md"), "mine");
    keep(false);
    assert_eq!(ablate().code, Some(0));
    assert_eq!(entries(&cell), ["notes.md"]);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
}

#[test]
fn shapes_are_written_into_an_empty_folder_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    write(home.join("images/cat.png"), "mine");
    write(home.join("pretrain.json"), "mine");
    let before = tests::fixtures::tree(&home);
    let line = args!["data", "shapes", "--out", home, "--train", "2", "--validation", "1", "--eval", "1"];
    run(BINARY, line).refused(1, &["home"]);
    assert_eq!(tests::fixtures::tree(&home), before);
}

#[test]
fn an_evaluation_does_not_take_away_what_others_call_a_result() {
    let place = tests::benchmarks::Place::new(BINARY);
    let mine = place.out().join("pope/result.json");
    write(mine.clone(), "{\"port\": 8080}");
    place.refused("pope", &["result.json", "not the record of an evaluation"]);
    assert_eq!(fs::read_to_string(mine).unwrap(), "{\"port\": 8080}");
}

#[test]
fn of_two_runs_that_begin_at_once_one_has_the_directory() {
    let project = Project::new(BINARY, "pretrain", 30);
    let out = project.path().join("out");
    let line = args!["train", project.path().join("recipe.toml"), "--out", out, "--ui", "bar"];
    let start = || Command::new(BINARY).args(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let runs = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
    let (done, refused): (Vec<_>, Vec<_>) = runs.iter().partition(|ended| ended.status.success());
    assert_eq!((done.len(), refused.len()), (1, 2), "{runs:#?}");
    for ended in refused {
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.starts_with("error: ") && said.contains("out"), "{said}");
        assert!(said.contains("another `basic`") || said.contains("exists"), "{said}");
    }
    assert!(out.join("model.safetensors").is_file());
    resume(&out).succeeded();
}

#[test]
fn a_run_whose_place_another_one_has_taken_ends_and_touches_nothing_there() {
    let project = Project::new(BINARY, "finetune", 80);
    let out = project.path().join("out");
    let line = args!["train", project.path().join("recipe.toml"), "--out", out, "--ui", "bar"];
    let start = || Command::new(BINARY).args(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let wait = || {
        let begun = std::time::Instant::now();
        while fs::read(out.join("metrics.jsonl")).unwrap_or_default().is_empty() && begun.elapsed().as_secs() < 60 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    let first = start();
    wait();
    fs::rename(&out, project.path().join("elsewhere")).unwrap();
    // As much of another run as the first one may find when it ends.
    write(out.join("run.json"), "{\"status\": \"running\"}");
    let ended = first.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("another run has taken the place of this one"), "{said}");
    assert_eq!(entries(&out), ["run.json"]);
    assert_eq!(fs::read_to_string(out.join("run.json")).unwrap(), "{\"status\": \"running\"}");
}

#[test]
fn a_finished_run_whose_checkpoint_is_cut_or_lacks_a_file_goes_on_or_says_why_not() {
    let project = Project::new(BINARY, "finetune", 4);
    for (name, length) in [
        ("model.safetensors", Some(5000)),
        ("model.safetensors", Some(0)),
        ("config.json", None),
        ("tokenizer.json", None),
    ] {
        let harm = |out: &Path| match length {
            Some(length) => fs::OpenOptions::new().write(true).open(out.join(name)).unwrap().set_len(length).unwrap(),
            None => fs::remove_file(out.join(name)).unwrap(),
        };
        let out = project.path().join("with");
        train(&project, &out, &["--set", "checkpoint.every=2"]).succeeded();
        let expected = fs::read(out.join(name)).unwrap();
        harm(&out);
        let ran = resume(&out);
        assert!(ran.code == Some(0) && ran.stderr.contains("goes on from its last state"), "{name}: {ran:#?}");
        assert!(fs::read(out.join(name)).unwrap() == expected, "{name}");
        fs::remove_dir_all(&out).unwrap();
        let out = project.path().join("without");
        train(&project, &out, &[]).succeeded();
        harm(&out);
        resume(&out).refused(1, &["its checkpoint is not whole any more", "--overwrite"]);
        train(&project, &out, &["--overwrite"]).succeeded();
        fs::remove_dir_all(&out).unwrap();
    }
}
