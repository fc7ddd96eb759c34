//! `POST /v1/chat/completions` and `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::write::{Answer, Head, Shape};
use super::{App, json_response, stream};
use crate::engine::{Engine, Said};
use crate::error::ApiError;
use crate::request::Prepared;

pub(super) async fn chat(State(app): State<Arc<App>>, request: Request) -> Response {
    answered(app, request, Shape::Chat).await.unwrap_or_else(ApiError::into_response)
}

pub(super) async fn completion(State(app): State<Arc<App>>, request: Request) -> Response {
    answered(app, request, Shape::Completion).await.unwrap_or_else(ApiError::into_response)
}

async fn answered(app: Arc<App>, request: Request, shape: Shape) -> Result<Response, ApiError> {
    let reader = app.clone();
    let read = move |body: Value| match shape {
        Shape::Chat => reader.served.chat(body),
        Shape::Completion => reader.served.completion(body),
    };
    let Prepared { engine, sequences, prompt_tokens, stream, include_usage } =
        app.bodies.prepare(request, read).await?;
    let head = Head::new(shape, &engine.name);
    let answers = sequences.len();
    let heard = engine.submit(sequences)?;
    if stream {
        return Ok(stream::response(engine, head, heard, answers, prompt_tokens, include_usage));
    }
    let answers = whole(&engine, shape, heard, answers).await?;
    let json = head.whole(&engine.checkpoint.tokenizer, &answers, prompt_tokens);
    Ok(json_response(StatusCode::OK, &json))
}

/// Waits for all answers.
async fn whole(
    engine: &Engine,
    shape: Shape,
    mut heard: UnboundedReceiver<Said>,
    count: usize,
) -> Result<Vec<Answer>, ApiError> {
    let mut answers = vec![Answer::default(); count];
    while answers.iter().any(|answer| answer.finish.is_none()) {
        match heard.recv().await {
            Some(Said::Token { index, id, text, logprobs, finish }) => {
                let Some(answer) = answers.get_mut(index) else { continue };
                answer.add(shape, id, &text, logprobs);
                answer.finish = finish;
            }
            Some(Said::Failed(error)) => return Err(error),
            None => return Err(ApiError::stopped(&engine.name)),
        }
    }
    Ok(answers)
}

impl Answer {
    /// Adds a token and returns the text that it adds. A chat's answer begins with its first word, as `basic chat` prints
    /// it: the space between it and the prompt is the template's.
    pub fn add<'a>(
        &mut self,
        shape: Shape,
        id: u32,
        text: &'a str,
        logprobs: Option<basic_models::generate::LogProbs>,
    ) -> &'a str {
        let text = if shape == Shape::Chat && self.text.is_empty() { text.trim_start() } else { text };
        self.text.push_str(text);
        self.tokens += 1;
        self.logprobs.extend(logprobs.map(|logprobs| (id, logprobs)));
        text
    }
}
