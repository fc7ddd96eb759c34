//! `basic serve`, as a client sees it: answers equal those of `basic generate`, whatever else is in the batch; streams,
//! several answers, stop strings, log-probabilities; clients that come and go; the lens.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use serde_json::{Value, json};
use tests::fixtures::{fixture, number, text};
use tests::serving::{Serving, data_url, user};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");
/// The prompt of vicuna_v1, in which the fixture, which has no chat template, is asked.
const VICUNA: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
                      detailed, and polite answers to the user's questions. USER: <image>\nQUESTION ASSISTANT:";
/// Keeps the fixture's random weights from ending an answer: 2 is its end token.
const NO_END: &str = "2";

fn serving(more: &[&str]) -> Serving {
    Serving::start(BASIC, &[&fixture("plain")], more)
}

fn prompt(question: &str) -> String {
    VICUNA.replace("QUESTION", question)
}

/// The text and the number of tokens that `basic generate` answers greedily.
fn generated(checkpoint: &str, images: &[&str], prompt: &str, tokens: usize) -> (String, usize) {
    let mut line = args!["generate", fixture(checkpoint), "--prompt", prompt.replace('\n', "\\n"), "--device", "cpu"];
    images.iter().for_each(|image| line.extend(args!["--image", fixture("images").join(image)]));
    line.extend(args!["--json", "--max-new-tokens", tokens.to_string()]);
    let answer = run(BASIC, line).json();
    (text(&answer["text"]).to_string(), answer["ids"].as_array().unwrap().len())
}

fn asked(images: &[&str], question: &str, tokens: usize) -> Value {
    json!({"model": "plain", "messages": [user(images, question)], "max_tokens": tokens, "temperature": 0})
}

fn content(reply: &Value) -> &str {
    text(&reply["choices"][0]["message"]["content"])
}

#[test]
fn answers_are_those_of_generate_whatever_else_is_in_the_batch() {
    let server = serving(&["--max-batch", "5"]);
    let questions = [
        (vec!["a.png"], "what is in the picture?", 24),
        (vec!["b.png"], "what is in the picture?", 9),
        (vec!["c.png"], "describe the image in detail, please", 40),
        (vec!["wide.png"], "how many?", 17),
        (vec!["b.png"], "which colour has the object in the middle of the picture?", 33),
        (vec!["a.png"], "where?", 1),
        (vec!["d.png"], "what is in the picture?", 28),
        (vec!["tall.png"], "and now?", 12),
    ];
    let expected: Vec<(String, usize)> =
        questions.iter().map(|(images, question, n)| generated("plain", images, &prompt(question), *n)).collect();
    let ask = |index: usize| {
        let (images, question, n) = &questions[index];
        let reply = server.post("/v1/chat/completions", &asked(images, question, *n)).ok();
        let (text, tokens) = &expected[index];
        assert_eq!(content(&reply), text.trim_start(), "{question}");
        assert_eq!(reply["usage"]["completion_tokens"], *tokens);
        // The fixture's own `stop` would be an end token or vicuna_v1's stop string.
        assert_eq!(reply["choices"][0]["finish_reason"], if tokens < n { "stop" } else { "length" });
    };
    // Alone, then eight clients at once, each several times; then again what the caches hold by now.
    (0..questions.len()).for_each(ask);
    std::thread::scope(|scope| {
        let clients = (0..8).map(|client| scope.spawn(move || (0..4).for_each(|round| ask((client + 3 * round) % 8))));
        clients.collect::<Vec<_>>().into_iter().for_each(|client| client.join().unwrap());
    });
    (0..questions.len()).rev().for_each(ask);
    assert!(server.metric("basic_reused_prompt_tokens_total", "plain") > 100.0, "{}", server.get("/metrics").text);
    assert_eq!(server.metric("basic_requests_total", "/v1/chat/completions"), 48.0);
    assert_eq!(server.metric("basic_time_to_first_token_seconds_count", "plain"), 48.0);
}

