//! Tests the browser harness itself: it must notice what a page does wrong, or the tests of pages prove nothing.

use std::fs;

use tests::browser::{Heard, Page};

const QUIET: &str = "<!doctype html><title>t</title><link rel=icon href=data:,><input id=i><p id=p>text</p>\
<button id=b onclick='p.textContent = \"clicked\"' onmouseover='p.textContent = \"over\"'>b</button>\
<script>i.onkeydown = e => p.textContent = e.key</script>";

/// Opens a page with this HTML; `None` if there is no browser.
fn page(text: &str) -> Option<(tempfile::TempDir, Page)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a page é.html");
    fs::write(&path, text).unwrap();
    Some((dir, Page::open(&path)?))
}

#[test]
fn mouse_keys_and_the_window_reach_a_page_that_is_quiet() {
    let Some((_dir, page)) = page(QUIET) else { return };
    assert_eq!(page.text("#p"), "text");
    page.hover("#b");
    page.wait("p.textContent === 'over'");
    page.click("#b");
    page.wait("p.textContent === 'clicked'");
    page.evaluate("i.focus()");
    page.press("ArrowRight");
    assert_eq!(page.text("#p"), "ArrowRight");
    page.resize(375, 700);
    assert_eq!(page.evaluate("[innerWidth, innerHeight]"), serde_json::json!([375, 700]));
    assert!(!page.scrolls_sideways());
    page.evaluate("p.style.width = '400px'");
    assert!(page.scrolls_sideways());
    page.prefer("dark");
    assert_eq!(page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches"), true);
    page.assert_quiet();
}

#[test]
fn errors_exceptions_and_requests_are_heard() {
    for (script, word) in [
        ("console.error('spilled')", "spilled"),
        ("console.warn('careful')", "careful"),
        ("throw new Error('thrown')", "thrown"),
        ("setTimeout(() => missing(), 5)", "missing is not defined"),
        ("Promise.reject(new Error('rejected'))", "rejected"),
    ] {
        let Some((_dir, page)) = page(&format!("{QUIET}<script>{script}</script>")) else { return };
        let Heard { complaints, requests } = page.heard();
        assert!(complaints.iter().any(|said| said.contains(word)), "{script}: {complaints:?}");
        assert_eq!(requests, Vec::<String>::new(), "{script}");
    }
    let Some((_dir, page)) = page(&format!("{QUIET}<img src='http://127.0.0.1:9/x.png'><img src='other.png'>")) else {
        return;
    };
    let Heard { requests, .. } = page.heard();
    assert!(requests.iter().any(|url| url == "http://127.0.0.1:9/x.png"), "{requests:?}");
    assert!(requests.iter().any(|url| url.ends_with("/other.png")), "{requests:?}");
}
