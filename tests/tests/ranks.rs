//! Training on several processes that `mpirun` launches, compared with one process. Built with the feature `mpi` alone,
//! which needs OpenMPI; `.ci/run` installs it.
#![cfg(feature = "mpi")]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::benchmarks::{Place, pope};
use tests::fixtures::{read_jsonl, tree};
use tests::project::{Project, llava, losses};
use tests::{args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// The relative tolerance of losses with several ranks, which sum in another order than one.
const ROUNDING: f64 = 1e-5;

/// A launch that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// `mpirun` of this binary. Root may run it in a container, and a machine may have fewer cores than ranks.
fn mpirun(ranks: usize, line: impl IntoIterator<Item = OsString>) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string(), BINARY]).args(line);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// What our processes said; `mpirun` adds paragraphs of its own where one fails.
    fn errors(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.starts_with("error: ") || line.contains("panicked")).collect()
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self
    }

    /// One process reports the failure, once, and names what `mentions` has.
    #[track_caller]
    fn refused(self, mentions: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        for mention in mentions {
            assert!(errors[0].contains(mention), "{mention:?} is not in: {}", errors[0]);
        }
        self
    }
}

fn line(project: &Project, out: &Path, more: &[&str]) -> Vec<OsString> {
    let mut line = args!["train", project.path().join("recipe.toml"), "--out", out, "--set", "train.batch_size=4"];
    line.extend(more.iter().map(OsString::from));
    line
}

fn train(project: &Project, ranks: usize, out: &str, more: &[&str]) -> PathBuf {
    let out = project.path().join(out);
    let ended = Ended::of(mpirun(ranks, line(project, &out, more)).spawn().unwrap()).succeeded();
    let told = ended.stdout.lines().filter(|line| line.starts_with("checkpoint: ")).count();
    assert_eq!(told, 1, "one rank tells of it: {}", ended.stdout);
    out
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("model.safetensors")).unwrap()
}

/// Waits until `ready`, at most for [`PATIENCE`].
#[track_caller]
fn wait(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn steps(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count()
}

/// The process ids of the ranks that work on `out`, by rank.
fn ranks_of(out: &Path) -> Vec<(usize, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read =
            |name: &str| String::from_utf8_lossy(&fs::read(entry.path().join(name)).unwrap_or_default()).into_owned();
        let (command, environment) = (read("cmdline"), read("environ"));
        let ours = command.starts_with(BINARY) && command.contains(&*out.to_string_lossy());
        let rank = environment.split('\0').find_map(|pair| pair.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse().ok());
        found.extend(rank.filter(|_| ours).map(|rank| (rank, id)));
    }
    found.sort_unstable();
    found
}

/// Whether a process was there to get the signal. The shell has `kill` where the system lacks the program.
fn kill(id: u32, name: &str) -> bool {
    Command::new("sh").args(["-c", &format!("kill {name} {id}")]).stderr(Stdio::null()).status().unwrap().success()
}

fn signal(id: u32, name: &str) {
    assert!(kill(id, name));
}

#[test]
fn processes_give_the_bits_of_threads_and_the_losses_of_one_device() {
    let cases: [(&str, &[&str]); 6] = [
        ("pretrain", &[]),
        ("finetune", &[]),
        ("finetune", &["--set", "train.micro_batch=1"]),
        ("finetune", &["--set", "loader.packing=true", "--set", "train.recompute=true"]),
        ("finetune", &["--set", "parts.decoder.mode=lora", "--set", "parts.decoder.rank=2"]),
        ("finetune", &["--set", "train.batch_size=5", "--set", "train.dtype=bfloat16"]),
    ];
    for (stage, more) in cases {
        let project = Project::new(BINARY, stage, 5);
        let one = project.path().join("one");
        run(BINARY, line(&project, &one, more)).succeeded();
        for (ranks, devices) in [(2, "cpu,cpu"), (4, "cpu,cpu,cpu,cpu")] {
            let threads = project.path().join(devices);
            run(BINARY, line(&project, &threads, &[more, &["--devices", devices]].concat())).succeeded();
            let many = train(&project, ranks, &format!("ranks-{ranks}"), more);
            assert!(
                weights(&many) == weights(&threads),
                "{stage} {more:?}: {ranks} ranks are {ranks} threads, in bits"
            );
            if more.contains(&"train.dtype=bfloat16") {
                // One device rounds the summed gradient to 16 bits, ranks that divide it do not.
                continue;
            }
            for (a, b) in losses(&one).iter().flatten().zip(losses(&many).iter().flatten()) {
                assert!((a - b).abs() <= ROUNDING * a.abs().max(1e-3), "{stage} {more:?} on {ranks}: {a} and {b}");
            }
        }
    }
}