#[test]
fn completions_take_texts_ids_and_images() {
    let server = serving(&[]);
    let raw = "USER: <image>\nwhat is in the picture? ASSISTANT:";
    let (expected, _) = generated("plain", &["b.png"], raw, 20);
    let body = json!({"model": "plain", "prompt": raw, "images": [data_url("b.png")], "max_tokens": 20,
        "temperature": 0, "logprobs": 2});
    let reply = server.post("/v1/completions", &body).ok();
    assert_eq!(reply["choices"][0]["text"], expected);
    let logprobs = &reply["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 20);
    assert_eq!(logprobs["text_offset"][0], 0);
    // Greedily, the chosen token is the likeliest.
    for (own, top) in
        logprobs["token_logprobs"].as_array().unwrap().iter().zip(logprobs["top_logprobs"].as_array().unwrap())
    {
        let best = top.as_object().unwrap().values().map(number).fold(f64::NEG_INFINITY, f64::max);
        assert!(number(own) <= 0.0 && number(own) == best, "{own} {top}");
    }
    let two = json!({"model": "plain", "prompt": ["the first", "the second text"], "temperature": 0, "n": 2});
    let reply = server.post("/v1/completions", &two).ok();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| &choice["index"]).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(choices[0]["text"], choices[1]["text"]);
    let (first, third) = (&choices[0]["text"], &choices[2]["text"]);
    assert_ne!(first, third);
    let ids = json!({"model": "plain", "prompt": [[1, 5, 300]], "temperature": 0});
    let same = json!({"model": "plain", "prompt": [1, 5, 300], "temperature": 0});
    let of = |body: &Value| server.post("/v1/completions", body).ok()["choices"].clone();
    assert_eq!(of(&ids), of(&same));
}

#[test]
fn several_images_and_turns_are_one_conversation() {
    let server = serving(&[]);
    let raw = prompt("which?").replace("<image>\n", "<image>\n<image>\n");
    let (expected, _) = generated("plain", &["a.png", "b.png"], &raw, 16);
    let mut messages = vec![user(&["a.png", "b.png"], "which?")];
    let body = |messages: &[Value]| json!({"model": "plain", "messages": messages, "max_tokens": 16, "temperature": 0});
    let first = server.post("/v1/chat/completions", &body(&messages)).ok();
    assert_eq!(content(&first), expected.trim_start());
    messages.push(json!({"role": "assistant", "content": "the second"}));
    messages.push(user(&["c.png"], "and this?"));
    let raw = format!("{raw} the second</s>USER: <image>\nand this? ASSISTANT:");
    let (expected, _) = generated("plain", &["a.png", "b.png", "c.png"], &raw, 16);
    let second = server.post("/v1/chat/completions", &body(&messages)).ok();
    assert_eq!(content(&second), expected.trim_start());
    assert!(server.metric("basic_reused_prompt_tokens_total", "plain") > 32.0, "the first turn's images were held");
    // The same texts with another image are another conversation.
    messages[0] = user(&["a.png", "d.png"], "which?");
    let (other, _) = generated("plain", &["a.png", "d.png", "c.png"], &raw, 16);
    assert_eq!(content(&server.post("/v1/chat/completions", &body(&messages)).ok()), other.trim_start());
    // A system message replaces vicuna_v1's own, and a text needs no image.
    let system = json!({"model": "plain", "max_tokens": 8, "temperature": 0, "messages":
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what is <image> in HTML?"}]});
    let reply = server.post("/v1/chat/completions", &system).ok();
    assert_eq!(reply["usage"]["completion_tokens"], 8);
}

#[test]
fn a_stream_is_the_answer_in_pieces_with_its_usage() {
    let server = serving(&[]);
    let mut body = asked(&["b.png"], "what is in the picture?", 24);
    let whole = server.post("/v1/chat/completions", &body).ok();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let events = server.stream("/v1/chat/completions", &body);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    // The role comes by itself, with the first token whether or not that is a text.
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[0]["choices"][0]["finish_reason"], Value::Null);
    assert!(chunks[1..].iter().all(|chunk| chunk["choices"][0]["delta"].get("role").is_none()));
    let pieces = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), content(&whole));
    assert!(chunks.len() > 10, "{} chunks", chunks.len());
    let (usage, last) = (&chunks[chunks.len() - 1], &chunks[chunks.len() - 2]);
    assert_eq!(usage["usage"], whole["usage"]);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["object"] == "chat.completion.chunk"));
    // A completion's stream, and several answers in one stream.
    let body = json!({"model": "plain", "prompt": "tell me", "temperature": 0, "n": 3, "stream": true});
    let events = server.stream("/v1/completions", &body);
    let mut texts = [const { String::new() }; 3];
    for data in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(data).unwrap();
        let choice = &chunk["choices"][0];
        texts[number(&choice["index"]) as usize].push_str(text(&choice["text"]));
    }
    assert!(!texts[0].is_empty() && texts[0] == texts[1] && texts[1] == texts[2], "{texts:?}");
}

