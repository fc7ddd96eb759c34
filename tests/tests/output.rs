//! The output of commands: into a full disk, into a closed pipe, and error messages for a person.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tests::benchmarks::{Place, edit};
use tests::fixtures::{copy_of, fixture, text};
use tests::{Ran, args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BASIC, args)
}

fn generate(checkpoint: &Path, prompt: &str, more: &[&str]) -> Vec<OsString> {
    let mut line = args!["generate", checkpoint, "--image", fixture("images/b.png"), "--prompt", prompt];
    line.extend(args!["--device", "cpu"]);
    line.extend(more.iter().map(OsString::from));
    line
}

fn questions(dir: &Path, texts: &[&str]) -> PathBuf {
    let path = dir.join("questions.jsonl");
    let line = |text: &&str| serde_json::json!({"text": text, "answer": "a circle"}).to_string() + "\n";
    fs::write(&path, texts.iter().map(line).collect::<String>()).unwrap();
    path
}

#[cfg(unix)]
mod closed {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use tests::fixtures::{read_json, read_jsonl};
    use tests::project::Project;

    use super::*;

    /// Runs the binary with this standard output and these lines on standard input.
    fn into(stdout: impl Into<Stdio>, args: Vec<OsString>, lines: &str) -> Ran {
        let mut child =
            Command::new(BASIC).args(args).stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        // The write fails if the program has ended already.
        let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
        let output = child.wait_with_output().unwrap();
        Ran { code: output.status.code(), stdout: String::new(), stderr: String::from_utf8(output.stderr).unwrap() }
    }

    fn into_full_disk(args: Vec<OsString>, lines: &str) -> Ran {
        into(OpenOptions::new().write(true).open("/dev/full").unwrap(), args, lines)
    }

    /// Runs the binary with standard output into a pipe that is closed from the start.
    fn to_nobody(args: Vec<OsString>, lines: &str) -> Ran {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        into(writer, args, lines)
    }

    /// Command lines with every kind of output: help, tables, objects, texts, streams.
    fn lines(dir: &Path) -> Vec<Vec<OsString>> {
        let plain = fixture("plain");
        let data = dir.join("data.json");
        fs::write(&data, tests::project::llava().to_string()).unwrap();
        let asked = questions(dir, &["what is it?", "how many?"]);
        let kept = dir.join("kept.jsonl");
        basic([args!["eval", plain, asked, "--out", kept, "--device", "cpu"], args!["--json"]].concat()).json();
        let check = args!["data", "check", data, "--images", fixture("images"), "--checkpoint", plain];
        let show = args!["data", "show", data, "0", "--images", fixture("images"), "--checkpoint", plain];
        vec![
            args!["--help"],
            args!["generate", "--help"],
            args!["--version"],
            args!["devices"],
            args!["devices", "--json"],
            args!["inspect", plain],
            args!["inspect", plain, "--json"],
            check.clone(),
            [check, args!["--json"]].concat(),
            show,
            args!["eval", plain, asked, "--out", dir.join("again.jsonl"), "--device", "cpu"],
            args!["compare", kept, kept],
            args!["compare", kept, kept, "--json"],
            args!["losses", plain, fixture("samples.jsonl"), "--device", "cpu"],
            generate(&plain, "<image> x", &["--max-new-tokens", "4"]),
            generate(&plain, "<image> x", &["--max-new-tokens", "4", "--json"]),
            generate(&plain, "<image> x", &["--max-new-tokens", "300", "--stream"]),
        ]
    }

