use super::super::*;
use super::{dialogue, fixtures, json, numbers, tokenizer};
use crate::config::Tiles;

/// The text of the supervised tokens.
fn supervised(tokenizer: &Tokenizer, example: &Example) -> String {
    let ids: Vec<u32> = example.labels.iter().filter_map(|&label| u32::try_from(label).ok()).collect();
    for (&id, &label) in example.ids.iter().zip(&example.labels) {
        assert!(label == IGNORE || label == i64::from(id));
    }
    tokenizer.decode(&ids, false).unwrap()
}

fn vicuna(tokenizer: &Tokenizer, turns: &[&str], images: usize) -> Result<Example> {
    let pieces = render(&Style::vicuna_v1(), &dialogue(turns), tokenizer.specials())?;
    tokenize(tokenizer, &pieces, &vec![Tiles::whole(4); images])
}

#[test]
fn masks_for_one_to_three_turns_are_those_of_llavas_rule_on_llama() {
    let tokenizer = tokenizer("llama");
    for case in json("llama.json")["masks"].as_array().unwrap() {
        let turns: Vec<String> = numbers(&case["turns"]);
        let pieces = render(&Style::vicuna_v1(), &dialogue(&turns), tokenizer.specials()).unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), case["text"].as_str().unwrap());
        let example = tokenize(&tokenizer, &pieces, &[Tiles::whole(1)]).unwrap();
        assert_eq!(example.ids, numbers::<u32>(&case["ids"]));
        assert_eq!(example.labels, numbers::<i64>(&case["labels"]), "{turns:?}");
    }
}

#[test]
fn the_loss_falls_on_each_answer_and_its_end_token_with_a_byte_level_tokenizer() {
    let tokenizer = tokenizer("bytelevel");
    let example =
        vicuna(&tokenizer, &["<image>\nwhat?", "a dog.", "where?", "on the  grass", "sure?", "yes"], 1).unwrap();
    assert_eq!(supervised(&tokenizer, &example), " a dog.</s> on the  grass</s> yes</s>");
    assert_eq!(example.image_positions.len(), 1);
    assert_eq!(tokenizer.decode(&example.ids[example.image_positions[0].clone()], false).unwrap(), "<image>".repeat(4));
}

#[test]
fn an_answers_first_token_that_swallowed_the_space_before_it_is_supervised() {
    let tokenizer = tokenizer("bytelevel");
    // Even if the space is the prompt's, because the token overlaps both.
    let pieces = [RenderedPiece::prompt("ASSISTANT: "), RenderedPiece::answer("a small dog")];
    let example = tokenize(&tokenizer, &pieces, &[]).unwrap();
    assert_eq!(supervised(&tokenizer, &example), " a small dog");
}

#[test]
fn offsets_are_right_beyond_ascii() {
    for name in ["bytelevel", "llama"] {
        let tokenizer = tokenizer(name);
        let example = vicuna(&tokenizer, &["<image>\n漢字 🙂 é?", "👍🏽 naïve", "ça? 🙂", "🙂🙂 ü."], 1).unwrap();
        let text = supervised(&tokenizer, &example);
        // Llama's decoder removes one space from the front of the decoded text, and nothing else.
        let expected = " 👍🏽 naïve</s> 🙂🙂 ü.</s>";
        assert_eq!(text.trim_start(), expected.trim_start(), "{name}");
    }
}

/// The byte-level tokenizer with the given post-processor.
fn with_post_processor(post: serde_json::Value) -> Tokenizer {
    let mut file = json("bytelevel/tokenizer.json");
    file["post_processor"] = post;
    let dir = tempfile::tempdir().unwrap();
    copy_tokenizer_files(&fixtures().join("bytelevel"), dir.path()).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::load(dir.path(), &TokenIds::default()).unwrap()
}

#[test]
fn spaces_whose_offsets_were_trimmed_away_are_still_supervised() {
    let trimming =
        serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = with_post_processor(trimming);
    let turns = ["<image>\nwhat  is it?", "a  b   🙂", "and  then?", "c "];
    let example = vicuna(&tokenizer, &turns, 1).unwrap();
    assert_eq!(supervised(&tokenizer, &example), " a  b   🙂</s> c </s>");
}

