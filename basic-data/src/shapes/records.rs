//! The records of the data set's own JSON files.

use serde::{Deserialize, Serialize};

use super::questions::QuestionKind;
use super::scene::Scene;
use super::split::Split;

/// A line of `validation.jsonl` or `eval.jsonl`: one question about one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionRecord {
    /// The index of the line in its file, from 0.
    pub question_id: u64,
    /// The image's path, relative to the data set.
    pub image: String,
    /// The question.
    pub text: String,
    /// The correct answer.
    pub answer: String,
    /// What the question is about.
    pub category: QuestionKind,
    /// Whether the scene has a colour-shape pair that no train scene has.
    pub held_out: bool,
    /// A caption of the image.
    pub caption: String,
    /// What the image shows.
    pub scene: Scene,
}

/// A line of `scenes.jsonl`: what an image shows and how to draw it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SceneRecord {
    /// The image's path, relative to the data set.
    pub image: String,
    /// The image's split.
    pub split: Split,
    /// The seed that [`super::render`], [`super::coverage`] and [`super::patch_truth`] take.
    pub render_seed: u64,
    /// What the image shows.
    pub scene: Scene,
}

/// A sample of `pretrain.json` or `finetune.json`, in LLaVA's format.
#[derive(Debug, Serialize)]
pub(super) struct ConversationRecord {
    id: String,
    image: String,
    conversations: Vec<Message>,
}

#[derive(Debug, Serialize)]
struct Message {
    from: &'static str,
    value: String,
}

impl ConversationRecord {
    /// A sample of `(prompt, answer)` turns, with the image placed before the first prompt.
    pub(super) fn new(id: &str, image: &str, turns: Vec<(String, String)>) -> Self {
        let mut conversations = Vec::with_capacity(2 * turns.len());
        for (turn, (prompt, answer)) in turns.into_iter().enumerate() {
            let value = if turn == 0 { format!("<image>\n{prompt}") } else { prompt };
            conversations.push(Message { from: "human", value });
            conversations.push(Message { from: "gpt", value: answer });
        }
        Self { id: id.to_owned(), image: image.to_owned(), conversations }
    }
}
