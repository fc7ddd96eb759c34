//! Starts `basic serve` on a free port, and talks to it as clients do, well-behaved and not.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixtures::fixture;

/// The time limit of everything that is waited for. On the tiny fixtures, what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server, which ends with this value.
#[derive(Debug)]
pub struct Serving {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

/// An answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub text: String,
}

impl Reply {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The body of a request that must have succeeded.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// Asserts that the request was refused with this status, in OpenAI's shape, with this field at fault (or none) and a
    /// message that contains `said`.
    #[track_caller]
    pub fn refused(&self, status: u16, param: Option<&str>, said: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let error = &self.json()["error"];
        let message = error["message"].as_str().unwrap_or_else(|| panic!("{self:?}"));
        assert!(message.contains(said), "{said:?} is not in: {message}");
        assert!(message.len() < 1000 && !message.contains('\n'), "{message}");
        assert_eq!(error["param"].as_str(), param, "{self:?}");
        assert!(error["type"].is_string() && error["code"].is_string(), "{self:?}");
    }
}

impl Serving {
    /// Starts the binary at `path` and waits until it listens.
    #[track_caller]
    pub fn start(path: &str, checkpoints: &[&Path], more: &[&str]) -> Self {
        let mut args: Vec<OsString> = vec!["serve".into()];
        args.extend(checkpoints.iter().map(OsString::from));
        args.extend(["--port", "0", "--device", "cpu"].iter().chain(more).map(OsString::from));
        let mut child = Command::new(path)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (told, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        let start = Instant::now();
        let address = loop {
            match lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(line) => match line.strip_prefix("listening on http://") {
                    Some(address) => break address.parse().expect("an address"),
                    None => continue,
                },
                Err(_) => {
                    let _ = child.kill();
                    let mut said = String::new();
                    let _ = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
                    panic!("the server does not listen: {said}");
                }
            }
        };
        Self { child, address }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a request with these headers and returns the answer.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut request = ureq::http::Request::builder().method(method).uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).expect("a request");
        let mut response = agent().run(request).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let text = response.body_mut().with_config().limit(1 << 28).read_to_string().expect("text");
        Reply { status: response.status().as_u16(), text }
    }

    /// Posts JSON.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Posts JSON that asks for a stream, and returns the data of its events.
    #[track_caller]
    pub fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{reply:?}");
        let data = reply.text.lines().filter(|line| !line.is_empty() && !line.starts_with(':'));
        data.map(|line| line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line}")).to_string()).collect()
    }

    /// Gets a path.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], &[])
    }

    /// A connection of one's own.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream
    }

    /// Sends a POST of JSON over a connection of one's own, and does not wait for the answer.
    pub fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&self.raw_post(path, body)).expect("the request is sent");
        stream
    }

    /// The bytes of a POST of JSON.
    pub fn raw_post(&self, path: &str, body: &Value) -> Vec<u8> {
        let body = body.to_string();
        let (host, length) = (self.address, body.len());
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// The sum of a metric over all labels that contain `labels`.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get("/metrics").text;
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            (found.is_empty() || found.starts_with('{')).then_some(())?;
            found.contains(labels).then(|| value.parse::<f64>().ok())?
        };
        text.lines().filter_map(of).sum()
    }

    /// Waits until a condition holds.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            sleep(Duration::from_millis(10));
        }
    }

    /// Asks the server to stop by SIGTERM.
    pub fn terminate(&self) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(killed.expect("kill runs").success());
    }

    /// The exit code and standard error, after the server has ended by itself.
    #[track_caller]
    pub fn ended(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => break status,
                None => assert!(start.elapsed() < PATIENCE, "the server does not end"),
            }
            sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        let _ = self.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        (status.code(), said)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build().new_agent()
}

/// An image of the fixtures as a data URL.
pub fn data_url(image: &str) -> String {
    let bytes = std::fs::read(fixture("images").join(image)).expect("a fixture");
    bytes_url(&bytes)
}

/// Bytes as a data URL of a PNG.
pub fn bytes_url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("data:image/png;base64,");
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = char::from(ALPHABET[(group >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

/// A user's message with images and a text.
pub fn user(images: &[&str], text: &str) -> Value {
    let mut parts: Vec<Value> =
        images.iter().map(|image| json!({"type": "image_url", "image_url": {"url": data_url(image)}})).collect();
    parts.push(json!({"type": "text", "text": text}));
    json!({"role": "user", "content": parts})
}
