//! `basic serve` and requests that are wrong, too large, too slow or hostile: an error of the right status that names the
//! field, and nobody else disturbed.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;

use serde_json::{Value, json};
use tests::fixtures::{copy_of, fixture};
use tests::serving::{Reply, Serving, bytes_url, data_url, user};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn serving(more: &[&str]) -> Serving {
    Serving::start(BASIC, &[&fixture("plain")], more)
}

/// A request that is answered, with fields replaced.
fn chat(more: Value) -> Value {
    let mut body =
        json!({"model": "plain", "messages": [user(&["b.png"], "what?")], "max_tokens": 3, "temperature": 0});
    more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
    body
}

/// Asserts that the server still answers.
#[track_caller]
fn assert_well(server: &Serving) {
    assert_eq!(server.post("/v1/chat/completions", &chat(json!({}))).ok()["usage"]["completion_tokens"], 3);
}

#[test]
fn fields_that_are_wrong_or_cannot_be_honoured_are_named() {
    let server = serving(&["--max-images", "2"]);
    let none: [Value; 0] = [];
    for (field, value, said) in [
        ("model", json!(null), "is missing"),
        ("model", json!(3), "expected a text"),
        ("messages", json!(null), "is missing"),
        ("messages", json!(none), "expected a list"),
        ("messages", json!([{"role": "assistant", "content": "x"}]), "expected"),
        ("temperature", json!(-0.1), "expected a number from 0 to 2, found -0.1"),
        ("temperature", json!("hot"), "expected a number"),
        ("top_p", json!(1.5), "expected a number from 0 to 1"),
        ("n", json!(0), "expected a whole number from 1 to 128"),
        ("n", json!(100), "more than the 64"),
        ("max_tokens", json!(0), "expected a whole number of at least 1"),
        ("max_tokens", json!(1e9), "exceed the context of 2048"),
        ("max_tokens", json!(u64::MAX), "exceed the context of 2048"),
        ("max_completion_tokens", json!(1000), "contradicts"),
        ("seed", json!(1.5), "whole number of 64 bits"),
        ("seed", json!(1e30), "whole number of 64 bits"),
        ("stop", json!([""]), "a stop string has"),
        ("stop", json!([3]), "expected a text"),
        ("stop", json!(vec!["x"; 17]), "at most 16"),
        ("frequency_penalty", json!(3), "from -2 to 2"),
        ("presence_penalty", json!(-3), "from -2 to 2"),
        ("logit_bias", json!({"x": 1}), "token ids below 359"),
        ("logit_bias", json!({"400": 1}), "token ids below 359"),
        ("logit_bias", json!({"4": 101}), "from -100 to 100"),
        ("logprobs", json!(1), "expected true or false"),
        ("top_logprobs", json!(3), "needs \"logprobs\": true"),
        ("stream", json!("yes"), "expected true or false"),
        ("stream_options", json!({}), "only with \"stream\": true"),
        ("tools", json!([{"type": "function"}]), "is not supported"),
        ("response_format", json!({"type": "json_object"}), "is not supported"),
        ("audio", json!({}), "is not supported"),
        ("reasoning_effort", json!("high"), "is not supported"),
        ("store", json!(true), "is not supported"),
        ("temprature", json!(1), "is not supported"),
    ] {
        let reply = server.post("/v1/chat/completions", &chat(json!({field: value})));
        assert_eq!(reply.status, 400, "{field}: {reply:?}");
        // Of two contradicting lengths the second one is named.
        let param = if said == "contradicts" { "max_tokens" } else { field };
        reply.refused(400, Some(param), said);
    }
    for (field, value) in [
        ("echo", json!(true)),
        ("best_of", json!(3)),
        ("suffix", json!("x")),
        ("logprobs", json!(6)),
        ("prompt", json!(none)),
        ("prompt", json!([1, 400])),
        ("prompt", json!([358])),
        ("prompt", json!({})),
        ("images", json!(["x", "x", "x"])),
    ] {
        let mut body = json!({"model": "plain", "prompt": "x"});
        body[field] = value;
        let reply = server.post("/v1/completions", &body);
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(field)), "{reply:?}");
    }
    let unknown = server.post("/v1/chat/completions", &chat(json!({"model": "gpt-4o"})));
    unknown.refused(404, Some("model"), "there is no model \"gpt-4o\": this server has plain");
    let images = vec![data_url("a.png"); 3];
    let parts: Vec<Value> = images.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}})).collect();
    let many = chat(json!({"messages": [{"role": "user", "content": parts}]}));
    server.post("/v1/chat/completions", &many).refused(400, Some("messages[0].content"), "more than the 2 images");
    // Fields that ask for nothing are passed over.
    let harmless = json!({"tools": none, "response_format": {"type": "text"}, "user": "me", "tool_choice": "none",
        "service_tier": "auto", "store": false, "functions": null, "modalities": ["text"], "metadata": {"a": "b"}});
    server.post("/v1/chat/completions", &chat(harmless)).ok();
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_before_it_is_computed() {
    let server = serving(&["--max-context", "120"]);
    let long = chat(json!({"messages": [user(&["b.png"], &"word ".repeat(200))]}));
    let reply = server.post("/v1/chat/completions", &long);
    reply.refused(400, Some("messages"), "must fit into the context of 120");
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    let reply = server.post("/v1/completions", &json!({"model": "plain", "prompt": "a", "max_tokens": 120}));
    reply.refused(400, Some("max_tokens"), "the model's own is 2048");
    assert_eq!(server.metric("basic_prompt_tokens_total", "plain"), 0.0);
    // Without a length, an answer goes on to the end of the context.
    let open = json!({"model": "plain", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
        "temperature": 0, "logit_bias": {"2": -100}});
    assert_eq!(server.post("/v1/chat/completions", &open).ok()["usage"]["total_tokens"], 120);
}

