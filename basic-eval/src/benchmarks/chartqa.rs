//! ChartQA's test questions about charts, in two halves, scored by relaxed accuracy.

use serde::Deserialize;

use super::benchmark_folders::Root;
use super::python_text::float;
use super::question_files::{SHORT, json, unique};
use super::rows::Layout;
use super::{Asked, Benchmark, BenchmarkError, Mark, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "chartqa", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "chartqa",
    name: "ChartQA_TEST",
    split: &["test"],
    image: "image",
    need: "the folder test/ comes from ahmed-masry/ChartQA on the hub, whose table lmms-lab/ChartQA is read too",
};

/// The largest difference from the true number, as a share of it.
const TOLERANCE: f64 = 0.05;

/// A question of the authors' files.
#[derive(Deserialize)]
struct Question {
    imgname: String,
    query: String,
    label: String,
}

/// A question with its true answers; more than one of them may be right.
struct Item {
    labels: Vec<String>,
    half: Option<String>,
}

/// Whether an answer is right by the relaxed rule: a number may differ by 5% of the true one, and a text may differ in
/// case only.
pub(super) fn correct(answer: &str, truth: &str) -> bool {
    let number = |text: &str| match text.ends_with('%') {
        true => float(text.trim_end_matches('%')).map(|share| share / 100.0),
        false => float(text),
    };
    match (number(answer), number(truth).filter(|truth| *truth != 0.0)) {
        (Some(found), Some(truth)) => (found - truth).abs() / truth.abs() <= TOLERANCE,
        _ => answer.to_lowercase() == truth.to_lowercase(),
    }
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let (mut asked, mut items) = (Vec::new(), Vec::new());
    let table = LAYOUT.find(root)?;
    // The authors' folder has a half in each of two files.
    let folder = ["test", "ChartQA Dataset/test"].map(|folder| root.join("chartqa").join(folder));
    let folder = folder.iter().find(|folder| folder.is_dir()).unwrap_or(&folder[0]).clone();
    let Some(table) = table else {
        let images = root.images(folder.join("png"))?;
        for half in ["human", "augmented"] {
            let file = folder.join(format!("test_{half}.json"));
            let questions: Vec<Question> = json(&file, LAYOUT.need)?;
            for (place, question) in questions.into_iter().enumerate() {
                let id = format!("{half}-{place}");
                let image = images.file(&question.imgname, &format!("question {place} of {}", file.display()))?;
                let prompt = format!("{}\n{SHORT}", question.query);
                asked.push(Asked { id: id.into(), prompt, image: Some(image.into()) });
                items.push(Item { labels: vec![question.label], half: Some(half.into()) });
            }
        }
        unique(&folder, asked.iter().map(|asked| asked.id.to_string()))?;
        return Ok(task(asked, items));
    };
    for (place, row) in table.rows.iter().enumerate() {
        let question = row.need(&["question", "query"])?;
        // The table of HuggingFaceM4 holds a list of answers.
        let labels = match row.list("label") {
            Ok(labels) => labels,
            Err(_) => vec![row.need(&["answer", "label"])?],
        };
        let half = row.text("type").or_else(|| row.text("split"));
        let id = row.id("index").unwrap_or_else(|| place.into());
        asked.push(Asked { id, prompt: format!("{question}\n{SHORT}"), image: Some(row.image()?) });
        items.push(Item { labels, half: half.map(|half| half.trim_end_matches("_test").into()) });
    }
    unique(&table.path, asked.iter().map(|asked| asked.id.to_string()))?;
    Ok(task(asked, items))
}

fn task(asked: Vec<Asked>, items: Vec<Item>) -> Task {
    Task::new(asked).marked("relaxed accuracy", move |i, answer| {
        let Item { labels, half } = &items[i];
        Mark {
            score: f64::from(u8::from(labels.iter().any(|truth| correct(answer, truth)))),
            expected: labels.first().cloned().unwrap_or_default(),
            category: half.clone(),
            ..Mark::default()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::correct;

    #[test]
    fn a_number_may_be_off_by_a_twentieth_and_a_text_in_its_case() {
        for (answer, truth) in
            [("104.9", "100"), ("95", "100"), ("Blue", "blue"), ("0.5", "50%"), ("0", "0"), ("5%", "5%")]
        {
            assert!(correct(answer, truth), "{answer} for {truth}");
        }
        for (answer, truth) in
            [("105.1", "100"), ("0.0", "0"), ("about 100", "100"), ("dark blue", "blue"), ("50", "50%")]
        {
            assert!(!correct(answer, truth), "{answer} for {truth}");
        }
    }
}
