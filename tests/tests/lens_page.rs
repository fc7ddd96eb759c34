//! Opens `lens.html` in a browser: it must show the values of the JSON, by mouse, keys and slider, also on a phone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use basic_eval::lens::{Grid, ImageReading, LayerReading, Pictured, Place, Reading, TokenText, lens_html};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::browser::Page;
use tests::fixtures::{fixture, number, read_json, text};
use tests::{args, run};

/// The page of one or two checkpoints for an image, and its JSON.
fn analyzed(checkpoints: &[&str], more: &[&str]) -> (TempDir, PathBuf, Value) {
    over_images(checkpoints, &["a.png"], more)
}

/// The same for several images.
fn over_images(checkpoints: &[&str], images: &[&str], more: &[&str]) -> (TempDir, PathBuf, Value) {
    let dir = tempfile::tempdir().unwrap();
    let mut line = args!["analyze", fixture(checkpoints[0]), "--device", "cpu", "--out", dir.path()];
    line.extend(images.iter().flat_map(|name| args!["--image", fixture("images").join(name)]));
    line.extend(args![
        "--prompt",
        format!("USER: {}\\nwhat is in the picture? ASSISTANT:", "<image> ".repeat(images.len()))
    ]);
    if let Some(other) = checkpoints.get(1) {
        line.extend(args!["--compare", fixture(other)]);
    }
    line.extend(more.iter().map(OsString::from));
    run(env!("CARGO_BIN_EXE_basic-under-test"), line).succeeded();
    let (page, told) = (dir.path().join("lens.html"), read_json(&dir.path().join("lens.json")));
    (dir, page, told)
}

/// A token as the page writes it: with dots for outer spaces and symbols for invisible characters.
fn shown(page: &Page, token: &str) -> String {
    text(&page.evaluate(&format!("visible({})", Value::from(token)))).to_string()
}

/// The tokens in the panel of a checkpoint, each with its text and number.
fn listed(page: &Page, view: usize) -> Vec<(String, String)> {
    let script = format!(
        "[...document.querySelectorAll('.view')[{view}].querySelectorAll('.tokens li')].map(li => \
         [li.querySelector('bdi').textContent, li.querySelector('.number').textContent])"
    );
    let pair = |pair: &Value| (text(&pair[0]).to_string(), text(&pair[1]).to_string());
    page.evaluate(&script).as_array().unwrap().iter().map(pair).collect()
}

/// Asserts that the panel lists the tokens of the JSON.
#[track_caller]
fn assert_listed(page: &Page, told: &Value, view: usize, layer: usize, patch: usize, kind: &str) {
    assert_listed_of(page, told, (view, 0), layer, patch, kind);
}

/// The same for a checkpoint and an image, by their numbers.
#[track_caller]
fn assert_listed_of(page: &Page, told: &Value, (view, image): (usize, usize), layer: usize, patch: usize, kind: &str) {
    let model = &told["checkpoints"][view];
    let near = model["images"][image]["layers"][layer][kind][patch].as_array().unwrap();
    let found = listed(page, view);
    assert_eq!(found.len(), near.len());
    for ((token, value), near) in found.iter().zip(near) {
        assert_eq!(
            *token,
            shown(page, text(&model["tokens"][near[0].to_string()]["text"])),
            "layer {layer}, patch {patch}"
        );
        let (value, scale) = match value.strip_suffix('%') {
            Some(percent) => (percent.parse::<f64>().unwrap() / 100.0, 1.1e-3),
            None => (value.parse::<f64>().unwrap(), 6e-4),
        };
        assert!((value - number(&near[1])).abs() < scale, "{value} and not {near}");
    }
}

fn slide(page: &Page, layer: usize) {
    page.evaluate(&format!(
        "(e => {{ e.value = {layer}; e.dispatchEvent(new Event('input')) }})(document.getElementById('layer'))"
    ));
}

/// Chooses an option of a select element.
fn choose(page: &Page, select: &str, option: &str) {
    page.evaluate(&format!(
        "(e => {{ e.value = '{option}'; e.dispatchEvent(new Event('change')) }})(document.getElementById('{select}'))"
    ));
}

fn cell(patch: usize) -> String {
    format!(".view .cell[data-patch='{patch}']")
}

