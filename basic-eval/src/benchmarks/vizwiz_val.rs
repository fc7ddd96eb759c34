//! VizWiz's validation questions, whose answers are public. LLaVA's guide does not have them; the prompts are those of
//! its test questions.

use serde::Deserialize;

use super::benchmark_folders::Root;
use super::normalize::m4c;
use super::question_files::{SHORT, json, unique};
use super::{Asked, Benchmark, BenchmarkError, Mark, Task, vqa};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "vizwiz-val", max_new_tokens: 128, read };

const NEED: &str = "it comes from vizwiz.org's visual question answering page (Annotations.zip)";
/// The line that LLaVA's question file for VizWiz has between the question and the request for a short answer.
const UNANSWERABLE: &str = "When the provided information is insufficient, respond with 'Unanswerable'.";

#[derive(Deserialize)]
struct Question {
    image: String,
    question: String,
    answers: Vec<Given>,
    answer_type: String,
}

#[derive(Deserialize)]
struct Given {
    answer: String,
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("vizwiz");
    let file = dir.join("val.json");
    let questions: Vec<Question> = json(&file, NEED)?;
    // Each image has one question, so its name serves as the question's id.
    unique(&file, questions.iter().map(|question| question.image.clone()))?;
    let images = root.images(dir.join("val"))?;
    let (mut asked, mut people, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for question in questions {
        let name = &question.image;
        let path = images.file(name, &format!("question {name} of {}", file.display()))?;
        if question.answers.is_empty() {
            return Err(BenchmarkError::entry(
                &file,
                format!("question {name}"),
                "has no answers: is it the test split?",
            ));
        }
        people.push(question.answers.into_iter().map(|given| given.answer).collect::<Vec<_>>());
        types.push(question.answer_type);
        let prompt = format!("{}\n{UNANSWERABLE}\n{SHORT}", question.question);
        asked.push(Asked { id: question.image.into(), prompt, image: Some(path.into()) });
    }
    // The answer is scored in the form in which it would be submitted.
    Ok(Task::new(asked).marked("accuracy", move |i, answer| Mark {
        score: vqa::vizwiz_accuracy(&m4c(answer), &people[i]),
        expected: vqa::most_given(&people[i]),
        category: Some(types[i].clone()),
        ..Mark::default()
    }))
}