#[test]
fn what_is_no_image_or_too_large_a_one_is_refused_by_its_field() {
    let server = serving(&["--max-pixels", "100000"]);
    let field = "messages[0].content[0].image_url.url";
    let ask = |url: &str| {
        let parts = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]);
        server.post("/v1/chat/completions", &chat(json!({"messages": [{"role": "user", "content": parts}]})))
    };
    ask(&bytes_url(b"no image at all")).refused(400, Some(field), "");
    ask(&bytes_url(b"")).refused(400, Some(field), "");
    ask("data:image/png;base64,!!!").refused(400, Some(field), "not base64");
    ask("https://example.org/cat.png").refused(400, Some(field), "fetches nothing from a network");
    ask("file:///etc/passwd").refused(400, Some(field), "only data URLs are read");
    let png = fs::read(fixture("images/b.png")).unwrap();
    ask(&bytes_url(&png[..png.len() / 2])).refused(400, Some(field), "");
    // A bomb: a small file that decodes to 40,000 x 40,000 pixels by its header.
    let mut bomb = png.clone();
    bomb[16..20].copy_from_slice(&40_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&40_000u32.to_be_bytes());
    ask(&bytes_url(&bomb)).refused(400, Some(field), "");
    let large = image::RgbImage::from_pixel(400, 400, image::Rgb([9, 9, 9]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    large.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    ask(&bytes_url(bytes.get_ref())).refused(400, Some(field), "100000");
    assert_well(&server);
}

#[test]
fn files_are_read_below_the_image_root_alone() {
    let root = fixture("images");
    let server = Serving::start(BASIC, &[&fixture("plain")], &["--image-root", root.to_str().unwrap()]);
    let ask = |url: &str| {
        let content = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]);
        server.post("/v1/chat/completions", &chat(json!({"messages": [{"role": "user", "content": content}]})))
    };
    let expected = server.post("/v1/chat/completions", &chat(json!({}))).ok()["choices"].clone();
    let absolute = root.join("b.png").canonicalize().unwrap();
    for url in ["b.png", "file://b.png", &format!("file://{}", absolute.display())] {
        assert_eq!(ask(url).ok()["choices"], expected, "{url}");
    }
    let field = Some("messages[0].content[0].image_url.url");
    for url in ["../cases.json", "file:///etc/passwd", "/etc/passwd", "nothing.png", "http://localhost/b.png", ""] {
        ask(url).refused(400, field, "");
    }
}

