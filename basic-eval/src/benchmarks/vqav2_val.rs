//! VQAv2's validation questions, whose answers are public. LLaVA's guide does not have them; the prompts are those of
//! test-dev.

use serde::Deserialize;
use serde_json::Value;

use super::benchmark_folders::Root;
use super::normalize::m4c;
use super::question_files::{SHORT, annotation, by_id, id, json, unique};
use super::{Asked, Benchmark, BenchmarkError, Mark, Task, vqa};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "vqav2-val", max_new_tokens: 128, read };

const NEED: &str = "it comes from visualqa.org's download page (VQA v2, validation)";

#[derive(Deserialize)]
struct Questions {
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question_id: Value,
    image_id: u64,
    question: String,
}

#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: Value,
    answer_type: String,
    answers: Vec<Given>,
}

#[derive(Deserialize)]
struct Given {
    answer: String,
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("vqav2");
    let file = dir.join("v2_OpenEnded_mscoco_val2014_questions.json");
    let truth = dir.join("v2_mscoco_val2014_annotations.json");
    let questions: Questions = json(&file, NEED)?;
    let annotations: Annotations = json(&truth, NEED)?;
    let map = by_id(&truth, annotations.annotations.into_iter().map(|a| (id(&a.question_id), a)))?;
    unique(&file, questions.questions.iter().map(|question| id(&question.question_id)))?;
    let images = root.images(dir.join("val2014"))?;
    let (mut asked, mut people, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for question in questions.questions {
        let name = format!("COCO_val2014_{:012}.jpg", question.image_id);
        let key = id(&question.question_id);
        let path = images.file(&name, &format!("question {key} of {}", file.display()))?;
        let found = annotation(&truth, &map, &key, &file)?;
        people.push(found.answers.iter().map(|given| given.answer.clone()).collect::<Vec<_>>());
        types.push(found.answer_type.clone());
        let prompt = format!("{}\n{SHORT}", question.question);
        asked.push(Asked { id: question.question_id, prompt, image: Some(path.into()) });
    }
    Ok(Task::new(asked).marked("accuracy", move |i, answer| Mark {
        // In the form in which LLaVA would submit it: the script itself changes nothing where all people agree.
        score: vqa::accuracy(&m4c(answer), &people[i]),
        expected: vqa::most_given(&people[i]),
        category: Some(types[i].clone()),
        ..Mark::default()
    }))
}
