//! Compares labels with LLaVA's own masks (the fixture is made by tests/reference/label_fixtures.py): equal where those
//! are right, and checked against the correct labels where they are wrong.

use serde_json::{Value, json};

use super::super::*;
use super::{dialogue, fixtures, json, tokenizer};
use crate::config::Tiles;

/// The tokenizer of a case: a fixture's, with the case's changes.
fn patched(case: &Value) -> Tokenizer {
    let name = case["tokenizer"].as_str().unwrap();
    let patch = case["patch"].as_object().unwrap();
    if patch.is_empty() {
        return tokenizer(name);
    }
    let mut file = json(&format!("{name}/tokenizer.json"));
    for (key, value) in patch {
        match key.as_str() {
            "merges" => add_merges(&mut file["model"], value),
            key => file[key] = value.clone(),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy_tokenizer_files(&fixtures().join(name), dir.path()).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::load(dir.path(), &TokenIds::default()).unwrap()
}

/// Adds one merge for each pair.
fn add_merges(model: &mut Value, pairs: &Value) {
    for (i, pair) in pairs.as_array().unwrap().iter().enumerate() {
        let merged = format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        model["vocab"][merged] = json!(900 + i);
        model["merges"].as_array_mut().unwrap().push(pair.clone());
    }
}

/// The conversation of a case, read from LLaVA's JSON if that can express it.
fn messages(turns: &[String], system: Option<&str>) -> Vec<Message> {
    let speaker = |i: usize| if i.is_multiple_of(2) { "human" } else { "gpt" };
    let list: Vec<Value> =
        turns.iter().enumerate().map(|(i, turn)| json!({ "from": speaker(i), "value": turn })).collect();
    let mut messages = from_llava(&Value::Array(list)).unwrap_or_else(|_| dialogue(turns));
    if let Some(system) = system {
        messages.insert(0, Message::new(Role::System, system));
    }
    messages
}

fn runs(case: &Value) -> Vec<(usize, usize)> {
    serde_json::from_value(case.clone()).unwrap()
}

fn supervised(example: &Example) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, _) in example.labels.iter().enumerate().filter(|(_, label)| **label != IGNORE) {
        match runs.last_mut() {
            Some(last) if last.1 == i => last.1 = i + 1,
            _ => runs.push((i, i + 1)),
        }
    }
    runs
}

/// The text that the loss covers, without white space, some of which Llama's decoder removes.
fn spoken(tokenizer: &Tokenizer, example: &Example) -> String {
    let ids: Vec<u32> = example.labels.iter().filter_map(|&label| u32::try_from(label).ok()).collect();
    tokenizer.decode(&ids, false).unwrap().split_whitespace().collect()
}

