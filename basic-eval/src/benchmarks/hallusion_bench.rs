//! HallusionBench: yes-or-no questions about images that mislead, and the same questions without an image.

use serde::Deserialize;
use serde_json::Value;

use super::benchmark_folders::Root;
use super::python_text::split;
use super::question_files::{id, json, unique};
use super::{Asked, Benchmark, BenchmarkError, Grouping, Mark, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "hallusion_bench", max_new_tokens: 128, read };

const NEED: &str = "it comes from tianyi-lab/HallusionBench, with a link to the images, hallusion_bench.zip";

#[derive(Deserialize)]
struct Question {
    category: String,
    subcategory: String,
    visual_input: Value,
    set_id: Value,
    figure_id: Value,
    question_id: Value,
    question: String,
    gt_answer: Value,
    filename: Option<String>,
}

/// Punctuation that VLMEvalKit takes out of an answer.
const MARKS: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];

/// At most so many periods are taken out, because VLMEvalKit passes a flag (32) in the place of a count.
const PERIODS: usize = 32;

/// Whether an answer is read as yes or no, by VLMEvalKit's `YOrN_Extraction`: which of the two is among its words; `None`
/// if both or neither.
pub(super) fn says(answer: &str) -> Option<bool> {
    let text = answer.to_lowercase();
    let chars: Vec<char> = text.chars().collect();
    let between_digits = chars.windows(3).any(|w| w[0].is_ascii_digit() && w[1] == ',' && w[2].is_ascii_digit());
    let plain = MARKS.iter().fold(text.clone(), |out, mark| {
        let spaced = text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}"));
        out.replace(*mark, if spaced || between_digits { "" } else { " " })
    });
    let chars: Vec<char> = plain.chars().collect();
    let digit = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(char::is_ascii_digit);
    let (mut out, mut taken) = (String::new(), 0);
    for (at, char) in chars.iter().enumerate() {
        if *char == '.' && taken < PERIODS && !digit(at.checked_sub(1)) && !digit(Some(at + 1)) {
            taken += 1;
        } else {
            out.push(*char);
        }
    }
    let has = |wanted: &str| split(&out).any(|word| word == wanted);
    match (has("yes"), has("no")) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

/// Whether an answer is right. Of a question that needs no image and has none, an answer that is neither yes nor no is
/// right too, because the model does not make anything up.
pub(super) fn correct(said: Option<bool>, truth: bool, without_image: bool) -> bool {
    said.map_or(without_image, |said| said == truth)
}

/// Whether a question is asked without an image, and needs none.
pub(super) fn without_image(category: &str, figure: &str) -> bool {
    category == "VS" && figure == "0"
}

/// The groups of a question by its category, subcategory, set, figure and number. The same question about other figures
/// makes a question pair; a question without an image belongs to no figure.
pub(super) fn grouping([category, subcategory, set, figure, number]: [&str; 5]) -> Grouping {
    let pair = format!("{category}_{subcategory}_{set}_{number}");
    let mut groups = Grouping::together([("question pair accuracy", pair)]);
    if !without_image(category, figure) {
        let figure = format!("{category}_{subcategory}_{set}_{figure}");
        groups.together.insert("figure accuracy".into(), figure);
    }
    groups
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("hallusion_bench");
    let file = dir.join("HallusionBench.json");
    let questions: Vec<Question> = json(&file, NEED)?;
    // The archive has a folder of this name.
    let own = dir.join("hallusion_bench");
    let images = root.images(if own.is_dir() { own } else { dir })?;
    let (mut asked, mut kept) = (Vec::new(), Vec::new());
    for question in questions {
        let Question { category, subcategory, .. } = &question;
        let [set, figure, number] = [&question.set_id, &question.figure_id, &question.question_id].map(id);
        let name = format!("{category}_{subcategory}_{set}_{figure}_{number}");
        let yes = match id(&question.gt_answer).as_str() {
            "1" => true,
            "0" => false,
            other => {
                let problem = format!("its gt_answer is {other:?}, expected 0 or 1");
                return Err(BenchmarkError::entry(&file, format!("question {name}"), problem));
            }
        };
        let image = match &question.filename {
            Some(path) if id(&question.visual_input) != "0" => {
                let path = path.trim_start_matches("./");
                let path = path.strip_prefix("hallusion_bench/").unwrap_or(path);
                Some(images.file(path, &format!("question {name} of {}", file.display()))?.into())
            }
            _ => None,
        };
        let without = without_image(category, &figure);
        let groups = grouping([category, subcategory, &set, &figure, &number]);
        asked.push(Asked { id: name.into(), prompt: question.question, image });
        kept.push((yes, without, question.category, groups));
    }
    unique(&file, asked.iter().map(|asked| id(&asked.id)))?;
    Ok(Task::new(asked).marked("accuracy", move |i, answer| {
        let (yes, without, category, groups) = &kept[i];
        Mark {
            score: f64::from(u8::from(correct(says(answer), *yes, *without))),
            expected: if *yes { "yes" } else { "no" }.into(),
            category: Some(category.clone()),
            grouping: groups.clone(),
            yes: None,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_yes_or_no_by_its_words() {
        for (answer, said) in [
            ("Yes, it is.", Some(true)),
            ("No.", Some(false)),
            ("no-one", Some(false)),
            ("Yes and no", None),
            ("nothing", None),
            ("It is. Yes!", Some(true)),
            ("", None),
        ] {
            assert_eq!(says(answer), said, "{answer}");
        }
        assert!(correct(None, true, true) && !correct(None, true, false) && !correct(Some(false), true, true));
    }
}
