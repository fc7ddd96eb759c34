//! Images of the eval split with what both arms answered, the images embedded.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::paired_arms::{BASIC, LLAVA, runs};
use crate::demo::DemoError;
use crate::demo::summary::{Run, SampleAnswer, Setting, Stage};
use crate::pages::PictureError;
use crate::pages::picture::Picture;
use crate::studies::AblateError;
use basic_data::{ImageBase, ImageNameError};

/// Longest answer shown, in characters: a model that never stops fills no page.
const LONGEST_ANSWER: usize = 60;

/// The answered images of one seed.
#[derive(Debug, Serialize)]
pub(super) struct Samples {
    /// The seed whose runs answered.
    seed: u64,
    /// The images in the order in which they first occur.
    pub images: Vec<SampleImage>,
}

/// One image and the questions on it.
#[derive(Debug, Serialize)]
pub(super) struct SampleImage {
    picture: Picture,
    /// The image's path as the summary has it.
    name: String,
    questions: Vec<Question>,
}

/// One question with four answers.
#[derive(Debug, Serialize)]
struct Question {
    text: String,
    kind: String,
    expected: String,
    /// LLaVA and BASIC after pretrain, and after finetune where there is such a stage; `None` where that run kept no answer.
    answers: Vec<Option<Answer>>,
}

/// What a model said.
#[derive(Debug, Serialize)]
struct Answer {
    text: String,
    right: bool,
}

/// The samples of the first seed that both arms ran; `None` where there are none.
pub(super) fn samples(setting: &Setting, images_root: &Path) -> Result<Option<Samples>, DemoError> {
    let (llava, basic) = (runs(setting, LLAVA), runs(setting, BASIC));
    let pair = llava.iter().find_map(|left| Some((left, basic.iter().find(|right| right.seed == left.seed)?)));
    let Some((left, right)) = pair else { return Ok(None) };
    let base = ImageBase::new(images_root, None).map_err(AblateError::from)?;
    let base = base.advising("the demo's images lie in its own folder");
    let stages = [Some(&left.pretrain), Some(&right.pretrain), left.finetune.as_ref(), right.finetune.as_ref()];
    let stages: Vec<&Stage> = stages.into_iter().flatten().collect();
    let mut images: Vec<SampleImage> = Vec::new();
    let mut index_of: BTreeMap<&str, usize> = BTreeMap::new();
    for sample in first_of_each(&stages) {
        let index = match index_of.get(sample.image.as_str()) {
            Some(index) => *index,
            None => {
                images.push(embed(&sample.image, &base)?);
                index_of.insert(&sample.image, images.len() - 1);
                images.len() - 1
            }
        };
        images[index].questions.push(question(sample, &stages));
    }
    let Run { seed, .. } = *left;
    Ok((!images.is_empty()).then_some(Samples { seed, images }))
}

/// Every question once, as it first occurs.
fn first_of_each<'a>(stages: &[&'a Stage]) -> Vec<&'a SampleAnswer> {
    let mut seen: Vec<&SampleAnswer> = Vec::new();
    for sample in stages.iter().flat_map(|stage| &stage.samples) {
        if !seen.iter().any(|known| same_question(known, sample)) {
            seen.push(sample);
        }
    }
    seen
}

fn same_question(left: &SampleAnswer, right: &SampleAnswer) -> bool {
    left.image == right.image && left.question == right.question
}

fn question(sample: &SampleAnswer, stages: &[&Stage]) -> Question {
    let answer = |stage: &&Stage| {
        let said = stage.samples.iter().find(|other| same_question(other, sample))?;
        let (answer, expected) = (said.answer.trim(), said.expected.trim());
        Some(Answer { text: shortened(answer), right: answer == expected })
    };
    Question {
        text: sample.question.replace("<image>", "").trim().to_owned(),
        kind: sample.kind.clone(),
        expected: sample.expected.trim().to_owned(),
        answers: stages.iter().map(answer).collect(),
    }
}

fn shortened(answer: &str) -> String {
    if answer.is_empty() {
        return "(nothing)".to_owned();
    }
    let start: String = answer.chars().take(LONGEST_ANSWER).collect();
    if start.len() < answer.len() { format!("{start}…") } else { start }
}

/// The image with no questions yet; one that is broken is an error.
fn embed(name: &str, base: &ImageBase) -> Result<SampleImage, DemoError> {
    let path = base.file(name).map_err(|error| match error {
        ImageNameError::Io { path, source } => DemoError::from(PictureError::Read { path, source }),
        other => other.into(),
    })?;
    Ok(SampleImage { picture: Picture::read(&path)?, name: name.to_owned(), questions: Vec::new() })
}
