//! The measures that summarize judged answers.

use std::collections::BTreeMap;

use super::pope::rates;
use super::{Judged, Metric};

/// The points of each of MME's tasks.
const TASK_POINTS: f64 = 200.0;
/// How deep the parts of a benchmark may nest; narrower ones are not told apart.
const DEPTH: usize = 8;

/// The kinds of measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The mean score, weighted by the outcomes' weights.
    Mean,
    /// The share of the answers read as yes that is right.
    Precision,
    /// The share of the questions whose true answer is yes that is answered with yes.
    Recall,
    /// The harmonic mean of precision and recall.
    F1,
    /// The share of the answers that were read as yes.
    YesRatio,
}

/// The outcome of one question, or of one group of questions, as far as measures need it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The score, 0 to 1.
    pub score: f64,
    /// Whether the answer was read as yes.
    pub said: bool,
    /// Whether the true answer is yes.
    pub is: bool,
    /// How much it counts in a mean.
    pub weight: f64,
}

impl Kind {
    /// The measure's value over some questions; 0 where it is undefined.
    pub fn value(self, outcomes: impl Iterator<Item = Outcome>) -> f64 {
        let rate = match self {
            Self::Mean => {
                let add = |(sum, weight): (f64, f64), o: Outcome| (sum + o.weight * o.score, weight + o.weight);
                let (sum, weight) = outcomes.fold((0.0, 0.0), add);
                return if weight > 0.0 { sum / weight } else { 0.0 };
            }
            Self::Precision => 1,
            Self::Recall => 2,
            Self::F1 => 3,
            Self::YesRatio => 4,
        };
        rates(&outcomes.map(|outcome| (outcome.said, outcome.is)).collect::<Vec<_>>())[rate]
    }
}

/// The score of a judged answer that a measure is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Answer,
    Likelihood,
    LikelihoodByLength,
}

/// A measure over some of the questions.
#[derive(Debug, Clone)]
pub struct Measure {
    /// The measure's name, with the type of its questions.
    pub name: String,
    /// The kind of measure.
    pub kind: Kind,
    /// The points that a value of 1 stands for, if the benchmark counts points.
    pub points: Option<f64>,
    source: Source,
    units: Vec<Unit>,
}

/// Questions that count as one.
#[derive(Debug, Clone)]
struct Unit {
    questions: Vec<usize>,
    weight: f64,
    /// MME's score of a pair: the mean of its answers and of whether all are right. Otherwise, whether all are right.
    pair: bool,
}

impl Measure {
    fn new(name: impl Into<String>, kind: Kind, questions: impl IntoIterator<Item = usize>) -> Self {
        let unit = |question| Unit { questions: vec![question], weight: 1.0, pair: false };
        let units = questions.into_iter().map(unit).collect();
        Self { name: name.into(), kind, points: None, source: Source::Answer, units }
    }

    /// The outcomes of the measure's questions, or of its groups of questions; those without a score are left out.
    pub fn outcomes(&self, judged: &[Judged]) -> Vec<Outcome> {
        let outcome = |unit: &Unit| {
            let scores: Option<Vec<f64>> = unit.questions.iter().map(|i| self.score(&judged[*i])).collect();
            let scores = scores?;
            let score = match (&scores[..], unit.pair) {
                ([score], false) => *score,
                (scores, pair) => {
                    let all = f64::from(u8::from(scores.iter().all(|score| *score == 1.0)));
                    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
                    if pair { (mean + all) / 2.0 } else { all }
                }
            };
            let first = &judged[*unit.questions.first()?];
            let is = first.expected.as_deref() == Some("yes");
            Some(Outcome { score, said: first.yes.unwrap_or(false), is, weight: unit.weight })
        };
        self.units.iter().filter_map(outcome).collect()
    }

    fn score(&self, judged: &Judged) -> Option<f64> {
        match self.source {
            Source::Answer => judged.score,
            Source::Likelihood => judged.by_likelihood.as_ref().map(|found| found.score),
            Source::LikelihoodByLength => judged.by_likelihood.as_ref().map(|found| found.score_by_length),
        }
    }
}

