//! VQA accuracy: an answer's score is based on how many of ten annotators gave it, averaged with each left out in turn.

use std::collections::HashSet;

use super::normalize::{m4c, trimmed, vqa};

/// VQA's accuracy of one answer, 0 to 1, by the rules of GT-Vision-Lab/VQA: answers are normalized only if the
/// annotators disagree; if all gave the same text, the answer must be exactly that text.
pub fn accuracy(answer: &str, people: &[String]) -> f64 {
    let mut people: Vec<String> = people.iter().map(|given| trimmed(given)).collect();
    let mut answer = trimmed(answer);
    if people.iter().collect::<HashSet<_>>().len() > 1 {
        people.iter_mut().for_each(|given| *given = vqa(given));
        answer = vqa(&answer);
    }
    leave_one_out(&answer, &people)
}

/// TextVQA's accuracy of one answer, 0 to 1 (M4C's `TextVQAAccuracyEvaluator`).
pub fn textvqa_accuracy(answer: &str, people: &[String]) -> f64 {
    let people: Vec<String> = people.iter().map(|given| m4c(given)).collect();
    leave_one_out(&m4c(answer), &people)
}

/// VizWiz's accuracy of one answer, 0 to 1, as in its evaluation script: the answer is always normalized, the
/// annotators' answers never are.
pub fn vizwiz_accuracy(answer: &str, people: &[String]) -> f64 {
    leave_one_out(&vqa(&trimmed(answer)), people)
}

/// The answer that most annotators gave; of several, the first.
pub(super) fn most_given(people: &[String]) -> String {
    let count = |answer: &&String| people.iter().filter(|given| given == answer).count();
    // max_by_key returns the last of equal elements, hence the reversal.
    people.iter().rev().max_by_key(count).cloned().unwrap_or_default()
}

/// The mean of min(1, matches among the other annotators / 3) over all annotators, each left out in turn.
fn leave_one_out(answer: &str, people: &[String]) -> f64 {
    let matches = people.iter().filter(|given| *given == answer).count();
    let credits = people.iter().map(|given| {
        let others = matches - usize::from(given == answer);
        (others as f64 / 3.0).min(1.0)
    });
    credits.sum::<f64>() / people.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn people(answers: &[(&str, usize)]) -> Vec<String> {
        answers.iter().flat_map(|(answer, n)| vec![(*answer).to_string(); *n]).collect()
    }

    #[test]
    fn an_answer_counts_by_the_others_who_gave_it() {
        for (given, expected) in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)] {
            let people = people(&[("red", given), ("blue", 10 - given)]);
            assert!((accuracy("Red.", &people) - expected).abs() < 1e-12, "{given}");
            assert!((textvqa_accuracy("Red.", &people) - expected).abs() < 1e-12, "{given}");
        }
    }

    #[test]
    fn vizwiz_normalizes_the_answer_and_not_the_people() {
        assert_eq!(vizwiz_accuracy("Unanswerable.", &people(&[("unanswerable", 10)])), 1.0);
        assert_eq!(vizwiz_accuracy("Blue", &people(&[("Blue", 10)])), 0.0);
        assert!((vizwiz_accuracy("the blue", &people(&[("blue", 3), ("Blue", 7)])) - 0.9).abs() < 1e-12);
    }

    #[test]
    fn where_all_people_agree_vqa_compares_the_text_itself_and_textvqa_does_not() {
        let people = people(&[("Yes", 10)]);
        assert_eq!((accuracy("Yes", &people), accuracy("yes", &people)), (1.0, 0.0));
        assert_eq!(textvqa_accuracy("yes", &people), 1.0);
    }
}
