//! Reads and parses a request's body, within limits of bytes, time and memory.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use basic_models::outside::json_bytes;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// The unit in which the memory of bodies is counted.
const UNIT: usize = 1024;
/// How many bodies of the largest size may be in memory at a time; smaller ones as many as fit into the same bytes.
const LARGEST_AT_A_TIME: usize = 8;
/// How many requests are parsed, and their images decoded, at a time.
const PREPARED_AT_A_TIME: usize = 4;

/// The limits of bodies, and what of them is in use.
pub(crate) struct Bodies {
    most: usize,
    time: Duration,
    memory: Arc<Semaphore>,
    preparing: Arc<Semaphore>,
}

/// A body, and the memory that it takes from the server's until it is dropped.
pub(crate) struct Read {
    bytes: Vec<u8>,
    taken: Vec<OwnedSemaphorePermit>,
    turn: OwnedSemaphorePermit,
    most: usize,
}

impl Bodies {
    pub fn new(most: usize, time: Duration) -> Self {
        let units = (most / UNIT + 1).saturating_mul(LARGEST_AT_A_TIME).min(Semaphore::MAX_PERMITS);
        let (memory, preparing) = (Semaphore::new(units), Semaphore::new(PREPARED_AT_A_TIME));
        Self { most, time, memory: Arc::new(memory), preparing: Arc::new(preparing) }
    }

    /// Reads the body of a request, and turns it into what `prepare` makes of its JSON, on a thread that may block.
    pub async fn prepare<T: Send + 'static>(
        &self,
        request: Request,
        prepare: impl FnOnce(Value) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let read = self.read(request).await?;
        let prepared = tokio::task::spawn_blocking(move || {
            // The memory and the turn are given back after the images were decoded, even if the client goes away.
            let Read { bytes, taken, turn, most } = read;
            let body = parse(&bytes, most)?;
            drop(bytes);
            let prepared = prepare(body);
            drop((taken, turn));
            prepared
        });
        prepared.await.unwrap_or_else(|_| Err(ApiError::server("the request could not be prepared")))
    }

    async fn read(&self, request: Request) -> Result<Read, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        // A web page can send other types to any address without asking; this one it cannot.
        if !kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json") {
            let message = "the body must be JSON, with the header \"Content-Type: application/json\"";
            return Err(ApiError::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        let late = |_| {
            let message = format!("the body did not arrive within {} seconds", self.time.as_secs());
            Err(ApiError::request(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
        };
        let (bytes, taken) = tokio::time::timeout(self.time, self.bytes(request)).await.unwrap_or_else(late)?;
        let turn = self.preparing.clone().acquire_owned().await;
        let turn = turn.map_err(|_| ApiError::server("the server is stopping"))?;
        Ok(Read { bytes, taken, turn, most: self.most })
    }

    async fn bytes(&self, request: Request) -> Result<(Vec<u8>, Vec<OwnedSemaphorePermit>), ApiError> {
        let too_large = || {
            let message = format!("the body has more than the {} bytes that this server takes", self.most);
            ApiError::request(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
        };
        let said = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if said.is_some_and(|said: u64| said > self.most as u64) {
            return Err(too_large());
        }
        let (mut bytes, mut taken): (Vec<u8>, Vec<OwnedSemaphorePermit>) = (Vec::new(), Vec::new());
        let mut held = 0;
        let mut stream = request.into_body().into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| {
                ApiError::request(StatusCode::BAD_REQUEST, "incomplete_body", "the body ended before its end")
            })?;
            if bytes.len().saturating_add(chunk.len()) > self.most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
            if bytes.len() > held {
                // Memory is taken as bytes arrive, in steps, so that a client that only announces a body holds none.
                let step = (bytes.len() - held).div_ceil(UNIT).max(held / (8 * UNIT)).max(1);
                let permits = u32::try_from(step).unwrap_or(u32::MAX);
                let permit = self.memory.clone().try_acquire_many_owned(permits).map_err(|_| {
                    let message = "the server holds as many large requests as it takes: try again in a while";
                    ApiError::request(StatusCode::TOO_MANY_REQUESTS, "server_busy", message)
                })?;
                taken.push(permit);
                held += step * UNIT;
            }
        }
        Ok((bytes, taken))
    }
}

/// Parses JSON whose values take no more than a few times the largest body.
fn parse(bytes: &[u8], most: usize) -> Result<Value, ApiError> {
    let wrong = |message: String| ApiError::request(StatusCode::BAD_REQUEST, "invalid_json", message);
    let limit = (most as u64).saturating_mul(2).saturating_add(16 << 20);
    if json_bytes(bytes) > limit {
        return Err(wrong("the body has too many values".into()));
    }
    serde_json::from_slice(bytes).map_err(|error| wrong(format!("the body is not JSON: {error}")))
}