#[test]
fn every_rank_stops_with_the_message_of_the_one_that_failed() {
    let project = Project::new(BINARY, "pretrain", 40);
    let mut data = llava();
    data[6]["image"] = Value::from("broken.png");
    let images = project.path().join("images");
    fs::create_dir(&images).unwrap();
    for name in ["a.png", "b.png", "c.png", "d.png"] {
        fs::copy(tests::fixtures::fixture("images").join(name), images.join(name)).unwrap();
    }
    fs::write(images.join("broken.png"), "no picture").unwrap();
    fs::write(project.path().join("data.json"), data.to_string()).unwrap();
    let images = format!("data.images={}", images.display());
    let out = project.path().join("out");
    let more = ["--set", &images, "--set", "loader.order=sequential", "--set", "train.batch_size=8"];
    // Of eight samples in order, the seventh is the second rank's.
    let ended = Ended::of(mpirun(2, line(&project, &out, &more)).spawn().unwrap());
    ended.refused(&["rank 1: ", "broken.png"]);
    let info: Value = serde_json::from_str(&fs::read_to_string(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(info["status"], "failed", "the first rank has heard of it");

    // Where broken samples may be left out, all ranks know of those of the others.
    let skips = [&more[..], &["--set", "data.on_error=skip", "--set", "train.steps=4"]].concat();
    let one = project.path().join("one");
    run(BINARY, line(&project, &one, &skips)).succeeded();
    let two = train(&project, 2, "two", &skips);
    let skipped = |out: &Path| {
        read_jsonl(&out.join("metrics.jsonl")).iter().map(|step| step["left_out"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(skipped(&one), skipped(&two));
    assert!(skipped(&two)[0].as_array().is_some_and(|left_out| left_out.len() == 1), "{:?}", skipped(&two));
    for (a, b) in losses(&one).iter().flatten().zip(losses(&two).iter().flatten()) {
        assert!((a - b).abs() <= ROUNDING * a.abs().max(1e-3), "{a} and {b}");
    }
}

#[test]
fn what_processes_cannot_do_together_is_refused_before_anything_is_written() {
    let project = Project::new(BINARY, "pretrain", 2);
    let out = project.path().join("out");
    let alike = |line: Vec<OsString>, mentions: &[&str]| {
        let ended = Ended::of(mpirun(2, line).spawn().unwrap()).refused(mentions);
        assert!(!ended.errors()[0].contains("rank 0"), "all fail alike: {}", ended.stderr);
        assert!(!out.exists());
    };
    alike(line(&project, &out, &["--devices", "cpu,cpu"]), &["--devices cpu,cpu", "--device"]);
    alike(line(&project, &out, &["--set", "train.batch_size=0"]), &["batch_size"]);
    alike(args!["train", project.path().join("none.toml"), "--out", out], &["none.toml"]);
    // Two recipes in one launch.
    let mut both = mpirun(1, line(&project, &out, &[]));
    both.args([":", "-n", "1", BINARY]).args(line(&project, &out, &["--set", "seed=6"]));
    Ended::of(both.spawn().unwrap()).refused(&["the recipe's values of rank 1", "rank 0"]);
    assert!(!out.exists());
    // A launch into a directory of another run.
    train(&project, 2, "out", &[]);
    Ended::of(mpirun(2, line(&project, &out, &[])).spawn().unwrap()).refused(&["exists already"]);
}

#[test]
fn a_signal_to_any_rank_saves_and_a_run_goes_on_with_the_bits_of_one_never_stopped() {
    let project = Project::new(BINARY, "finetune", 60);
    let whole = train(&project, 2, "whole", &[]);
    let out = project.path().join("out");
    let child = mpirun(2, line(&project, &out, &[])).spawn().unwrap();
    wait("three steps", || steps(&out) >= 3);
    let ranks = ranks_of(&out);
    assert_eq!(ranks.len(), 2, "{ranks:?}");
    signal(ranks[1].1, "-TERM");
    let ended = Ended::of(child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("stopped after step"), "{}", ended.stdout);
    assert!(steps(&out) < 60);
    let resume = |ranks: usize| {
        let ended = Ended::of(mpirun(ranks, args!["train", "--resume", out]).spawn().unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    };
    resume(2);
    assert_eq!(losses(&out), losses(&whole));
    assert!(weights(&out) == weights(&whole));
}

#[test]
fn a_rank_that_is_killed_ends_the_others_and_the_run_goes_on_from_its_last_state() {
    let project = Project::new(BINARY, "finetune", 40);
    let every = ["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=2"];
    let whole = train(&project, 2, "whole", &every);
    // At different moments, also within saving: most of the time of such a run goes into that.
    for (victim, moment) in [(1, 2), (0, 5), (1, 9), (0, 14)] {
        let out = project.path().join(format!("killed-{moment}"));
        let child = mpirun(2, line(&project, &out, &every)).spawn().unwrap();
        wait("a state", || steps(&out) >= moment);
        std::thread::sleep(Duration::from_millis(7 * moment as u64));
        let ranks = ranks_of(&out);
        if let Some((_, id)) = ranks.iter().find(|(rank, _)| *rank == victim) {
            kill(*id, "-KILL");
        }
        let ended = Ended::of(child);
        assert_ne!(ended.code, None, "the others end too");
        assert!(ranks_of(&out).is_empty());
        let ended = Ended::of(mpirun(2, args!["train", "--resume", out]).spawn().unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(weights(&out) == weights(&whole), "killed after {moment} steps");
    }
}

#[test]
fn a_launch_without_its_neighbours_says_what_is_missing() {
    // As if another MPI had launched it: the environment tells of two processes, MPI knows of one.
    let project = Project::new(BINARY, "pretrain", 2);
    let out = project.path().join("out");
    let alone = |pairs: &[(&str, &str)]| {
        let mut command = Command::new(BINARY);
        command.args(line(&project, &out, &[])).envs(pairs.iter().copied());
        Ended::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    };
    alone(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]).refused(&["launched 2 processes, MPI connects 1", "Open MPI"]);
    alone(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")]).refused(&["torchrun", "MASTER_ADDR"]);
    alone(&[("PMI_RANK", "7"), ("PMI_SIZE", "2")]).refused(&["PMI_RANK", "from 0 to 1"]);
    assert!(!out.exists());
}

#[test]
fn a_rank_that_hangs_is_named_after_the_time_limit() {
    let project = Project::new(BINARY, "finetune", 2000);
    let out = project.path().join("out");
    let limit = ["--set", "parallel.timeout_s=2", "--set", "checkpoint.every=3"];
    let child = mpirun(2, line(&project, &out, &limit)).spawn().unwrap();
    wait("a state", || steps(&out) >= 7);
    let ranks = ranks_of(&out);
    signal(ranks[1].1, "-STOP");
    // `mpirun` ends what is left when the first rank has ended; one that is stopped hears of it when it goes on.
    wait("the end of the first rank", || !ranks_of(&out).iter().any(|(rank, _)| *rank == 0));
    kill(ranks[1].1, "-CONT");
    let ended = Ended::of(child);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let errors = ended.errors();
    assert!(errors[0].contains("rank 1 did not answer within 2 s") && errors[0].contains("--resume"), "{errors:?}");
    let info: Value = serde_json::from_str(&fs::read_to_string(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(info["status"], "failed");
}

#[test]
fn the_questions_of_a_file_go_to_the_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let questions: Vec<String> = (0..11)
        .map(|i| json!({"question_id": i, "image": (["a.png", "b.png", "c.png"][i % 3]), "text": format!("what is in picture {i}?"), "answer": "a circle", "category": "x"}).to_string())
        .collect();
    let data = dir.path().join("questions.jsonl");
    fs::write(&data, questions.join("\n") + "\n").unwrap();
    let (checkpoint, images) = (tests::fixtures::fixture("plain"), tests::fixtures::fixture("images"));
    let line = |out: &Path| {
        let fixed = args!["eval", checkpoint, data, "--images", images, "--batch-size", "2", "--max-new-tokens", "4"];
        [fixed, args!["--out", out, "--conversation", "vicuna_v1", "--device", "cpu"]].concat()
    };
    let (one, many) = (dir.path().join("one.jsonl"), dir.path().join("many.jsonl"));
    run(BINARY, line(&one)).succeeded();
    for ranks in [2, 4] {
        let ended = Ended::of(mpirun(ranks, line(&many)).spawn().unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("overall")).count(), 1, "{}", ended.stdout);
        assert_eq!(fs::read_to_string(&one).unwrap(), fs::read_to_string(&many).unwrap());
    }
}

#[test]
fn the_questions_of_benchmarks_go_to_the_ranks_and_the_files_are_the_same() {
    let place = Place::new(BINARY);
    pope(&place.root(), 7);
    // Batches that do not divide by the ranks, and options that are ranked too.
    let line = place.line(&["pope", "scienceqa", "mmbench"], &["--batch-size", "2", "--choices", "likelihood"]);
    let expected = run(BINARY, line.clone()).json();
    let files = tree(&place.out());
    assert!(files.iter().any(|(path, _)| path.ends_with("likelihoods.jsonl")));
    for ranks in [2, 4] {
        fs::remove_dir_all(place.out()).unwrap();
        let ended = Ended::of(mpirun(ranks, line.clone()).spawn().unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap(), expected);
        assert_eq!(tree(&place.out()), files);
    }
    // What has an answer is not asked again, and what has none is.
    let answers = place.out().join("pope/answers.jsonl");
    let text = fs::read_to_string(&answers).unwrap();
    fs::write(&answers, text.lines().take(3).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let ended = Ended::of(mpirun(2, line.clone()).spawn().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(tree(&place.out()), files);
    // A file that the first rank cannot use ends all with one message.
    fs::write(&answers, "no answer\n").unwrap();
    let ended = Ended::of(mpirun(2, line).spawn().unwrap());
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.errors().len(), 1, "{}", ended.stderr);
    assert!(ended.errors()[0].contains("answers.jsonl:1") && ended.errors()[0].contains("--fresh"), "{}", ended.stderr);
}

/// Three cells and two seeds.
const STUDY: &str = r#"
name = "Ranks"
seeds = [0, 1]

[world]
train = 12
validation = 4
eval = 4

[recipe]
model = { vision = "world:backbones/vision", llm = "world:backbones/llm" }
data.path = "world:data/pretrain.json"
train = { batch_size = 4, steps = 2 }

[[stages]]
name = "pretrain"
measure = ["accuracy"]
recipe = { stage = "pretrain", optimizer.lr = 4e-3 }

[evaluation]
questions = "world:data/eval.jsonl"
batch_size = 64
max_new_tokens = 4
limit = 8

[[factors]]
name = "lambda"
key = "objective.lambda_das"
baseline = "0.1"
values = [0.1, 0.2, 0.4]
"#;

#[test]
fn the_cells_of_a_study_go_to_the_ranks_and_its_tables_are_those_of_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let study = dir.path().join("study.toml");
    fs::write(&study, STUDY).unwrap();
    let line = |out: &Path| args!["ablate", study, "--out", out, "--device", "cpu"];
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    assert_eq!(run(BINARY, line(&one)).code, Some(0));
    let ended = Ended::of(mpirun(4, line(&many)).spawn().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("tables: ")).count(), 1, "{}", ended.stdout);
    let groups = |out: &Path| {
        let text = fs::read_to_string(out.join("results.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["groups"].clone()
    };
    assert_eq!(groups(&one), groups(&many));
    assert_eq!(fs::read_to_string(one.join("table.csv")).unwrap(), fs::read_to_string(many.join("table.csv")).unwrap());
}

#[test]
fn what_ranks_do_together_is_checked_and_timed() {
    for ranks in [2, 3] {
        let ended =
            Ended::of(mpirun(ranks, args!["devices", "--together", "cpu", "--json"]).spawn().unwrap()).succeeded();
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&report["replicas"], &report["failed"]), (&json!(ranks), &json!(0)));
        let operations = report["operations"].as_array().unwrap();
        assert_eq!(operations.len(), 24, "four operations, three sizes, two types");
    }
    let several = args!["devices", "--together", "cpu,cpu"];
    Ended::of(mpirun(2, several).spawn().unwrap()).refused(&["--together", "each has one"]);
}

#[test]
fn a_benchmark_on_ranks_shares_its_batch() {
    for shard in ["none", "gradients"] {
        let line =
            args!["bench", "--preset", "tiny", "--stage", "finetune", "--steps", "1", "--device", "cpu", "--json"];
        let line = [line, args!["--warmup", "0", "--shard", shard, "--recompute"]].concat();
        let ended = Ended::of(mpirun(3, line).spawn().unwrap()).succeeded();
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&report["ranks"], &report["shard"], &report["batch"]), (&json!(3), &json!(shard), &json!(8)));
        assert!(report["peak_rss_mib"].as_f64().unwrap() > 10.0);
    }
}