#[test]
fn bodies_that_are_no_json_or_too_large_are_refused() {
    let server = serving(&[]);
    let send = |kind: &str, body: &[u8]| server.send("POST", "/v1/chat/completions", &[("content-type", kind)], body);
    send("application/json", b"{\"model\": ").refused(400, None, "the body is not JSON");
    send("application/json", b"").refused(400, None, "the body is not JSON");
    send("application/json", &[0xff, 0xfe]).refused(400, None, "the body is not JSON");
    send("application/json", b"[1]").refused(400, Some("body"), "expected an object, found a list of 1");
    send("application/json", "[".repeat(100_000).as_bytes()).refused(400, None, "");
    send("application/json", "[],".repeat(1_000_000).as_bytes()).refused(400, None, "too many values");
    send("text/plain", chat(json!({})).to_string().as_bytes()).refused(415, None, "Content-Type: application/json");
    // The length is refused before the body is sent.
    let mut stream = server.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    stream.write_all(format!("{head}Content-Length: 99999999999\r\n\r\n").as_bytes()).unwrap();
    assert!(answered(&mut stream).starts_with("HTTP/1.1 413"));
    // The same for a body whose length nobody tells.
    let mut stream = server.connect();
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let chunk = [format!("{:x}\r\n", 1 << 20).as_bytes(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    let sent = (0..40).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 40 || answered(&mut stream).starts_with("HTTP/1.1 413"));
    assert_well(&server);
}

/// The first bytes of the answer, up to the end of its headers.
fn answered(stream: &mut std::net::TcpStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_key_is_asked_for_except_for_the_page_and_health() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    fs::write(&file, "s3cret-key\nanother line\n").unwrap();
    let server = serving(&["--api-key-file", file.to_str().unwrap()]);
    let body = chat(json!({})).to_string();
    let with = |key: &str| -> Reply {
        let headers = [("content-type", "application/json"), ("authorization", key)];
        server.send("POST", "/v1/chat/completions", &headers, body.as_bytes())
    };
    with("Bearer s3cret-key").ok();
    with("bearer  s3cret-key").ok();
    for wrong in ["", "Bearer", "Bearer s3cret-ke", "Bearer s3cret-key2", "Basic s3cret-key", "s3cret-key"] {
        with(wrong).refused(401, None, "no or a wrong API key");
    }
    for path in ["/v1/models", "/metrics", "/nothing"] {
        server.get(path).refused(401, None, "no or a wrong API key");
    }
    assert_eq!((server.get("/").status, server.get("/health").status), (200, 200));
    fs::write(&file, "\n").unwrap();
    let line = args!["serve", fixture("plain"), "--port", "0", "--api-key-file", &file];
    run(BASIC, line).refused(1, &["--api-key-file", "visible ASCII"]);
}

#[test]
fn without_a_key_only_names_of_this_machine_are_answered() {
    let server = serving(&[]);
    let asked = |host: &str| server.send("GET", "/v1/models", &[("host", host)], &[]);
    for host in ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80", "a.localhost"] {
        assert_eq!(asked(host).status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:8000", "10.0.0.1"] {
        asked(host).refused(403, None, "only to localhost");
    }
}

#[test]
fn slow_half_closed_and_broken_connections_disturb_nobody() {
    let server = serving(&["--max-batch", "2"]);
    // Clients that send half a request and stay.
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"model\"";
    let slow: Vec<_> = (1..=40)
        .map(|n: usize| {
            let mut stream = server.connect();
            stream.write_all(&head[..head.len().min(3 * n)]).unwrap();
            stream
        })
        .collect();
    assert_well(&server);
    // A client that closes its half after the request has left: its place is free again.
    let long =
        json!({"model": "plain", "messages": [user(&[], "go on")], "max_tokens": 1800, "logit_bias": {"2": -100}});
    let halves: Vec<_> = (0..2)
        .map(|_| {
            let stream = server.begin("/v1/chat/completions", &long);
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    assert_well(&server);
    server.wait("nothing runs", |server| server.metric("basic_running_sequences", "plain") == 0.0);
    assert!(server.metric("basic_generated_tokens_total", "plain") < 3600.0);
    // What is no HTTP, and a request with 10,000 headers.
    let mut stream = server.connect();
    stream.write_all(b"\x16\x03\x01\x02\x00 hello\r\n\r\n").unwrap();
    assert!(answered(&mut stream).starts_with("HTTP/1.1 400"));
    let mut stream = server.connect();
    let mut request = String::from("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n");
    (0..10_000).for_each(|n| request.push_str(&format!("X-{n}: {n}\r\n")));
    // The server may close before it has read them all.
    let _ = stream.write_all(format!("{request}\r\n").as_bytes());
    let answer = answered(&mut stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    drop((slow, halves));
    assert_well(&server);
}

#[test]
fn options_that_cannot_be_followed_are_named_before_the_weights_are_read() {
    let plain = fixture("plain");
    let serve = |more: &[&str]| {
        let mut line = args!["serve", &plain, "--port", "0", "--device", "cpu"];
        line.extend(more.iter().map(std::ffi::OsString::from));
        run(BASIC, line)
    };
    serve(&["--max-batch", "0"]).refused(1, &["max-batch is 0", "1 to 1024"]);
    serve(&["--max-queue", "0"]).refused(1, &["max-queue is 0"]);
    serve(&["--max-context", "4000"]).refused(1, &["max-context is 4000", "2 to 2048"]);
    serve(&["--image-root", "/nothing/here"]).refused(1, &["/nothing/here"]);
    serve(&["--api-key-file", "/nothing/here"]).refused(1, &["/nothing/here"]);
    serve(&["--host", "somewhere"]).refused(2, &["--host"]);
    serve(&["--max-pixels", "0"]).refused(2, &["--max-pixels"]);
    run(BASIC, args!["serve", &plain, &plain, "--port", "0"]).refused(1, &["two checkpoints", "plain"]);
    run(BASIC, args!["serve"]).refused(2, &["CKPT"]);
    let taken = serving(&[]);
    let port = taken.address.port().to_string();
    run(BASIC, args!["serve", &plain, "--port", port, "--device", "cpu"]).refused(1, &["--host and --port", "in use"]);
    let dir = tempfile::tempdir().unwrap();
    let model = copy_of("plain", &dir.path().join("model"));
    fs::write(model.join("generation_config.json"), "{").unwrap();
    run(BASIC, args!["serve", &model, "--port", "0"]).refused(1, &["generation_config.json"]);
}
