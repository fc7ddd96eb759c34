//! `basic eval --bench` on a few questions of every benchmark (tests::benchmarks), with a tiny checkpoint.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use calamine::{Data, Reader, Xlsx, open_workbook};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::benchmarks::{LETTER, SHORT, folders, lines, pope, write};
use tests::fixtures::{copy_of, fixture, number, read_json, read_jsonl, text, tree};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// Folders of benchmarks, a model, and a place for the answers.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_of("plain", &dir.path().join("model"));
        folders(&dir.path().join("eval"));
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("eval")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn line(&self, names: &[&str], more: &[&str]) -> Vec<OsString> {
        let mut line = args!["eval", self.dir.path().join("model"), "--bench"];
        line.extend(names.iter().map(OsString::from));
        line.extend(args!["--root", self.root(), "--out", self.out(), "--max-new-tokens", "3", "--json"]);
        if !more.contains(&"--devices") {
            line.extend(args!["--device", "cpu"]);
        }
        line.extend(more.iter().map(OsString::from));
        line
    }

    fn eval(&self, names: &[&str]) -> Value {
        run(BASIC, self.line(names, &[])).json()
    }

    fn refused(&self, name: &str, mentions: &[&str]) {
        run(BASIC, self.line(&[name], &[])).refused(1, mentions);
    }

    /// The prompts and answers of a benchmark, in the file's order.
    fn answers(&self, name: &str) -> Vec<(String, String)> {
        let lines = read_jsonl(&self.out().join(name).join("answers.jsonl"));
        lines.iter().map(|line| (text(&line["prompt"]).into(), text(&line["text"]).into())).collect()
    }

    fn prompts(&self, name: &str) -> Vec<String> {
        self.answers(name).into_iter().map(|(prompt, _)| prompt).collect()
    }
}

fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(text)).unwrap();
}

/// What a benchmark reports, by its measures' names.
fn scores(report: &Value, name: &str) -> HashMap<String, f64> {
    let benchmarks = report["benchmarks"].as_array().unwrap();
    let found = benchmarks.iter().find(|benchmark| benchmark["name"] == name).unwrap();
    found["metrics"].as_array().unwrap().iter().map(|m| (text(&m["name"]).into(), number(&m["value"]))).collect()
}

const ALL: [&str; 11] = [
    "vqav2",
    "vqav2-val",
    "gqa",
    "vizwiz",
    "vizwiz-val",
    "textvqa",
    "scienceqa",
    "mmbench",
    "mmbench_cn",
    "mm-vet",
    "pope",
];

#[test]
fn every_benchmark_is_asked_in_llavas_words_and_answered_once_a_question() {
    let place = Place::new();
    let report = place.eval(&ALL);
    assert_eq!(report["conversation"], "vicuna_v1", "the checkpoint has no template");
    let asked = |name: &str| place.prompts(name);
    assert_eq!(
        asked("vqav2"),
        [format!("How many stripes are there?\n{SHORT}"), format!("Is the ball flying towards the batter?\n{SHORT}")]
    );
    assert_eq!(
        asked("vqav2-val")[0],
        "What color are the gym shoes?\nAnswer the question using a single word or phrase."
    );
    assert_eq!(asked("gqa")[1], "Who is wearing the dress?\nAnswer the question using a single word or phrase.");
    let unanswerable = "When the provided information is insufficient, respond with 'Unanswerable'.";
    assert_eq!(asked("vizwiz")[0], format!("What is the name of this product?\n{unanswerable}\n{SHORT}"));
    assert_eq!(asked("vizwiz-val")[1], format!("What color is this shirt?\n{unanswerable}\n{SHORT}"));
    let ocr = "What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL";
    assert_eq!(asked("textvqa")[0], format!("{ocr}\nAnswer the question using a single word or phrase."));
    assert_eq!(
        asked("scienceqa"),
        [
            format!(
                "<image>\nContext: N/A\nQuestion: What is the name of the colony shown?\nOptions: (A) Maryland (B) New Hampshire\n{LETTER}"
            ),
            format!(
                "<image>\nContext: The diagram shows a plant.\nQuestion: Which part is it?\nOptions: (A) leaf (B) stem (C) root\n{LETTER}"
            ),
        ]
    );
    let hint = "The passage below, with a\nline break.\nWhich of the following was a dependent variable?";
    assert_eq!(
        asked("mmbench")[..2],
        [
            format!(
                "{hint}\nA. length\nB. light, or \"dark\"\nAnswer with the option's letter from the given choices directly."
            ),
            format!("What is it?\nA. cat\nB. dog\nC. bird\nD. fish\n{LETTER}"),
        ]
    );
    assert_eq!(asked("mmbench_cn"), ["这是什么?\nA. 猫\nB. 狗\nC. 鸟\nD. 鱼\n请直接回答选项字母。"]);
    assert_eq!(asked("mm-vet"), ["What is x in the equation?", "Can you explain this meme?"]);
    assert_eq!(asked("pope")[5], format!("Is there a random thing number 1 in the image?\n{SHORT}"));
    for (name, questions) in ALL.iter().zip([2, 3, 2, 2, 2, 2, 2, 3, 1, 2, 6]) {
        let told = report["benchmarks"].as_array().unwrap().iter().find(|told| told["name"] == *name).unwrap();
        assert_eq!((asked(name).len(), told["questions"].as_u64()), (questions, Some(questions as u64)), "{name}");
        let intervals = told["metrics"].as_array().unwrap();
        let ordered = |m: &Value| number(&m["low"]) <= number(&m["value"]) && number(&m["value"]) <= number(&m["high"]);
        assert!(intervals.iter().all(ordered), "{name}: {intervals:?}");
        let hidden = ["vqav2", "vizwiz", "mm-vet"].contains(name);
        assert_eq!(intervals.is_empty(), hidden, "{name}");
        let judged = read_jsonl(&place.out().join(name).join("judged.jsonl"));
        assert!(judged.iter().all(|line| line["score"].is_null() == hidden), "{name}");
    }
    assert_eq!(scores(&report, "pope").len(), 15, "five rates of three splits");
    submissions(&place);
}