#[test]
fn slider_mouse_and_keys_show_the_tokens_that_the_json_has() {
    let (_dir, path, told) = analyzed(&["plain"], &[]);
    let Some(page) = Page::open(&path) else { return };
    assert_listed(&page, &told, 0, 0, 0, "nearest");
    assert!(page.text("#layer-name").contains("projector"));
    page.hover(&cell(6));
    page.wait("document.querySelector('.panel h3').textContent.startsWith('Row 2, column 3')");
    assert_listed(&page, &told, 0, 0, 6, "nearest");
    for layer in [2, 4, 1] {
        slide(&page, layer);
        assert_listed(&page, &told, 0, layer, 6, "nearest");
        assert!(page.text("#layer-name").starts_with(&layer.to_string()));
    }
    // The arrow keys move among patches, and the page keys among layers.
    page.click(&cell(5));
    page.evaluate(&format!("document.querySelector({}).focus()", Value::from(cell(5))));
    for (key, patch, layer) in [
        ("ArrowRight", 6, 1),
        ("ArrowDown", 10, 1),
        ("ArrowLeft", 9, 1),
        ("ArrowUp", 5, 1),
        ("End", 7, 1),
        ("ArrowRight", 7, 1),
        ("Home", 4, 1),
        ("PageDown", 4, 2),
        ("PageUp", 4, 1),
    ] {
        page.press(key);
        assert_eq!(page.evaluate("Number(document.activeElement.dataset.patch)"), patch, "{key}");
        assert_listed(&page, &told, 0, layer, patch, "nearest");
    }
    assert_eq!(
        page.evaluate("document.querySelectorAll('.cell[tabindex=\"0\"]').length"),
        1,
        "one stop for the Tab key"
    );
    // The slider can be moved by keys.
    page.evaluate("document.getElementById('layer').focus()");
    page.press("ArrowRight");
    page.wait("document.getElementById('layer-name').textContent.startsWith('2')");
    assert_listed(&page, &told, 0, 2, 4, "nearest");
    for kind in ["scores", "logits"] {
        choose(&page, "kind", kind);
        assert_listed(&page, &told, 0, 2, 4, kind);
    }
    page.assert_quiet();
}

#[test]
fn an_address_can_say_what_is_shown() {
    let (_dir, path, told) = analyzed(&["plain"], &[]);
    let Some(page) = Page::open(&path) else { return };
    page.evaluate("location.hash = '#layer=3&patch=7&color=angle&kind=logits'");
    page.wait("document.getElementById('layer').value === '3'");
    assert_listed(&page, &told, 0, 3, 7, "logits");
    assert_eq!(page.evaluate("document.getElementById('color').value"), "angle");
    // Values that do not exist are ignored.
    page.evaluate("location.hash = '#layer=99&patch=-4&color=none&kind=<b>'");
    page.wait("document.getElementById('layer').value === '4'");
    assert_listed(&page, &told, 0, 4, 7, "logits");
    page.assert_quiet();
}

#[test]
fn each_of_several_images_can_be_chosen() {
    let (_dir, path, told) = over_images(&["plain"], &["a.png", "b.png"], &[]);
    let Some(page) = Page::open(&path) else { return };
    let options = page.evaluate("[...document.getElementById('image').options].map(option => option.text)");
    assert_eq!(options, json!(["1: a.png", "2: b.png"]));
    let source = "document.querySelector('.board img').src";
    let first = page.evaluate(source);
    choose(&page, "image", "1");
    slide(&page, 2);
    assert_listed_of(&page, &told, (0, 1), 2, 0, "nearest");
    assert_ne!(page.evaluate(source), first);
    choose(&page, "image", "0");
    assert_listed_of(&page, &told, (0, 0), 2, 0, "nearest");
    page.assert_quiet();
}