#[test]
fn sampling_follows_its_seed_and_n_answers_differ() {
    let server = serving(&[]);
    let sample = |seed: i64, n: usize| {
        let body = json!({"model": "plain", "messages": [user(&["b.png"], "what?")], "max_tokens": 16, "seed": seed,
            "n": n, "temperature": 1.5, "top_p": 0.95, "logit_bias": {NO_END: -100}});
        let reply = server.post("/v1/chat/completions", &body).ok();
        let choices = reply["choices"].as_array().unwrap().iter();
        choices.map(|choice| text(&choice["message"]["content"]).to_string()).collect::<Vec<_>>()
    };
    let three = sample(7, 3);
    assert_eq!(three.len(), 3);
    assert!(three[0] != three[1] && three[1] != three[2], "{three:?}");
    assert_eq!(sample(7, 3), three);
    assert_eq!(sample(7, 1), three[..1], "the first of several is the only one");
    assert_ne!(sample(-8, 1), three[..1]);
    // Without a seed, answers differ.
    let body = json!({"model": "plain", "messages": [user(&[], "what?")], "max_tokens": 24, "temperature": 2});
    let free = || content(&server.post("/v1/chat/completions", &body).ok()).to_string();
    assert_ne!(free(), free());
}

#[test]
fn stop_strings_penalties_and_biases_are_followed() {
    let server = serving(&[]);
    let body = |more: Value| {
        let mut body = asked(&["b.png"], "what is in the picture?", 24);
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        server.post("/v1/chat/completions", &body).ok()
    };
    let plain = body(json!({}));
    let words: String = content(&plain).chars().skip(4).take(3).collect();
    let stopped = body(json!({"stop": [words, "never said"]}));
    assert_eq!(content(&stopped), content(&plain).split(&words).next().unwrap());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let tokens = |reply: &Value| {
        let entries = reply["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
        entries.iter().map(|entry| text(&entry["token"]).to_string()).collect::<Vec<_>>()
    };
    // Different bytes of characters have one text.
    let whole = |token: &String| !token.contains(char::REPLACEMENT_CHARACTER);
    let repeats = |tokens: &[String]| {
        tokens.iter().enumerate().filter(|(at, token)| whole(token) && tokens[..*at].contains(token)).count()
    };
    let before = tokens(&body(json!({"logprobs": true})));
    assert!(repeats(&before) > 0, "{before:?}");
    for penalty in ["frequency_penalty", "presence_penalty"] {
        let after = tokens(&body(json!({"logprobs": true, penalty: 2})));
        assert_eq!(repeats(&after), 0, "{penalty}: {after:?}");
    }
    let repeated = body(json!({"repetition_penalty": 1.5}));
    assert_ne!(content(&repeated), content(&plain));
    let forced = tokens(&body(json!({"logprobs": true, "logit_bias": {"100": 100}, "max_tokens": 5})));
    assert!(forced.len() == 5 && forced.iter().all(|token| *token == forced[0]), "{forced:?}");
}

#[test]
fn log_probabilities_are_those_of_the_models_distribution() {
    let server = serving(&[]);
    let mut body = asked(&["b.png"], "what is in the picture?", 6);
    body["logprobs"] = true.into();
    body["top_logprobs"] = 20.into();
    let reply = server.post("/v1/chat/completions", &body).ok();
    let entries = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(entries.len(), 6);
    for entry in entries {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 20);
        assert_eq!((&entry["token"], &entry["logprob"]), (&top[0]["token"], &top[0]["logprob"]));
        assert!(top.windows(2).all(|pair| number(&pair[0]["logprob"]) >= number(&pair[1]["logprob"])));
        let all: f64 = top.iter().map(|entry| number(&entry["logprob"]).exp()).sum();
        assert!(all > 0.0 && all <= 1.0 + 1e-5, "{all}");
    }
    // A temperature changes the choice and not what is told.
    body["temperature"] = 2.into();
    body["seed"] = 3.into();
    let warm = server.post("/v1/chat/completions", &body).ok();
    let first =
        |reply: &Value| reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().clone();
    for (warm, cold) in first(&warm).iter().zip(first(&reply)) {
        assert_eq!(warm["token"], cold["token"]);
        // The prompt was held by a cache this time, which rounds the sums of its last token differently.
        assert!((number(&warm["logprob"]) - number(&cold["logprob"])).abs() < 1e-4, "{warm} {cold}");
    }
}

