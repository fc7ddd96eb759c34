//! Files that change while a run reads them repeatedly: images, held-out images, and files beside the weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::fixtures::{copy_of, fixture, read_json, read_jsonl};
use tests::project::{Project, losses};
use tests::runs::killed_behind;
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// Without a cache, images are read each time that they are drawn.
const UNCACHED: &str = "train.vision_cache_mib=0";

/// Copies the data set's images to a folder of their own.
fn images(dir: &Path) -> PathBuf {
    let images = dir.join("images");
    fs::create_dir(&images).unwrap();
    for name in ["a.png", "b.png", "c.png", "d.png"] {
        fs::copy(fixture("images").join(name), images.join(name)).unwrap();
    }
    images
}

fn train(project: &Project, sets: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(args!["train", project.path().join("recipe.toml"), "--out", project.path().join("out")])
        .args(["--log-every", "1", "--ui", "bar"])
        .args(sets.iter().flat_map(|set| ["--set", set]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Starts a run and waits for its first step.
fn begun(project: &Project, sets: &[&str]) -> Child {
    let child = train(project, sets).spawn().unwrap();
    let (begun, metrics) = (Instant::now(), project.path().join("out/metrics.jsonl"));
    while fs::read(&metrics).unwrap_or_default().is_empty() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[track_caller]
fn ended(child: Child, code: i32) -> String {
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(code), "{said}");
    said
}

fn resume(out: &Path) -> Ran {
    run(BINARY, args!["train", "--resume", out])
}

#[test]
fn an_image_that_is_replaced_after_it_was_trained_on_ends_the_run() {
    let project = Project::new(BINARY, "finetune", 200);
    let images = images(project.path());
    let child = begun(&project, &[UNCACHED, &format!("data.images={}", images.display()), "data.on_error=skip"]);
    fs::copy(fixture("images/tall.png"), images.join("b.png")).unwrap();
    let said = ended(child, 1);
    assert!(said.contains("b.png") && said.contains("--resume") && said.starts_with("error: "), "{said}");
    assert!(!project.path().join("out/model.safetensors").exists());
}

#[test]
fn an_image_that_is_replaced_before_it_is_first_read_ends_the_run_too() {
    let project = Project::new(BINARY, "finetune", 100);
    let images = project.path().join("images");
    fs::create_dir(&images).unwrap();
    let turns = json!([{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a star"}]);
    let samples: Vec<_> = (0..300).map(|i| json!({"image": format!("{i}.png"), "conversations": turns})).collect();
    fs::write(project.path().join("data.json"), json!(samples).to_string()).unwrap();
    for i in 0..300 {
        fs::copy(fixture("images/a.png"), images.join(format!("{i}.png"))).unwrap();
        // The replacement is older than the run, so its time alone does not reveal the change.
        fs::copy(fixture("images/b.png"), project.path().join(format!("{i}.png"))).unwrap();
    }
    let sets = format!("data.images={}", images.display());
    let child = begun(&project, &[&sets, "loader.prefetch=1"]);
    for i in 0..300 {
        fs::rename(project.path().join(format!("{i}.png")), images.join(format!("{i}.png"))).unwrap();
    }
    let said = ended(child, 1);
    assert!(said.contains(".png: was changed after the run had begun"), "{said}");
}

#[test]
fn an_image_that_is_replaced_between_a_stop_and_going_on_is_told_and_one_that_was_copied_is_not() {
    let project = Project::new(BINARY, "finetune", 8);
    let images = images(project.path());
    let sets = [UNCACHED, &format!("data.images={}", images.display()), "checkpoint.every=4", "checkpoint.keep_last=9"];
    ended(train(&project, &sets).spawn().unwrap(), 0);
    let out = project.path().join("out");
    let expected = fs::read(out.join("model.safetensors")).unwrap();
    killed_behind(&out, 4);
    let before = fs::read(images.join("c.png")).unwrap();
    fs::copy(fixture("images/wide.png"), images.join("c.png")).unwrap();
    resume(&out).refused(1, &["c.png", "is not what it was when its sample was trained on"]);
    // A moved data set has another path and other times but the same contents, and is accepted.
    fs::write(images.join("c.png"), before).unwrap();
    let elsewhere = project.path().join("elsewhere");
    fs::rename(&images, &elsewhere).unwrap();
    fs::create_dir(&images).unwrap();
    for entry in fs::read_dir(&elsewhere).unwrap().flatten() {
        fs::copy(entry.path(), images.join(entry.file_name())).unwrap();
    }
    // The state's record of images is checked like its other files.
    let known = out.join("checkpoints/step-00000004/images.bin");
    let bytes = fs::read(&known).unwrap();
    assert_eq!(bytes.len(), 8 * 8);
    fs::write(&known, &bytes[1..]).unwrap();
    let ran = resume(&out);
    assert!(ran.code == Some(1) && ran.stderr.contains("images.bin is damaged"), "{ran:#?}");
    fs::write(&known, bytes).unwrap();
    resume(&out).succeeded();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected, "the same bytes as a run in peace");
}

#[test]
fn images_that_are_touched_or_written_again_as_they_were_do_not_end_a_run() {
    let project = Project::new(BINARY, "finetune", 60);
    let images = images(project.path());
    let child = begun(&project, &[&format!("data.images={}", images.display())]);
    // The first three steps use every image.
    let (begun, metrics) = (Instant::now(), project.path().join("out/metrics.jsonl"));
    while fs::read(&metrics).unwrap().iter().filter(|byte| **byte == b'\n').count() < 4
        && begun.elapsed() < Duration::from_secs(60)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    for name in ["a.png", "b.png", "c.png", "d.png"] {
        fs::copy(images.join(name), project.path().join(name)).unwrap();
        fs::rename(project.path().join(name), images.join(name)).unwrap();
    }
    ended(child, 0);
}

#[test]
fn a_caption_of_a_folder_that_is_replaced_by_one_of_its_length_ends_the_run() {
    let project = Project::new(BINARY, "pretrain", 200);
    let (folder, recipe) = (images(project.path()), project.path().join("recipe.toml"));
    for name in ["a", "b", "c", "d"] {
        fs::write(folder.join(name).with_extension("txt"), "a small red circle").unwrap();
    }
    let text = fs::read_to_string(&recipe).unwrap();
    let lines =
        text.lines().filter(|line| !line.starts_with("images = ")).map(|line| match line.starts_with("path = ") {
            true => format!("path = {:?}", folder.display().to_string()),
            false => line.into(),
        });
    fs::write(&recipe, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let child = begun(&project, &["checkpoint.every=5", "data.conversation=plain"]);
    // Renamed atomically: a file written in place would be empty for a moment, which is another error.
    fs::write(project.path().join("b.txt"), "a small tan circle").unwrap();
    fs::rename(project.path().join("b.txt"), folder.join("b.txt")).unwrap();
    let said = ended(child, 1);
    assert!(said.contains("b.txt") && said.contains("--resume"), "{said}");
    let out = project.path().join("out");
    fs::write(folder.join("b.txt"), "a small red circle").unwrap();
    if out.join("checkpoints").is_dir() {
        resume(&out).succeeded();
    }
}

#[test]
fn a_held_out_image_that_is_replaced_or_gone_ends_the_run_and_its_evaluation_is_made_up() {
    for (replaced, said) in [(true, "d.png: was changed while the run went on"), (false, "does not exist")] {
        let project = Project::new(BINARY, "finetune", 100);
        let images = images(project.path());
        let recipe = project.path().join("recipe.toml");
        let (data, folder) = (project.path().join("data.json").display().to_string(), images.display().to_string());
        let text = fs::read_to_string(&recipe).unwrap();
        fs::write(&recipe, format!("{text}[eval]\npath = {data:?}\nimages = {folder:?}\nevery = 5\nsamples = 8\n"))
            .unwrap();
        let child = begun(&project, &[]);
        let before = fs::read(images.join("d.png")).unwrap();
        if replaced {
            fs::copy(fixture("images/tall.png"), images.join("d.png")).unwrap();
        } else {
            fs::remove_file(images.join("d.png")).unwrap();
        }
        let told = ended(child, 1);
        assert!(told.contains("d.png") && told.contains(said), "{told}");
        // The trained state is kept, and no evaluation is missing when the run has gone on.
        let out = project.path().join("out");
        assert!(out.join("checkpoints").is_dir());
        fs::write(images.join("d.png"), before).unwrap();
        resume(&out).succeeded();
        assert_eq!(losses(&out).len(), 100);
        let evaluated: Vec<_> = read_jsonl(&out.join("eval.jsonl")).iter().map(|line| line["step"].clone()).collect();
        assert_eq!(evaluated, (1..=20).map(|at| json!(5 * at)).collect::<Vec<_>>());
    }
}

#[test]
fn what_lies_beside_the_weights_is_what_it_was_or_the_run_says_so() {
    let project = Project::new(BINARY, "finetune", 40);
    let model = project.path().join("model");
    copy_of("plain", &model);
    let start = format!("model.checkpoint={}", model.display());
    ended(train(&project, &[&start]).spawn().unwrap(), 0);
    let out = project.path().join("out");
    let expected = fs::read(out.join("model.safetensors")).unwrap();
    fs::rename(&out, project.path().join("whole")).unwrap();

    // The file is read again for the checkpoint. The error does not lose the trained state.
    let child = begun(&project, &[&start]);
    let file = model.join("tokenizer_config.json");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, before.replacen('{', "{\"mine\": true,", 1)).unwrap();
    let said = ended(child, 1);
    assert!(said.contains("tokenizer_config.json: was changed while the run went on"), "{said}");
    assert!(!out.join("config.json").exists() && out.join("checkpoints/step-00000040").is_dir());
    let ran = resume(&out);
    ran.refused(1, &["step-00000040", "the model's configuration or vocabulary are not what they were"]);
    fs::write(&file, before).unwrap();
    resume(&out).succeeded();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected);
    assert_eq!(losses(&out).len(), 40);

    // A changed configuration is refused, because it changes the meaning of the weights.
    killed_behind(&out, 40);
    let config = model.join("config.json");
    let before = fs::read_to_string(&config).unwrap();
    let mut value = read_json(&config);
    value["text_config"]["rms_norm_eps"] = 0.01.into();
    fs::write(&config, value.to_string()).unwrap();
    resume(&out).refused(1, &["the model's configuration or vocabulary are not what they were"]);
    fs::write(&config, before).unwrap();
    // A changed generation_config.json does not matter for training.
    fs::write(model.join("generation_config.json"), "{\"bos_token_id\": 1}").unwrap();
    resume(&out).succeeded();
}

#[test]
fn a_state_whose_whole_model_cannot_be_written_is_kept_and_completed_when_the_run_goes_on() {
    let project = Project::new(BINARY, "finetune", 200);
    let model = project.path().join("model");
    copy_of("plain", &model);
    let start = format!("model.checkpoint={}", model.display());
    let sets = [start.as_str(), "checkpoint.full=true", "checkpoint.every=100", "checkpoint.keep_last=1"];
    let child = begun(&project, &sets);
    let file = model.join("tokenizer_config.json");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, before.replacen('{', "{\"mine\": true,", 1)).unwrap();
    let said = ended(child, 1);
    assert!(said.contains("tokenizer_config.json: was changed while the run went on"), "{said}");
    let (out, state) = (project.path().join("out"), project.path().join("out/checkpoints/step-00000100"));
    assert!(state.join("state.json").is_file() && !state.join("model").exists());
    fs::write(&file, before).unwrap();
    resume(&out).succeeded();
    assert_eq!(losses(&out).len(), 200);
    assert!(out.join("checkpoints/step-00000200/model/model.safetensors").is_file());
    assert!(!state.exists(), "only the last state stays");
}
