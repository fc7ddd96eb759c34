//! `basic generate` and `basic chat` from the command line: agreement with transformers
//! (tests/fixtures/generation.json, made by tests/reference/generation_fixtures.py), sampling, stop strings, streaming,
//! conversations, and invalid input.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::fixtures::{copy_of, fixture, numbers, read_json, text};
use tests::{Ran, args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BASIC, args)
}

/// A copy of a fixture checkpoint with additional files.
fn checkpoint(files: &[(&str, String)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of("plain", &dir.path().join("model"));
    for (name, content) in files {
        fs::write(path.join(name), content).unwrap();
    }
    (dir, path)
}

fn generate(checkpoint: &Path, image: &str, prompt: &str, more: &[&str]) -> Vec<OsString> {
    let mut line = args!["generate", checkpoint, "--image", fixture("images").join(image), "--prompt", prompt];
    line.extend(args!["--device", "cpu"]);
    line.extend(more.iter().map(OsString::from));
    line
}

const QUESTION: &str = "USER: <image>\\nwhat is in the picture? ASSISTANT:";

#[test]
fn answers_are_those_of_transformers_with_penalties_images_end_tokens_and_stop_strings() {
    let cases = read_json(&fixture("generation.json"));
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let name = text(&case["name"]);
        let settings = &case["settings"];
        let (_dir, model) = match &settings["eos_token_id"] {
            Value::Null => checkpoint(&[]),
            ends => checkpoint(&[("generation_config.json", json!({"eos_token_id": ends}).to_string())]),
        };
        let mut line = args!["generate", model, "--prompt", text(&case["prompt"]).replace('\n', "\\n")];
        for image in case["images"].as_array().unwrap() {
            line.extend(args!["--image", fixture("images").join(text(image))]);
        }
        line.extend(args!["--device", "cpu", "--json", "--max-new-tokens", case["tokens"].to_string()]);
        if let Value::Number(penalty) = &settings["repetition_penalty"] {
            line.extend(args!["--repetition-penalty", penalty.to_string()]);
        }
        let stops: Vec<&str> = settings["stop_strings"].as_array().into_iter().flatten().map(text).collect();
        stops.iter().for_each(|stop| line.extend(args!["--stop", stop]));
        let ours = basic(line).json();
        assert_eq!(ours["ids"], case["ids"], "{name}");
        for (gap, expected) in numbers(&ours["gaps"]).iter().zip(numbers(&case["gaps"])) {
            assert!((gap - expected).abs() < 2e-3, "{name}: a gap of {gap} is not {expected}");
        }
        // transformers keeps the stop string, and the text of an end token that is not special (here U+0015).
        let ends = settings["eos_token_id"].is_array();
        let theirs = text(&case["text"]).trim_end_matches(|c| ends && c == '\u{15}');
        let end = stops.iter().filter_map(|stop| theirs.find(stop)).min().unwrap_or(theirs.len());
        assert_eq!(text(&ours["text"]), &theirs[..end], "{name}");
        let short = case["ids"].as_array().unwrap().len() < case["tokens"].as_u64().unwrap() as usize;
        assert_eq!(text(&ours["finish_reason"]), if short { "stop" } else { "length" }, "{name}");
    }
}