#[test]
fn tokens_that_the_post_processor_adds_bear_no_loss() {
    let both = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] }, "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] } }
    });
    let tokenizer = with_post_processor(both);
    // The answer begins at byte 0, where the span of the added <s> is too.
    let example = tokenize(&tokenizer, &[RenderedPiece::answer("a dog")], &[]).unwrap();
    assert_eq!((example.ids[0], example.labels[0]), (1, IGNORE));
    assert_eq!((example.ids.last(), example.labels.last()), (Some(&2), Some(&IGNORE)));
    assert_eq!(supervised(&tokenizer, &example), "a dog");
    // If a chat template writes <s> itself, no second one is added.
    let example = tokenize(&tokenizer, &[RenderedPiece::prompt("<s>q"), RenderedPiece::answer("a")], &[]).unwrap();
    assert_eq!(example.ids.iter().filter(|&&id| id == 1).count(), 1);
    assert_eq!(tokenize_prompt(&tokenizer, "<s>q", &[]).unwrap().ids[..2], [1, tokenizer.id_of("q").unwrap()]);
}

#[test]
fn a_plain_caption_is_supervised_with_its_line_break_and_images_never_are() {
    let tokenizer = tokenizer("bytelevel");
    let pieces = render(&Style::plain(), &dialogue(&["<image>", "a red circle"]), tokenizer.specials()).unwrap();
    let example = tokenize(&tokenizer, &pieces, &[Tiles::whole(16)]).unwrap();
    assert_eq!(supervised(&tokenizer, &example), "a red circle\n");
    assert_eq!(example.image_positions, [Some(0..16)].into_iter().flatten().collect::<Vec<_>>());
    let odd = [RenderedPiece::prompt("q"), RenderedPiece::answer("see <image>")];
    assert_eq!(supervised(&tokenizer, &tokenize(&tokenizer, &odd, &[Tiles::whole(2)]).unwrap()), "see ");
}

#[test]
fn adjacent_images_get_a_range_each() {
    let tokenizer = tokenizer("bytelevel");
    let example = vicuna(&tokenizer, &["<image><image>\nwhich?", "both"], 2).unwrap();
    let [first, second] = &example.image_positions[..] else { panic!("{:?}", example.image_positions) };
    assert_eq!((first.len(), second.len(), first.end), (4, 4, second.start));
}

#[test]
fn a_sample_whose_images_and_placeholders_differ_is_an_error_with_both_counts() {
    let tokenizer = tokenizer("bytelevel");
    for (question, images, placeholders) in [("no image", 1, 0), ("<image>\nq", 0, 1), ("<image> <image> q", 1, 2)] {
        match vicuna(&tokenizer, &[question, "a"], images).unwrap_err() {
            ProcessorError::PlaceholderCount { placeholders: p, images: i, .. } => {
                assert_eq!((p, i), (placeholders, images))
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_sample_without_a_supervised_token_is_an_error() {
    let tokenizer = tokenizer("bytelevel");
    let error = tokenize(&tokenizer, &[RenderedPiece::prompt("a dog"), RenderedPiece::answer("")], &[]).unwrap_err();
    assert!(matches!(error, ProcessorError::NothingSupervised { tokens: 2 }), "{error}");
    assert!(matches!(vicuna(&tokenizer, &["q", ""], 0), Err(ProcessorError::EmptyMessage { turn: 1, .. })));
}

#[test]
fn an_answer_tokenized_apart_ends_with_the_end_token() {
    let tokenizer = tokenizer("bytelevel");
    let example = tokenize_apart(&tokenizer, "USER: <image>\nwhat? ASSISTANT:", "a dog", &[Tiles::whole(16)]).unwrap();
    assert_eq!(supervised(&tokenizer, &example), "a dog</s>");
    assert_eq!(example.ids.len(), example.labels.len());
}
