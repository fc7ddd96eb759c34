//! The errors of starting a server, and those that requests get, in OpenAI's shape.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use basic_models::CheckpointError;
use basic_models::generate::GenerateError;
use serde_json::{Value, json};
use thiserror::Error;

/// Why a server could not be started or has ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// An option is out of its range.
    #[error("{name} is {value}, expected {expected}")]
    Option {
        /// The option's name.
        name: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// Two checkpoints have the same name.
    #[error("two checkpoints would be served as {0:?}: requests could not tell them apart")]
    SameName(String),
    /// The folder of images is missing or no folder.
    #[error(transparent)]
    ImageRoot(#[from] basic_data::DataError),
    /// A checkpoint's files could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// generation_config.json could not be read.
    #[error(transparent)]
    Defaults(#[from] GenerateError),
    /// A thread could not be started.
    #[error("a thread for {name} could not be started: {source}")]
    Thread {
        /// The checkpoint's name.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The address could not be listened on.
    #[error("{address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// An error that a request gets: `{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients expect it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong, and what to do.
    pub message: String,
    /// The class of the error, `type` in JSON.
    pub kind: &'static str,
    /// The field that is at fault.
    pub param: Option<String>,
    /// A name for programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// Status 400 for a field that is wrong.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let (param, message) = (param.into(), message.into());
        Self {
            status: StatusCode::BAD_REQUEST,
            message: format!("{param}: {message}"),
            kind: "invalid_request_error",
            param: Some(param),
            code: Some("invalid_value"),
        }
    }

    /// Another status for a request as a whole.
    pub fn request(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        Self { status, message: message.into(), kind, param: None, code: Some(code) }
    }

    /// The same error with another code.
    #[must_use]
    pub fn coded(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Status 500 or 503: the fault is not the request's.
    pub fn server(message: impl Into<String>) -> Self {
        Self::request(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The model's thread has ended.
    pub(crate) fn stopped(name: &str) -> Self {
        let message = format!("the model {name} no longer computes: restart the server, whose output says why");
        Self::request(StatusCode::SERVICE_UNAVAILABLE, "model_stopped", message)
    }

    /// The JSON of the error.
    pub fn json(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1")),
            StatusCode::UNAUTHORIZED => headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            _ => None,
        };
        response
    }
}
