//! The options of `basic serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use basic_models::processor::DEFAULT_MAX_PIXELS;
use basic_serve::ServeOptions;
use clap::Args as ClapArgs;

use super::{DeviceArg, Dtype};

/// The help text about what is served.
const ENDPOINTS: &str = "POST /v1/chat/completions and /v1/completions, GET /v1/models as OpenAI's API has them, POST \
/v1/lens, GET /health, GET /metrics, and a page at /. docs/serve.md describes them.";

#[derive(Debug, ClapArgs)]
#[command(after_help = ENDPOINTS)]
pub struct Serve {
    /// The directories of the LLaVA checkpoints to serve; the page compares two side by side.
    #[arg(required = true, value_name = "CKPT")]
    pub checkpoints: Vec<PathBuf>,
    /// The address to listen on. With another than a loopback address, other machines can use the models.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on; 0 takes a free one, which is printed.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// A file whose first line is the key that requests must carry.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// How many answers of a checkpoint are generated at a time.
    #[arg(long, value_name = "N", default_value_t = ServeOptions::default().max_batch)]
    pub max_batch: usize,
    /// The most tokens of a prompt and its answer; by default the model's context, and at most 4096. Keys and values for
    /// so many are allocated for every answer of the batch.
    #[arg(long, value_name = "N")]
    pub max_context: Option<usize>,
    /// How many answers may wait for their turn; further ones are refused.
    #[arg(long, value_name = "N", default_value_t = ServeOptions::default().max_queue)]
    pub max_queue: usize,
    /// The most images of a request.
    #[arg(long, value_name = "N", default_value_t = ServeOptions::default().max_images)]
    pub max_images: usize,
    /// Refuse images of more pixels than this.
    #[arg(long, value_name = "N", default_value_t = ServeOptions::default().max_pixels,
          value_parser = clap::value_parser!(u64).range(1..=DEFAULT_MAX_PIXELS))]
    pub max_pixels: u64,
    /// Let requests name image files below this folder; without it, images are sent as data URLs alone.
    #[arg(long, value_name = "DIR")]
    pub image_root: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArg,
    /// The data type of the parameters.
    #[arg(long, value_enum, default_value = "float32")]
    pub dtype: Dtype,
}