/// What the servers are sent is what was answered, under their keys.
fn submissions(place: &Place) {
    let vqav2 = place.answers("vqav2");
    let sent = read_json(&place.out().join("vqav2/vqav2_test-dev.json"));
    let ids: Vec<u64> = sent.as_array().unwrap().iter().map(|row| row["question_id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [262144000, 262144001, 262144002], "the whole test set");
    assert_eq!(sent[1]["answer"], "", "not of test-dev");
    assert_ne!((&sent[0]["answer"], vqav2[1].1.as_str()), (&json!(""), ""));
    let sent = read_json(&place.out().join("vizwiz/vizwiz_test.json"));
    assert_eq!(
        (&sent[0]["image"], &sent[1]["image"]),
        (&json!("VizWiz_test_00000000.jpg"), &json!("VizWiz_test_00000001.jpg"))
    );
    assert_eq!(sent[0].as_object().unwrap().keys().collect::<Vec<_>>(), ["image", "answer"]);
    let sent = read_json(&place.out().join("mm-vet/mm-vet.json"));
    let answers = place.answers("mm-vet");
    assert_eq!(sent, json!({"v1_0": answers[0].1, "v1_1": answers[1].1}));

    // LLaVA's script drops columns and puts the predictions behind the sixth that stays.
    let mut book: Xlsx<_> = open_workbook(place.out().join("mmbench/mmbench_dev_20230712.xlsx")).unwrap();
    let sheet = book.worksheet_range_at(0).unwrap().unwrap();
    let rows: Vec<&[Data]> = sheet.rows().collect();
    let head: Vec<String> = rows[0].iter().map(ToString::to_string).collect();
    assert_eq!(head, ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]);
    let answers = place.answers("mmbench");
    for (row, (_, answer)) in rows[1..].iter().zip(&answers) {
        assert_eq!(&row[6].to_string(), answer);
    }
    assert_eq!(rows.len(), 4);
    assert_eq!((&rows[3][0], rows[3][1].to_string().as_str()), (&Data::Float(1_000_252.0), "What is it?"));
    assert_eq!((rows[1][3].to_string().as_str(), &rows[1][4]), ("light, or \"dark\"", &Data::Empty));
    let mut book: Xlsx<_> = open_workbook(place.out().join("mmbench_cn/mmbench_dev_cn_20231003.xlsx")).unwrap();
    assert_eq!(book.worksheet_range_at(0).unwrap().unwrap().rows().nth(1).unwrap()[2].to_string(), "猫");
}

#[test]
fn scores_are_those_of_the_answers_that_are_there() {
    let place = Place::new();
    let names = ["vqav2-val", "gqa", "vizwiz-val", "textvqa", "scienceqa", "mmbench", "pope"];
    place.eval(&names);
    // Answers as a model may give them; what was asked stays, so nothing is asked again.
    let say = |name: &str, said: &[&str]| {
        let path = place.out().join(name).join("answers.jsonl");
        let mut all = read_jsonl(&path);
        assert_eq!(all.len(), said.len(), "{name}");
        all.iter_mut().zip(said).for_each(|(line, said)| line["text"] = json!(said));
        write(&path, lines(&all));
    };
    say("vqav2-val", &["White", "yes", "Two"]);
    say("gqa", &["No.", "a woman"]);
    say("vizwiz-val", &["Unanswerable", "light blue"]);
    say("textvqa", &["dakota", "Dakota Digital"]);
    say("scienceqa", &["B", "The answer is C."]);
    say("mmbench", &["B", "A", "A"]);
    say("pope", &["Yes", "Yes", "No", "No", "Yes", "No, there is none"]);
    let report = place.eval(&names);
    let near = |name: &str, measure: &str, value: f64| {
        let scores = scores(&report, name);
        let got = scores.get(measure).unwrap_or_else(|| panic!("{measure} is not in {scores:?}"));
        assert!((got - value).abs() < 1e-9, "{name}, {measure}: {got}");
    };
    // Given by seven of ten: 1; by three: three times min(1, 2/3) and seven times 1, over ten.
    near("vqav2-val", "accuracy, other", 1.0);
    near("vqav2-val", "accuracy, yes/no", 0.9);
    near("vqav2-val", "accuracy, number", 1.0);
    near("vqav2-val", "accuracy", 2.9 / 3.0);
    near("gqa", "accuracy, binary", 1.0);
    near("gqa", "accuracy, open", 0.0);
    near("vizwiz-val", "accuracy, unanswerable", 1.0);
    near("vizwiz-val", "accuracy, other", 0.9);
    // Given by two of ten: twice min(1, 1/3) and eight times 2/3, over ten.
    near("textvqa", "accuracy", (1.0 + 0.6) / 2.0);
    near("scienceqa", "IMG accuracy", 0.5);
    near("mmbench", "circular accuracy", 0.5);
    for (split, expected) in [
        ("adversarial", [0.5, 0.5, 1.0, 2.0 / 3.0, 1.0]),
        ("popular", [0.5, 0.0, 0.0, 0.0, 0.0]),
        ("random", [1.0, 1.0, 1.0, 1.0, 0.5]),
    ] {
        for (rate, expected) in ["accuracy", "precision", "recall", "F1", "yes ratio"].iter().zip(expected) {
            near("pope", &format!("{rate}, {split}"), expected);
        }
    }
    let record = read_json(&place.out().join("gqa/result.json"));
    assert_eq!((&record["measure"], &record["questions"]), (&json!("accuracy"), &json!(2)));
}

#[test]
fn what_was_cut_off_or_killed_goes_on_to_the_same_files() {
    let place = Place::new();
    pope(&place.root(), 60);
    let line = place.line(&["pope", "mmbench"], &["--batch-size", "2"]);
    let report = run(BASIC, line.clone()).json();
    let whole = tree(&place.out());

    // Half of a line in Chinese, cut within a character.
    let answers = place.out().join("pope/answers.jsonl");
    let bytes = fs::read(&answers).unwrap();
    let kept: usize = bytes.split_inclusive(|byte| *byte == b'\n').take(7).map(<[u8]>::len).sum();
    fs::write(&answers, [&bytes[..kept], b"{\"question_id\": 8, \"prompt\": \"\xe8\xaf"].concat()).unwrap();
    assert_eq!(run(BASIC, line.clone()).json(), report);
    assert!(tree(&place.out()) == whole, "the files differ after half a line");

    // Killed while it answers.
    fs::remove_dir_all(place.out()).unwrap();
    let mut child = Command::new(BASIC).args(&line).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let count = || fs::read(&answers).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
    while count() < 6 && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let done = count();
    assert!((6..180).contains(&done), "killed in the middle: {done} of 180");
    assert!(!place.out().join("pope/judged.jsonl").exists());
    // What was not finished is no evaluation.
    run(BASIC, args!["compare", place.out(), place.out()]).refused(1, &["pope", "not finished", "basic eval"]);
    assert_eq!(run(BASIC, line.clone()).json(), report);
    assert!(tree(&place.out()) == whole, "the files differ after a kill");

    // Of another token limit they are another evaluation's.
    let mut other = line;
    other.push("--max-new-tokens=4".into());
    let at = other.iter().position(|arg| arg == "--max-new-tokens").unwrap();
    other.drain(at..at + 2);
    run(BASIC, other).refused(1, &["answers.jsonl", "at most 3 tokens", "--fresh"]);
}

#[test]
fn devices_share_the_questions_and_give_one_devices_files() {
    let place = Place::new();
    pope(&place.root(), 20);
    let names = ["pope", "gqa", "textvqa"];
    let single = run(BASIC, place.line(&names, &["--batch-size", "3"])).json();
    let whole = tree(&place.out());
    let shared = place.line(&names, &["--batch-size", "3", "--devices", "cpu,cpu,cpu"]);
    // Answers of one device are gone on with by three.
    let answers = place.out().join("pope/answers.jsonl");
    edit(&answers, |text| text.lines().skip(40).map(|line| format!("{line}\n")).collect());
    assert_eq!(run(BASIC, shared.clone()).json(), single);
    assert!(tree(&place.out()) == whole, "gone on with");
    fs::remove_dir_all(place.out()).unwrap();
    assert_eq!(run(BASIC, shared).json(), single);
    assert!(tree(&place.out()) == whole, "from the start");
    let ids: Vec<u64> = read_jsonl(&answers).iter().map(|line| line["question_id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..60).collect::<Vec<_>>(), "in the questions' order");

    run(BASIC, place.line(&names, &["--devices", "cpu,tpu"])).refused(2, &["tpu"]);
    let data = args!["eval", fixture("plain"), fixture("samples.jsonl"), "--devices", "cpu,cpu"];
    run(BASIC, data).refused(2, &["--bench"]);
    // One device's failure is everyone's, and what was answered stays.
    fs::remove_dir_all(place.out()).unwrap();
    fs::write(place.root().join("pope/val2014/COCO_val2014_000000000001.jpg"), "no picture").unwrap();
    run(BASIC, place.line(&["pope"], &["--devices", "cpu,cpu"])).refused(1, &["COCO_val2014_000000000001.jpg"]);
}

#[test]
fn annotations_of_another_version_are_named_by_file_and_entry() {
    let place = Place::new();
    let root = place.root();
    let without =
        |file: &str, key: &str| edit(&root.join(file), |text| text.replacen(&format!("\"{key}\""), "\"another\"", 1));
    without("vqav2/v2_mscoco_val2014_annotations.json", "answer_type");
    place.refused(
        "vqav2-val",
        &["v2_mscoco_val2014_annotations.json: entry annotations[0]", "missing field `answer_type`", "another version"],
    );
    without("gqa/data/testdev_balanced_questions.json", "structural");
    place.refused("gqa", &["testdev_balanced_questions.json: entry 201307251.types", "missing field `structural`"]);
    without("vizwiz/val.json", "answers");
    place.refused("vizwiz-val", &["val.json: entry [0]", "missing field `answers`"]);
    without("textvqa/TextVQA_0.5.1_val.json", "image_id");
    place.refused("textvqa", &["TextVQA_0.5.1_val.json: entry data[0]", "missing field `image_id`"]);
    without("scienceqa/pid_splits.json", "test");
    place.refused("scienceqa", &["pid_splits.json: test: no such split"]);
    without("pope/coco/coco_pope_popular.json", "label");
    place.refused("pope", &["coco_pope_popular.json:1", "missing field `label`", "another version"]);
    without("mm-vet/llava-mm-vet.jsonl", "text");
    place.refused("mm-vet", &["llava-mm-vet.jsonl:1", "missing field `text`"]);
    edit(&root.join("mmbench/mmbench_dev_20230712.tsv"), |text| text.replacen("question", "query", 1));
    place.refused("mmbench", &["mmbench_dev_20230712.tsv", "column \"question\"", "not there"]);
    edit(&root.join("vqav2/llava_vqav2_mscoco_test2015.jsonl"), |text| text.replace("262144002", "9"));
    place.refused("vqav2", &["test-dev2015.jsonl: question 262144002", "test2015.jsonl", "one version"]);
    place.refused("nope", &["\"nope\"", "vizwiz-val"]);
}

#[test]
fn questions_without_image_asked_twice_and_empty_files_are_named() {
    let place = Place::new();
    let root = place.root();
    fs::remove_file(root.join("mm-vet/images/v1_1.png")).unwrap();
    place.refused("mm-vet", &["v1_1.png: not there", "question 1"]);
    edit(&root.join("vizwiz/llava_test.jsonl"), |text| text.replacen("\"image\"", "\"picture\"", 1));
    place.refused("vizwiz", &["llava_test.jsonl:1", "no \"image\""]);
    fs::remove_file(root.join("vqav2/val2014/COCO_val2014_000000000073.jpg")).unwrap();
    place.refused("vqav2-val", &["COCO_val2014_000000000073.jpg: not there", "question 73000"]);
    edit(&root.join("gqa/llava_gqa_testdev_balanced.jsonl"), |text| text.replace("201640614", "201307251"));
    place.refused("gqa", &["llava_gqa_testdev_balanced.jsonl", "question 201307251", "twice", "the 1. and the 2."]);
    edit(&root.join("vizwiz/val.json"), |text| text.replace("val_00000001", "val_00000000"));
    place.refused("vizwiz-val", &["val.json", "VizWiz_val_00000000.jpg", "twice"]);
    edit(&root.join("mmbench_cn/mmbench_dev_cn_20231003.tsv"), |text| {
        let row = text.lines().nth(1).unwrap().to_string();
        format!("{text}{row}\n")
    });
    place.refused("mmbench_cn", &["mmbench_dev_cn_20231003.tsv", "question 252", "twice"]);
    fs::write(root.join("mmbench/mmbench_dev_20230712.tsv"), "").unwrap();
    place.refused("mmbench", &["mmbench_dev_20230712.tsv", "column \"index\""]);
    fs::write(root.join("pope/llava_pope_test.jsonl"), "\n").unwrap();
    place.refused("pope", &["llava_pope_test.jsonl", "is empty"]);
    fs::write(root.join("textvqa/TextVQA_0.5.1_val.json"), "").unwrap();
    place.refused("textvqa", &["TextVQA_0.5.1_val.json", "is empty"]);
    fs::write(root.join("scienceqa/llava_test_CQM-A.json"), "[]").unwrap();
    place.refused("scienceqa", &["llava_test_CQM-A.json", "holds no question"]);
    fs::remove_dir_all(root.join("gqa")).unwrap();
    place.refused("gqa", &["llava_gqa_testdev_balanced.jsonl: not there", "eval.zip"]);
}

#[test]
fn answers_that_belong_to_nothing_asked_are_named() {
    let place = Place::new();
    place.eval(&["mm-vet"]);
    let answers = place.out().join("mm-vet/answers.jsonl");
    let whole = fs::read_to_string(&answers).unwrap();
    fs::write(&answers, whole.clone() + "{\"question_id\": 77, \"prompt\": \"what?\", \"text\": \"x\"}\n").unwrap();
    place.refused("mm-vet", &["answers.jsonl:3", "question 77", "not asked", "--fresh"]);
    fs::write(&answers, format!("{{\"question_id\": 0, \"pro\n{whole}")).unwrap();
    place.refused("mm-vet", &["answers.jsonl:1", "no answer", "--fresh"]);
    run(BASIC, place.line(&["mm-vet"], &["--fresh"])).json();
    assert_eq!(fs::read_to_string(&answers).unwrap(), whole);
}

#[test]
fn a_checkpoint_without_template_is_asked_as_vicuna_v1_and_with_one_by_it() {
    let place = Place::new();
    let said = |more: &[&str]| {
        let report = run(BASIC, place.line(&["pope"], &[&["--fresh"], more].concat())).json();
        (text(&report["conversation"]).to_string(), place.answers("pope"))
    };
    let without = said(&[]);
    assert_eq!(without.0, "vicuna_v1");
    assert_eq!(said(&["--conversation", "vicuna_v1"]), without);
    let plain = said(&["--conversation", "plain"]);
    assert_eq!(plain.0, "plain");
    assert_ne!(plain.1, without.1);
    run(BASIC, place.line(&["pope"], &["--conversation", "template"])).refused(1, &["model", "chat_template.jinja"]);
    run(BASIC, place.line(&["pope"], &["--conversation", "nope"])).refused(2, &["nope", "vicuna_v1"]);
    let system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.";
    let template = format!(
        "{system}{{% for m in messages %}} {{{{ 'USER' if m.role == 'user' else 'ASSISTANT' }}}}: {{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{{% for c in m.content %}}{{{{ '<image>\\n' if c.type == 'image' else c.text }}}}{{% endfor %}}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}} ASSISTANT:{{% endif %}}"
    );
    write(&place.dir.path().join("model/chat_template.jinja"), template);
    let with = said(&[]);
    assert_eq!(with.0, "template");
}
