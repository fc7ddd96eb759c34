//! Listens on an address, and treats slow clients as the options say.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use crate::options::ListenOptions;

/// How long the server waits before it accepts again where the system has no room for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop` is ready; then takes no further connections, and waits until the running
/// requests are answered or [`ListenOptions::grace`] is over. Unlike `axum::serve`, it limits how long a client may take
/// to send its headers and to take an answer, and the number of connections.
pub async fn listen(router: Router, listener: TcpListener, options: &ListenOptions, stop: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(options.connections.clamp(1, Semaphore::MAX_PERMITS)));
    let mut running = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        while running.try_join_next().is_some() {}
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            () = &mut stop => break,
            (place, accepted) = accepted => match accepted {
                Ok((stream, _)) => (place, stream),
                // Out of file descriptors, or a client that left already: neither concerns the others.
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let connection =
            http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(options.header_time).serve_connection(
                TokioIo::new(timed(stream, options.write_time)),
                TowerToHyperService::new(router.clone()),
            );
        let connection = graceful.watch(connection);
        running.spawn(async move {
            // An error here is the client's: it went away, was too slow, or sent what is no HTTP.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    // Connections that are still open after the grace end with `running`.
    let _ = tokio::time::timeout(options.grace, graceful.shutdown()).await;
}

/// The connection, which fails when the client takes no bytes for `time`.
fn timed(stream: TcpStream, time: Duration) -> std::pin::Pin<Box<TimeoutStream<TcpStream>>> {
    // Events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(time));
    Box::pin(stream)
}
