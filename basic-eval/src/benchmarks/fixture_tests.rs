//! Compares the scorers with the official scripts. The expected numbers in tests/fixtures/scorers.json come from
//! tests/reference/scorer_fixtures.py, which names the scripts and their commits.

use serde_json::Value;

use super::mmbench::{MmbenchRow, circular};
use super::options::{mmbench, science_qa};
use super::{gqa, normalize, pope, vqa};

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/scorers.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

pub(super) fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(|entry| text(entry).to_string()).collect()
}

#[track_caller]
pub(super) fn near(ours: f64, theirs: &Value, what: &str) {
    assert!((ours - theirs.as_f64().unwrap()).abs() < 1e-9, "{what}: {ours} is not {theirs}");
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn normalized_answers_are_those_of_vqas_and_m4cs_scripts() {
    let fixture = fixture();
    let entries = list(&fixture["normalized"]);
    assert_eq!(entries.len(), 150);
    for entry in entries {
        let given = text(&entry["text"]);
        assert_eq!(normalize::vqa(&normalize::trimmed(given)), text(&entry["vqa"]), "VQA's of {given:?}");
        assert_eq!(normalize::m4c(given), text(&entry["m4c"]), "M4C's of {given:?}");
    }
}

#[test]
fn vqa_and_textvqa_accuracies_are_the_scripts() {
    let fixture = fixture();
    let (mut ours, mut soft) = (Vec::new(), Vec::new());
    for case in list(&fixture["judged"]) {
        let (answer, people) = (text(&case["answer"]), texts(&case["people"]));
        ours.push(vqa::accuracy(answer, &people));
        soft.push(vqa::textvqa_accuracy(answer, &people));
        near(*ours.last().unwrap(), &case["vqa"], answer);
        near(*soft.last().unwrap(), &case["textvqa"], answer);
    }
    assert_ne!(ours, soft);
    near(mean(&ours), &fixture["overall"]["vqa"], "VQA overall");
    near(mean(&soft), &fixture["overall"]["textvqa"], "TextVQA overall");
}

#[test]
fn science_qas_options_and_accuracy_are_the_scripts() {
    let fixture = &fixture()["scienceqa"];
    let mut right = Vec::new();
    for case in list(&fixture["cases"]) {
        let parsed = science_qa(text(&case["text"]), case["choices"].as_u64().unwrap() as usize);
        assert_eq!(parsed.map_or(-1, |index| index as i64), case["parsed"].as_i64().unwrap(), "{case}");
        if case["image"] == true {
            right.push(f64::from(u8::from(parsed.map(|index| index as u64) == case["answer"].as_u64())));
        }
    }
    near(mean(&right), &fixture["img_accuracy"], "IMG accuracy");
}

#[test]
fn popes_rates_are_the_scripts() {
    let fixture = fixture();
    let splits = fixture["pope"].as_object().unwrap();
    assert_eq!(splits.len(), 3);
    for (name, split) in splits {
        let cases = list(&split["cases"]).iter();
        let pairs: Vec<_> = cases.map(|case| (pope::says_yes(text(&case["text"])), case["label"] == "yes")).collect();
        for (ours, theirs) in pope::rates(&pairs).into_iter().zip(list(&split["rates"])) {
            near(ours, theirs, name);
        }
    }
}

#[test]
fn gqas_accuracy_is_the_scripts_over_all_and_by_kind() {
    let fixture = &fixture()["gqa"];
    let credits = |wanted: &dyn Fn(bool) -> bool| {
        let cases = list(&fixture["cases"]).iter().filter(|case| wanted(case["structural"] == "query"));
        cases
            .map(|case| f64::from(u8::from(gqa::correct(text(&case["text"]), text(&case["answer"])))))
            .collect::<Vec<_>>()
    };
    near(mean(&credits(&|_| true)), &fixture["accuracy"], "accuracy");
    near(mean(&credits(&|open| open)), &fixture["open"], "open");
    near(mean(&credits(&|open| !open)), &fixture["binary"], "binary");
}

#[test]
fn mmbenchs_options_and_circular_hits_are_vlmevalkits() {
    let fixture = &fixture()["mmbench"];
    let (mut rows, mut answers) = (Vec::new(), Vec::new());
    for row in list(&fixture["rows"]) {
        let choices: Vec<(char, String)> = ('A'..).zip(texts(&row["choices"])).collect();
        let said = text(&row["prediction"]);
        let inferred = mmbench(said, &choices).map(String::from);
        assert_eq!(inferred.as_deref(), row["inferred"].as_str(), "{row}");
        let index = row["index"].as_u64().unwrap();
        rows.push(MmbenchRow { index, choices, answer: text(&row["answer"]).into(), category: String::new() });
        answers.push(said.to_string());
    }
    let hits = circular(&rows, &answers);
    assert_eq!(hits.len(), fixture["hits"].as_object().unwrap().len());
    for (index, hit, _) in &hits {
        assert_eq!(Some(u64::from(*hit)), fixture["hits"][index.to_string()].as_u64(), "question {index}");
    }
    near(hits.iter().filter(|hit| hit.1).count() as f64 / hits.len() as f64, &fixture["accuracy"], "accuracy");
}
