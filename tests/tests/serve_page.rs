//! Opens the page of `basic serve` in a browser: a picture, a conversation with streamed answers, the lens with its
//! layers, by mouse and keys, also on a phone.

use std::path::PathBuf;

use serde_json::{Value, json};
use tests::browser::Page;
use tests::fixtures::{fixture, text};
use tests::serving::{Serving, data_url, user};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn opened(server: &Serving) -> Option<Page> {
    let page = Page::visit(&server.url("/"))?;
    page.wait("document.querySelectorAll('.column').length > 0 || document.querySelector('#models').textContent");
    Some(page)
}

/// Gives the page a picture of the fixtures, as choosing a file does.
fn give(page: &Page, image: &str) {
    let script = format!(
        "(() => {{ const bytes = Uint8Array.from(atob({}), c => c.charCodeAt(0)); const all = new DataTransfer(); \
         all.items.add(new File([bytes], {}, {{type: 'image/png'}})); const input = document.querySelector('#file'); \
         input.files = all.files; input.dispatchEvent(new Event('change')); return 1; }})()",
        Value::from(data_url(image).split_once(',').expect("a data URL").1),
        Value::from(image)
    );
    page.evaluate(&script);
    page.wait("!document.querySelector('#lens').hidden");
}

/// Asks a question with these settings, and waits for the answers.
fn ask(page: &Page, question: &str, most: u32) {
    page.evaluate(&format!("document.querySelector('#most').value = {most}"));
    page.evaluate(&format!("document.querySelector('#question').value = {}", Value::from(question)));
    page.evaluate("document.querySelector('#question').focus()");
    page.press("Enter");
    page.wait("document.querySelector('.turn.assistant')");
    page.wait("!document.querySelector('.turn.busy') && !document.querySelector('#send').disabled");
}

fn answers(page: &Page) -> Vec<String> {
    let found =
        page.evaluate("[...document.querySelectorAll('.turn.assistant > span:first-of-type')].map(e => e.textContent)");
    found.as_array().unwrap().iter().map(|answer| text(answer).to_string()).collect()
}

#[track_caller]
fn assert_only_own_requests(page: &Page, server: &Serving) {
    let heard = page.heard();
    assert_eq!(heard.complaints, [""; 0]);
    assert!(heard.requests.iter().all(|url| url.starts_with(&server.url("/"))), "{:?}", heard.requests);
}

#[test]
fn a_picture_is_talked_about_and_its_answers_are_those_of_the_api() {
    let server = Serving::start(BASIC, &[&fixture("plain")], &[]);
    let Some(page) = opened(&server) else { return };
    assert_eq!(page.text("#models"), "plain");
    give(&page, "b.png");
    ask(&page, "what is in the picture?", 20);
    let of = |messages: &[Value]| {
        let body = json!({"model": "plain", "messages": messages, "temperature": 0, "max_tokens": 20});
        text(&server.post("/v1/chat/completions", &body).ok()["choices"][0]["message"]["content"]).to_string()
    };
    let mut messages = vec![user(&["b.png"], "what is in the picture?")];
    let first = of(&messages);
    assert_eq!(answers(&page), std::slice::from_ref(&first));
    assert!(page.text(".turn.assistant small").contains("20 tokens"));
    // The next question goes on with the conversation, without showing the picture again.
    ask(&page, "and where?", 20);
    messages.push(json!({"role": "assistant", "content": first.trim()}));
    messages.push(json!({"role": "user", "content": "and where?"}));
    assert_eq!(answers(&page), [first, of(&messages)]);
    assert_eq!(page.evaluate("document.querySelectorAll('.turn img').length"), 1);
    page.click("#renew");
    assert_eq!(page.evaluate("document.querySelectorAll('.turn').length"), 0);
    assert_eq!(page.evaluate("document.activeElement.id"), "question");
    assert_only_own_requests(&page, &server);
}

#[test]
fn an_answer_is_stopped_and_the_server_is_free_again() {
    let server = Serving::start(BASIC, &[&fixture("plain")], &["--max-batch", "1"]);
    let Some(page) = opened(&server) else { return };
    // Random weights end soon where they are not sampled hot.
    page.evaluate("document.querySelector('#temperature').value = 2");
    page.evaluate("document.querySelector('#most').value = 1900");
    page.evaluate("document.querySelector('#question').value = 'go on'");
    page.click("#send");
    page.wait("document.querySelector('.turn.assistant > span').textContent.length > 3");
    page.click("#stop");
    page.wait("document.querySelector('#stop').disabled");
    server.wait("nothing runs", |server| server.metric("basic_running_sequences", "plain") == 0.0);
    assert_eq!(answers(&page).len(), 1);
    // In a conversation of its own: the stopped answer may be so long that the next question does not fit behind it.
    page.click("#renew");
    ask(&page, "again", 4);
    assert_eq!(answers(&page).len(), 1);
    assert_only_own_requests(&page, &server);
}

