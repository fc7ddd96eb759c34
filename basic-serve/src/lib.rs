//! Serves multimodal language models over HTTP as OpenAI's API does, with continuous batching, a page to chat on, and
//! the token lens. docs/serve.md describes the endpoints.
//!
//! ```text
//! request  -> http    -> keys, hosts, bodies within limits
//!          -> request -> fields, conversations and images as sequences; errors that name the field
//!          -> engine  -> a thread for each checkpoint: sequences join and leave its batch at any token
//!          -> http    -> JSON, or server-sent events
//! ```
//!
//! [`Server`] holds the models and gives an axum router, which a program of one's own can nest beside its routes;
//! [`listen`] serves it with limits on slow clients.
//!
//! ```no_run
//! use basic_core::DeviceSpec;
//! use basic_models::Checkpoint;
//! use basic_serve::{ListenOptions, ServeOptions, Server, listen};
//! use burn::tensor::DType;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let device = "cpu".parse::<DeviceSpec>()?.open()?;
//! let checkpoint = Checkpoint::open(std::path::Path::new("runs/first"))?;
//! let model = checkpoint.load(DType::F32, &device)?;
//! let mut server = Server::new(ServeOptions::default())?;
//! server.add("first", checkpoint, model)?;
//!
//! // All of it below /llava, in a program that has routes of its own.
//! let app = axum::Router::new().nest("/llava", server.router()?);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
//! listen(app, listener, &ListenOptions::default(), std::future::pending()).await;
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod engine;
mod error;
mod http;
mod metrics;
mod names;
mod options;
mod page;
mod request;
mod server;

use std::sync::Arc;

use axum::Router;
use basic_data::ImageBase;
use basic_models::Checkpoint;
use basic_models::generate::cache_bytes;
use basic_models::nn::Llava;
use burn::tensor::DType;

pub use error::{ApiError, ServeError};
pub use names::model_names;
pub use options::{DEFAULT_CONTEXT, ListenOptions, ServeOptions};
pub use server::listen;

use engine::Engine;
use http::{App, Bodies};
use metrics::Metrics;
use request::Served;

/// The models that are served, and their settings.
pub struct Server {
    options: ServeOptions,
    files: Option<ImageBase>,
    engines: Vec<Arc<Engine>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.engines.iter().map(|engine| engine.name.as_str()).collect();
        f.debug_struct("Server").field("models", &names).finish_non_exhaustive()
    }
}

impl Server {
    /// A server without models.
    ///
    /// # Errors
    ///
    /// [`ServeError::ImageRoot`] if that folder is missing, and [`ServeError::Option`] for an empty key.
    pub fn new(options: ServeOptions) -> Result<Self, ServeError> {
        let files = options.image_root.as_deref().map(|root| ImageBase::new(root, None)).transpose()?;
        if options.api_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            let expected = "a key of one character or more".into();
            return Err(ServeError::Option { name: "the API key", value: "empty".into(), expected });
        }
        Ok(Self { options, files, engines: Vec::new(), metrics: Arc::new(Metrics::new()) })
    }

    /// Serves a loaded checkpoint as the model `name`, and starts its threads. The keys and values of the whole batch are
    /// allocated now; [`Server::cache_bytes`] says how many bytes they take.
    ///
    /// # Errors
    ///
    /// [`ServeError`] for a name that is taken, options that do not fit the model, and a broken generation_config.json.
    pub fn add(&mut self, name: &str, checkpoint: Checkpoint, model: Llava) -> Result<(), ServeError> {
        if self.engines.iter().any(|engine| engine.name == name) {
            return Err(ServeError::SameName(name.into()));
        }
        let metrics = self.metrics.model(name);
        let engine = Engine::start(name.into(), checkpoint, model, &self.options, metrics)?;
        self.engines.push(Arc::new(engine));
        Ok(())
    }

    /// The bytes of keys and values of a checkpoint's batch in `dtype`.
    ///
    /// # Errors
    ///
    /// [`ServeError::Option`] if they do not fit into 64 bits, or if an option does not fit the model.
    pub fn cache_bytes(&self, checkpoint: &Checkpoint, dtype: DType) -> Result<u64, ServeError> {
        engine::check(checkpoint, &self.options)?;
        let context = engine::context(checkpoint, &self.options);
        let bytes = cache_bytes(&checkpoint.config.text_config, self.options.max_batch, context, dtype);
        bytes.ok_or_else(|| ServeError::Option {
            name: "max-batch",
            value: self.options.max_batch.to_string(),
            expected: format!("fewer sequences of {context} tokens: their keys and values exceed any memory"),
        })
    }

    /// Whether every model still computes. A model ends when its device fails for good.
    pub fn alive(&self) -> bool {
        self.engines.iter().all(|engine| engine.alive())
    }

    /// The routes of all models that were added so far.
    ///
    /// # Errors
    ///
    /// [`ServeError::Option`] if there is no model.
    pub fn router(&self) -> Result<Router, ServeError> {
        if self.engines.is_empty() {
            let expected = "at least one model".into();
            return Err(ServeError::Option { name: "the number of models", value: "0".into(), expected });
        }
        let options = &self.options;
        let served = Served {
            engines: self.engines.clone(),
            files: self.files.clone(),
            max_images: options.max_images,
            max_queue: options.max_queue,
        };
        Ok(http::router(Arc::new(App {
            served,
            metrics: self.metrics.clone(),
            bodies: Bodies::new(options.max_body, options.body_time),
            api_key: options.api_key.clone(),
            loopback_hosts_only: options.loopback_hosts_only,
            page: page::html(),
        })))
    }
}
