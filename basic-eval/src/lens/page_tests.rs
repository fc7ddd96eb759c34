//! Tests that the page is safe, self-contained and small, whatever characters tokens and names have.

use std::collections::BTreeMap;

use super::*;

const HOSTILE: [&str; 4] =
    ["</script><script>alert(1)</script>", "\"'<img src=x onerror=alert(1)>", "\u{2028}\0\u{202e}", "<!--"];

fn reading(tokens: &[&str]) -> Reading {
    let near = |id: u32| vec![(id, 0.5), (id + 1, -0.25)];
    let layer = |layer: usize| LayerReading {
        layer,
        norm: vec![1.5; 4],
        angle: vec![90.0; 4],
        attention: (layer > 0).then(|| vec![0.125; 4]),
        nearest: (0..4).map(|patch| near(patch % 3)).collect(),
        scores: Vec::new(),
        logits: Vec::new(),
        meaningful: vec![Some(true), Some(false), None, None],
        meaningful_share: Some(0.5),
        end_share: Some(0.0),
        end_cosine: Some(0.1),
        direction: Vec::new(),
    };
    let token = |text: &&str| TokenText {
        token: Some(text.to_string()),
        text: text.to_string(),
        folded: text.to_string(),
        word: true,
    };
    Reading {
        images: vec![ImageReading {
            text_rows: 3,
            attention: vec![0.25; 4],
            queries: Vec::new(),
            layers: vec![layer(0), layer(1)],
            target_direction: Vec::new(),
        }],
        tokens: (0..).zip(tokens.iter().map(token)).collect::<BTreeMap<u32, TokenText>>(),
    }
}

fn grid() -> Grid {
    let places = (0..4).map(|i| Place::Patch { row: i / 2, column: i % 2 }).collect();
    Grid { side: 2, places }
}

fn page(name: &str, models: usize) -> String {
    let (reading, grid) = (reading(&HOSTILE), grid());
    let images = vec![(name.to_string(), "data:image/png;base64,AAAA".to_string())];
    let model = Pictured {
        name: name.into(),
        reading: &reading,
        grid: &grid,
        k: 1,
        answers: vec![("Answer", name.to_string())],
        images,
    };
    lens_html(&vec![model; models], &[("Prompt", name.to_string())]).unwrap()
}

#[test]
fn text_from_outside_is_escaped_wherever_it_stands() {
    for hostile in HOSTILE {
        let html = page(hostile, 2);
        assert_eq!(html.matches("<script").count(), 2, "the page's own: the data and the program");
        assert_eq!(html.matches("</script>").count(), 2);
        assert!(!html.contains("<img src=x") && !html.contains("<!--"), "{hostile:?}");
        // Line separators are only harmful in a script, so only the data must escape them.
        let data = html.split_once("id=\"lens-data\">").and_then(|(_, rest)| rest.split_once("</script>")).unwrap().0;
        assert!(data.contains("\\u2028") && !data.contains(['\u{2028}', '<', '>']), "{hostile:?}");
    }
}

#[test]
fn the_page_refers_to_nothing_outside_itself() {
    let html = page("a", 2);
    for reference in ["https:", "url(", "@import", "src=\"", "fetch(", "XMLHttpRequest"] {
        assert!(!html.contains(reference), "{reference}");
    }
    // The SVG namespace is only an identifier, not a URL that is requested.
    assert_eq!(html.matches("http:").count(), html.matches("http://www.w3.org/2000/svg").count());
}

#[test]
fn an_image_that_both_checkpoints_see_alike_is_there_once() {
    assert_eq!(page("a", 2).matches("base64,AAAA").count(), 1);
}

#[test]
fn a_page_of_the_papers_size_stays_small() {
    // 576 patches, 33 layers, 5 tokens for each of three kinds of nearness, and a vocabulary of 32,000.
    let list = |salt: u32| -> Vec<Vec<Near>> {
        (0..576u32).map(|p| (0..5).map(|n| ((p * 977 + n * 131 + salt * 7919) % 32_000, 0.3)).collect()).collect()
    };
    let layer = |layer: usize| LayerReading {
        layer,
        norm: vec![1.5; 576],
        angle: vec![90.0; 576],
        attention: Some(vec![0.125; 576]),
        nearest: list(layer as u32),
        scores: list(layer as u32 + 40),
        logits: list(layer as u32 + 80),
        meaningful: vec![Some(true); 576],
        meaningful_share: Some(1.0),
        end_share: Some(0.0),
        end_cosine: Some(0.1),
        direction: Vec::new(),
    };
    let layers: Vec<LayerReading> = (0..33).map(layer).collect();
    let token = |id: u32| TokenText { token: None, text: format!(" token{id}"), folded: String::new(), word: true };
    let reading = Reading {
        images: vec![ImageReading {
            text_rows: 9,
            attention: vec![0.25; 576],
            queries: Vec::new(),
            layers,
            target_direction: Vec::new(),
        }],
        tokens: (0..32_000).map(|id| (id, token(id))).collect(),
    };
    let places = (0..576).map(|i| Place::Patch { row: i / 24, column: i % 24 }).collect();
    let grid = Grid { side: 24, places };
    let images = vec![("a".to_string(), "data:,".to_string())];
    let model = Pictured { name: "m".into(), reading: &reading, grid: &grid, k: 16, answers: Vec::new(), images };
    let html = lens_html(&[model], &[]).unwrap();
    assert!(html.len() < 3 << 20, "{} bytes", html.len());
}