/// A request whose answer takes a while.
fn long(stream: bool) -> Value {
    json!({"model": "plain", "messages": [user(&[], "go on")], "max_tokens": 1800, "temperature": 0,
        "logit_bias": {NO_END: -100}, "stream": stream})
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let server = serving(&["--max-batch", "1"]);
    for _ in 0..20 {
        let running = server.begin("/v1/chat/completions", &long(true));
        let mut reader = BufReader::new(running);
        let mut line = String::new();
        while !line.contains("content") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the stream begins");
        }
        // One that has not been answered at all leaves, too.
        drop((server.begin("/v1/chat/completions", &long(false)), reader));
    }
    let short = asked(&["b.png"], "what is in the picture?", 4);
    assert_eq!(server.post("/v1/chat/completions", &short).ok()["usage"]["completion_tokens"], 4);
    server.wait("nothing runs", |server| server.metric("basic_running_sequences", "plain") == 0.0);
    assert_eq!(server.metric("basic_queue_length", "plain"), 0.0);
    assert!(server.metric("basic_cancelled_sequences_total", "plain") >= 1.0);
    assert!(server.metric("basic_generated_tokens_total", "plain") < 40.0 * 1800.0);
}

#[test]
fn a_full_queue_is_refused_and_the_others_are_answered() {
    let server = serving(&["--max-batch", "1", "--max-queue", "2"]);
    let bodies: Vec<_> = (0..12).map(|_| server.begin("/v1/chat/completions", &long(false))).collect();
    let mut statuses = Vec::new();
    for mut stream in bodies {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        match status {
            200 => assert!(answer.contains("\"completion_tokens\":1800"), "{answer}"),
            _ => assert!(answer.contains("as many requests waiting") && answer.contains("retry-after: 1"), "{answer}"),
        }
        statuses.push(status);
    }
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(
        server.metric("basic_requests_total", "status=\"429\""),
        statuses.iter().filter(|s| **s == 429).count() as f64
    );
    let three = json!({"model": "plain", "messages": [user(&[], "x")], "n": 3});
    server.post("/v1/chat/completions", &three).refused(400, Some("n"), "more than the 2");
}

