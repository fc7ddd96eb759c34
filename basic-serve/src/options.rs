//! The limits and settings of a server, with their defaults.

use std::path::PathBuf;
use std::time::Duration;

/// How checkpoints compute, and what a request may ask for.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The most sequences that one checkpoint generates at a time; each of a request's `n` answers is one.
    pub max_batch: usize,
    /// The most tokens of a prompt and its answer; by default the model's context, and at most 4096.
    pub max_context: Option<usize>,
    /// The most sequences that wait for a place in the batch; more are refused with status 429.
    pub max_queue: usize,
    /// The most pixels of an image.
    pub max_pixels: u64,
    /// The most images of a request.
    pub max_images: usize,
    /// The most bytes of a request's body.
    pub max_body: usize,
    /// The folder below which a request may name image files; `None` refuses every file.
    pub image_root: Option<PathBuf>,
    /// The key that requests must carry as `Authorization: Bearer KEY`; `None` lets every request in.
    pub api_key: Option<String>,
    /// Whether requests whose `Host` is neither `localhost` nor a loopback address are refused. A server on a loopback
    /// address without a key needs this: a web page could otherwise reach it by a name of its own.
    pub loopback_hosts_only: bool,
    /// How long a client may take to send a request's body.
    pub body_time: Duration,
}

/// The default of [`ServeOptions::max_context`] for models whose context is longer.
pub const DEFAULT_CONTEXT: usize = 4096;
/// The largest values that options may have.
pub(crate) const MOST_ROWS: usize = 1024;
pub(crate) const MOST_QUEUED: usize = 65_536;

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_batch: 8,
            max_context: None,
            max_queue: 64,
            max_pixels: 64_000_000,
            max_images: 16,
            max_body: 32 << 20,
            image_root: None,
            api_key: None,
            loopback_hosts_only: false,
            body_time: Duration::from_secs(60),
        }
    }
}

/// How a listener treats its clients; see [`listen`](crate::listen).
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// How long a client may take to send a request's headers; an idle connection is closed after this time.
    pub header_time: Duration,
    /// How long a client may leave bytes of an answer untaken.
    pub write_time: Duration,
    /// How long running requests may go on after the server was asked to stop.
    pub grace: Duration,
    /// The most connections at a time; further clients wait.
    pub connections: usize,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            header_time: Duration::from_secs(30),
            write_time: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            connections: 1024,
        }
    }
}
