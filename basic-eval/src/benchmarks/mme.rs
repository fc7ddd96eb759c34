//! MME: two yes-or-no questions about each image, in 14 tasks of 200 points.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::asked_image::AskedImage;
use super::benchmark_folders::Root;
use super::question_files::{SHORT, text};
use super::rows::Layout;
use super::{Asked, Benchmark, BenchmarkError, Grouping, Mark, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "mme", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "MME",
    name: "MME",
    split: &["test"],
    image: "image",
    need: "the folder MME_Benchmark_release_version comes from the authors (branch Evaluation of \
           BradyFU/Awesome-Multimodal-Large-Language-Models), a table of it from lmms-lab/MME on the hub",
};

const PERCEPTION: [&str; 10] =
    ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"];
const COGNITION: [&str; 4] = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"];
/// The request at the end of MME's own questions, in whose place LLaVA's prompts have another.
const REQUEST: &str = "Please answer yes or no.";

struct Item {
    task: String,
    /// The image, which has two questions.
    pair: String,
    question: String,
    yes: bool,
    image: AskedImage,
}

/// Whether an answer is read as yes or no, by MME's evaluation: which of the two its first four characters hold.
pub(super) fn says(answer: &str) -> Option<bool> {
    let start: String = answer.to_lowercase().chars().take(4).collect();
    match (start.contains("yes"), start.contains("no")) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let (path, items) = match LAYOUT.find(root)? {
        Some(table) => {
            let mut items = Vec::new();
            for row in &table.rows {
                let answer = row.need(&["answer"])?;
                let yes =
                    truth(&answer).ok_or_else(|| row.wrong(format!("its answer {answer:?} is neither yes nor no")))?;
                items.push(Item {
                    task: row.need(&["category"])?,
                    pair: row.need(&["question_id", "image_path"])?,
                    question: row.need(&["question"])?,
                    yes,
                    image: row.image()?,
                });
            }
            (table.path, items)
        }
        None => folder(root)?,
    };
    let mut pairs: HashMap<(&str, &str), usize> = HashMap::new();
    for item in &items {
        *pairs.entry((&item.task, &item.pair)).or_default() += 1;
    }
    if let Some(((task, pair), count)) = pairs.into_iter().filter(|(_, count)| *count != 2).min() {
        let problem = format!("has {count} questions: MME asks two about each image");
        return Err(BenchmarkError::entry(&path, format!("image {pair} of {task}"), problem));
    }
    let (mut asked, mut kept) = (Vec::new(), Vec::new());
    for (place, item) in items.into_iter().enumerate() {
        let Some(half) = half(&item.task) else {
            return Err(BenchmarkError::entry(
                &path,
                format!("question {place}"),
                format!("{:?} is no task of MME", item.task),
            ));
        };
        let question = item.question.replace(REQUEST, "");
        asked.push(Asked {
            id: place.into(),
            prompt: format!("{}\n{SHORT}", question.trim()),
            image: Some(item.image),
        });
        let parts = vec![half.to_string(), item.task.clone()];
        kept.push((item.task, item.yes, Grouping { parts, pair: Some(item.pair), ..Grouping::default() }));
    }
    Ok(Task::new(asked).marked("score", move |i, answer| {
        let (task, yes, grouping) = &kept[i];
        Mark {
            score: f64::from(u8::from(says(answer) == Some(*yes))),
            expected: if *yes { "yes" } else { "no" }.into(),
            category: Some(task.clone()),
            grouping: grouping.clone(),
            yes: None,
        }
    }))
}

fn half(task: &str) -> Option<&'static str> {
    match (PERCEPTION.contains(&task), COGNITION.contains(&task)) {
        (true, _) => Some("perception"),
        (_, true) => Some("cognition"),
        _ => None,
    }
}

fn truth(answer: &str) -> Option<bool> {
    match answer.trim().to_lowercase().as_str() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// The questions of the authors' folder: a folder for each task, and for each image a text file with a question and its
/// answer on each line. Some tasks have the images and the questions in folders of their own.
fn folder(root: &Root) -> Result<(PathBuf, Vec<Item>), BenchmarkError> {
    let dir = root.join("MME/MME_Benchmark_release_version");
    if !dir.is_dir() {
        return Err(BenchmarkError::Missing { path: dir, need: LAYOUT.need.into() });
    }
    let mut items = Vec::new();
    for task in PERCEPTION.iter().chain(&COGNITION) {
        let own = dir.join(task);
        if !own.is_dir() {
            return Err(BenchmarkError::Missing { path: own, need: LAYOUT.need.into() });
        }
        let apart = own.join("questions_answers_YN");
        let (pictures, texts) = match apart.is_dir() {
            true => (own.join("images"), apart),
            false => (own.clone(), own.clone()),
        };
        let names = |dir: &Path| -> Result<Vec<String>, BenchmarkError> {
            let entries = std::fs::read_dir(dir).map_err(BenchmarkError::io(dir))?;
            let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
            let mut names: Vec<String> = names.collect::<Result<_, _>>().map_err(BenchmarkError::io(dir))?;
            names.sort();
            Ok(names)
        };
        let images = root.images(pictures.clone())?;
        let by_stem: HashMap<String, String> = names(&pictures)?
            .into_iter()
            .filter(|name| !name.ends_with(".txt"))
            .filter_map(|name| Some((name.rsplit_once('.')?.0.to_string(), name)))
            .collect();
        for name in names(&texts)?.iter().filter(|name| name.ends_with(".txt")) {
            let file = texts.join(name);
            let stem = name.trim_end_matches(".txt");
            let Some(picture) = by_stem.get(stem) else {
                return Err(BenchmarkError::Missing {
                    path: pictures.join(stem),
                    need: format!("the image of {}", file.display()),
                });
            };
            for (number, line) in
                text(&file, LAYOUT.need)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty())
            {
                let wrong = || BenchmarkError::line(&file, number + 1, "is not a question, a tab, and Yes or No");
                let (question, answer) = line.trim().split_once('\t').ok_or_else(wrong)?;
                let yes = truth(answer).ok_or_else(wrong)?;
                let image = images.file(picture, &format!("line {} of {}", number + 1, file.display()))?.into();
                let (task, pair) = ((*task).to_string(), picture.clone());
                items.push(Item { task, pair, question: question.into(), yes, image });
            }
        }
    }
    Ok((dir, items))
}

#[cfg(test)]
mod tests {
    use super::says;

    #[test]
    fn yes_or_no_is_read_in_the_first_four_characters() {
        for (answer, said) in [
            ("Yes", Some(true)),
            ("yes, it is", Some(true)),
            (" No.", Some(false)),
            ("Not at all", Some(false)),
            ("I know", None),
            ("", None),
            ("The answer is yes", None),
        ] {
            assert_eq!(says(answer), said, "{answer}");
        }
    }
}
