//! `basic eval --bench` on a few questions of every benchmark (`tests::benchmarks`), with a tiny checkpoint.

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use calamine::{Data, Reader, Xlsx, open_workbook};
use serde_json::{Value, json};
use tests::benchmarks::{LETTER, Place, SHORT, edit, lines, pope, write};
use tests::fixtures::{fixture, number, read_json, read_jsonl, text, tree};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// The scores of a benchmark by the names of its measures.
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
    let place = Place::new(BASIC);
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

/// Checks that the submission files have the answers under the servers' keys.
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

    // LLaVA's script drops columns and puts the predictions after the sixth of the others.
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
    let place = Place::new(BASIC);
    let names = ["vqav2-val", "gqa", "vizwiz-val", "textvqa", "scienceqa", "mmbench", "pope"];
    place.eval(&names);
    // Replaces the answers by others. The questions stay the same, so nothing is asked again.
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
    // An answer of seven annotators scores 1; one of three scores (3 * 2/3 + 7 * 1) / 10.
    near("vqav2-val", "accuracy, other", 1.0);
    near("vqav2-val", "accuracy, yes/no", 0.9);
    near("vqav2-val", "accuracy, number", 1.0);
    near("vqav2-val", "accuracy", 2.9 / 3.0);
    near("gqa", "accuracy, binary", 1.0);
    near("gqa", "accuracy, open", 0.0);
    near("vizwiz-val", "accuracy, unanswerable", 1.0);
    near("vizwiz-val", "accuracy, other", 0.9);
    // An answer of two annotators scores (2 * 1/3 + 8 * 2/3) / 10.
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
    let place = Place::new(BASIC);
    pope(&place.root(), 60);
    let line = place.line(&["pope", "mmbench"], &["--batch-size", "2"]);
    let report = run(BASIC, line.clone()).json();
    let whole = tree(&place.out());

    // A line that is cut off within a Chinese character.
    let answers = place.out().join("pope/answers.jsonl");
    let bytes = fs::read(&answers).unwrap();
    let kept: usize = bytes.split_inclusive(|byte| *byte == b'\n').take(7).map(<[u8]>::len).sum();
    fs::write(&answers, [&bytes[..kept], b"{\"question_id\": 8, \"prompt\": \"\xe8\xaf"].concat()).unwrap();
    assert_eq!(run(BASIC, line.clone()).json(), report);
    assert!(tree(&place.out()) == whole, "the files differ after half a line");

    // A process that is killed while it answers.
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
    // An unfinished evaluation cannot be compared.
    run(BASIC, args!["compare", place.out(), place.out()]).refused(1, &["pope", "not finished", "basic eval"]);
    assert_eq!(run(BASIC, line.clone()).json(), report);
    assert!(tree(&place.out()) == whole, "the files differ after a kill");

    // Answers with another token limit belong to another evaluation.
    let mut other = line;
    other.push("--max-new-tokens=4".into());
    let at = other.iter().position(|arg| arg == "--max-new-tokens").unwrap();
    other.drain(at..at + 2);
    run(BASIC, other).refused(1, &["answers.jsonl", "at most 3 tokens", "--fresh"]);
}

#[test]
fn devices_share_the_questions_and_give_one_devices_files() {
    let place = Place::new(BASIC);
    pope(&place.root(), 20);
    let names = ["pope", "gqa", "textvqa"];
    let single = run(BASIC, place.line(&names, &["--batch-size", "3"])).json();
    let whole = tree(&place.out());
    let shared = place.line(&names, &["--batch-size", "3", "--devices", "cpu,cpu,cpu"]);
    // Three devices continue from the answers of one.
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
    // If one device fails, all stop, and the answers so far are kept.
    fs::remove_dir_all(place.out()).unwrap();
    fs::write(place.root().join("pope/val2014/COCO_val2014_000000000001.jpg"), "no picture").unwrap();
    run(BASIC, place.line(&["pope"], &["--devices", "cpu,cpu"])).refused(1, &["COCO_val2014_000000000001.jpg"]);
}
