//! Normalizes answers before they are compared, by VQA's rules and by M4C's variant of them.
//!
//! The rules are those of vqaEval.py (GT-Vision-Lab/VQA) and m4c_evaluator.py (mmf, in LLaVA's copy). Their oddities
//! are kept, so that scores are comparable with published ones. A period is removed unless a digit follows, but only
//! the first 32 are (the scripts pass a flag to `re.sub` as its count). A punctuation mark is replaced by a space, or
//! removed if anywhere in the answer a space stands beside such a mark or a comma stands between digits.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

const PUNCTUATION: &str = ";/[]\"{}()=+\\_-><@`,?!";
const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];
const ARTICLES: [&str; 3] = ["a", "an", "the"];
const PERIODS: usize = 32;

/// The contractions whose apostrophes are restored, as both scripts list them, without the entries that no lower-case
/// word matches and those that change nothing.
static CONTRACTIONS: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    let pairs = include_str!("contractions.txt").lines().flat_map(|line| line.split(", "));
    pairs.filter_map(|pair| pair.split_once(' ')).collect()
});

static COMMA_IN_NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"\d,\d"));
static COMMAS_IN_NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"\d,+\d"));
static DIGIT: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\d"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant")
}

/// Replaces line breaks and tabs by spaces and trims the answer, as VQA's script does to every answer.
pub fn trimmed(answer: &str) -> String {
    answer.replace(['\n', '\t'], " ").trim().to_string()
}

/// VQA's normal form of an answer, which must have passed through [`trimmed`].
pub fn vqa(answer: &str) -> String {
    words(&punctuation(answer, &COMMA_IN_NUMBER))
}

/// M4C's normal form of an answer (`EvalAIAnswerProcessor`), which TextVQA's scores and LLaVA's submissions use.
pub fn m4c(answer: &str) -> String {
    let answer = answer.to_lowercase().replace([',', '?'], "").replace("'s", " 's");
    words(&punctuation(&trimmed(answer.trim()), &COMMAS_IN_NUMBER))
}

fn punctuation(text: &str, commas: &Regex) -> String {
    let number = commas.is_match(text);
    let mut out = text.to_string();
    for mark in PUNCTUATION.chars() {
        let outside = text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}"));
        out = out.replace(mark, if outside || number { "" } else { " " });
    }
    let mut kept = String::with_capacity(out.len());
    let mut dropped = 0;
    for (at, c) in out.char_indices() {
        if c == '.' && dropped < PERIODS && !DIGIT.is_match(&out[at + 1..]) {
            dropped += 1;
        } else {
            kept.push(c);
        }
    }
    kept
}

/// Lower case, number words as digits, no articles, contractions with their apostrophes, single spaces.
fn words(text: &str) -> String {
    let lower = text.to_lowercase();
    let number = |word| NUMBERS.iter().find(|(name, _)| *name == word).map_or(word, |(_, digits)| *digits);
    let words = lower.split_whitespace().map(number).filter(|word| !ARTICLES.contains(word));
    let words: Vec<&str> = words.map(|word| CONTRACTIONS.get(word).copied().unwrap_or(word)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_articles_and_contractions_take_one_form() {
        assert_eq!(vqa("The two Dogs dont"), "2 dogs don't");
        assert_eq!(m4c("A None of an THE"), "0 of");
        assert_eq!(vqa("somebody'd"), "somebodyd", "the list's own slip");
    }

    #[test]
    fn punctuation_goes_or_becomes_a_space_by_what_stands_around_any_of_it() {
        assert_eq!(vqa("red/blue"), "red blue");
        assert_eq!(vqa("red /blue/green"), "red bluegreen");
        assert_eq!(vqa("1,000-2"), "10002", "a comma between digits takes every mark away");
        assert_eq!(m4c("1,000-2"), "1000 2", "M4C has dropped the comma before");
    }

    #[test]
    fn a_period_goes_unless_a_digit_follows_and_only_the_first_32_do() {
        assert_eq!(vqa("3.5 m."), "3.5 m");
        assert_eq!(vqa(".5"), ".5");
        assert_eq!(vqa(&".".repeat(40)), ".".repeat(8));
    }

    #[test]
    fn m4c_sets_a_possessive_apart() {
        assert_eq!(m4c("McDonald's, yes?\n"), "mcdonald 's yes");
        assert_eq!(vqa("McDonald's"), "mcdonald's");
    }
}
