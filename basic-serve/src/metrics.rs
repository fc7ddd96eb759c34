//! The numbers of `/metrics`, in the text format that Prometheus and OpenMetrics share.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The type of the text that [`Metrics::text`] returns.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// The upper bounds in seconds of the histogram of the time to first token.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// All metrics of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    queue: Family<Labels, Gauge>,
    running: Family<Labels, Gauge>,
    prompt_tokens: Family<Labels, Counter>,
    reused_tokens: Family<Labels, Counter>,
    generated_tokens: Family<Labels, Counter>,
    cancelled: Family<Labels, Counter>,
    first_token: Family<Labels, Histogram>,
}

/// The metrics of one model.
#[derive(Debug, Clone)]
pub(crate) struct ModelMetrics {
    pub queue: Gauge,
    pub running: Gauge,
    pub prompt_tokens: Counter,
    pub reused_tokens: Counter,
    pub generated_tokens: Counter,
    pub cancelled: Counter,
    pub first_token: Histogram,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("basic");
        let requests = Family::<Labels, Counter>::default();
        registry.register("requests", "Requests, by endpoint and status", requests.clone());
        let [queue, running] = [(); 2].map(|()| Family::<Labels, Gauge>::default());
        registry.register("queue_length", "Sequences that wait for a place in the batch", queue.clone());
        registry.register("running_sequences", "Sequences that are being generated", running.clone());
        let [prompt_tokens, reused_tokens, generated_tokens, cancelled] =
            [(); 4].map(|()| Family::<Labels, Counter>::default());
        let counters = [
            ("prompt_tokens", "Tokens of prompts", &prompt_tokens),
            ("reused_prompt_tokens", "Tokens of prompts that a cache already held", &reused_tokens),
            ("generated_tokens", "Generated tokens", &generated_tokens),
            ("cancelled_sequences", "Sequences whose client went away", &cancelled),
        ];
        for (name, help, family) in counters {
            registry.register(name, help, family.clone());
        }
        let first_token = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        let help = "Seconds from a request's arrival at the model to its first token";
        registry.register("time_to_first_token_seconds", help, first_token.clone());
        Self {
            registry,
            requests,
            queue,
            running,
            prompt_tokens,
            reused_tokens,
            generated_tokens,
            cancelled,
            first_token,
        }
    }

    /// The metrics of the model `name`.
    pub fn model(&self, name: &str) -> ModelMetrics {
        let labels = vec![("model", name.to_string())];
        ModelMetrics {
            queue: self.queue.get_or_create(&labels).clone(),
            running: self.running.get_or_create(&labels).clone(),
            prompt_tokens: self.prompt_tokens.get_or_create(&labels).clone(),
            reused_tokens: self.reused_tokens.get_or_create(&labels).clone(),
            generated_tokens: self.generated_tokens.get_or_create(&labels).clone(),
            cancelled: self.cancelled.get_or_create(&labels).clone(),
            first_token: self.first_token.get_or_create(&labels).clone(),
        }
    }

    /// Counts an answered request. `endpoint` is one of a fixed set of names.
    pub fn request(&self, endpoint: &'static str, status: u16) {
        let labels = vec![("endpoint", endpoint.to_string()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    /// The text of all metrics.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
