//! RealWorldQA: questions about photographs, most of them taken from cars; some have options, and some a short answer.

use super::benchmark_folders::Root;
use super::multiple_choice::{MultipleChoice, letter, prompt};
use super::question_files::{LETTER, SHORT, id, unique};
use super::rows::{Layout, Row};
use super::{Asked, Benchmark, BenchmarkError, Grouping, Mark, Task, options};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "realworldqa", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "realworldqa",
    name: "RealWorldQA",
    split: &["test"],
    image: "image",
    need: "it comes from xai-org/RealworldQA or lmms-lab/RealWorldQA on the hub",
};

/// The requests at the end of the questions on the hub.
const REQUESTS: [&str; 2] = [
    "Please answer directly with only the letter of the correct option and nothing else.",
    "Please answer directly with a single word or number.",
];

/// Whether an answer to a question without options is right, by lmms-eval: without case, spaces and final periods.
pub(super) fn correct(answer: &str, truth: &str) -> bool {
    answer.to_lowercase().trim().trim_end_matches('.') == truth.trim().to_lowercase()
}

/// A question on the hub holds its options as lines `A. text`, with a request after them.
pub(super) fn split_options(text: &str) -> (String, Vec<(char, String)>) {
    let text = REQUESTS.iter().fold(text.to_string(), |text, request| text.replace(request, ""));
    let mut options: Vec<(char, String)> = Vec::new();
    let mut question: Vec<&str> = Vec::new();
    for line in text.lines() {
        let next = (b'A' + options.len().min(25) as u8) as char;
        match line.trim_start().strip_prefix(&format!("{next}.")) {
            Some(option) => options.push((next, option.trim().into())),
            None => question.push(line),
        }
    }
    (question.join("\n").trim().to_string(), options)
}

fn question(place: usize, row: &Row) -> Result<(MultipleChoice, String), BenchmarkError> {
    let text = row.need(&["question"])?;
    let truth = row.need(&["answer"])?;
    let (mut question, mut options) = (text.trim().to_string(), row.lettered());
    let prompt = match options.is_empty() {
        false => prompt(&question, &options, LETTER),
        true => {
            (question, options) = split_options(&text);
            let requested = REQUESTS.iter().any(|request| text.contains(request));
            match requested {
                true => text.trim().to_string(),
                false => format!("{}\n{}", text.trim(), if options.is_empty() { SHORT } else { LETTER }),
            }
        }
    };
    // A question whose answer is no letter has no options, whatever its lines look like.
    let answer = letter(&truth, &options);
    if answer.is_none() {
        options.clear();
    }
    let one = MultipleChoice {
        id: row.id("index").unwrap_or_else(|| place.into()),
        question,
        prompt,
        image: Some(row.image()?),
        options,
        answer: answer.unwrap_or('?'),
        category: None,
        grouping: Grouping::default(),
    };
    Ok((one, truth))
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let table = LAYOUT.read(root)?;
    let rows = table.rows.iter().enumerate().map(|(place, row)| question(place, row));
    let questions: Vec<(MultipleChoice, String)> = rows.collect::<Result<_, _>>()?;
    unique(&table.path, questions.iter().map(|(question, _)| id(&question.id)))?;
    let asked = questions.iter().map(|(question, _)| Asked {
        id: question.id.clone(),
        prompt: question.prompt.clone(),
        image: question.image.clone(),
    });
    let ranked = questions.iter().map(|(question, _)| question.options()).collect();
    Ok(Task::new(asked.collect()).ranked(ranked).marked("accuracy", move |i, answer| {
        let (question, truth) = &questions[i];
        let right = match question.options.is_empty() {
            true => correct(answer, truth),
            false => options::mmbench(answer, &question.options) == Some(question.answer),
        };
        let kind = if question.options.is_empty() { "short answer" } else { "options" };
        Mark {
            score: f64::from(u8::from(right)),
            expected: truth.clone(),
            category: Some(kind.into()),
            ..Mark::default()
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_lines_of_the_question_and_the_request_is_no_part_of_it() {
        let text = "Which is\nlarger?\n\nA. The car\nB. The bus\nPlease answer directly with only the letter of the correct option and nothing else.";
        let (question, options) = split_options(text);
        assert_eq!(question, "Which is\nlarger?");
        assert_eq!(options, [('A', "The car".to_string()), ('B', "The bus".to_string())]);
        assert_eq!(
            split_options("How many? Please answer directly with a single word or number."),
            ("How many?".into(), vec![])
        );
    }
}
