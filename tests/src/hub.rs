//! A server that speaks the Hugging Face hub's protocol for one model, on the loopback, with faults on request.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixtures::fixture;

/// The commit that the server's branches name.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The files that it serves through a redirect and with a SHA-256, as the hub does for large ones.
const LARGE: &[&str] = &["model.safetensors"];

/// What the server does wrong.
#[derive(Debug, Default, Clone)]
pub struct Faults {
    /// Ends the connection after so many bytes of each large file, this many times.
    pub cut: Option<(usize, usize)>,
    /// The token without which it answers 401.
    pub token: Option<String>,
    /// A checksum that is not the file's.
    pub checksum: Option<String>,
    /// Further names in the list of files.
    pub names: Vec<String>,
}

/// A running server; its thread ends with the test's process.
#[derive(Debug)]
pub struct Hub {
    /// For `HF_ENDPOINT`.
    pub endpoint: String,
    faults: Arc<Mutex<Faults>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves the files of a fixture as `org/model`, with the branch `main` and the tag `v1`.
    pub fn serving(folder: &str, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (faults, requests) = (Arc::new(Mutex::new(faults)), Arc::new(Mutex::new(Vec::new())));
        let served = Served { folder: fixture(folder), faults: faults.clone(), requests: requests.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                // A client that goes away is no failure.
                thread::spawn(move || drop(served.answer(stream)));
            }
        });
        Self { endpoint, faults, requests }
    }

    /// What it does wrong from now on.
    pub fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    /// The paths that were asked for since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

/// What a connection needs.
#[derive(Clone)]
struct Served {
    folder: PathBuf,
    faults: Arc<Mutex<Faults>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Served {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default().to_string();
        let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            let mut pairs = headers.iter().filter_map(|line| line.split_once(": "));
            pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_string())
        };
        self.requests.lock().unwrap().push(path.clone());
        let faults = self.faults.lock().unwrap().clone();
        let granted = faults.token.is_none_or(|token| header("authorization") == Some(format!("Bearer {token}")));
        let start: usize = header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok())
            .unwrap_or(0);
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match parts[..] {
            _ if !granted => status(&mut stream, "401 Unauthorized", ""),
            ["api", "models", "org", "model", "revision", "main" | "v1"] => self.list(&mut stream),
            ["org", "model", "resolve", COMMIT, file] if self.folder.join(file).is_file() => {
                if LARGE.contains(&file) {
                    let found = format!(
                        "Location: /cdn/{file}\r\nETag: \"pointer\"\r\n{}",
                        self.describe(file, "X-Linked-ETag")
                    );
                    return status(&mut stream, "302 Found", &found);
                }
                self.file(&mut stream, file, start, &self.describe(file, "ETag"))
            }
            ["cdn", file] => self.file(&mut stream, file, start, &self.describe(file, "ETag")),
            _ => status(&mut stream, "404 Not Found", ""),
        }
    }

    fn list(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut names: Vec<String> = fs::read_dir(&self.folder)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.extend(self.faults.lock().unwrap().names.iter().cloned());
        let siblings: Vec<Value> = names.iter().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"id": "org/model", "sha": COMMIT, "siblings": siblings}).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes())
    }

    /// The headers that name a file's commit and checksum.
    fn describe(&self, file: &str, key: &str) -> String {
        let wrong = self.faults.lock().unwrap().checksum.clone();
        let checksum = match LARGE.contains(&file) {
            true => wrong.unwrap_or_else(|| sha256(&self.folder.join(file))),
            false => sha256(&self.folder.join(file))[..40].to_string(),
        };
        format!("X-Repo-Commit: {COMMIT}\r\n{key}: \"{checksum}\"\r\n")
    }

    /// Sends a range of a file, or less where the fault says so.
    fn file(&self, stream: &mut TcpStream, file: &str, start: usize, headers: &str) -> std::io::Result<()> {
        let bytes = fs::read(self.folder.join(file))?;
        let rest = bytes.get(start..).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\n\
             {headers}\r\n",
            rest.len(),
            bytes.len() - 1,
            bytes.len()
        );
        stream.write_all(head.as_bytes())?;
        let mut faults = self.faults.lock().unwrap();
        match &mut faults.cut {
            // The request for a file's size reads no body: it does not count.
            Some((most, times)) if LARGE.contains(&file) && *times > 0 && rest.len() > *most => {
                *times -= 1;
                stream.write_all(&rest[..*most])
            }
            _ => stream.write_all(rest),
        }
    }
}

fn status(stream: &mut TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n").as_bytes())
}

/// A file's SHA-256 in hexadecimal digits.
pub fn sha256(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
