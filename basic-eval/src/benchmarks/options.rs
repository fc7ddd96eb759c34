//! Determines which option of a multiple-choice question an answer means.

use std::sync::LazyLock;

use regex::Regex;

static SAID: LazyLock<Regex> = LazyLock::new(|| pattern(r"The answer is ([A-Z])."));
static VERBOSE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**"));
const MARKS: &[char] = &['.', '(', ')', '[', ']', ',', ':', ';', '!', '*', '#', '{', '}'];
const REFUSALS: [&str; 4] = [
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant")
}

/// The index of the option that an answer to a ScienceQA question names, below `choices`, by the rules of LLaVA's
/// eval_science_qa.py: the letter alone, the letter followed by ". ", or exactly one "The answer is X" followed by any
/// character; `None` otherwise.
pub fn science_qa(answer: &str, choices: usize) -> Option<usize> {
    let option = |text: &str| "ABCDE".find(text).filter(|_| text.len() == 1);
    let parsed = match option(answer) {
        Some(index) => Some(index),
        None if answer.get(1..3) == Some(". ") && option(&answer[..1]).is_some() => option(&answer[..1]),
        None => {
            let mut said = SAID.captures_iter(answer);
            match (said.next(), said.next()) {
                (Some(one), None) => option(&one[1]),
                _ => None,
            }
        }
    };
    parsed.filter(|index| *index < choices)
}

/// The letter of the option that an answer to an MMBench question means, by VLMEvalKit's `can_infer`, the part of
/// MMBench's matching that needs no GPT model: a single letter that stands alone, or else the single option whose text
/// is in the answer. 'Z' means that the answer chooses none of the options.
pub fn mmbench(answer: &str, choices: &[(char, String)]) -> Option<char> {
    letter(answer, choices).or_else(|| by_text(answer, choices))
}

fn letter(answer: &str, choices: &[(char, String)]) -> Option<char> {
    if answer.contains("Failed to obtain answer via API") {
        return None;
    }
    if REFUSALS.iter().any(|refusal| answer.contains(refusal)) {
        return Some('Z');
    }
    let spaced = answer.replace(MARKS, " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let first = |letter: char| words.iter().position(|word| word.chars().eq([letter]));
    let named: Vec<(char, usize)> = choices.iter().filter_map(|(c, _)| Some((*c, first(*c)?))).collect();
    match named[..] {
        // Early in a long answer, the letter A may be the article.
        [(letter, at)] if at + 5 > words.len() => return Some(letter),
        [] if first('Z').is_some() => return Some('Z'),
        _ => {}
    }
    let said = VERBOSE.captures(answer)?[1].to_uppercase().chars().next()?;
    choices.iter().any(|(c, _)| *c == said).then_some(said)
}

fn by_text(answer: &str, choices: &[(char, String)]) -> Option<char> {
    let answer = answer.to_lowercase();
    if answer.chars().count() > 2 * choices.iter().map(|(_, text)| text.chars().count()).sum::<usize>() {
        return None;
    }
    let mut found = choices.iter().filter(|(_, text)| answer.contains(&text.to_lowercase()));
    match (found.next(), found.next()) {
        (Some((letter, _)), None) => Some(*letter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn science_qa_takes_a_letter_a_letter_with_its_text_or_one_sentence() {
        for (answer, choices, expected) in [
            ("B", 3, Some(1)),
            ("B. the second", 3, Some(1)),
            ("I think. The answer is C.", 3, Some(2)),
            ("The answer is C", 3, None), // nothing follows
            ("The answer is A. The answer is B.", 3, None),
            ("D", 3, None), // not among the choices
            ("b", 3, None),
            ("", 3, None),
            ("AB", 3, None),
            ("é. x", 3, None),
        ] {
            assert_eq!(science_qa(answer, choices), expected, "{answer}");
        }
    }

    #[test]
    fn mmbench_takes_one_letter_near_the_end_or_one_options_text() {
        let choices: Vec<(char, String)> =
            [('A', "a red cat"), ('B', "a dog"), ('C', "birds")].map(|(c, t)| (c, t.to_string())).into();
        for (answer, expected) in [
            ("B", Some('B')),
            ("(B).", Some('B')),
            ("A or B", None),
            ("It is a dog", Some('B')),
            ("Birds", Some('C')),
            ("a dog and birds", None),
            ("The correct answer is **C**, not A as one may think at first", Some('C')),
            ("Cannot determine the answer", Some('Z')),
            ("Z", Some('Z')),
            ("", None),
            ("A dog is what one can see in it", Some('B')), // "A" is early, and the text short enough
            ("A dog is what one can see in it, or so it seems", None),
        ] {
            assert_eq!(mmbench(answer, &choices), expected, "{answer}");
        }
    }
}
