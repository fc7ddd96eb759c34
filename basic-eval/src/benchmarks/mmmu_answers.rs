//! Reads answers by the rules of MMMU's eval_utils.py: the option that an answer chooses, and whether an answer without
//! options holds a true one.

use std::sync::LazyLock;

use regex::Regex;

use super::python_text::{float, is_space, split};

static COMMAS: LazyLock<Regex> = LazyLock::new(|| pattern(r"-?\b[0-9]{1,3}(?:,[0-9]{3})+\b"));
static SCIENTIFIC: LazyLock<Regex> = LazyLock::new(|| pattern(r"-?[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]+"));
const ENDS: [char; 7] = [',', '.', '!', '?', ';', ':', '\''];
/// After these words the script looks for the answer.
const INDICATORS: [&str; 8] = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant")
}

/// The letter of the option that an answer chooses: the last letter in parentheses, else the last one that stands alone,
/// else, in an answer of more than five words, the last option whose text is in it. `None` if there is none; the script
/// then chooses an option at random, and here the answer counts as wrong.
pub fn chosen(answer: &str, options: &[(char, String)]) -> Option<char> {
    let stripped = ENDS.iter().fold(answer, |answer, end| answer.trim_matches(*end));
    let text = format!(" {stripped} ");
    let last = |form: &dyn Fn(char) -> String| {
        let found = options.iter().filter_map(|(letter, _)| Some((text.rfind(&form(*letter))?, *letter)));
        // Of equal places, the first.
        found.reduce(|best, other| if other.0 > best.0 { other } else { best })
    };
    if let Some((_, letter)) = last(&|letter| format!("({letter})")).or_else(|| last(&|letter| format!(" {letter} "))) {
        return Some(letter);
    }
    if split(&text).count() <= 5 {
        return None;
    }
    let text = text.to_lowercase();
    let found = options.iter().filter_map(|(letter, option)| Some((text.rfind(&option.to_lowercase())?, *letter)));
    found.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, letter)| letter)
}

/// A normalized answer.
#[derive(Debug, Clone, PartialEq)]
enum Normal {
    Number(f64),
    Text(String),
}

/// Whether an answer to a question without options holds one of the true answers.
pub fn open_answer(answer: &str, truths: &[String]) -> bool {
    let truths: Vec<Normal> = truths.iter().flat_map(|truth| normalized(truth)).collect();
    let holds = |found: &Normal| match found {
        Normal::Text(text) => truths.iter().any(|truth| matches!(truth, Normal::Text(truth) if text.contains(truth))),
        number @ Normal::Number(_) => truths.contains(number),
    };
    let responses = key_responses(answer);
    let numbers: Vec<String> = responses.iter().flat_map(|response| numbers(response)).collect();
    responses.iter().chain(&numbers).flat_map(|found| normalized(found)).any(|found| holds(&found))
}

/// A number rounded to two digits, or the text in lower case. A single letter must have a space beside it.
fn normalized(text: &str) -> Vec<Normal> {
    let text = text.trim_matches(is_space);
    if let Some(number) = float(&text.replace(',', "")) {
        let rounded = format!("{number:.2}").parse().unwrap_or(number);
        return vec![Normal::Number(rounded)];
    }
    let text = text.to_lowercase();
    match text.chars().count() {
        1 => vec![Normal::Text(format!(" {text}")), Normal::Text(format!("{text} "))],
        _ => vec![Normal::Text(text)],
    }
}

/// The parts of an answer that may hold the true one: of each line, the shortest text after one of the indicators.
fn key_responses(answer: &str) -> Vec<String> {
    let answer = answer.trim_matches(is_space).trim_matches('.').to_lowercase();
    let lines: Vec<&str> = answer.split('\n').collect();
    let mut keys = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        // The last line may be an equation.
        let last = (number + 1 == lines.len()).then_some("=");
        let mut shortest: Option<&str> = None;
        for indicator in INDICATORS.iter().copied().chain(last) {
            let Some((_, tail)) = line.rsplit_once(indicator) else { continue };
            let tail = tail.trim_matches(is_space);
            let shorter = |best: &str| tail.chars().count() < best.chars().count();
            if shortest.is_none_or(|best| best.is_empty() || shorter(best)) {
                shortest = Some(tail);
            }
        }
        let trivial = |text: &str| text.is_empty() || text.len() == 1 && text.starts_with(ENDS);
        keys.extend(shortest.filter(|text| !trivial(text)).map(String::from));
    }
    if keys.is_empty() { vec![answer] } else { keys }
}

/// The numbers in a text: those with commas, those in scientific notation, and plain ones.
fn numbers(text: &str) -> Vec<String> {
    let all = |pattern: &Regex| pattern.find_iter(text).map(|found| found.as_str().to_string()).collect::<Vec<_>>();
    [all(&COMMAS), all(&SCIENTIFIC), simple(text)].concat()
}

/// The matches of `-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])`, which needs more than regular expressions without
/// looking ahead can say.
fn simple(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let free = |end: usize| {
        let rest = &bytes[end..];
        let scientific = match rest {
            [b'e' | b'E', b'+' | b'-', digit, ..] | [b'e' | b'E', digit, ..] => digit.is_ascii_digit(),
            _ => false,
        };
        !scientific && rest.first() != Some(&b',')
    };
    let boundary = |end: usize| text[end..].chars().next().is_none_or(|char| !(char.is_alphanumeric() || char == '_'));
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let start = at + usize::from(bytes[at] == b'-');
        if start >= bytes.len() {
            break;
        }
        let whole = digits(start);
        let point = start + whole;
        let fraction = if bytes.get(point) == Some(&b'.') { digits(point + 1) } else { 0 };
        let end = match (whole, fraction) {
            (0, 0) => None,
            (_, 1..) if free(point + 1 + fraction) => Some(point + 1 + fraction),
            (1.., _) if boundary(point) && free(point) => Some(point),
            _ => None,
        };
        match end {
            Some(end) => {
                found.push(text[at..end].to_string());
                at = end;
            }
            None => at += 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_are_those_of_pythons_pattern() {
        // Found with Python's `re`.
        for (text, found) in [
            ("1.5e3", &["1", "3"][..]),
            ("a -2, b .5 and 7.", &[".5", "7"]),
            ("1,000 or 1000", &["000", "1000"]),
            ("3rd 12x", &[]),
            ("x=-4.25é", &["-4.25"]),
            ("--5", &["-5"]),
            ("2.", &["2"]),
            ("-", &[]),
        ] {
            assert_eq!(simple(text), found, "{text}");
        }
    }

    #[test]
    fn an_answer_without_options_holds_the_true_one_as_a_number_or_a_text() {
        let holds = |answer: &str, truth: &str| open_answer(answer, &[truth.to_string()]);
        assert!(holds("so the total is 1,234", "1234") && holds("so x = 3", "3") && holds("A red fox", "red"));
        // The script reads 1,234 and 234.50 in it.
        assert!(!holds("The total is $1,234.50.", "1234.5") && holds("The total is $1,234.50.", "234.5"));
        assert!(!holds("about 3", "3.1") && !holds("xenon", "x") && holds("it is x then", "x"));
    }
}