#[test]
fn two_checkpoints_share_slider_and_patch() {
    let (_dir, path, told) = analyzed(&["plain", "transformers4"], &["--meaningful", "word"]);
    let Some(page) = Page::open(&path) else { return };
    assert_eq!(page.evaluate("document.querySelectorAll('.view').length"), 2);
    slide(&page, 3);
    page.hover(".view:last-child .cell[data-patch='9']");
    page.wait("document.querySelector('.view .panel h3').textContent.startsWith('Row 3, column 2')");
    for view in 0..2 {
        assert_listed(&page, &told, view, 3, 9, "nearest");
        let layer = &told["checkpoints"][view]["images"][0]["layers"][3];
        let hits = layer["meaningful"].as_array().unwrap().iter().filter(|one| **one == true).count();
        let said = page.evaluate(&format!("document.querySelectorAll('.summary')[{view}].textContent"));
        assert!(text(&said).starts_with(&format!("{hits} of 16 meaningful")), "{said}");
    }
    page.assert_quiet();
}

#[test]
fn every_colour_has_its_scale_and_colours_the_cells() {
    let (_dir, path, told) = analyzed(&["plain"], &["--caption", "a dog", "--meaningful", "caption"]);
    let Some(page) = Page::open(&path) else { return };
    slide(&page, 2);
    let layer = &told["checkpoints"][0]["images"][0]["layers"][2];
    let color = |name: &str| {
        choose(&page, "color", name);
        let shades = page.evaluate("[...document.querySelectorAll('.grid .cell')].map(c => c.style.backgroundColor)");
        (shades.as_array().unwrap().clone(), page.text("#scale"))
    };
    for name in ["similarity", "attention", "weight", "angle", "norm"] {
        let (shades, scale) = color(name);
        assert!(!scale.is_empty() && shades.iter().any(|shade| *shade != shades[0]), "{name}: {scale}");
    }
    // The patch with the largest attention has the lightest colour of the scale.
    let (shades, scale) = color("attention");
    let most = layer["attention"]
        .as_array()
        .unwrap()
        .iter()
        .map(number)
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    assert!(text(&shades[most.0]).starts_with("rgba(253, 231, 37"), "{}", shades[most.0]);
    assert!(scale.contains("in this layer"));
    let (shades, scale) = color("meaningful");
    for (judged, shade) in layer["meaningful"].as_array().unwrap().iter().zip(&shades) {
        let expected = if *judged == true { "rgba(94, 201, 98" } else { "rgba(110, 113, 120" };
        assert!(text(shade).starts_with(expected), "{judged}: {shade}");
    }
    assert!(scale.contains("not meaningful"));
    page.assert_quiet();
}

#[test]
fn a_phone_shows_it_without_scrolling_sideways_and_the_dark_scheme_is_dark() {
    let (_dir, path, _) = analyzed(&["plain", "families/llama-dynamic"], &[]);
    let Some(page) = Page::open(&path) else { return };
    for width in [375, 320, 768, 1280] {
        page.resize(width, 800);
        page.wait(&format!("innerWidth === {width}"));
        assert!(!page.scrolls_sideways(), "at {width} pixels");
    }
    let labelled =
        "[...document.querySelectorAll('select, input')].every(e => e.labels.length === 1 && e.labels[0].textContent)";
    assert_eq!(page.evaluate(labelled), true, "every control has a label");
    let brightness = "(c => Number(c[0]) + Number(c[1]) + Number(c[2]))(getComputedStyle(document.body).backgroundColor.match(/\\d+/g))";
    page.prefer("light");
    assert!(number(&page.evaluate(brightness)) > 600.0);
    page.prefer("dark");
    assert!(number(&page.evaluate(brightness)) < 200.0);
    // The second checkpoint keeps the CLS token, which has no place in the image.
    assert!(page.text(".view:last-child .others").contains("CLS"));
    page.assert_quiet();
}

