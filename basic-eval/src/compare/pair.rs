//! Pairs the answers of two evaluations.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::sets::id;
use super::{CompareError, Set};
use crate::benchmarks::Judged;

/// At most this many question ids are listed in a message.
const NAMED: usize = 5;

/// Pairs sets of the same name. The names do not matter if both paths are single files, or if each side has one set and
/// at least one of the two has no record of its name.
pub(super) fn by_name(
    a: &Path,
    left: Vec<Set>,
    b: &Path,
    right: Vec<Set>,
    common: bool,
) -> Result<Vec<(Set, Set)>, CompareError> {
    let unnamed = |sets: &[Set]| sets.iter().any(|set| set.record.is_none());
    let alone = left.len() == 1 && right.len() == 1 && (unnamed(&left) || unnamed(&right));
    if alone || (a.is_file() && b.is_file()) {
        return Ok(left.into_iter().zip(right).collect());
    }
    let names = |sets: &[Set], others: &[Set]| -> Vec<String> {
        let own = sets.iter().filter(|set| others.iter().all(|other| other.name != set.name));
        own.map(|set| set.name.clone()).collect()
    };
    let (only_a, only_b) = (names(&left, &right), names(&right, &left));
    let differ = |problem: String| CompareError::Differ { a: a.into(), b: b.into(), problem };
    if !(common || only_a.is_empty() && only_b.is_empty()) {
        let told = [("only the first has ", only_a), ("only the second has ", only_b)];
        let told = told
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(who, names)| who.to_string() + &names.join(", "));
        let told = told.collect::<Vec<_>>().join("; ");
        return Err(differ(format!("{told}: --common compares what both have")));
    }
    let mut others: HashMap<String, Set> = right.into_iter().map(|set| (set.name.clone(), set)).collect();
    let pairs: Vec<(Set, Set)> =
        left.into_iter().filter_map(|set| Some((others.remove(&set.name)?, set))).map(|(b, a)| (a, b)).collect();
    match pairs.is_empty() {
        true => Err(differ("they have no benchmark and no file of questions in common".into())),
        false => Ok(pairs),
    }
}

/// The answers to the questions that both have, in A's order, and how many questions only one side has.
pub(super) struct Questions {
    pub a: Vec<Judged>,
    pub b: Vec<Judged>,
    pub only_a: usize,
    pub only_b: usize,
}

/// Pairs answers by question id. Where ids repeat (TextVQA uses the ids of images), the prompt is part of the key.
pub(super) fn by_question(a: &Set, b: &Set, common: bool) -> Result<Questions, CompareError> {
    let differ = |problem: String| CompareError::Differ { a: a.file.clone(), b: b.file.clone(), problem };
    let plain = distinct(&a.judged) && distinct(&b.judged);
    let key = |judged: &Judged| (id(&judged.question_id), if plain { String::new() } else { judged.prompt.clone() });
    let mut others: HashMap<_, &Judged> = b.judged.iter().map(|judged| (key(judged), judged)).collect();
    let (mut left, mut right, mut only_a) = (Vec::new(), Vec::new(), Vec::new());
    for judged in &a.judged {
        let Some(other) = others.remove(&key(judged)) else {
            only_a.push(id(&judged.question_id));
            continue;
        };
        let name = id(&judged.question_id);
        if judged.prompt != other.prompt {
            let problem =
                format!("question {name} was not asked in the same words ({:?}, {:?})", judged.prompt, other.prompt);
            return Err(differ(problem));
        }
        if judged.expected != other.expected || judged.category != other.category {
            let problem =
                format!("question {name} has another true answer or type in the second: are the two of one version?");
            return Err(differ(problem));
        }
        left.push(judged.clone());
        right.push(other.clone());
    }
    let only_b: Vec<String> = b
        .judged
        .iter()
        .filter(|judged| others.contains_key(&key(judged)))
        .map(|judged| id(&judged.question_id))
        .collect();
    if !(common || only_a.is_empty() && only_b.is_empty()) {
        let told = [("only the first answers ", &only_a), ("only the second answers ", &only_b)];
        let told = told.into_iter().filter(|(_, ids)| !ids.is_empty()).map(|(who, ids)| format!("{who}{}", named(ids)));
        let told = told.collect::<Vec<_>>().join("; ");
        return Err(differ(format!("{told}: --common compares the questions that both answer")));
    }
    if left.is_empty() {
        return Err(differ("they answer no question in common".into()));
    }
    Ok(Questions { a: left, b: right, only_a: only_a.len(), only_b: only_b.len() })
}

fn distinct(judged: &[Judged]) -> bool {
    let mut seen = HashSet::new();
    judged.iter().all(|judged| seen.insert(id(&judged.question_id)))
}

/// `question 7`, or `9 questions (7, 8, 9, 10, 11, …)`.
fn named(ids: &[String]) -> String {
    let shown = ids.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match ids.len() {
        1 => format!("question {shown}"),
        n => format!("{n} questions ({shown}{})", if n > NAMED { ", …" } else { "" }),
    }
}