#[test]
fn generation_config_sets_what_flags_leave_open() {
    let more = ["--json", "--max-new-tokens", "10"];
    let plain = fixture("plain");
    let with = |flags: &[&'static str]| [&more[..], flags].concat();
    let file = |value: Value| checkpoint(&[("generation_config.json", value.to_string())]);
    let penalized = basic(generate(&plain, "b.png", QUESTION, &with(&["--repetition-penalty", "1.5"]))).json();
    let greedy = basic(generate(&plain, "b.png", QUESTION, &with(&["--greedy"]))).json();
    assert_ne!(penalized["ids"], greedy["ids"]);
    let (_dir, model) = file(json!({"repetition_penalty": 1.5, "do_sample": true, "temperature": 9.0, "top_k": 0}));
    assert_eq!(basic(generate(&model, "b.png", QUESTION, &more)).json(), penalized, "greedy, with the file's penalty");
    let off = with(&["--repetition-penalty", "1"]);
    assert_eq!(basic(generate(&model, "b.png", QUESTION, &off)).json(), greedy, "the flag wins");
    // With the file's top-k of 1, sampling gives the greedy answer.
    let (_dir, model) = file(json!({"top_k": 1}));
    assert_eq!(basic(generate(&model, "b.png", QUESTION, &with(&["--seed", "5"]))).json(), greedy);
    let (_dir, model) = file(json!({"stop_strings": ["dog"]}));
    assert_eq!(basic(generate(&model, "b.png", QUESTION, &more)).json()["text"], " a ");
}

#[test]
fn a_generation_config_that_cannot_be_followed_is_named_with_its_key() {
    for (value, mention) in [
        (json!({"temperature": -1.0}).to_string(), "temperature is -1, expected a number over 0"),
        (json!({"eos_token_id": "</s>"}).to_string(), "eos_token_id is \"</s>\""),
        (json!({"do_sample": "yes"}).to_string(), "do_sample is \"yes\", expected true or false"),
        (json!({"use_cache": 0}).to_string(), "use_cache is 0, expected true or false"),
        (json!({"max_length": "20"}).to_string(), "max_length is \"20\", expected a whole number"),
        ("{".to_string(), "line 1"),
    ] {
        let (_dir, model) = checkpoint(&[("generation_config.json", value)]);
        basic(generate(&model, "b.png", QUESTION, &[])).refused(1, &["generation_config.json", mention]);
    }
    let value = json!({"num_beams": 4, "no_repeat_ngram_size": 3}).to_string();
    let (_dir, model) = checkpoint(&[("generation_config.json", value)]);
    let ran = basic(generate(&model, "b.png", QUESTION, &["--json"]));
    assert_eq!(ran.code, Some(0));
    assert!(ran.stderr.starts_with("warning: ") && ran.stderr.contains("no_repeat_ngram_size, num_beams"), "{ran:?}");
}

#[test]
fn one_seed_is_one_answer() {
    let sample = |seed: &str| {
        let more = ["--temperature", "2", "--top-p", "0.95", "--max-new-tokens", "12", "--json", "--seed", seed];
        basic(generate(&fixture("plain"), "b.png", QUESTION, &more)).json()
    };
    let first = sample("1");
    assert_eq!(sample("1"), first);
    assert_ne!(sample("2")["ids"], first["ids"]);
    assert_ne!(sample("3")["ids"], sample("2")["ids"]);
}

#[test]
fn a_streamed_answer_is_the_answer() {
    for stop in [&[][..], &["--stop", "Canft"]] {
        let more = [&["--max-new-tokens", "24"], stop].concat();
        let line = |extra: &str| generate(&fixture("plain"), "b.png", QUESTION, &[&more[..], &[extra]].concat());
        let whole = text(&basic(line("--json")).json()["text"]).to_string();
        assert_eq!(basic(line("--stream")).succeeded().stdout, format!("{whole}\n"));
        assert_eq!(basic(line("--greedy")).succeeded().stdout, format!("{whole}\n"));
    }
}

#[test]
fn flags_that_contradict_each_other_or_are_out_of_range_are_usage_errors() {
    for (flags, mentions) in [
        (&["--greedy", "--temperature", "0.7"][..], &["--greedy", "--temperature"][..]),
        (&["--greedy", "--top-k", "5"], &["--greedy", "--top-k"]),
        (&["--greedy", "--top-p", "0.5"], &["--greedy", "--top-p"]),
        (&["--greedy", "--min-p", "0.5"], &["--greedy", "--min-p"]),
        (&["--greedy", "--seed", "5"], &["--greedy", "--seed"]),
        (&["--stream", "--json"], &["--stream", "--json"]),
        (&["--temperature", "0"], &["--temperature", "expected a number over 0"]),
        (&["--temperature", "-1"], &["--temperature", "expected a number over 0"]),
        (&["--temperature", "inf"], &["--temperature", "expected a number over 0"]),
        (&["--top-p", "0"], &["--top-p", "expected a number over 0, at most 1"]),
        (&["--top-p", "1.5"], &["--top-p", "expected a number over 0, at most 1"]),
        (&["--min-p", "-0.5"], &["--min-p", "expected a number from 0 to 1"]),
        (&["--top-k", "-3"], &["-3"]),
        (&["--repetition-penalty", "0"], &["--repetition-penalty", "expected a number over 0"]),
        (&["--stop", ""], &["--stop", "at least one character"]),
    ] {
        basic(generate(Path::new("nowhere"), "b.png", QUESTION, flags)).refused(2, mentions);
    }
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_the_numbers() {
    // The fixture's max_position_embeddings is 2048; the prompt has 16 image tokens.
    let long = format!("<image> {}", "x ".repeat(2100));
    let line = generate(&fixture("plain"), "b.png", &long, &["--max-new-tokens", "4"]);
    basic(line).refused(1, &["tokens and 4 new ones", "context of 2048"]);
    let line = generate(&fixture("plain"), "b.png", "<image>", &["--max-new-tokens", "2033"]);
    basic(line).refused(1, &["a prompt of 16 tokens and 2033 new ones exceed the model's context of 2048"]);
    let line = generate(&fixture("plain"), "b.png", "<image>", &["--max-new-tokens", "18446744073709551615"]);
    basic(line).refused(1, &["context of 2048"]);
}

#[test]
fn placeholders_that_do_not_fit_the_images_are_refused_with_both_numbers() {
    let plain = fixture("plain");
    for (prompt, images, placeholders) in
        [("hi", 1, 0), ("<image> <image>", 1, 2), ("<image>", 2, 1), ("<image>", 3, 1)]
    {
        let mut line = args!["generate", plain, "--prompt", prompt];
        (0..images).for_each(|_| line.extend(args!["--image", fixture("images/b.png")]));
        let numbers = [format!("{placeholders} image placeholder"), format!("{images} image(s)")];
        basic(line).refused(1, &["--prompt", &numbers[0], &numbers[1]]);
    }
}

/// Runs `basic chat` with these lines on standard input.
fn chat(checkpoint: &Path, more: &[&str], lines: &[String]) -> Ran {
    let mut line = args!["chat", checkpoint, "--device", "cpu"];
    line.extend(more.iter().map(OsString::from));
    if !more.contains(&"--max-new-tokens") {
        line.extend(args!["--max-new-tokens", "9"]);
    }
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let output = assert_cmd::Command::new(BASIC)
        .args(line)
        .write_stdin(input)
        .timeout(std::time::Duration::from_secs(300))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| line.to_string()).collect()
}

/// The answer of `basic generate` to a complete prompt.
fn answer(checkpoint: &Path, image: Option<&str>, prompt: &str) -> String {
    let more = ["--max-new-tokens", "9", "--json"];
    text(&basic(generate(checkpoint, image.unwrap_or("a.png"), prompt, &more)).json()["text"]).to_string()
}

const TEMPLATE: &str = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}\
                        {% if add_generation_prompt %}[assistant]{% endif %}";

