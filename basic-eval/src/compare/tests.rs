//! Tests the statistics against scipy 1.17.1 (`binomtest(min(better, worse), better + worse, 0.5)`,
//! `permutation_test(..., permutation_type="samples")`, `bootstrap(..., method="percentile")` with numpy 2.4.6), and
//! which answers are paired or refused.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::significance::{Paired, Test};
use super::*;
use crate::benchmarks::{Kind, Outcome};
use crate::statistics::{mcnemar, sign_flip};

fn graded(scores: impl IntoIterator<Item = f64>) -> Vec<Outcome> {
    scores.into_iter().map(|score| Outcome { score, said: false, is: false, weight: 1.0 }).collect()
}

#[test]
fn mcnemars_chances_are_scipys_binomial_tails() {
    for (better, worse, p) in [
        (1, 9, 0.021484375),
        (10, 3, 0.09228515625),
        (5, 5, 1.0),
        (0, 0, 1.0),
        (40, 62, 0.037066767438560584),
        (0, 6, 0.03125),
    ] {
        let ours = mcnemar(better, worse);
        assert!((ours - p).abs() < 1e-9, "{better} {worse}: {ours} is not {p}");
    }
}

#[test]
fn sign_flips_are_scipys_where_all_are_tried_and_near_two_million_draws_where_not() {
    let few = [0.3, -0.1, 0.6, 0.0, 1.0, 0.3, -0.3, 0.9, 0.0, 0.6];
    assert!((sign_flip(&few) - 0.0625).abs() < 1e-12);
    // From numpy: the share of 2,000,000 random sign combinations whose mean is at least 0.1 away from 0.
    let many: Vec<f64> = (0..60).map(|i| f64::from(i * 7 % 10) / 10.0 - 0.35).collect();
    let p = sign_flip(&many);
    assert!((p - 0.01067).abs() < 0.003, "{p}");
    assert_eq!(p, sign_flip(&many), "the draws are the same every time");
    assert_eq!(sign_flip(&[]), 1.0);
    assert_eq!(sign_flip(&[0.0, 0.0]), 1.0);
}

#[test]
fn intervals_of_differences_are_near_scipys_bootstrap() {
    // scipy's interval from 200,000 draws: 0.02667 to 0.17333.
    let b: Vec<f64> = (0..60).map(|i| f64::from(i * 7 % 10) / 10.0).collect();
    let paired = Paired { kind: Kind::Mean, a: graded(vec![0.35; 60]), b: graded(b) };
    assert!((paired.difference() - 0.1).abs() < 1e-12);
    let (low, high) = paired.interval();
    assert!((low - 0.02667).abs() < 0.01 && (high - 0.17333).abs() < 0.01, "{low} {high}");
    // scipy's interval for scores of 0 or 1, from 50,000 draws: -0.105 to -0.005.
    let a = (0..400).map(|i| f64::from(u8::from((40..102).contains(&i))));
    let b = (0..400).map(|i| f64::from(u8::from(i < 40)));
    let paired = Paired { kind: Kind::Mean, a: graded(a), b: graded(b) };
    assert_eq!((paired.counts(), paired.test().0), ((40, 62, 298), Test::McNemar));
    let (low, high) = paired.interval();
    assert!((low + 0.105).abs() < 0.01 && (high + 0.005).abs() < 0.01, "{low} {high}");
}

#[test]
fn rates_of_yes_are_tested_by_swaps() {
    let outcome = |said, is| Outcome { score: f64::from(u8::from(said == is)), said, is, weight: 1.0 };
    let a: Vec<Outcome> = (0..40).map(|i| outcome(true, i % 2 == 0)).collect();
    let alike = Paired { kind: Kind::F1, a: a.clone(), b: a.clone() };
    assert_eq!(alike.test(), (Test::Swap, 1.0));
    let perfect = (0..40).map(|i| outcome(i % 2 == 0, i % 2 == 0)).collect();
    let (_, p) = Paired { kind: Kind::Precision, a, b: perfect }.test();
    assert!(p < 0.001, "twenty answers changed, all for the better: {p}");
}

