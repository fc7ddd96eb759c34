//! Tests with tokenizers whose files would make the library run forever or fill the memory.

use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use serde_json::{Value, json};

use super::fixtures;
use crate::processor::{Result, TokenIds, Tokenizer};

fn vocabulary() -> Value {
    let tokens = ('!'..='~').map(String::from).chain(["Ġ".into(), "Ċ".into(), "▁".into()]);
    tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect::<serde_json::Map<_, _>>().into()
}

/// A tokenizer of single characters with one additional part.
fn with(part: &str, step: &Value) -> Result<Tokenizer> {
    let mut file = json!({
        "version": "1.0", "added_tokens": [],
        "model": { "type": "BPE", "vocab": vocabulary(), "merges": [] },
    });
    file[part] = step.clone();
    load(&file)
}

fn load(file: &Value) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::load(dir.path(), &TokenIds::default())
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

fn replace(pattern: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "Regex": pattern }, "content": "b" })
}

#[test]
fn patterns_without_end_are_an_error_that_names_the_file_wherever_they_stand() {
    // With the characters that a pattern requires, because a search would otherwise end before it begins.
    let text = format!("{}!7d!", "a".repeat(50_000));
    let begun = Instant::now();
    for pattern in ["(a+)+$", "(a|a)*$", "(a*)*[b-d]", "(a|aa)+$", r"((a+)+)+\d", r"(?:a+)+$|b\d"] {
        for (part, step) in [("pre_tokenizer", split(pattern)), ("normalizer", replace(pattern))] {
            let encoded = with(part, &step).unwrap().encode(&text, false).map(|ids| ids.len());
            let said = encoded.expect_err(pattern).to_string();
            assert!(said.contains("tokenizer.json: the tokenizer failed on") && said.contains("patterns"), "{said}");
            assert!(said.contains("aaaa") && said.contains("(50004 bytes)") && said.len() < 1000, "{said}");
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let sequence = json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, replace("(a+)+$")] });
    let tokenizer = with("decoder", &sequence).unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    let said = tokenizer.decode(&ids, false).unwrap_err().to_string();
    assert!(said.contains("tokenizer.json: the tokenizer failed on the ids [") && said.contains("patterns"), "{said}");
}

#[test]
fn strange_patterns_that_end_in_time_mean_what_they_mean() {
    let tokenizer = with("pre_tokenizer", &split("a*b|c")).unwrap();
    assert_eq!(tokenizer.encode("aabc", false).unwrap().len(), 4);
    assert!(with("normalizer", &replace("(a+)+$")).unwrap().encode("xaa", false).is_ok());
}

#[test]
fn a_pattern_that_nests_deep_or_repeats_often_ends_in_a_result_or_an_error() {
    let deep = format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000));
    let captures = format!("({}a{})*", "(".repeat(2000), ")".repeat(2000));
    let text = "a".repeat(1_000_000);
    for pattern in [deep.as_str(), &captures, "(?:(?:a{0,1000}){0,1000}){0,1000}b", "(?=a*+)a", "(?:a?){100000}b"] {
        // Any result is fine, as long as it returns.
        if let Ok(tokenizer) = with("pre_tokenizer", &split(pattern)) {
            let _ = tokenizer.encode(&text[..20_000], false);
            drop(tokenizer);
        }
    }
    let said = with("pre_tokenizer", &split(&captures)).and_then(|tokenizer| tokenizer.encode(&text, false));
    assert!(said.is_err(), "4000 entries of a stack for each of a million bytes");
}

#[test]
fn an_added_token_that_the_normalizer_never_gets_through_is_an_error_while_the_file_is_read() {
    let mut file = json!({
        "version": "1.0", "normalizer": replace("(a+)+$"), "model": { "type": "BPE", "vocab": vocabulary(), "merges": [] },
    });
    file["added_tokens"] = json!([{
        "id": 97, "content": format!("{}!", "a".repeat(40_000)), "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": true, "special": false,
    }]);
    let said = load(&file).unwrap_err().to_string();
    assert!(said.contains("tokenizer.json") && said.contains("patterns"), "{said}");
}

