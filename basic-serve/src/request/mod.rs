//! Turns the JSON of a request into sequences for an engine.

pub(crate) mod conversation;
pub(crate) mod fields;
pub(crate) mod images;
mod prompts;
pub(crate) mod sampling;

use std::sync::Arc;

use axum::http::StatusCode;
use basic_data::{ImageBase, ImageSource};
use basic_models::generate::{GenerationConfig, Sequence};
use basic_models::outside::excerpt;
use basic_models::processor::Prompt;
use serde_json::Value;

use crate::engine::Engine;
use crate::error::ApiError;
use conversation::Turns;
use fields::Fields;
use sampling::Choice;

/// The most of the most likely tokens that are told at each position, as in OpenAI's API.
const MOST_CHAT_LOGPROBS: u64 = 20;
const MOST_COMPLETION_LOGPROBS: u64 = 5;
/// The new tokens of a completion that says nothing about its length, as in OpenAI's API.
const COMPLETION_TOKENS: usize = 16;

/// A request that is ready for its engine.
pub(crate) struct Prepared {
    pub engine: Arc<Engine>,
    /// The answers to generate, prompt by prompt, with the texts that end them.
    pub sequences: Vec<(Sequence, Vec<String>)>,
    /// The tokens of all prompts.
    pub prompt_tokens: usize,
    pub stream: bool,
    pub include_usage: bool,
}

/// The models of a server, and what requests may name.
pub(crate) struct Served {
    pub engines: Vec<Arc<Engine>>,
    pub files: Option<ImageBase>,
    pub max_images: usize,
    pub max_queue: usize,
}

