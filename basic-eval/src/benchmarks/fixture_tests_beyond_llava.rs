//! Compares the scorers of the benchmarks beyond LLaVA's guide with their official scripts. The expected numbers in
//! tests/fixtures/scorers_beyond_llava.json come from tests/reference/scorers_beyond_llava.py, which names the scripts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fixture_tests::{list, mean, near, text, texts};
use super::multiple_choice::{letter, lettered};
use super::{
    Asked, Grouping, Judged, chartqa, cv_bench, docvqa, hallusion_bench, metrics, mme, mmmu_answers, mmstar, mmvp,
    realworldqa, seed_bench,
};

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/scorers_beyond_llava.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Answers come to the scorers without spaces around them.
fn answer(case: &Value) -> &str {
    text(&case["text"]).trim()
}

fn first(value: &Value) -> char {
    text(value).chars().next().unwrap()
}

/// Compares a scorer with its script over cases with "right"; some are right and some are wrong.
fn compare(cases: &Value, correct: impl Fn(&Value) -> bool) {
    let cases = list(cases);
    for case in cases {
        let right = case["right"].as_bool().unwrap_or_else(|| case["right"] == 1.0);
        assert_eq!(correct(case), right, "{case}");
    }
    let right = cases.iter().filter(|case| correct(case)).count();
    assert!(right > 5 && right + 5 < cases.len(), "{right} of {}", cases.len());
}

/// The scores of answers that are right or wrong, in these groups.
fn scores(name: &str, answers: impl Iterator<Item = (bool, Grouping)>) -> BTreeMap<String, f64> {
    let asked = Asked { id: 1.into(), prompt: String::new(), image: None };
    let judged = answers.map(|(right, grouping)| {
        let score = Some(f64::from(u8::from(right)));
        Judged { score, expected: Some("x".into()), grouping, ..Judged::unscored(&asked, "") }
    });
    let judged: Vec<Judged> = judged.collect();
    metrics(name, &judged).into_iter().map(|m| (m.name, m.value * m.points.unwrap_or(1.0))).collect()
}

#[test]
fn mmstars_letters_are_its_scripts() {
    compare(&fixture()["mmstar"], |case| mmstar::correct(text(&case["text"]), first(&case["answer"])));
}

#[test]
fn chartqas_relaxed_accuracy_is_that_of_pix2struct() {
    compare(&fixture()["chartqa"], |case| chartqa::correct(text(&case["text"]), text(&case["answer"])));
}

#[test]
fn docvqas_anls_is_that_of_the_challenges_script() {
    let fixture = &fixture()["docvqa"];
    let scores: Vec<f64> = list(&fixture["cases"])
        .iter()
        .map(|case| {
            let score = docvqa::anls(text(&case["text"]), &texts(&case["answers"]));
            near(score, &case["score"], &case.to_string());
            score
        })
        .collect();
    near(mean(&scores), &fixture["score"], "ANLS");
    assert!(scores.contains(&0.0) && scores.iter().any(|score| *score > 0.5 && *score < 1.0));
}

#[test]
fn mmes_points_are_its_scripts() {
    let fixture = &fixture()["mme"];
    let mut answers = Vec::new();
    for (half, tasks) in [("perception", "Perception"), ("cognition", "Cognition")] {
        for task in list(&fixture["kinds"][tasks]) {
            for row in list(&fixture["tasks"][text(task)]) {
                let right = mme::says(text(&row["text"])) == Some(row["answer"] == "Yes");
                let parts = vec![half.into(), text(task).into()];
                answers
                    .push((right, Grouping { parts, pair: Some(text(&row["image"]).into()), ..Grouping::default() }));
            }
        }
    }
    let ours = scores("score", answers.into_iter());
    assert_eq!(ours.len(), 16);
    for (task, points) in fixture["scores"].as_object().unwrap().iter().chain(fixture["totals"].as_object().unwrap()) {
        near(ours[&format!("score, {task}")], points, task);
    }
}