#[test]
fn labels_are_llavas_where_those_are_right_and_the_truth_where_they_are_not() {
    let cases = json("labels.json");
    let (mut right, mut wrong, mut other_text) = (0, 0, 0);
    for case in cases.as_array().unwrap() {
        let tokenizer = patched(case);
        let turns: Vec<String> = serde_json::from_value(case["turns"].clone()).unwrap();
        let named = format!("{} {} {turns:?}", case["tokenizer"], case["style"]);
        let messages = messages(&turns, case["system"].as_str());
        let style = Style::from(LlavaStyle::by_name(case["style"].as_str().unwrap()).unwrap());
        let pieces = render(&style, &messages, tokenizer.specials());
        if turns.iter().skip(1).step_by(2).any(String::is_empty) {
            // LLaVA trains on such a sample without any loss.
            assert!(matches!(pieces, Err(ProcessorError::EmptyMessage { .. })), "{named}");
            assert!(!case["right"].as_bool().unwrap());
            wrong += 1;
            continue;
        }
        let pieces = pieces.unwrap();
        let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        let images = turns.iter().filter(|turn| turn.contains(PLACEHOLDER)).count();
        let example = tokenize(&tokenizer, &pieces, &vec![Tiles::whole(1); images]).unwrap();
        // In all cases the loss covers the whole of all answers, and otherwise only what shares a token with them.
        let answers: String = pieces.iter().filter(|piece| piece.supervised).map(|piece| piece.text.as_str()).collect();
        let spoken = spoken(&tokenizer, &example);
        let spoken = if case["patch"]["merges"].is_array() { spoken.replace("ASSISTANT:", "") } else { spoken };
        assert_eq!(spoken, answers.split_whitespace().collect::<String>(), "{named}");

        let specials = tokenizer.specials();
        let hostile =
            turns.iter().any(|turn| specials.all().any(|special| special != PLACEHOLDER && turn.contains(special)));
        let theirs = case["text"].as_str().unwrap();
        if hostile || text != theirs {
            // In LLaVA, a user's `</s>` ends a sequence, and it writes `</s>` and `<s>` whatever the
            // tokenizer's own tokens are.
            let own = |text: &str, written: &str, token: &Option<String>| match token {
                Some(token) => text.replace(written, token),
                None => text.to_owned(),
            };
            if !hostile {
                let expected = own(&own(theirs, "</s>", &specials.eos), "<s>", &specials.bos);
                assert_eq!(text, expected, "{named}");
            }
            assert!(!case["right"].as_bool().unwrap(), "{named}");
            other_text += 1;
            continue;
        }
        let ids = case.get("whole").unwrap_or(&case["ids"]);
        assert_eq!(example.ids, serde_json::from_value::<Vec<u32>>(ids.clone()).unwrap(), "{named}");
        assert_eq!(supervised(&example), runs(&case["truth"]), "{named}");
        if case["right"].as_bool().unwrap() {
            // The same tokens have a loss, at the same positions unless LLaVA tokenizes the parts
            // around an image separately.
            let theirs: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let theirs: Vec<u32> = runs(&case["llava"]).iter().flat_map(|(a, b)| theirs[*a..*b].to_vec()).collect();
            let ours = example.labels.iter().filter_map(|label| u32::try_from(*label).ok());
            assert_eq!(ours.collect::<Vec<_>>(), theirs, "{named}");
            assert!(case.get("whole").is_some() || supervised(&example) == runs(&case["llava"]), "{named}");
            right += 1;
        } else {
            assert_ne!(case["llava"], case["truth"], "{named}: {}", case["why"]);
            assert!(!example.labels.iter().all(|label| *label == IGNORE));
            wrong += 1;
        }
    }
    // Enough cases of both kinds, so that a broken fixture is noticed.
    assert!(
        right >= 50 && wrong >= 25 && other_text >= 5,
        "{right} right, {wrong} wrong, {other_text} of another text"
    );
}

#[test]
fn each_known_defect_of_llavas_masks_has_a_case_with_a_reason() {
    let cases = json("labels.json");
    let wrong = |case: &&Value| !case["right"].as_bool().unwrap();
    let reasons: Vec<&str> =
        cases.as_array().unwrap().iter().filter(wrong).map(|case| case["why"].as_str().unwrap()).collect();
    for issue in ["779", "1166", "1706", "1710"] {
        assert!(reasons.iter().any(|why| why.contains(issue)), "issue {issue} of LLaVA has no case");
    }
    assert!(reasons.iter().all(|why| why.len() > 20));
}

#[test]
fn a_token_across_the_boundary_belongs_to_the_answer() {
    // ChatML's header ends with a line break, which forms one token with those of the answer; Vicuna's header takes the
    // space before the answer.
    let lines = json!({ "tokenizer": "qwen", "patch": { "merges": [["Ċ", "Ċ"], ["ĊĊ", "Ċ"]] } });
    let colon = json!({ "tokenizer": "llama", "patch": { "merges": [["▁ASSISTANT:", "▁"]] } });
    let cases =
        [(lines, "chatml", "\n\nan answer", "\n\n\n", "assistant"), (colon, "vicuna_v1", "漢字", "ASSISTANT:", "q")];
    for (case, style, answer, across, before) in cases {
        let tokenizer = patched(&case);
        let style = Style::from(LlavaStyle::by_name(style).unwrap());
        let pieces = render(&style, &dialogue(&["q", answer]), tokenizer.specials()).unwrap();
        let example = tokenize(&tokenizer, &pieces, &[]).unwrap();
        let first = example.labels.iter().position(|label| *label != IGNORE).unwrap();
        let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
        assert_eq!(decode(&example.ids[first..first + 1]).trim_end_matches(' '), across);
        assert!(decode(&example.ids[..first]).ends_with(before));
    }
}
