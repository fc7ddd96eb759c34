//! Runs `basic serve`.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use basic_models::outside::read_text;
use basic_serve::{ListenOptions, ServeOptions, Server, listen, model_names};

use super::generate::defaults;
use super::model::{open, open_device};
use crate::args::Serve;
use crate::output::{say, tell};
use crate::signals::stop_at_ctrl_c;

/// How often the server looks whether it was asked to stop.
const LOOK: Duration = Duration::from_millis(100);
/// How many threads read requests and write answers; the models compute on threads of their own.
const THREADS: usize = 2;
/// How many requests are parsed, and their images decoded, beside each other.
const BLOCKING: usize = 8;

/// Serves the checkpoints until the process is told to stop.
pub fn serve(args: Serve) -> Result<()> {
    let device = open_device(&args.device, args.dtype)?;
    let names = model_names(&args.checkpoints)?;
    let api_key = args.api_key_file.as_deref().map(api_key).transpose()?;
    let address = SocketAddr::new(args.host, args.port);
    // The address is taken before the weights are read, which may take long.
    let listener = TcpListener::bind(address).with_context(|| format!("--host and --port: {address}"))?;
    listener.set_nonblocking(true).with_context(|| address.to_string())?;
    let address = listener.local_addr().with_context(|| address.to_string())?;
    let loopback = args.host.is_loopback();
    let options = ServeOptions {
        max_batch: args.max_batch,
        max_context: args.max_context,
        max_queue: args.max_queue,
        max_images: args.max_images,
        max_pixels: args.max_pixels,
        image_root: args.image_root.clone(),
        loopback_hosts_only: loopback && api_key.is_none(),
        api_key,
        ..ServeOptions::default()
    };
    let open_to_all = !loopback && options.api_key.is_none();
    let stop = stop_at_ctrl_c("finishing the answers that are being written").context("Ctrl-C")?;
    let mut server = Server::new(options)?;
    for (path, name) in args.checkpoints.iter().zip(&names) {
        let checkpoint = open(path, &device)?;
        defaults(&checkpoint)?;
        let bytes = server.cache_bytes(&checkpoint, args.dtype.into())?;
        let model = checkpoint.load(args.dtype.into(), &device)?;
        server.add(name, checkpoint, model)?;
        say!("{name}: {}, {:.1} MiB for keys and values", path.display(), bytes as f64 / f64::from(1 << 20));
        if stop.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
    if open_to_all {
        tell!("warning: whoever reaches {address} can use the models: --api-key-file FILE asks for a key");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .context("the server's threads")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).with_context(|| address.to_string())?;
        say!("listening on http://{address}");
        listen(server.router()?, listener, &ListenOptions::default(), stopped(&stop, &server)).await;
        anyhow::Ok(())
    })?;
    // Threads that still prepare a request would otherwise be waited for.
    runtime.shutdown_background();
    if !server.alive() {
        bail!("a model's thread has ended: the lines above say why");
    }
    Ok(())
}

/// Ready when the process was told to stop, or when a model no longer computes.
async fn stopped(stop: &Arc<AtomicBool>, server: &Server) {
    while !stop.load(Ordering::SeqCst) && server.alive() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The first line of a file, which must be something that a header can carry.
fn api_key(path: &Path) -> Result<String> {
    let text = read_text(path).with_context(|| format!("--api-key-file: {}", path.display()))?;
    let key = text.lines().next().unwrap_or("").trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "--api-key-file: {}: the first line must be a key of visible ASCII characters, without spaces",
            path.display()
        );
    }
    Ok(key.into())
}
