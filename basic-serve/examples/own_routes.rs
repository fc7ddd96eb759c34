//! Serves a checkpoint inside a program that has routes of its own: `cargo run -p basic-serve --example own_routes`.
//!
//! Without arguments it serves the repository's two small backbones with a fresh projector, asks itself a question, and
//! ends; with a port, `-- 8000`, it goes on until it is killed.

use std::io::{Read, Write};
use std::path::Path;

use axum::Router;
use axum::routing::get;
use basic_core::DeviceSpec;
use basic_models::Checkpoint;
use basic_serve::{ListenOptions, ServeOptions, Server, listen};
use burn::tensor::DType;

/// What a step of this program may fail with.
type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let port: Option<u16> = std::env::args().nth(1).map(|port| port.parse()).transpose()?;
    for answer in serve(port)? {
        println!("{answer}");
    }
    Ok(())
}

/// Serves until it is killed on a port, or without one until it has answered itself; gives the answers.
pub fn serve(port: Option<u16>) -> Result<Vec<String>, Error> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let checkpoint = Checkpoint::assemble(&assets.join("vision"), &assets.join("llm"), 0)?;
    let device = "cpu".parse::<DeviceSpec>()?.open()?;
    let model = checkpoint.load(DType::F32, &device)?;
    let mut server = Server::new(ServeOptions { max_batch: 2, ..ServeOptions::default() })?;
    server.add("shapes", checkpoint, model)?;

    let app =
        Router::new().route("/own", get(|| async { "a route of the program itself" })).nest("/llava", server.router()?);
    let listener = std::net::TcpListener::bind(("127.0.0.1", port.unwrap_or(0)))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}/own and http://{address}/llava/v1/models");
    let (done, answered) = tokio::sync::oneshot::channel::<()>();
    let client = std::thread::spawn(move || match port {
        None => {
            let answers = ask(address);
            // Ends the server, also after a failure.
            drop(done);
            answers
        }
        Some(_) => {
            // Never sent: the server goes on.
            std::mem::forget(done);
            Ok(Vec::new())
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let until = async { drop(answered.await) };
        listen(app, listener, &ListenOptions::default(), until).await;
        Ok::<_, std::io::Error>(())
    })?;
    Ok(client.join().map_err(|_| "the client failed")??)
}

/// Asks the server a question, as any HTTP client does.
fn ask(address: std::net::SocketAddr) -> std::io::Result<Vec<String>> {
    let mut answers = Vec::new();
    let body = r#"{"model": "shapes", "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "what is it?"}]}"#;
    for request in [
        "GET /own HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_string(),
        format!(
            "POST /llava/v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    ] {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answers.push(answer.split("\r\n\r\n").nth(1).unwrap_or(&answer).to_string());
    }
    Ok(answers)
}