/// The measures of `judged`: the mean score, called `name`, over all questions and by type; for yes-or-no questions
/// instead five measures of each type; those of the questions' groups; and, where options were ranked, the share of
/// questions whose most likely option is the true one. Empty if the true answers are hidden.
pub fn measures(name: &str, judged: &[Judged]) -> Vec<Measure> {
    if judged.is_empty() || judged.iter().any(|judged| judged.score.is_none()) {
        return Vec::new();
    }
    let mut measures = match judged.iter().all(|judged| !judged.grouping.parts.is_empty()) {
        true => parts(name, judged),
        false => plain(name, judged),
    };
    measures.extend(together(judged));
    if judged.iter().any(|judged| judged.by_likelihood.is_some()) {
        let ranked = || (0..judged.len()).filter(|i| judged[*i].by_likelihood.is_some());
        let sources = [("", Source::Likelihood), (", by length", Source::LikelihoodByLength)];
        measures.extend(sources.map(|(end, source)| Measure {
            source,
            ..Measure::new(format!("accuracy by likelihood{end}"), Kind::Mean, ranked())
        }));
    }
    measures
}

fn plain(name: &str, judged: &[Judged]) -> Vec<Measure> {
    let mut groups: Vec<&str> = judged.iter().filter_map(|judged| judged.category.as_deref()).collect();
    groups.sort_unstable();
    groups.dedup();
    let of = |group: &str| -> Vec<usize> {
        (0..judged.len()).filter(|i| judged[*i].category.as_deref() == Some(group)).collect()
    };
    if judged.iter().all(|judged| judged.yes.is_some()) {
        let kinds = [
            (name, Kind::Mean),
            ("precision", Kind::Precision),
            ("recall", Kind::Recall),
            ("F1", Kind::F1),
            ("yes ratio", Kind::YesRatio),
        ];
        let measure =
            |group: &str, (name, kind): (&str, Kind)| Measure::new(format!("{name}, {group}"), kind, of(group));
        return groups.iter().flat_map(|group| kinds.map(|kind| measure(group, kind))).collect();
    }
    let mut measures = vec![Measure::new(name, Kind::Mean, 0..judged.len())];
    if groups.len() > 1 || (groups.len() == 1 && groups[0] != "all") {
        measures.extend(groups.iter().map(|group| Measure::new(format!("{name}, {group}"), Kind::Mean, of(group))));
    }
    measures
}

/// The measures of groups of questions that count as one.
fn together(judged: &[Judged]) -> Vec<Measure> {
    let mut groups: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
    for (question, judged) in judged.iter().enumerate() {
        for (name, group) in &judged.grouping.together {
            groups.entry(name).or_default().entry(group).or_default().push(question);
        }
    }
    let measure = |(name, groups): (&str, BTreeMap<&str, Vec<usize>>)| {
        let unit = |questions| Unit { questions, weight: 1.0, pair: false };
        Measure { units: groups.into_values().map(unit).collect(), ..Measure::new(name, Kind::Mean, []) }
    };
    groups.into_iter().map(measure).collect()
}

/// The measures of a benchmark with parts: one for each part at each depth, whose value is the mean of its own parts'.
fn parts(name: &str, judged: &[Judged]) -> Vec<Measure> {
    let mut tree = Part::default();
    let mut pairs: BTreeMap<(&[String], &str), usize> = BTreeMap::new();
    let mut units: Vec<Unit> = Vec::new();
    for (question, judged) in judged.iter().enumerate() {
        let grouping = &judged.grouping;
        if let Some(pair) = &grouping.pair
            && let Some(known) = pairs.get(&(&grouping.parts[..], pair.as_str()))
        {
            units[*known].questions.push(question);
            continue;
        }
        if let Some(pair) = &grouping.pair {
            pairs.insert((&grouping.parts, pair), units.len());
        }
        tree.add(&grouping.parts[..grouping.parts.len().min(DEPTH)], units.len());
        units.push(Unit { questions: vec![question], weight: 1.0, pair: grouping.pair.is_some() });
    }
    let points = judged.iter().all(|judged| judged.grouping.pair.is_some()).then_some(TASK_POINTS);
    let mut measures = Vec::new();
    // The outermost level only lists the widest parts: their mean is not asked for.
    let mut open: Vec<(String, &Part)> = tree.parts.iter().rev().map(|(part, below)| (part.clone(), below)).collect();
    while let Some((label, part)) = open.pop() {
        let mut chosen = Vec::new();
        part.weigh(1.0, &units, &mut chosen);
        let full = match label.as_str() {
            "all" => name.to_string(),
            label => format!("{name}, {label}"),
        };
        let points = points.map(|points| points * part.leaves() as f64);
        measures.push(Measure { points, units: chosen, ..Measure::new(full, Kind::Mean, []) });
        open.extend(part.parts.iter().rev().map(|(name, below)| (name.clone(), below)));
    }
    measures
}