#[test]
fn seed_benchs_accuracy_is_that_of_llavas_script() {
    let fixture = &fixture()["seed_bench"];
    let right = list(&fixture["cases"])
        .iter()
        .map(|case| f64::from(u8::from(seed_bench::correct(text(&case["text"]), first(&case["answer"])))));
    near(mean(&right.collect::<Vec<_>>()), &fixture["accuracy"], "accuracy");
}

#[test]
fn realworldqas_short_answers_are_scored_as_by_lmms_eval() {
    compare(&fixture()["realworldqa"], |case| realworldqa::correct(text(&case["text"]), text(&case["answer"])));
}

#[test]
fn mmmus_options_and_short_answers_are_read_as_by_its_script() {
    let fixture = &fixture()["mmmu"];
    for case in list(&fixture["chosen"]) {
        let options = lettered(texts(&case["options"])).unwrap();
        let chosen = mmmu_answers::chosen(text(&case["text"]), &options).map(String::from);
        assert_eq!(chosen.as_deref(), case["chosen"].as_str(), "{case}");
    }
    compare(&fixture["open"], |case| mmmu_answers::open_answer(text(&case["text"]), &texts(&case["answers"])));
}

#[test]
fn mmvps_answers_and_pairs_are_scored_as_by_cambrians_script() {
    let fixture = &fixture()["mmvp"];
    let cases = list(&fixture["cases"]);
    let correct = |case: &Value| {
        let options = lettered(texts(&case["options"])).unwrap();
        let truth = letter(text(&case["answer"]), &options).unwrap();
        mmvp::correct(text(&case["text"]), &options, truth)
    };
    compare(&fixture["cases"], correct);
    let pair = |place: usize| Grouping::together([("pair accuracy", (place / 2).to_string())]);
    let ours = scores("accuracy", cases.iter().enumerate().map(|(place, case)| (correct(case), pair(place))));
    near(ours["pair accuracy"], &fixture["accuracy"], "pair accuracy");
    assert!(ours["accuracy"] > ours["pair accuracy"]);
}

#[test]
fn cv_benchs_answers_and_mean_of_parts_are_cambrians() {
    let fixture = &fixture()["cv_bench"];
    let correct = |case: &Value| cv_bench::correct(text(&case["text"]), text(&case["answer"]).chars().nth(1).unwrap());
    compare(&fixture["cases"], correct);
    let part = |case: &Value| {
        let source = text(&case["source"]);
        let kind = if source == "Omni3D" { "3D" } else { "2D" };
        Grouping { parts: vec!["all".into(), kind.into(), source.into()], ..Grouping::default() }
    };
    let ours = scores("accuracy", list(&fixture["cases"]).iter().map(|case| (correct(case), part(case))));
    near(ours["accuracy"], &fixture["accuracy"], "accuracy");
}

#[test]
fn hallusion_benchs_answers_are_read_as_by_vlmevalkit_and_counted_as_by_its_script() {
    let fixture = &fixture()["hallusion_bench"];
    for case in list(&fixture["said"]) {
        let said = hallusion_bench::says(text(&case["text"]));
        let expected = match text(&case["said"]) {
            "Yes" => Some(true),
            "No" => Some(false),
            _ => None,
        };
        assert_eq!(said, expected, "{case}");
    }
    let of = |row: &Value| {
        let [category, part, set, figure, number] =
            ["category", "subcategory", "set_id", "figure_id", "question_id"].map(|key| text(&row[key]).to_string());
        let without = hallusion_bench::without_image(&category, &figure);
        let right = hallusion_bench::correct(hallusion_bench::says(answer(row)), row["gt_answer"] == "1", without);
        (right, hallusion_bench::grouping([&category, &part, &set, &figure, &number]))
    };
    let ours = scores("accuracy", list(&fixture["rows"]).iter().map(of));
    for (name, value) in fixture["scores"].as_object().unwrap() {
        near(ours[name], value, name);
    }
}
