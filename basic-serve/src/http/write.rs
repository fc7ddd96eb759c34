//! The JSON of chat completions and completions, whole and in chunks.

use basic_models::generate::{Finish, LogProbs};
use basic_models::processor::Tokenizer;
use serde_json::{Value, json};

use super::logprobs::{chat_entry, completion_entries};

/// Which endpoint's objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Completion,
}

/// What all objects of an answer have in common.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub shape: Shape,
    pub id: String,
    pub created: u64,
    pub model: String,
}

/// One of a request's answers, whole or as far as it goes.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub text: String,
    pub logprobs: Vec<(u32, LogProbs)>,
    pub finish: Option<Finish>,
    pub tokens: usize,
}

impl Head {
    pub fn new(shape: Shape, model: &str) -> Self {
        let prefix = if shape == Shape::Chat { "chatcmpl" } else { "cmpl" };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let created = now.map_or(0, |since| since.as_secs());
        Self { shape, id: format!("{prefix}-{:032x}", rand::random::<u128>()), created, model: model.into() }
    }

    /// The object of a request that was answered at once.
    pub fn whole(&self, tokenizer: &Tokenizer, answers: &[Answer], prompt_tokens: usize) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| self.choice(tokenizer, index, answer));
        let object = if self.shape == Shape::Chat { "chat.completion" } else { "text_completion" };
        let mut whole = self.object(object, choices.collect());
        whole["usage"] = usage(prompt_tokens, answers);
        whole
    }

    fn choice(&self, tokenizer: &Tokenizer, index: usize, answer: &Answer) -> Value {
        let finish = reason(answer.finish);
        let logprobs = self.logprobs(tokenizer, &answer.logprobs, 0);
        match self.shape {
            Shape::Chat => json!({
                "index": index,
                "message": { "role": "assistant", "content": answer.text, "refusal": null },
                "logprobs": logprobs,
                "finish_reason": finish,
            }),
            Shape::Completion => {
                json!({ "index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": finish })
            }
        }
    }

    /// A chunk of an answer: the text that is new, and `before` characters of it that were sent.
    pub fn chunk(&self, tokenizer: &Tokenizer, index: usize, new: &Answer, first: bool, before: usize) -> Value {
        let finish = reason(new.finish);
        let logprobs = self.logprobs(tokenizer, &new.logprobs, before);
        let choice = match self.shape {
            Shape::Chat => {
                let delta = match (first, new.text.is_empty()) {
                    (true, _) => json!({ "role": "assistant", "content": new.text }),
                    (false, true) => json!({}),
                    (false, false) => json!({ "content": new.text }),
                };
                json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish })
            }
            Shape::Completion => {
                json!({ "index": index, "text": new.text, "logprobs": logprobs, "finish_reason": finish })
            }
        };
        self.object(self.chunk_object(), vec![choice])
    }

    /// The chunk after the last one, which has the usage and no choice.
    pub fn usage_chunk(&self, prompt_tokens: usize, answers: &[Answer]) -> Value {
        let mut chunk = self.object(self.chunk_object(), Vec::new());
        chunk["usage"] = usage(prompt_tokens, answers);
        chunk
    }

    fn chunk_object(&self) -> &'static str {
        if self.shape == Shape::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn logprobs(&self, tokenizer: &Tokenizer, tokens: &[(u32, LogProbs)], before: usize) -> Value {
        match self.shape {
            _ if tokens.is_empty() => Value::Null,
            Shape::Chat => {
                let content: Vec<Value> = tokens.iter().map(|(id, of)| chat_entry(tokenizer, *id, of)).collect();
                json!({ "content": content, "refusal": null })
            }
            Shape::Completion => completion_entries(tokenizer, tokens, before),
        }
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

fn reason(finish: Option<Finish>) -> Option<&'static str> {
    finish.map(|finish| match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Cancelled => "length",
    })
}

fn usage(prompt_tokens: usize, answers: &[Answer]) -> Value {
    let completion: usize = answers.iter().map(|answer| answer.tokens).sum();
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens.saturating_add(completion),
    })
}
