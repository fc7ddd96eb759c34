//! The routes, and what holds for every request: keys, hosts, counts.

mod answers;
mod body;
mod lens;
mod logprobs;
mod stream;
mod write;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

pub(crate) use body::Bodies;

use crate::error::ApiError;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::request::Served;

/// What the routes share.
pub(crate) struct App {
    pub served: Served,
    pub metrics: Arc<Metrics>,
    pub bodies: Bodies,
    pub api_key: Option<String>,
    pub loopback_hosts_only: bool,
    pub page: String,
}

/// What a browser may do with the page: run its own script, show pictures that it was given, and talk to this server.
const PAGE_POLICY: &str = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; \
                           script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                           frame-ancestors 'none'";

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(answers::chat))
        .route("/v1/completions", post(answers::completion))
        .route("/v1/lens", post(lens::lens))
        .fallback(|uri: Uri| async move {
            let message = format!("there is nothing at {}", basic_models::outside::excerpt(uri.path()));
            ApiError::request(StatusCode::NOT_FOUND, "not_found", message)
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let message = format!("{} takes no {method}", uri.path());
            ApiError::request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// Refuses requests without the key or by a foreign name, and counts all of them.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let endpoint = endpoint(request.uri().path());
    let mut response = match app.refuses(&request, endpoint) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    };
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    app.metrics.request(endpoint, response.status().as_u16());
    response
}

/// A name from a fixed set, so that the metrics stay small whatever is asked for.
fn endpoint(path: &str) -> &'static str {
    let known = ["/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/lens"];
    known.into_iter().find(|known| *known == path).unwrap_or(match path.starts_with("/v1/models/") {
        true => "/v1/models",
        false => "other",
    })
}

impl App {
    fn refuses(&self, request: &Request, endpoint: &str) -> Option<ApiError> {
        if self.loopback_hosts_only && !from_here(request) {
            let message = "this server answers only to localhost and loopback addresses: start it with --api-key-file \
                           for other names";
            return Some(ApiError::request(StatusCode::FORBIDDEN, "host_not_allowed", message));
        }
        let key = self.api_key.as_ref().filter(|_| !matches!(endpoint, "/" | "/health"))?;
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        let given = match given.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
            _ => "",
        };
        // The lengths may tell; how much of the key is right does not.
        (!constant_time_eq::constant_time_eq(given.as_bytes(), key.as_bytes())).then(|| {
            let message = "the request has no or a wrong API key: send it as \"Authorization: Bearer KEY\"";
            ApiError::request(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
        })
    }
}

/// Whether the request names this machine by `localhost` or a loopback address. A name of somebody else's that leads
/// here is how a web page in the user's browser would reach a server without a key.
fn from_here(request: &Request) -> bool {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(host) = request.uri().authority().map(|authority| authority.as_str()).or(header) else { return false };
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let local = name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    local || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An answer of JSON.
fn json_response(status: StatusCode, value: &Value) -> Response {
    typed(status, "application/json", value.to_string())
}

fn typed(status: StatusCode, kind: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

async fn page(State(app): State<Arc<App>>) -> Response {
    let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", app.page.clone());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let models: serde_json::Map<String, Value> =
        app.served.engines.iter().map(|engine| (engine.name.clone(), engine.alive().into())).collect();
    match app.served.engines.iter().all(|engine| engine.alive()) {
        true => json_response(StatusCode::OK, &json!({ "status": "ok", "models": models })),
        false => json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "failing", "models": models })),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.text() {
        Ok(text) => typed(StatusCode::OK, CONTENT_TYPE, text),
        Err(error) => ApiError::server(format!("the metrics cannot be written: {error}")).into_response(),
    }
}

fn described(engine: &crate::engine::Engine) -> Value {
    let config = &engine.checkpoint.config;
    json!({
        "id": engine.name,
        "object": "model",
        "created": engine.created,
        "owned_by": "basic",
        // Ours: what the page and clients need to know beforehand.
        "max_context": engine.context,
        "image_tokens": config.tiling().most_tokens(),
        "layers": config.text_config.num_hidden_layers,
    })
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let data: Vec<Value> = app.served.engines.iter().map(|engine| described(engine)).collect();
    json_response(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    match app.served.engine(&name) {
        Ok(engine) => json_response(StatusCode::OK, &described(&engine)),
        Err(error) => error.into_response(),
    }
}
