//! The fields that chat completions and completions share: how long an answer is and how its tokens are chosen.

use basic_models::generate::{GenerationConfig, GenerationDefaults, Sampling};
use serde_json::Value;

use super::fields::{Fields, expected};
use crate::engine::Engine;
use crate::error::ApiError;

/// The most answers to one prompt, stop strings, and biases of a request.
pub(crate) const MOST_ANSWERS: u64 = 128;
const MOST_STOPS: usize = 16;
const STOP_BYTES: usize = 1024;
/// The most bytes that a token stands for: vocabularies have none as long.
const TOKEN_BYTES: usize = 256;
const MOST_BIASES: usize = 1024;

/// How tokens are chosen, and what of them is told.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub config: GenerationConfig,
    pub stop: Vec<String>,
    pub n: usize,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub logit_bias: Vec<(u32, f32)>,
    pub stream: bool,
    pub include_usage: bool,
}

/// Reads the shared fields, except for those about length and log-probabilities, which differ between the endpoints.
/// `stops` are the texts that end an answer in the checkpoint's conversation style.
pub(crate) fn choice(fields: &mut Fields, engine: &Engine, stops: &[&str]) -> Result<Choice, ApiError> {
    let defaults = &engine.defaults;
    let sampling = sampling(fields, defaults)?;
    let repetition_penalty = fields.number("repetition_penalty", 1e-3..=1e3)?;
    let config = GenerationConfig {
        repetition_penalty: repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        sampling,
        ..GenerationConfig::greedy(0, engine.end_ids.clone(), engine.checkpoint.pad_id())
    };
    let frequency_penalty = fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32;
    let presence_penalty = fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32;
    let mut stop = match fields.texts("stop", MOST_STOPS)? {
        Some(stop) => {
            if stop.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES) {
                return Err(fields.error("stop", format!("a stop string has 1 to {STOP_BYTES} bytes")));
            }
            stop
        }
        None => defaults.stop_strings.clone(),
    };
    stop.extend(stops.iter().map(|stop| (*stop).to_string()));
    let n = fields.whole("n", 1..=MOST_ANSWERS)?.unwrap_or(1) as usize;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = match fields.take("stream_options") {
        Some(_) if !stream => return Err(fields.error("stream_options", "is allowed only with \"stream\": true")),
        Some(options) => {
            let mut options = Fields::of(options, fields.path("stream_options"))?;
            let usage = options.flag("include_usage")?.unwrap_or(false);
            options.pass_over(&["include_obfuscation"]);
            options.end()?;
            usage
        }
        None => false,
    };
    let logit_bias = logit_bias(fields, engine)?;
    // None of these change an answer: they name the user, or concern OpenAI's own servers.
    fields.pass_over(&["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"]);
    fields.only("service_tier", |tier| matches!(tier.as_str(), Some("auto" | "default")))?;
    Ok(Choice { config, stop, n, frequency_penalty, presence_penalty, logit_bias, stream, include_usage })
}

/// OpenAI's temperature is 1 where it is not given; the checkpoint's own settings come first. 0 is greedy.
fn sampling(fields: &mut Fields, defaults: &GenerationDefaults) -> Result<Option<Sampling>, ApiError> {
    let base = defaults.sampling(Sampling::default());
    let temperature = fields.number("temperature", 0.0..=2.0)?;
    let top_p = fields.number("top_p", 0.0..=1.0)?;
    // Not OpenAI's, but sent by clients of other servers, and followed here.
    let top_k = fields.whole("top_k", 0..=u64::from(u32::MAX))?.map(|k| k as usize);
    let min_p = fields.number("min_p", 0.0..=1.0)?;
    let seed = match fields.take("seed") {
        None => rand::random(),
        // OpenAI's seeds may be negative; each is a stream of its own.
        Some(seed) => match (seed.as_u64(), seed.as_i64()) {
            (Some(seed), _) => seed,
            (None, Some(seed)) => seed.cast_unsigned(),
            (None, None) => return Err(fields.error("seed", expected("a whole number of 64 bits", &seed))),
        },
    };
    let temperature = temperature.unwrap_or(base.temperature);
    if temperature == 0.0 || top_p == Some(0.0) || top_k == Some(1) {
        return Ok(None);
    }
    let (top_p, top_k) = (top_p.unwrap_or(base.top_p), top_k.unwrap_or(base.top_k));
    Ok(Some(Sampling { temperature, top_k, top_p, min_p: min_p.unwrap_or(base.min_p), seed }))
}

/// `{"id": bias}`, with the ids as texts.
fn logit_bias(fields: &mut Fields, engine: &Engine) -> Result<Vec<(u32, f32)>, ApiError> {
    let vocabulary = engine.checkpoint.config.text_config.vocab_size;
    let biases = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(biases)) if biases.len() <= MOST_BIASES => biases,
        Some(other) => {
            let wanted = format!("an object of at most {MOST_BIASES} token ids with biases");
            return Err(fields.error("logit_bias", expected(&wanted, &other)));
        }
    };
    let bias = |(id, value): (&String, &Value)| {
        let id = id.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary);
        let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        id.zip(bias.map(|bias| bias as f32))
    };
    let all: Option<Vec<(u32, f32)>> = biases.iter().map(bias).collect();
    all.ok_or_else(|| {
        fields
            .error("logit_bias", format!("expected token ids below {vocabulary}, each with a number from -100 to 100"))
    })
}

/// Refuses a text that cannot fit into the context before it is tokenized, which takes far more memory than the text: a
/// token stands for at most so many bytes.
pub(crate) fn may_fit(engine: &Engine, bytes: usize, about: &str) -> Result<(), ApiError> {
    if bytes.div_ceil(TOKEN_BYTES) <= engine.context {
        return Ok(());
    }
    let message = format!(
        "has {bytes} bytes, and with its answer must fit into the context of {} tokens: shorten it{}",
        engine.context,
        served_shorter(engine)
    );
    Err(ApiError::field(about, message).coded("context_length_exceeded"))
}

/// The number of new tokens: what was asked for if it fits, otherwise as many as fit, at most `otherwise`.
pub(crate) fn length(
    engine: &Engine,
    prompt: usize,
    asked: Option<(&str, u64)>,
    otherwise: usize,
    about: &str,
) -> Result<usize, ApiError> {
    let context = engine.context;
    let room = context.saturating_sub(prompt);
    if room == 0 {
        let message = format!(
            "takes {prompt} tokens, and with its answer must fit into the context of {context}: shorten it{}",
            served_shorter(engine)
        );
        return Err(ApiError::field(about, message).coded("context_length_exceeded"));
    }
    match asked {
        None => Ok(room.min(otherwise)),
        Some((_, new)) if new <= room as u64 => Ok(new as usize),
        Some((field, new)) => {
            let message = format!(
                "{new} new tokens after a prompt of {prompt} exceed the context of {context}: at most {room} fit{}",
                served_shorter(engine)
            );
            Err(ApiError::field(field, message).coded("context_length_exceeded"))
        }
    }
}

fn served_shorter(engine: &Engine) -> String {
    let own = engine.checkpoint.config.text_config.context();
    if own > engine.context {
        format!(" (the model's own is {own}: basic serve --max-context raises it)")
    } else {
        String::new()
    }
}
