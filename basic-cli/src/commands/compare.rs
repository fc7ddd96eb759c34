//! Runs `basic compare`.

use anyhow::Result;
use basic_eval::compare::{Changed, MeasureComparison, SetComparison, compare as compare_runs};

use crate::args::Compare;
use crate::output::{print_json, say};

/// Runs `basic compare`.
pub fn compare(args: Compare) -> Result<()> {
    let comparison = compare_runs(&args.run_a, &args.run_b, args.common)?;
    if args.json {
        return print_json(&comparison);
    }
    say!("A: {}\nB: {}", comparison.a.display(), comparison.b.display());
    comparison.sets.iter().for_each(|set| print(set, args.changed));
    Ok(())
}

/// The widest column of names.
const WIDEST: usize = 60;

fn print(set: &SetComparison, shown: usize) {
    let left_out = match (set.only_a, set.only_b) {
        (0, 0) => String::new(),
        (a, b) => format!(" in common ({a} only A's, {b} only B's)"),
    };
    say!("\n{}: {} questions{left_out}", set.name, set.questions);
    if set.measures.is_empty() {
        say!("  no scores: the true answers are hidden");
    } else {
        let width = set.measures.iter().map(|measure| measure.name.chars().count()).max().unwrap_or(0);
        // A file may hold a name of any length, and a width of more than 16 bits cannot be formatted.
        let width = width.min(WIDEST);
        say!(
            "  {:<width$} {:>8} {:>8}   B - A, with its 95% interval   {:>7}  {:<14} {:>6} {:>6} {:>6}",
            "",
            "A",
            "B",
            "p",
            "test",
            "better",
            "worse",
            "same"
        );
        set.measures.iter().for_each(|measure| row(measure, width));
    }
    if !set.changed.is_empty() && shown > 0 {
        let what = if set.measures.is_empty() { "other answers" } else { "another score" };
        say!(
            "  {} with {what}{}",
            set.changed.len(),
            if set.changed.len() > shown { format!(", the first {shown}:") } else { ":".into() }
        );
        set.changed.iter().take(shown).for_each(change);
    }
}

fn row(measure: &MeasureComparison, width: usize) {
    let MeasureComparison { name, a, b, difference, low, high, test, p, better, worse, same, points, .. } = measure;
    let (full, unit) = points.map_or((100.0, '%'), |points| (points, ' '));
    let [a, b, difference, low, high] = [a, b, difference, low, high].map(|share| full * share);
    let p = if *p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") };
    let interval = format!("[{low:+.2}, {high:+.2}]");
    say!(
        "  {name:<width$} {a:>7.2}{unit} {b:>7.2}{unit}   {difference:>+7.2} {interval:<21} {p:>7}  {test:<14} {better:>6} {worse:>6} {same:>6}",
        test = test.to_string()
    );
}

/// Prints a question whose score changed. Answers are quoted, because they may contain line breaks.
fn change(changed: &Changed) {
    let Changed { question_id, prompt, a, b, expected, score_a, score_b } = changed;
    let score = |score: &Option<f64>| score.map(|score| format!(" ({score:.2})")).unwrap_or_default();
    say!("    {question_id} {prompt:?}");
    say!("      A {a:?}{}  B {b:?}{}{}", score(score_a), score(score_b), truth(expected));
}

fn truth(expected: &Option<String>) -> String {
    expected.as_ref().map(|expected| format!("  truth {expected:?}")).unwrap_or_default()
}