impl Served {
    /// The model that a request names.
    pub fn engine(&self, name: &str) -> Result<Arc<Engine>, ApiError> {
        self.engines.iter().find(|engine| engine.name == name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.engines.iter().map(|engine| engine.name.as_str()).collect();
            let message = format!("there is no model {:?}: this server has {}", excerpt(name), known.join(", "));
            let error = ApiError::request(StatusCode::NOT_FOUND, "model_not_found", message);
            ApiError { param: Some("model".into()), ..error }
        })
    }

    pub fn named(&self, fields: &mut Fields) -> Result<Arc<Engine>, ApiError> {
        match fields.text("model")? {
            Some(name) => self.engine(&name),
            None => Err(fields.error("model", "is missing").coded("missing_required_parameter")),
        }
    }

    /// Reads the body of `POST /v1/chat/completions`.
    pub fn chat(&self, body: Value) -> Result<Prepared, ApiError> {
        let mut fields = Fields::of(body, "")?;
        let engine = self.named(&mut fields)?;
        let turns = Turns::read(fields.need("messages")?, self.max_images, self.files.as_ref())?;
        let style = conversation::style(&engine.checkpoint);
        let choice = sampling::choice(&mut fields, &engine, style.stops())?;
        let logprobs = match (fields.flag("logprobs")?, fields.whole("top_logprobs", 0..=MOST_CHAT_LOGPROBS)?) {
            (Some(true), top) => Some(top.unwrap_or(0) as usize),
            (_, None | Some(0)) => None,
            (_, Some(_)) => return Err(fields.error("top_logprobs", "needs \"logprobs\": true")),
        };
        let asked = most_tokens(&mut fields, &["max_completion_tokens", "max_tokens"])?;
        refuse_what_chat_cannot(&mut fields)?;
        fields.end()?;
        let prompt = Arc::new(turns.prompt(&engine)?);
        let new = sampling::length(&engine, prompt.ids.len(), asked, usize::MAX, "messages")?;
        let prompts = vec![(prompt, new)];
        self.prepared(engine, prompts, &turns.images, &choice, logprobs)
    }

    /// Reads the body of `POST /v1/completions`.
    pub fn completion(&self, body: Value) -> Result<Prepared, ApiError> {
        let mut fields = Fields::of(body, "")?;
        let engine = self.named(&mut fields)?;
        let given = fields.need("prompt")?;
        // Ours: the images of the prompts' placeholders.
        let urls = fields.texts("images", self.max_images)?.unwrap_or_default();
        let images = urls.iter().enumerate().map(|(index, url)| {
            let field = format!("images[{index}]");
            images::source(url, &field, self.files.as_ref()).map(|source| (field, source))
        });
        let images: Vec<(String, ImageSource)> = images.collect::<Result<_, _>>()?;
        let choice = sampling::choice(&mut fields, &engine, &[])?;
        let logprobs = fields.whole("logprobs", 0..=MOST_COMPLETION_LOGPROBS)?.map(|top| top as usize);
        let asked = most_tokens(&mut fields, &["max_tokens"])?;
        fields.only("best_of", |best| best.as_u64() == Some(choice.n as u64))?;
        fields.only("echo", |echo| echo == false)?;
        fields.only("suffix", |suffix| suffix == "")?;
        fields.end()?;
        let prompts = prompts::read(given, &engine, &images)?.into_iter().map(|prompt| {
            let new = sampling::length(&engine, prompt.ids.len(), asked, COMPLETION_TOKENS, "prompt")?;
            Ok((Arc::new(prompt), new))
        });
        let prompts = prompts.collect::<Result<Vec<_>, ApiError>>()?;
        self.prepared(engine, prompts, &images, &choice, logprobs)
    }

    fn prepared(
        &self,
        engine: Arc<Engine>,
        prompts: Vec<(Arc<Prompt>, usize)>,
        images: &[(String, ImageSource)],
        choice: &Choice,
        logprobs: Option<usize>,
    ) -> Result<Prepared, ApiError> {
        let answers = prompts.len().saturating_mul(choice.n);
        if answers > self.max_queue {
            let message = format!("{answers} answers are more than the {} that this server queues", self.max_queue);
            return Err(ApiError::field("n", message));
        }
        // Decoding is dearer than all checks above, so it comes last.
        let pixels = images.iter().map(|(field, image)| images::pixels(&engine.checkpoint, image, field));
        let pixels = pixels.collect::<Result<Vec<_>, _>>()?;
        let prompt_tokens = prompts.iter().map(|(prompt, _)| prompt.ids.len()).sum();
        let answer = |prompt: &Arc<Prompt>, new: usize, stream: usize| {
            let config = GenerationConfig { max_new_tokens: new, ..choice.config.clone() };
            let sequence = Sequence {
                prompt: prompt.clone(),
                pixels: pixels.clone(),
                config,
                stream: stream as u64,
                frequency_penalty: choice.frequency_penalty,
                presence_penalty: choice.presence_penalty,
                logit_bias: choice.logit_bias.clone(),
                logprobs,
            };
            (sequence, choice.stop.clone())
        };
        let sequences =
            prompts.iter().flat_map(|(prompt, new)| (0..choice.n).map(move |stream| (prompt, *new, stream)));
        let sequences = sequences.map(|(prompt, new, stream)| answer(prompt, new, stream)).collect();
        let (stream, include_usage) = (choice.stream, choice.include_usage);
        Ok(Prepared { engine, sequences, prompt_tokens, stream, include_usage })
    }
}

/// The number of new tokens that a request asks for, with the name of its field; of several names the first counts, and
/// the others must agree.
fn most_tokens(fields: &mut Fields, names: &[&'static str]) -> Result<Option<(&'static str, u64)>, ApiError> {
    let mut asked: Option<(&'static str, u64)> = None;
    for name in names {
        let Some(most) = fields.whole(name, 1..=u64::MAX)? else { continue };
        match asked {
            Some((first, other)) if other != most => {
                return Err(fields.error(name, format!("contradicts {first}: send one of them")));
            }
            Some(_) => {}
            None => asked = Some((name, most)),
        }
    }
    Ok(asked)
}

fn refuse_what_chat_cannot(fields: &mut Fields) -> Result<(), ApiError> {
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    fields.only("tools", empty)?;
    fields.only("functions", empty)?;
    fields.only("tool_choice", |choice| matches!(choice.as_str(), Some("none" | "auto")))?;
    fields.only("function_call", |choice| matches!(choice.as_str(), Some("none" | "auto")))?;
    fields.only("parallel_tool_calls", Value::is_boolean)?;
    fields.only("response_format", |format| {
        format["type"] == "text" && format.as_object().is_some_and(|f| f.len() == 1)
    })?;
    fields.only("modalities", |kinds| kinds.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text")))?;
    fields.only("store", |store| store == false)
}