#[test]
fn the_lens_shows_what_the_api_tells_for_two_models_side_by_side() {
    let paths: [PathBuf; 2] = [fixture("plain"), fixture("sharded")];
    let server = Serving::start(BASIC, &[&paths[0], &paths[1]], &[]);
    let Some(page) = opened(&server) else { return };
    give(&page, "a.png");
    assert_eq!(page.evaluate("document.querySelectorAll('.view').length"), 2);
    let told =
        |model: &str| server.post("/v1/lens", &json!({"model": model, "image": data_url("a.png"), "top": 5})).ok();
    let seen = [told("plain"), told("sharded")];
    let assert_shown = |layer: usize, patch: usize| {
        for (view, seen) in seen.iter().enumerate() {
            let layers = seen["layers"].as_array().unwrap();
            let near = &layers[layer.min(layers.len() - 1)]["nearest"][patch];
            let word = &seen["tokens"][near[0][0].to_string()]["text"];
            let script = format!(
                "[[...document.querySelectorAll('.view')[{view}].querySelectorAll('.near tbody td')].map(e => e.textContent), \
                 document.querySelectorAll('.view')[{view}].querySelectorAll('.patch')[{patch}].textContent, shown({word})]"
            );
            let found = page.evaluate(&script);
            assert_eq!(found[0].as_array().unwrap().len(), 10);
            assert_eq!((&found[0][0], &found[1]), (&found[2], &found[2]), "view {view}, layer {layer}, patch {patch}");
            assert_eq!(text(&found[0][1]), format!("{:.3}", near[0][1].as_f64().unwrap()));
        }
    };
    assert_shown(0, 0);
    assert!(page.text("#layer-name").contains("projector"));
    page.hover(".view:nth-child(2) .patch[aria-label^='row 2, column 3']");
    page.wait("lens.patch === 6");
    assert_shown(0, 6);
    // By keys: from the slider to a deeper layer, and from patch to patch.
    page.evaluate("document.querySelector('#layer').focus()");
    page.press("ArrowRight");
    page.press("ArrowRight");
    page.wait("lens.layer === 2");
    assert_shown(2, 6);
    page.evaluate("document.querySelector('.patch[aria-selected=true]').focus()");
    page.press("ArrowDown");
    page.press("ArrowLeft");
    page.wait("lens.patch === 9");
    page.press("PageUp");
    page.wait("lens.layer === 3");
    assert_shown(3, 9);
    ask(&page, "what?", 6);
    assert_eq!(answers(&page).len(), 2, "both models answer");
    page.click("#remove");
    assert_eq!(page.evaluate("document.querySelector('#lens').hidden"), true);
    assert_only_own_requests(&page, &server);
}

#[test]
fn the_page_is_legible_on_a_phone_and_in_the_dark() {
    let server = Serving::start(BASIC, &[&fixture("plain"), &fixture("sharded")], &[]);
    let Some(page) = opened(&server) else { return };
    give(&page, "b.png");
    ask(&page, &format!("what is {} in the picture?", "averylongword".repeat(20)), 12);
    page.evaluate("document.querySelector('#settings').open = true");
    for (width, height) in [(320, 568), (390, 844), (768, 1024), (1280, 900)] {
        page.resize(width, height);
        assert!(!page.scrolls_sideways(), "at {width} pixels");
        let small = page.evaluate(
            "[...document.querySelectorAll('button, .button, summary')].filter(e => e.getBoundingClientRect().height < 32).length",
        );
        assert_eq!(small, 0, "buttons are large enough for a finger");
    }
    let colours =
        || page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]");
    page.prefer("light");
    let light = colours();
    page.prefer("dark");
    assert_ne!(light, colours());
    if let Ok(dir) = std::env::var("BASIC_SCREENSHOTS") {
        page.screenshot(&PathBuf::from(&dir).join("serve-dark.png"), 1.0);
        page.prefer("light");
        page.screenshot(&PathBuf::from(&dir).join("serve-light.png"), 1.0);
        page.resize(390, 844);
        page.screenshot(&PathBuf::from(&dir).join("serve-phone.png"), 2.0);
    }
    assert_only_own_requests(&page, &server);
}

#[test]
fn errors_are_told_and_a_key_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "secret").unwrap();
    let options = ["--api-key-file", key.to_str().unwrap(), "--max-pixels", "10"];
    let server = Serving::start(BASIC, &[&fixture("plain")], &options);
    let Some(page) = opened(&server) else { return };
    assert!(page.text("#models").contains("API key"));
    page.evaluate("document.querySelector('#settings').open = true");
    page.evaluate("document.querySelector('#key').value = 'secret'");
    page.evaluate("document.querySelector('#key').dispatchEvent(new Event('change'))");
    page.wait("document.querySelectorAll('.column').length === 1");
    page.evaluate(&format!(
        "take(new File([Uint8Array.from(atob({}), c => c.charCodeAt(0))], 'b.png', {{type: 'image/png'}}))",
        Value::from(data_url("b.png").split_once(',').unwrap().1)
    ));
    page.wait("document.querySelector('#look-status').textContent.includes('image: ')");
    page.evaluate("take(new File(['x'], 'notes.txt', {type: 'text/plain'}))");
    page.wait("document.querySelector('#look-status').textContent === 'notes.txt is no picture.'");
    page.evaluate("document.querySelector('#question').value = 'what?'");
    page.click("#send");
    page.wait("document.querySelector('.wrong')?.textContent.includes('messages[0]')");
    page.click("#remove");
    page.click("#renew");
    ask(&page, "a question without a picture", 4);
    assert_eq!(answers(&page).len(), 1);
}