    #[test]
    fn output_that_is_lost_ends_every_command_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for line in lines(dir.path()) {
            let told = into_full_disk(line, "").refused(1, &["error: standard output: "]);
            assert!(told.contains("space"), "{told}");
        }
        // A command that fails anyway reports that failure.
        into_full_disk(args!["inspect", "nowhere"], "").refused(1, &["nowhere"]);
        into_full_disk(args!["bogus"], "").refused(2, &["bogus"]);
    }

    #[test]
    fn a_reader_who_went_away_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        for line in lines(dir.path()) {
            to_nobody(line, "").succeeded();
        }
        to_nobody(args!["inspect", "nowhere"], "").refused(1, &["nowhere"]);
    }

    #[test]
    fn a_chat_that_nobody_reads_takes_no_further_line() {
        let chat = args!["chat", fixture("plain"), "--device", "cpu", "--max-new-tokens", "9"];
        let lines = "what is it?\n/nothing\n";
        to_nobody(chat.clone(), lines).succeeded();
        into_full_disk(chat.clone(), lines).refused(1, &["standard output"]);
        into(Stdio::null(), chat, lines).refused(1, &["/nothing: no such command"]);
    }

    #[test]
    fn a_run_whose_lines_are_lost_trains_to_its_end() {
        let project = Project::new(BASIC, "pretrain", 3);
        for (name, nobody) in [("full", false), ("gone", true)] {
            let out = project.path().join(name);
            let mut line = args!["train", project.path().join("recipe.toml"), "--out", out, "--ui", "plain"];
            line.extend(args!["--log-every", "1"]);
            match nobody {
                true => {
                    to_nobody(line, "").succeeded();
                }
                false => {
                    into_full_disk(line, "").refused(1, &["standard output"]);
                }
            }
            assert_eq!(read_json(&out.join("run.json"))["status"], "done", "{name}");
            assert!(read_jsonl(&out.join("metrics.jsonl")).len() >= 3, "{name}");
        }
    }
}

#[test]
fn an_answer_is_cut_at_512_tokens_or_where_the_context_ends_and_says_so() {
    let plain = fixture("plain");
    let ids = |ran: Ran| ran.json()["ids"].as_array().unwrap().len();
    let asked = generate(&plain, "<image> x", &["--json"]);
    assert_eq!(ids(basic(asked)), 512, "a JSON object says why it ended, and standard error nothing");
    let ran = basic(generate(&plain, "<image> x", &[]));
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.stderr, "note: the answer was cut at 512 tokens: --max-new-tokens raises that\n");
    basic(generate(&plain, "<image> x", &["--max-new-tokens", "20"])).succeeded();
    // The prompt has 2017 tokens, and the context is 2048.
    let long = format!("<image> {}", "x ".repeat(1000));
    let ran = basic(generate(&plain, &long, &["--stream"]));
    assert_eq!((ran.code, ran.stderr.lines().count()), (Some(0), 1), "{ran:?}");
    assert!(ran.stderr.contains("cut at 31 tokens") && ran.stderr.contains("context"), "{ran:?}");
    assert_eq!(ids(basic(generate(&plain, &long, &["--json"]))), 31);
    let longer = format!("<image> {}", "x ".repeat(1100));
    basic(generate(&plain, &longer, &[])).refused(1, &["--prompt", "context of 2048"]);
}

/// A checkpoint with a replaced text in one of its files.
fn edited(dir: &Path, file: &str, from: &str, to: &str) -> PathBuf {
    let model = copy_of("plain", &dir.join("model"));
    edit(&model.join(file), |text| {
        assert!(text.contains(from), "{text}");
        text.replace(from, to)
    });
    model
}

#[test]
fn an_error_is_one_short_line_whatever_it_repeats() {
    let dir = tempfile::tempdir().unwrap();
    let short = |ran: Ran, code: i32, mention: &str| {
        let told = ran.refused(code, &[mention]);
        let told = told.trim_end_matches('\n');
        assert!(told.len() < 2000, "{} bytes: {}", told.len(), &told[..300]);
        assert!(!told.contains(|c: char| c.is_control() || c == '\u{2028}'), "{told:?}");
    };
    let long = "图".repeat(30_000);
    let odd = "a\\u001b[31m\\r\\nb\\u2028c\\u0000";
    for value in [long.as_str(), odd] {
        let model = edited(dir.path(), "config.json", "\"silu\"", &format!("\"{value}\""));
        short(basic(generate(&model, "<image> x", &[])), 1, "config.json");
        fs::remove_dir_all(&model).unwrap();
    }
    short(basic(args!["inspect", "x".repeat(30_000)]), 1, "xxx");
    short(basic(args!["train", "r.toml", "--device", long]), 2, "--device");
    short(basic(args!["bogus\u{1b}[31m\nbogus"]), 2, "bogus");
    short(basic(args!["eval", fixture("plain"), "--bench", long, "--root", dir.path()]), 1, "vizwiz-val");
    short(basic(args!["inspect", "no\rwhere\n"]), 1, "no\\rwhere");
}

