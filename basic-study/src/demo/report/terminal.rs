//! The table for the terminal: fixed width, no colour codes.

use std::fmt::Write as _;

use super::measures::{Checkpoint, MeasureRow, accuracy_rows, finetuned, other_rows, overall_rows, write};
use super::paired_arms::{Comparison, seeds};
use super::sentences;
use super::terminal_strip;
use crate::demo::summary::{Setting, Summary};
use crate::pages::numbers;
use basic_eval::statistics::Spread;

/// Widths in characters: 98 together.
const LABEL: usize = 17;
const CHANCE: usize = 7;
/// An arm's number, with the gap before it.
const VALUE: usize = 12;
/// The difference, with the gap before it: a sign more.
const CHANGE: usize = 13;
const STAGE: usize = 2 * VALUE + CHANGE;
const WIDTH: usize = LABEL + CHANCE + 2 * STAGE;

/// The summary as text.
pub(super) fn render(summary: &Summary) -> String {
    let mut text = String::new();
    let revision = summary.revision.as_deref().map_or_else(String::new, |revision| format!(" ({revision})"));
    let origin = format!(
        "BASIC beside LLaVA: basic {}{revision} on {}, {}",
        summary.version,
        sentences::device(summary),
        numbers::duration(summary.seconds)
    );
    push_wrapped(&mut text, &origin, "");
    if sentences::overview(summary) {
        for setting in &summary.settings {
            push_setting(&mut text, summary, setting);
        }
        text.push('\n');
        push_wrapped(&mut text, &sentences::headline(summary), "");
        push_wrapped(&mut text, &sentences::how_to_read(summary), "");
    }
    if let Some(conclusion) = &summary.conclusion {
        text.push('\n');
        for line in terminal_strip::lines(conclusion) {
            push_line(&mut text, &line);
        }
        text.push('\n');
        push_wrapped(&mut text, &conclusion.shown, "");
        push_wrapped(&mut text, &conclusion.not_shown, "");
    }
    text
}

fn push_setting(text: &mut String, summary: &Summary, setting: &Setting) {
    text.push('\n');
    push_wrapped(text, &format!("{}: {}", setting.name, setting.description), "");
    push_wrapped(text, &format!("  {}", facts(setting)), "  ");
    text.push('\n');
    push_columns(text, finetuned(setting));
    for row in accuracy_rows(summary, setting).iter().chain(&overall_rows(summary, setting)) {
        push_row(text, row);
    }
    push_line(text, &"-".repeat(WIDTH));
    for row in &other_rows(setting) {
        push_row(text, row);
    }
    text.push('\n');
    for checkpoint in Checkpoint::of(setting) {
        push_wrapped(text, &sentences::sentence(checkpoint, setting), "");
    }
    if let Some(best_steps) = sentences::best_steps(setting) {
        push_wrapped(text, &best_steps, "");
    }
}

fn facts(setting: &Setting) -> String {
    let conversations = setting.conversations.map(|count| sentences::counted(count, "conversation") + ", ");
    format!(
        "{}, {}{}; BASIC: lambda_das {}, lambda_sds {}; {} {}",
        sentences::counted(setting.captions, "captioned image"),
        conversations.unwrap_or_default(),
        sentences::counted(setting.eval_questions, "eval question"),
        numbers::knob(setting.lambda_das),
        numbers::knob(setting.lambda_sds),
        if seeds(setting).len() == 1 { "seed" } else { "seeds" },
        sentences::seed_list(setting)
    )
}

fn push_columns(text: &mut String, finetuned: bool) {
    let group = |name: &str| format!("  {name:-^width$}", width = STAGE - 2);
    let blank = " ".repeat(LABEL + CHANCE);
    let second = |part: String| if finetuned { part } else { String::new() };
    push_line(text, &format!("{blank}{}{}", group(" after pretrain "), second(group(" after finetune "))));
    let stage = format!("{:>VALUE$}{:>VALUE$}{:>CHANGE$}", "LLaVA", "BASIC", "difference");
    push_line(
        text,
        &format!("{:<LABEL$}{:>CHANCE$}{stage}{second}", "accuracy, %", "chance", second = second(stage.clone())),
    );
    push_line(text, &"-".repeat(WIDTH));
}

fn push_row(text: &mut String, row: &MeasureRow) {
    let label: String = if row.short.chars().count() > LABEL {
        row.short.chars().take(LABEL - 1).chain(['…']).collect()
    } else {
        row.short.clone()
    };
    let chance = row.chance.map_or_else(String::new, |chance| numbers::fixed(chance, 1));
    let mut line = format!("{label:<LABEL$}{chance:>CHANCE$}");
    push_cells(&mut line, row, &row.pretrain);
    if let Some(finetune) = &row.finetune {
        push_cells(&mut line, row, finetune);
    }
    push_line(text, &line);
}

fn push_cells(line: &mut String, row: &MeasureRow, comparison: &Comparison) {
    let value = |spread: &Option<Spread>| {
        spread.as_ref().map_or_else(|| numbers::MISSING.to_owned(), |spread| compact(write(row.unit, spread)))
    };
    let change = row.change(comparison).map_or_else(String::new, compact);
    let (llava, basic) = (value(&comparison.llava), value(&comparison.basic));
    // A blank before every cell keeps numbers apart that are wider than their column.
    for (text, width) in [(llava, VALUE), (basic, VALUE), (change, CHANGE)] {
        let _ = write!(line, " {text:>width$}", width = width - 1);
    }
}

/// Without the spaces around ±, which the columns have no room for.
fn compact(text: String) -> String {
    text.replace(numbers::PLUS_MINUS, "±")
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Adds `paragraph` in lines of at most [`WIDTH`] characters, those after the first indented.
fn push_wrapped(text: &mut String, paragraph: &str, indent: &str) {
    let mut line = if paragraph.starts_with(' ') { indent.to_owned() } else { String::new() };
    for word in paragraph.split_whitespace() {
        let started = !line.trim().is_empty();
        if started && line.chars().count() + 1 + word.chars().count() > WIDTH {
            push_line(text, &line);
            line = indent.to_owned();
        } else if started {
            line.push(' ');
        }
        line.push_str(word);
    }
    push_line(text, &line);
}
