//! MMMU's validation questions of college subjects, some with options and some with a short answer.

use super::benchmark_folders::Root;
use super::mmmu_answers::{chosen, open_answer};
use super::multiple_choice::{MultipleChoice, letter, lettered};
use super::python_list;
use super::question_files::{LETTER, SHORT, id, unique};
use super::rows::{Layout, Row};
use super::{Asked, Benchmark, BenchmarkError, Grouping, Mark, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "mmmu", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "mmmu",
    name: "MMMU_VAL",
    split: &["validation"],
    image: "image_1",
    need: "its folders, one for each subject, come from MMMU/MMMU on the hub",
};

/// The disciplines with their subjects, as MMMU's data_utils.py lists them.
const DISCIPLINES: [(&str, &[&str]); 6] = [
    ("Art and Design", &["Art", "Art_Theory", "Design", "Music"]),
    ("Business", &["Accounting", "Economics", "Finance", "Manage", "Marketing"]),
    ("Science", &["Biology", "Chemistry", "Geography", "Math", "Physics"]),
    (
        "Health and Medicine",
        &[
            "Basic_Medical_Science",
            "Clinical_Medicine",
            "Diagnostics_and_Laboratory_Medicine",
            "Pharmacy",
            "Public_Health",
        ],
    ),
    ("Humanities and Social Science", &["History", "Literature", "Sociology", "Psychology"]),
    (
        "Tech and Engineering",
        &[
            "Agriculture",
            "Architecture_and_Engineering",
            "Computer_Science",
            "Electronics",
            "Energy_and_Power",
            "Materials",
            "Mechanical_Engineering",
        ],
    ),
];

/// The discipline of a question with an id such as `validation_Art_Theory_3`.
fn discipline(id: &str) -> Option<&'static str> {
    let (_, rest) = id.split_once('_')?;
    let (subject, _) = rest.rsplit_once('_')?;
    DISCIPLINES.iter().find(|(_, subjects)| subjects.contains(&subject)).map(|(name, _)| *name)
}

/// A question, with its true answers if it has no options.
struct Item {
    question: MultipleChoice,
    truths: Option<Vec<String>>,
}

fn item(row: &Row) -> Result<Item, BenchmarkError> {
    let question = row.need(&["question"])?;
    let answer = row.need(&["answer"])?;
    let id = row.need(&["id"])?;
    let open = row.need(&["question_type"])? != "multiple-choice";
    let options = if open { Vec::new() } else { row.list("options")? };
    let options = lettered(options).ok_or_else(|| row.wrong("has more than 26 options"))?;
    let lines = options.iter().map(|(letter, text)| format!("({letter}) {text}\n"));
    let prompt = match open {
        true => format!("{question}\n{SHORT}"),
        false => format!("{question}\n{}\n{LETTER}", lines.collect::<String>()),
    };
    let truth = match open {
        true => '?',
        false => letter(&answer, &options)
            .ok_or_else(|| row.wrong(format!("its answer {answer:?} is the letter of none of its options")))?,
    };
    let category = discipline(&id).map(String::from);
    let truths = open.then(|| python_list::parse(&answer).unwrap_or_else(|| vec![answer]));
    Ok(Item {
        question: MultipleChoice {
            id: id.into(),
            question,
            prompt,
            image: Some(row.image()?),
            options,
            answer: truth,
            category,
            grouping: Grouping::default(),
        },
        truths,
    })
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let table = LAYOUT.read(root)?;
    let items: Vec<Item> = table.rows.iter().map(item).collect::<Result<_, _>>()?;
    unique(&table.path, items.iter().map(|item| id(&item.question.id)))?;
    let asked = items.iter().map(|Item { question, .. }| Asked {
        id: question.id.clone(),
        prompt: question.prompt.clone(),
        image: question.image.clone(),
    });
    let ranked = items.iter().map(|item| item.question.options()).collect();
    Ok(Task::new(asked.collect()).ranked(ranked).marked("accuracy", move |i, answer| {
        let Item { question, truths } = &items[i];
        let right = match truths {
            Some(truths) => open_answer(answer, truths),
            None => chosen(answer, &question.options) == Some(question.answer),
        };
        Mark {
            score: f64::from(u8::from(right)),
            expected: truths.as_ref().map_or_else(|| question.answer.to_string(), |truths| truths.join(" or ")),
            category: question.category.clone(),
            ..Mark::default()
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::discipline;

    #[test]
    fn a_questions_discipline_is_that_of_the_subject_in_its_id() {
        assert_eq!(discipline("validation_Art_Theory_3"), Some("Art and Design"));
        assert_eq!(discipline("dev_Math_1"), Some("Science"));
        assert_eq!((discipline("validation_Astrology_1"), discipline("3")), (None, None));
    }
}
