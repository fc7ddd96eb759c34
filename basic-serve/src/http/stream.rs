//! Answers by server-sent events, chunk by chunk.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::write::{Answer, Head, Shape};
use crate::engine::{Engine, Said};
use crate::error::ApiError;

/// The state of a stream. Dropping it, when the client goes away, cancels its answers.
struct Streaming {
    engine: Arc<Engine>,
    head: Head,
    heard: UnboundedReceiver<Said>,
    answers: Vec<Answer>,
    /// For each answer, whether its first chunk was sent, and the characters of its text before the next one.
    sent: Vec<(bool, usize)>,
    prompt_tokens: usize,
    include_usage: bool,
    waiting: VecDeque<String>,
    over: bool,
}

pub(super) fn response(
    engine: Arc<Engine>,
    head: Head,
    heard: UnboundedReceiver<Said>,
    answers: usize,
    prompt_tokens: usize,
    include_usage: bool,
) -> Response {
    let streaming = Streaming {
        engine,
        head,
        heard,
        answers: vec![Answer::default(); answers],
        sent: vec![(false, 0); answers],
        prompt_tokens,
        include_usage,
        waiting: VecDeque::new(),
        over: false,
    };
    let events = unfold(streaming, |mut streaming| async move {
        let data = streaming.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), streaming))
    });
    // The comments keep proxies from closing a stream whose prompt takes long, and show that a client has gone away.
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

impl Streaming {
    /// The data of the next event.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.waiting.pop_front() {
                return Some(data);
            }
            if self.over {
                return None;
            }
            match self.heard.recv().await {
                Some(Said::Token { index, id, text, logprobs, finish }) => {
                    // As OpenAI's server does, a chunk with the role tells that an answer has begun, whether or not the
                    // first token is a text by itself.
                    if self.head.shape == Shape::Chat && self.sent.get(index).is_some_and(|(begun, _)| !begun) {
                        self.send(index, &Answer::default());
                    }
                    let Some(answer) = self.answers.get_mut(index) else { continue };
                    let told = logprobs.is_some();
                    let text = answer.add(self.head.shape, id, &text, logprobs.clone()).to_string();
                    answer.finish = finish;
                    // The token's own log-probabilities were sent with its chunk and need not be kept.
                    answer.logprobs.clear();
                    let tokens: Vec<_> = logprobs.into_iter().map(|logprobs| (id, logprobs)).collect();
                    let new = Answer { text, logprobs: tokens, finish, tokens: 1 };
                    if told || !new.text.is_empty() || finish.is_some() {
                        self.send(index, &new);
                    }
                    self.end_if_done();
                }
                Some(Said::Failed(error)) => self.fail(&error),
                None => self.fail(&ApiError::stopped(&self.engine.name)),
            }
        }
    }

    fn send(&mut self, index: usize, new: &Answer) {
        let Some((begun, before)) = self.sent.get_mut(index) else { return };
        let tokenizer = &self.engine.checkpoint.tokenizer;
        let mut chunk = self.head.chunk(tokenizer, index, new, !*begun, *before);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        *begun = true;
        *before += new.text.chars().count();
        self.waiting.push_back(chunk.to_string());
    }

    fn end_if_done(&mut self) {
        if self.answers.iter().any(|answer| answer.finish.is_none()) {
            return;
        }
        if self.include_usage {
            self.waiting.push_back(self.head.usage_chunk(self.prompt_tokens, &self.answers).to_string());
        }
        self.waiting.push_back("[DONE]".into());
        self.over = true;
    }

    /// The status was sent long ago: the error is the last event, as clients of OpenAI's API expect it.
    fn fail(&mut self, error: &ApiError) {
        self.waiting.push_back(error.json().to_string());
        self.over = true;
    }
}