#[test]
fn a_chat_answers_by_the_whole_conversation_in_the_checkpoints_template() {
    let (_dir, model) = checkpoint(&[("chat_template.jinja", TEMPLATE.into())]);
    let image = fixture("images/b.png").display().to_string();
    let asked = lines(&["what is in the picture?", "", "is it red?"]);
    let ran = chat(&model, &["--image", &image, "--system", "be brief"], &asked).succeeded();
    let first = "[system] be brief\n[user] <image>\nwhat is in the picture?\n[assistant]";
    let one = answer(&model, Some("b.png"), first);
    let second = format!("{first} {}\n[user] is it red?\n[assistant]", one.trim());
    let two = answer(&model, Some("b.png"), &second);
    assert_eq!(ran.stdout, format!("{}\n{}\n", one.trim_start(), two.trim_start()));
    assert_ne!(one, two);
}

#[test]
fn a_checkpoint_without_a_template_is_talked_to_in_llavas_style() {
    let plain = fixture("plain");
    let image = fixture("images/b.png").display().to_string();
    let ran = chat(&plain, &["--image", &image], &lines(&["what is it?", "/quit", "never asked"])).succeeded();
    let system = "A chat between a curious user and an artificial intelligence assistant. \
                  The assistant gives helpful, detailed, and polite answers to the user's questions.";
    let expected = answer(&plain, Some("b.png"), &format!("{system} USER: <image>\nwhat is it? ASSISTANT:"));
    assert_eq!(ran.stdout, format!("{}\n", expected.trim_start()));
}

#[test]
fn commands_reset_the_conversation_and_change_the_image() {
    let (_dir, model) = checkpoint(&[("chat_template.jinja", TEMPLATE.into())]);
    let [a, b] = ["a", "b"].map(|name| fixture(format!("images/{name}.png")).display().to_string());
    let one = |image: &str, question: &str| chat(&model, &["--image", image], &lines(&[question])).succeeded().stdout;
    let (of_a, of_b) = (one(&a, "what is it?"), one(&b, "what is it?"));
    assert_ne!(of_a, of_b);
    let asked =
        ["what is it?", "and now?", "/reset", "what is it?", &format!("/image {a}"), "what is it?"].map(String::from);
    let ran = chat(&model, &["--image", &b], &asked).succeeded();
    assert!(ran.stdout.starts_with(&of_b) && ran.stdout.ends_with(&format!("{of_b}{of_a}")), "{ran:?}");
    let talk = chat(&model, &[], &lines(&["what is it?", "/help"]));
    assert_eq!(talk.code, Some(0));
    assert!(
        talk.stderr.contains("/image PATH") && !talk.stdout.is_empty(),
        "without an image, and with help: {talk:?}"
    );
}

#[test]
fn what_a_chat_cannot_do_ends_it_with_one_line_where_no_terminal_is() {
    let plain = fixture("plain");
    for (line, mention) in [
        ("/images x.png", "/images x.png: no such command"),
        ("/image nowhere.png", "nowhere.png"),
        (&"x ".repeat(2100), "context of 2048"),
    ] {
        chat(&plain, &[], &lines(&[line])).refused(1, &[mention]);
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_answer_and_not_the_chat() {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    let (_dir, model) = checkpoint(&[("chat_template.jinja", TEMPLATE.into())]);
    let mut child = Command::new(BASIC)
        .args(args!["chat", model, "--device", "cpu", "--max-new-tokens", "1900"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    writeln!(input, "what is it?").unwrap();
    let mut printed = vec![0];
    output.read_exact(&mut printed).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    writeln!(input, "/help").unwrap();
    drop(input);
    output.read_to_end(&mut printed).unwrap();
    let ended = child.wait_with_output().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{errors}");
    assert!(errors.contains("/reset"), "the next line was read: {errors}");
    let answer = String::from_utf8(printed).unwrap();
    assert!(answer.ends_with('\n') && answer.chars().count() < 1000, "{} characters", answer.chars().count());
    // Without the interruption the answer is longer.
    let whole = chat(&model, &["--max-new-tokens", "1900"], &lines(&["what is it?"])).succeeded().stdout;
    assert!(whole.chars().count() > 1000, "{} characters: choose another question", whole.chars().count());
}
