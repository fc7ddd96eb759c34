//! `POST /v1/lens`: the words that each patch of an image is nearest to, at the projector and behind every layer.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use basic_eval::lens::{Grid, ImageReading, TokenText};
use serde::Serialize;
use serde_json::Value;

use super::{App, typed};
use crate::engine::{Engine, LensAnswer, LensJob};
use crate::error::ApiError;
use crate::request::Served;
use crate::request::conversation::Turns;
use crate::request::fields::{Fields, expected};
use crate::request::images;

/// The most tokens that are told of each patch, and how many by default.
const MOST_TOKENS: u64 = 20;
const TOKENS: u64 = 5;
/// The question where the request has none. It changes only the attention, because the image comes before it.
const QUESTION: &str = "Describe the image.";

pub(super) async fn lens(State(app): State<Arc<App>>, request: Request) -> Response {
    looked(app, request).await.unwrap_or_else(ApiError::into_response)
}

async fn looked(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let reader = app.clone();
    let (engine, job) = app.bodies.prepare(request, move |body| read(&reader.served, body)).await?;
    let answer = engine.lens.look(job).await?;
    // A large grid with many layers takes milliseconds to write.
    let written = tokio::task::spawn_blocking(move || written(&engine, answer)).await;
    let json = written.map_err(|_| ApiError::server("the lens's numbers could not be written"))??;
    Ok(typed(StatusCode::OK, "application/json", json))
}

fn read(served: &Served, body: Value) -> Result<(Arc<Engine>, LensJob), ApiError> {
    let mut fields = Fields::of(body, "")?;
    let engine = served.named(&mut fields)?;
    let Some(url) = fields.text("image")? else {
        return Err(fields.error("image", "is missing").coded("missing_required_parameter"));
    };
    let prompt = fields.text("prompt")?.unwrap_or_else(|| QUESTION.into());
    let top = fields.whole("top", 1..=MOST_TOKENS)?.unwrap_or(TOKENS) as usize;
    let layers = layers(&mut fields, engine.checkpoint.config.text_config.num_hidden_layers)?;
    fields.end()?;
    if prompt.contains(basic_models::processor::PLACEHOLDER) {
        return Err(ApiError::field("prompt", "must not contain <image>: the image comes before the question"));
    }
    let image = images::source(&url, "image", served.files.as_ref())?;
    let turns = Turns::question("image", image.clone(), &prompt);
    let prompt = turns.prompt(&engine).map_err(|error| ApiError::field("prompt", error.message))?;
    if prompt.ids.len() > engine.context {
        let message =
            format!("takes {} tokens with its image, more than the context of {}", prompt.ids.len(), engine.context);
        return Err(ApiError::field("prompt", message).coded("context_length_exceeded"));
    }
    // What is no image is refused here, and not by the thread that looks at images.
    images::pixels(&engine.checkpoint, &image, "image")?;
    Ok((engine, LensJob { prompt, image, top, layers }))
}

/// The layers that are asked for, from 0 for the projector's output; `None` for all.
fn layers(fields: &mut Fields, last: usize) -> Result<Option<Vec<usize>>, ApiError> {
    let wanted = format!("a list of layers from 0, the projector's output, to {last}, the decoder's last");
    let list = match fields.take("layers") {
        None => return Ok(None),
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= last + 1 => list,
        Some(other) => return Err(fields.error("layers", expected(&wanted, &other))),
    };
    let layer =
        |value: &Value| value.as_u64().and_then(|layer| usize::try_from(layer).ok()).filter(|layer| *layer <= last);
    let layers: Option<Vec<usize>> = list.iter().map(layer).collect();
    layers.map(Some).ok_or_else(|| fields.error("layers", format!("expected {wanted}")))
}

/// The answer, with the numbers of one image as `lens.json` has them (docs/lens.md).
#[derive(Serialize)]
struct Written<'a> {
    object: &'static str,
    model: &'a str,
    decoder_layers: usize,
    k: usize,
    grid: Grid,
    seen: String,
    #[serde(flatten)]
    image: ImageReading,
    tokens: BTreeMap<u32, TokenText>,
}

/// Writes the JSON as a text at once: as values, numbers of 32 bits would be written with digits that they do not have.
fn written(engine: &Engine, answer: LensAnswer) -> Result<String, ApiError> {
    let LensAnswer { reading, grid, k, seen } = answer;
    let image = reading.images.into_iter().next().ok_or_else(|| ApiError::server("the lens read no image"))?;
    let decoder_layers = engine.checkpoint.config.text_config.num_hidden_layers;
    let (object, model, tokens) = ("lens", engine.name.as_str(), reading.tokens);
    serde_json::to_string(&Written { object, model, decoder_layers, k, grid, seen, image, tokens })
        .map_err(|error| ApiError::server(format!("the lens's numbers have no JSON form: {error}")))
}