fn set(dir: &Path, lines: &[serde_json::Value]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("judged.jsonl"), lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    dir.to_path_buf()
}

fn line(id: u64, score: f64) -> serde_json::Value {
    json!({"question_id": id, "prompt": format!("q{id}"), "answer": format!("{score}"), "expected": "x", "score": score})
}

#[test]
fn answers_are_paired_by_id_whatever_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let a = set(&dir.path().join("a"), &[line(1, 0.0), line(2, 1.0), line(3, 0.3)]);
    let b = set(&dir.path().join("b"), &[line(3, 0.6), line(2, 1.0), line(1, 0.0)]);
    let comparison = compare(&a, &b, false).unwrap();
    let [set] = &comparison.sets[..] else { panic!("{comparison:?}") };
    let [measure] = &set.measures[..] else { panic!("{set:?}") };
    assert_eq!((measure.better, measure.worse, measure.same, measure.test), (1, 0, 2, Test::SignFlip));
    assert!((measure.difference - 0.1).abs() < 1e-12);
    let [changed] = &set.changed[..] else { panic!("{set:?}") };
    assert_eq!((&changed.question_id, changed.score_a, changed.score_b), (&json!(3), Some(0.3), Some(0.6)));
}

#[test]
fn other_questions_are_refused_by_name_unless_the_common_ones_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let a = set(&dir.path().join("a"), &[line(1, 0.0), line(2, 1.0)]);
    let b = set(&dir.path().join("b"), &[line(2, 1.0), line(3, 1.0), line(4, 1.0)]);
    let error = compare(&a, &b, false).unwrap_err().to_string();
    for part in
        ["only the first answers question 1", "only the second answers 2 questions (3, 4)", "--common", "judged.jsonl"]
    {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let common = compare(&a, &b, true).unwrap();
    let set_of = &common.sets[0];
    assert_eq!((set_of.questions, set_of.only_a, set_of.only_b), (1, 1, 2));
    let mut other = line(2, 1.0);
    other["prompt"] = json!("what else?");
    let c = set(&dir.path().join("c"), &[line(1, 1.0), other]);
    let error = compare(&a, &c, false).unwrap_err().to_string();
    assert!(error.contains("question 2 was not asked in the same words"), "{error}");
}

#[test]
fn ids_that_repeat_are_told_apart_by_their_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let of = |prompt: &str, score: f64| json!({"question_id": "i", "prompt": prompt, "answer": "", "expected": "x", "score": score});
    let a = set(&dir.path().join("a"), &[of("one", 1.0), of("two", 0.0)]);
    let b = set(&dir.path().join("b"), &[of("two", 1.0), of("one", 1.0)]);
    let comparison = compare(&a, &b, false).unwrap();
    assert_eq!(comparison.sets[0].changed[0].prompt, "two");
    let twice = set(&dir.path().join("c"), &[of("one", 1.0), of("one", 0.0)]);
    assert!(compare(&a, &twice, false).unwrap_err().to_string().contains("question i is answered twice"));
    // The same line again is the same answer.
    let again = set(&dir.path().join("d"), &[of("two", 1.0), of("one", 1.0), of("two", 1.0)]);
    assert_eq!(compare(&a, &again, false).unwrap().sets[0].questions, 2);
}

#[test]
fn hidden_answers_have_no_score_and_what_was_said_otherwise_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let of = |answer: &str| json!({"question_id": 1, "prompt": "q", "answer": answer, "expected": null, "score": null});
    let (a, b) = (set(&dir.path().join("a"), &[of("red")]), set(&dir.path().join("b"), &[of("blue")]));
    let comparison = compare(&a, &b, false).unwrap();
    assert!(comparison.sets[0].measures.is_empty());
    assert_eq!(comparison.sets[0].changed.len(), 1);
}