#[test]
fn a_checkpoint_whose_numbers_break_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_of("plain", &dir.path().join("model"));
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].as_chunks_mut::<4>().0.iter_mut().for_each(|value| *value = f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let name = model.display().to_string();
    basic(generate(&model, "<image> x", &[])).refused(1, &[&name, "not finite"]);
    let asked = dir.path().join("questions.jsonl");
    let picture = fixture("images/b.png");
    fs::copy(picture, dir.path().join("b.png")).unwrap();
    fs::write(&asked, "{\"image\": \"b.png\", \"text\": \"what?\", \"answer\": \"x\"}\n").unwrap();
    basic(args!["eval", model, asked, "--device", "cpu"]).refused(1, &[&name, "question 0", "not finite"]);
    let line =
        args!["analyze", model, "--image", fixture("images/b.png"), "--prompt", "<image> what?", "--device", "cpu"];
    basic(line).refused(1, &[&name, "not finite"]);
    let mut chat = assert_cmd::Command::new(BASIC);
    chat.args(args!["chat", model, "--device", "cpu", "--image", fixture("images/b.png")]).write_stdin("what?\n");
    let output = chat.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&name) && errors.contains("not finite"), "{errors}");
}

#[test]
fn a_question_that_is_too_long_is_named_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let asked = questions(dir.path(), &["what?", &"a ".repeat(2100)]);
    let out = dir.path().join("kept.jsonl");
    let line = args!["eval", fixture("plain"), asked, "--out", out, "--device", "cpu"];
    basic(line).refused(1, &["questions.jsonl", "question 1", "context of 2048"]);
    let place = Place::new(BASIC);
    edit(&place.root().join("mm-vet/llava-mm-vet.jsonl"), |lines| {
        let mut first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        first["text"] = "a ".repeat(2100).into();
        format!("{first}\n")
    });
    let line = fs::read_to_string(place.root().join("mm-vet/llava-mm-vet.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let id = line["question_id"].as_str().map_or_else(|| line["question_id"].to_string(), String::from);
    place.refused("mm-vet", &["mm-vet", &format!("question {id}"), "context of 2048"]);
}

#[test]
fn a_knob_that_does_not_fit_is_named_with_its_recipe() {
    let project = tests::project::Project::new(BASIC, "pretrain", 1);
    let recipe = project.path().join("recipe.toml");
    let out = project.path().join("out");
    let line = args!["train", recipe, "--out", out, "--set", "objective.k=99"];
    basic(line.clone()).refused(1, &["recipe.toml --set objective.k=99: objective: k = 99"]);
    basic([line, args!["--plan"]].concat()).refused(1, &["recipe.toml --set objective.k=99: objective: k = 99"]);
}

#[test]
fn a_folder_in_place_of_questions_is_told_from_a_benchmark() {
    let dir = tempfile::tempdir().unwrap();
    let line = args!["eval", fixture("plain"), dir.path(), "--device", "cpu"];
    basic(line).refused(1, &["is a folder", "--bench NAME --root DIR"]);
}

#[test]
fn questions_may_begin_with_a_byte_order_mark() {
    let dir = tempfile::tempdir().unwrap();
    let asked = questions(dir.path(), &["what?"]);
    edit(&asked, |text| format!("\u{feff}{text}"));
    let line = args!["eval", fixture("plain"), asked, "--out", dir.path().join("kept.jsonl"), "--json"];
    assert_eq!(basic([line, args!["--device", "cpu"]].concat()).json()["questions"], 1);
}

#[test]
fn rows_of_mmbench_share_an_image_by_its_rows_index() {
    let place = Place::new(BASIC);
    let table = place.root().join("mmbench/mmbench_dev_20230712.tsv");
    let whole = fs::read_to_string(&table).unwrap();
    let said = |of: &str| {
        let cell = whole.rsplit('\t').nth(4).unwrap();
        // Replaces the image of the last row.
        let at = whole.rfind(cell).unwrap();
        fs::write(&table, format!("{}{of}{}", &whole[..at], &whole[at + cell.len()..])).unwrap();
    };
    let whole_report = place.eval(&["mmbench"]);
    let answers = place.answers("mmbench");
    said("252");
    fs::remove_dir_all(place.out()).unwrap();
    assert_eq!(place.eval(&["mmbench"])["benchmarks"][0]["metrics"], whole_report["benchmarks"][0]["metrics"]);
    assert_eq!(place.answers("mmbench"), answers);
    said("77");
    place
        .refused("mmbench", &["mmbench_dev_20230712.tsv", "question 1000252", "question 77, which is not in the file"]);
    assert_eq!(text(&whole_report["benchmarks"][0]["name"]), "mmbench");
}