/// A part of a benchmark.
#[derive(Default)]
struct Part {
    parts: BTreeMap<String, Part>,
    /// Its questions, or groups of questions, that belong to no narrower part.
    units: Vec<usize>,
}

impl Part {
    fn add(&mut self, path: &[String], unit: usize) {
        match path {
            [] => self.units.push(unit),
            [first, rest @ ..] => self.parts.entry(first.clone()).or_default().add(rest, unit),
        }
    }

    /// The units of the part with their weights, which add up to `weight`.
    fn weigh(&self, weight: f64, all: &[Unit], chosen: &mut Vec<Unit>) {
        let shares = self.parts.len() + usize::from(!self.units.is_empty());
        let share = weight / shares.max(1) as f64;
        let each = share / self.units.len().max(1) as f64;
        chosen.extend(self.units.iter().map(|unit| Unit { weight: each, ..all[*unit].clone() }));
        self.parts.values().for_each(|part| part.weigh(share, all, chosen));
    }

    /// The number of its narrowest parts.
    fn leaves(&self) -> usize {
        if self.parts.is_empty() { 1 } else { self.parts.values().map(Part::leaves).sum() }
    }
}

/// The values of [`measures`], with their 95% intervals.
pub fn metrics(name: &str, judged: &[Judged]) -> Vec<Metric> {
    let metric = |measure: Measure| {
        let outcomes = measure.outcomes(judged);
        let value = |chosen: &[usize]| measure.kind.value(chosen.iter().map(|i| outcomes[*i]));
        Metric { points: measure.points, ..Metric::of(measure.name.clone(), outcomes.len(), value) }
    };
    measures(name, judged).into_iter().map(metric).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, ByLikelihood, Grouping};
    use super::*;

    fn judged(category: Option<&str>, score: f64, yes: Option<bool>, expected: &str) -> Judged {
        let asked = Asked { id: 1.into(), prompt: String::new(), image: None };
        let category = category.map(String::from);
        let expected = Some(expected.into());
        Judged { category, score: Some(score), yes, expected, ..Judged::unscored(&asked, "") }
    }

    fn grouped(score: f64, grouping: Grouping) -> Judged {
        Judged { grouping, ..judged(None, score, None, "x") }
    }

    fn told(name: &str, judged: &[Judged]) -> Vec<(String, f64, usize)> {
        metrics(name, judged).into_iter().map(|m| (m.name, m.value, m.questions)).collect()
    }

    #[test]
    fn types_follow_the_whole() {
        let all = [("b", 1.0), ("a", 0.0), ("b", 0.0)].map(|(group, score)| judged(Some(group), score, None, "x"));
        let wanted = [("accuracy", 1.0 / 3.0, 3), ("accuracy, a", 0.0, 1), ("accuracy, b", 0.5, 2)];
        assert_eq!(told("accuracy", &all), wanted.map(|(name, value, count)| (name.to_string(), value, count)));
        let untyped = metrics("accuracy", &[judged(None, 0.3, None, "x")]);
        assert_eq!(untyped.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["accuracy"]);
    }

    #[test]
    fn yes_or_no_questions_have_five_rates_a_type_and_hidden_ones_none() {
        let said = [(true, "yes"), (true, "no"), (false, "yes"), (false, "no"), (true, "yes")];
        let all =
            said.map(|(yes, is)| judged(Some("random"), f64::from(u8::from(yes == (is == "yes"))), Some(yes), is));
        let metrics = metrics("accuracy", &all);
        let names: Vec<_> = metrics.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(
            names,
            ["accuracy, random", "precision, random", "recall, random", "F1, random", "yes ratio, random"]
        );
        let expected = [0.6, 2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 0.6];
        assert!(metrics.iter().zip(expected).all(|(m, e)| (m.value - e).abs() < 1e-12), "{metrics:?}");
        let hidden = Judged { score: None, ..judged(None, 0.0, None, "") };
        assert!(measures("accuracy", &[hidden]).is_empty());
    }

    #[test]
    fn a_group_is_right_only_if_all_of_its_questions_are() {
        let pair = |score, pair: &str| grouped(score, Grouping::together([("pair accuracy", pair.to_string())]));
        let all = [pair(1.0, "1"), pair(1.0, "1"), pair(1.0, "2"), pair(0.0, "2"), pair(0.0, "3")];
        let wanted = [("accuracy".to_string(), 0.6, 5), ("pair accuracy".to_string(), 1.0 / 3.0, 3)];
        assert_eq!(told("accuracy", &all), wanted);
    }

    #[test]
    fn a_parts_score_is_the_mean_of_its_parts_scores_whatever_their_sizes() {
        let part = |score, parts: &[&str]| {
            let parts = parts.iter().map(ToString::to_string).collect();
            grouped(score, Grouping { parts, ..Grouping::default() })
        };
        let all = [
            part(1.0, &["all", "2D", "ADE20K"]),
            part(0.0, &["all", "2D", "ADE20K"]),
            part(1.0, &["all", "2D", "COCO"]),
            part(0.0, &["all", "3D", "Omni3D"]),
            part(0.0, &["all", "3D", "Omni3D"]),
            part(0.0, &["all", "3D", "Omni3D"]),
        ];
        let wanted = [("accuracy", 0.375, 6), ("accuracy, 2D", 0.75, 3), ("accuracy, ADE20K", 0.5, 2)];
        let found = told("accuracy", &all);
        for ((name, value, count), (wanted, expected, questions)) in found.iter().zip(wanted) {
            assert!(name == wanted && *count == questions && (value - expected).abs() < 1e-12, "{found:?}");
        }
        assert_eq!(found.len(), 6);
        assert!(metrics("accuracy", &all).iter().all(|metric| metric.points.is_none()));
    }

    #[test]
    fn a_pair_scores_its_answers_and_both_together_and_a_task_counts_200_points() {
        let pair = |score, task: &str, image: &str| {
            let parts = vec!["perception".to_string(), task.to_string()];
            grouped(score, Grouping { parts, pair: Some(image.into()), ..Grouping::default() })
        };
        // count: accuracy 3/4, of pairs 1/2; color: accuracy 1/2, of pairs 0.
        let all = [
            pair(1.0, "count", "1"),
            pair(1.0, "count", "1"),
            pair(1.0, "count", "2"),
            pair(0.0, "count", "2"),
            pair(1.0, "color", "1"),
            pair(0.0, "color", "1"),
        ];
        let points: Vec<(String, f64, Option<f64>)> =
            metrics("score", &all).into_iter().map(|m| (m.name, m.value * m.points.unwrap(), m.points)).collect();
        let wanted =
            [("score, perception", 175.0, 400.0), ("score, color", 50.0, 200.0), ("score, count", 125.0, 200.0)];
        assert_eq!(points, wanted.map(|(name, value, points)| (name.to_string(), value, Some(points))));
    }

    #[test]
    fn ranked_options_have_measures_of_their_own_over_the_questions_that_have_them() {
        let ranked = |score, by_length| {
            let by_likelihood = Some(ByLikelihood { answer: "a".into(), score, score_by_length: by_length });
            Judged { by_likelihood, ..judged(None, 0.0, None, "x") }
        };
        let all = [ranked(1.0, 0.0), ranked(1.0, 1.0), ranked(0.0, 0.0), judged(None, 1.0, None, "x")];
        let wanted = [
            ("accuracy", 0.25, 4),
            ("accuracy by likelihood", 2.0 / 3.0, 3),
            ("accuracy by likelihood, by length", 1.0 / 3.0, 3),
        ];
        assert_eq!(told("accuracy", &all), wanted.map(|(name, value, count)| (name.to_string(), value, count)));
    }
}