#[test]
fn the_server_finishes_its_answers_before_it_stops() {
    let server = serving(&[]);
    let body = json!({"model": "plain", "messages": [user(&[], "go on")], "max_tokens": 300, "temperature": 0,
        "logit_bias": {NO_END: -100}});
    let mut stream = server.begin("/v1/chat/completions", &body);
    server.wait("it is being answered", |server| server.metric("basic_running_sequences", "plain") == 1.0);
    server.terminate();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":300"), "{answer}");
    let (code, said) = server.ended();
    assert_eq!((code, said.trim()), (Some(0), "finishing the answers that are being written; once more ends at once"));
}

#[test]
fn models_health_and_metrics_are_told() {
    let paths: [PathBuf; 2] = [fixture("plain"), fixture("sharded")];
    let server = Serving::start(BASIC, &[&paths[0], &paths[1]], &["--max-context", "100"]);
    let models = server.get("/v1/models").ok();
    let ids: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["plain", "sharded"]);
    assert_eq!(models["data"][0]["max_context"], 100);
    assert_eq!(server.get("/v1/models/sharded").ok(), models["data"][1]);
    server.get("/v1/models/other").refused(404, Some("model"), "this server has plain, sharded");
    assert_eq!(server.get("/health").ok(), json!({"status": "ok", "models": {"plain": true, "sharded": true}}));
    let metrics = server.get("/metrics").text;
    assert!(metrics.contains("# TYPE basic_queue_length gauge") && metrics.ends_with("# EOF\n"), "{metrics}");
    server.get("/v1/chat/completions").refused(405, None, "takes no GET");
    server.get("/nothing").refused(404, None, "there is nothing at /nothing");
    let page = server.get("/");
    assert!(page.status == 200 && page.text.starts_with("<!DOCTYPE html>"), "{}", page.status);
}

#[test]
fn the_lens_tells_what_analyze_tells() {
    let dir = tempfile::tempdir().unwrap();
    let mut line = args!["analyze", fixture("plain"), "--image", fixture("images/b.png"), "--device", "cpu"];
    line.extend(args!["--prompt", prompt("What is it?").replace('\n', "\\n"), "--out", dir.path(), "--top", "3"]);
    run(BASIC, line).succeeded();
    let told = tests::fixtures::read_json(&dir.path().join("lens.json"));
    let server = serving(&[]);
    let body = json!({"model": "plain", "image": data_url("b.png"), "prompt": "What is it?", "top": 3});
    let seen = server.post("/v1/lens", &body).ok();
    let expected = &told["checkpoints"][0];
    assert_eq!(seen["layers"].as_array().unwrap().len(), 5);
    for (ours, theirs) in
        seen["layers"].as_array().unwrap().iter().zip(expected["images"][0]["layers"].as_array().unwrap())
    {
        for key in ["layer", "nearest", "norm", "angle", "attention", "end_share"] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
    }
    assert_eq!(
        (&seen["k"], &seen["grid"], seen["attention"].clone()),
        (&expected["k"], &expected["grid"], expected["images"][0]["attention"].clone())
    );
    assert!(text(&seen["seen"]).starts_with("data:image/png;base64,"));
    let (id, _) = seen["tokens"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(seen["tokens"][id], expected["tokens"][id]);
    let two = json!({"model": "plain", "image": data_url("b.png"), "layers": [0, 4], "top": 1});
    assert_eq!(server.post("/v1/lens", &two).ok()["layers"].as_array().unwrap().len(), 2);
    for (field, value) in [
        ("layers", json!([5])),
        ("layers", json!([])),
        ("top", json!(0)),
        ("image", json!("x")),
        ("prompt", json!("<image>")),
        ("model", json!("x")),
        ("temperature", json!(0)),
    ] {
        let mut body = body.clone();
        body[field] = value;
        let reply = server.post("/v1/lens", &body);
        assert_eq!(reply.json()["error"]["param"], field, "{reply:?}");
    }
}