#[test]
fn a_damaged_table_of_replacements_is_refused_by_name() {
    for table in [json!("////"), json!("/////wAAAAA="), json!("AAAAAA=="), json!("%%"), json!(3), json!(null)] {
        let step = json!({ "type": "Precompiled", "precompiled_charsmap": table });
        let said = with("normalizer", &step).unwrap_err().to_string();
        assert!(said.contains("tokenizer.json") && said.contains("precompiled_charsmap"), "{said}");
    }
}

#[test]
fn long_texts_take_time_in_proportion() {
    // The worst cases for the patterns of real tokenizers, and a usual text.
    let texts = [
        " ".repeat(1 << 20),
        "a".repeat(1 << 16),
        "The quick brown fox isn't here; 12345!\n\n  ".repeat(24_000),
        "\r\n \t".repeat(1 << 18),
    ];
    for name in ["bytelevel", "llama"] {
        let tokenizer = Tokenizer::load(&fixtures().join(name), &TokenIds::default()).unwrap();
        assert!(tokenizer.clock.is_none(), "{name} has the usual patterns and needs no clock");
        for text in &texts {
            let begun = Instant::now();
            tokenizer.encode(text, false).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(20), "{name} {:?}: {:?}", &text[..9], begun.elapsed());
        }
    }
    for pattern in &super::super::tokenizer_bounds::QUICK {
        let tokenizer = with("pre_tokenizer", &split(pattern)).unwrap();
        assert!(tokenizer.clock.is_none());
        for text in &texts {
            let begun = Instant::now();
            tokenizer.encode(text, false).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(20), "{pattern} {:?}: {:?}", &text[..9], begun.elapsed());
        }
    }
}

#[test]
fn a_clock_changes_no_result() {
    let text = "Sphinx of black quartz, judge my vow.\n".repeat(100);
    let plain = with("pre_tokenizer", &split(" ")).unwrap();
    let timed = with("pre_tokenizer", &split("[ ]")).unwrap();
    assert!(plain.clock.is_none() && timed.clock.is_some());
    let (a, b) = (plain.encode_with_offsets(&text, true).unwrap(), timed.encode_with_offsets(&text, true).unwrap());
    assert_eq!(a, b);
    assert_eq!(plain.decode(&a.ids, true).unwrap(), timed.decode(&b.ids, true).unwrap());
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

fn sentencepiece(pieces: Vec<Piece>, model_type: i32) -> std::result::Result<Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    let model = Model { pieces, trainer: Some(Trainer { model_type: Some(model_type) }) };
    std::fs::write(dir.path().join("tokenizer.model"), model.encode_to_vec()).unwrap();
    let loaded = Tokenizer::load(Path::new(dir.path()), &TokenIds::default());
    loaded.map_err(|e| e.to_string()).inspect_err(|e| assert!(e.contains("tokenizer.model"), "{e}"))
}

#[test]
fn pieces_that_sentencepiece_would_not_write_are_refused_by_their_place() {
    let piece =
        |text: &str, score: f32, kind: i32| Piece { piece: Some(text.into()), score: Some(score), kind: Some(kind) };
    let usual = || vec![piece("<unk>", 0.0, 2), piece("a", -1.0, 1), piece("b", -2.0, 1), piece("ab", -3.0, 1)];
    let good = sentencepiece(usual(), 2).unwrap();
    assert_eq!(good.encode("ab", false).unwrap().last(), Some(&3));
    let also = |wrong: Piece| sentencepiece(usual().into_iter().chain([wrong]).collect(), 2).unwrap_err();
    assert!(also(piece("c", f32::NAN, 1)).contains("piece 4 (\"c\") has the score NaN"));
    assert!(also(piece("c", f32::INFINITY, 1)).contains("score inf"));
    assert!(also(piece("ab", -4.0, 1)).contains("a second time, after piece 3"));
    assert!(also(piece("", -4.0, 1)).contains("has no text"));
    assert!(also(piece("c", -4.0, 77)).contains("type 77"));
    assert!(also(piece(&"c".repeat(2000), -4.0, 1)).contains("2000 bytes long"));
    assert!(sentencepiece(Vec::new(), 2).unwrap_err().contains("0 pieces"));
    assert!(sentencepiece(usual(), -5).unwrap_err().contains("trainer_spec.model_type"));
}