#[test]
fn hostile_tokens_and_names_are_shown_as_text() {
    let hostile = [
        "</script><script>document.title='taken'</script>",
        "<img src=x onerror=\"document.title='taken'\">",
        "\u{2028}\u{0}\u{202e}'\"`${1}",
        "\n\t ",
    ];
    let reading = reading_of(&hostile);
    let places = (0..4).map(|i| Place::Patch { row: i / 2, column: i % 2 }).collect();
    let grid = Grid { side: 2, places };
    let model = Pictured {
        name: hostile[0].into(),
        reading: &reading,
        grid: &grid,
        k: 1,
        answers: vec![("Answer", hostile[0].into())],
        images: vec![(hostile[1].into(), PIXEL.into())],
    };
    let html = lens_html(&[model], &[("Prompt", hostile.concat())]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lens.html");
    std::fs::write(&path, html).unwrap();
    let Some(page) = Page::open(&path) else { return };
    for (patch, token) in hostile.iter().enumerate() {
        page.hover(&cell(patch));
        page.wait(&format!("state.patch === {patch}"));
        assert_eq!(listed(&page, 0)[0].0, shown(&page, token));
    }
    assert_eq!(shown(&page, hostile[2]), "\\u2028\\x00\\u202e'\"`${1}");
    assert_eq!(shown(&page, hostile[3]), "↵⇥·");
    assert_eq!(page.text("h2"), hostile[0]);
    assert_eq!(page.text(".answered dd"), hostile[0]);
    assert!(text(&page.evaluate("document.title")).starts_with("Token lens"));
    assert_eq!(page.evaluate("[document.scripts.length, document.images.length]"), json!([2, 1]));
    page.assert_quiet();
}

#[test]
fn the_page_paints_where_a_query_looks() {
    let mut reading = reading_of(&["a", "b", "c", "d"]);
    // Four queries over a grid of two by two patches.
    reading.images[0].queries =
        vec![vec![0.25, 0.5, 0.0, 0.25], vec![0.1, 0.1, 0.6, 0.2], vec![0.0; 4], vec![0.7, 0.1, 0.1, 0.1]];
    let grid = Grid { side: 2, places: (0..4).map(Place::Query).collect() };
    let model = Pictured {
        name: "resampler".into(),
        reading: &reading,
        grid: &grid,
        k: 1,
        answers: Vec::new(),
        images: vec![("white".into(), PIXEL.into())],
    };
    let html = lens_html(&[model], &[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lens.html");
    std::fs::write(&path, html).unwrap();
    let Some(page) = Page::open(&path) else { return };
    let pixels = "[...document.querySelector('.heat').getContext('2d').getImageData(0, 0, 2, 2).data]";
    // From dark (nowhere) to light (where it looks most), in Viridis; 60% opaque.
    let opaque = "(p => [0, 1, 2, 3].map(at => p.slice(4 * at, 4 * at + 3).reduce((a, b) => a + b)))";
    for (query, brightest, share) in [(1, 2, "60.0%"), (3, 0, "70.0%"), (0, 1, "50.0%")] {
        page.hover(&cell(query));
        page.wait(&format!("state.patch === {query}"));
        let sums = tests::fixtures::numbers(&page.evaluate(&format!("{opaque}({pixels})")));
        let most = (0..4).max_by(|a, b| sums[*a].total_cmp(&sums[*b])).unwrap();
        assert_eq!(most, brightest, "{sums:?}");
        assert!(page.text(".looks").contains(share), "{}", page.text(".looks"));
    }
    assert!(page.text(".looks").contains("row 1, column 2"));
    assert_eq!(page.evaluate("document.querySelector('.heat').hidden"), json!(false));
    page.assert_quiet();
    let (_dir, path, _) = analyzed(&["plain"], &[]);
    let Some(page) = Page::open(&path) else { return };
    assert_eq!(page.evaluate("document.querySelector('.heat').hidden"), json!(true));
}

/// A white PNG of one pixel.
const PIXEL: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mP8/wcAAgMBAKqZ3bwAAAAASUVORK5CYII=";

/// A reading of four patches and one layer; patch i is nearest to token i.
fn reading_of(tokens: &[&str]) -> Reading {
    let layer = LayerReading {
        layer: 0,
        norm: vec![1.0; 4],
        angle: vec![45.0; 4],
        attention: None,
        nearest: (0..4).map(|id| vec![(id, 0.5)]).collect(),
        scores: Vec::new(),
        logits: Vec::new(),
        meaningful: vec![Some(false); 4],
        meaningful_share: Some(0.0),
        end_share: None,
        end_cosine: None,
        direction: Vec::new(),
    };
    let token = |text: &&str| TokenText { token: None, text: text.to_string(), folded: String::new(), word: false };
    Reading {
        images: vec![ImageReading {
            text_rows: 1,
            attention: vec![0.0; 4],
            queries: Vec::new(),
            layers: vec![layer],
            target_direction: Vec::new(),
        }],
        tokens: (0..).zip(tokens.iter().map(token)).collect::<BTreeMap<u32, TokenText>>(),
    }
}
