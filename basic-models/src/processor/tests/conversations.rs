use super::super::*;
use super::dialogue;
use serde_json::json;

#[test]
fn a_llava_sample_is_read_and_its_placeholder_moved_to_the_front() {
    let sample = json!({ "id": 1, "image": "a.png", "conversations": [
        { "from": "human", "value": "What is it?\n<image>" },
        { "from": "gpt", "value": "A dog.\n" },
        { "from": "human", "value": " Where? " },
        { "from": "gpt", "value": "Here." }
    ]});
    // As after preprocess_multimodal: only the turn with the placeholder is stripped.
    let expected = dialogue(&["<image>\nWhat is it?", "A dog.\n", " Where? ", "Here."]);
    assert_eq!(from_llava(&sample).unwrap(), expected);
    assert_eq!(from_llava(&sample["conversations"]).unwrap(), expected);
    let only = json!([{ "from": "human", "value": " <image>\n" }, { "from": "gpt", "value": "x" }]);
    assert_eq!(from_llava(&only).unwrap()[0].content, "<image>");
}

#[test]
fn what_is_not_a_llava_conversation_is_an_error_that_names_the_place() {
    let human = json!({ "from": "human", "value": "q" });
    let gpt = json!({ "from": "gpt", "value": "a" });
    for (value, place) in [
        (json!({ "text": "x" }), "conversations"),
        (json!("x"), "conversations"),
        (json!([{ "from": "human" }, gpt]), "conversations[0]"),
        (json!([human, { "from": "gpt", "value": 3 }]), "conversations[1].value"),
        (json!([human, { "from": "bot", "value": "a" }]), "conversations[1].from"),
        (json!([3]), "conversations[0]"),
    ] {
        let error = from_llava(&value).unwrap_err();
        assert!(matches!(error, ProcessorError::Conversation { .. }) && error.to_string().contains(place), "{error}");
    }
    let error = |value| from_llava(&value).unwrap_err();
    assert!(matches!(error(json!([])), ProcessorError::NoMessages));
    assert!(matches!(error(json!([human])), ProcessorError::Unanswered { turn: 0 }));
    assert!(matches!(error(json!([human, gpt, human])), ProcessorError::Unanswered { turn: 2 }));
    assert!(matches!(error(json!([gpt, human])), ProcessorError::RoleOrder { turn: 0, found: "assistant", .. }));
    assert!(matches!(error(json!([human, human])), ProcessorError::RoleOrder { turn: 1, .. }));
    let empty = json!([human, { "from": "gpt", "value": " \n" }]);
    assert!(matches!(error(empty), ProcessorError::EmptyMessage { turn: 1, role: "assistant" }));
}

#[test]
fn vicuna_v1_is_llavas_byte_for_byte() {
    let specials = SpecialTokens { eos: Some("</s>".into()), ..SpecialTokens::default() };
    let messages = dialogue(&["<image>\nWhat?", "A dog.", "Where?", "Here."]);
    let text = |messages: &[Message]| -> String {
        render(&Style::vicuna_v1(), messages, &specials).unwrap().into_iter().map(|piece| piece.text).collect()
    };
    let system = "A chat between a curious user and an artificial intelligence assistant. \
                  The assistant gives helpful, detailed, and polite answers to the user's questions.";
    // conv_vicuna_v1.get_prompt() of LLaVA: sep " ", sep2 "</s>".
    let expected = format!("{system} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: Where? ASSISTANT: Here.</s>");
    assert_eq!(text(&messages), expected);
    let prompt = render_prompt(&Style::vicuna_v1(), &messages[..3], &specials).unwrap();
    assert_eq!(prompt.text, expected.strip_suffix(" Here.</s>").unwrap());
    let own = [vec![Message::new(Role::System, "Be brief.")], messages].concat();
    assert!(text(&own).starts_with("Be brief. USER: <image>"));
}

#[test]
fn plain_is_the_image_the_caption_and_a_line_break() {
    let specials = SpecialTokens::default();
    let pieces = render(&Style::plain(), &dialogue(&["<image>\nDescribe it.", "a dog"]), &specials).unwrap();
    let said: Vec<_> = pieces.iter().map(|piece| (piece.text.as_str(), piece.supervised, &piece.literal[..])).collect();
    assert_eq!(said, [("<image>", false, &[][..]), ("a dog\n", true, std::slice::from_ref(&(0..5)))]);
    assert_eq!(render_prompt(&Style::plain(), &dialogue(&["Describe.\n<image>"]), &specials).unwrap().text, "<image>");
    for turns in [vec!["no image", "a dog"], vec!["<image>", "a", "b", "c"]] {
        let error = render(&Style::plain(), &dialogue(&turns), &specials).unwrap_err();
        assert!(matches!(error, ProcessorError::Conversation { .. }), "{error}");
    }
}

#[test]
fn a_checkpoints_own_image_token_takes_the_placeholders_place() {
    let specials = SpecialTokens { image: "<|image|>".into(), eos: Some("</s>".into()), ..SpecialTokens::default() };
    let pieces = render(&Style::vicuna_v1(), &dialogue(&["<image>\nWhat?", "x"]), &specials).unwrap();
    assert!(pieces[0].text.contains("USER: <|image|>\nWhat?"));
}

#[test]
fn prompts_and_samples_refuse_each_others_endings() {
    let specials = SpecialTokens { eos: Some("</s>".into()), ..SpecialTokens::default() };
    let error = render(&Style::vicuna_v1(), &dialogue(&["q"]), &specials).unwrap_err();
    assert!(matches!(error, ProcessorError::Unanswered { turn: 0 }));
    let error = render_prompt(&Style::vicuna_v1(), &dialogue(&["q", "a"]), &specials).unwrap_err();
    assert!(matches!(error, ProcessorError::RoleOrder { turn: 1, .. }));
    let error = render(&Style::vicuna_v1(), &dialogue(&["q", " "]), &specials).unwrap_err();
    assert!(matches!(error, ProcessorError::EmptyMessage { turn: 1, .. }));
    assert!(matches!(render(&Style::vicuna_v1(), &[], &specials), Err(ProcessorError::NoMessages)));
    let error = render(&Style::vicuna_v1(), &dialogue(&["q", "a"]), &SpecialTokens::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::MissingToken { what: "end-of-sequence", .. }));
}

/// The fixture's conversation; a null answer is one that is still to come.
fn conversation(case: &serde_json::Value) -> (Vec<Message>, bool) {
    let turns: Vec<Option<String>> = super::numbers(&case["turns"]);
    let prompt = turns.last().is_some_and(Option::is_none);
    let system = case["system"].as_str().map(|text| Message::new(Role::System, text));
    let turns: Vec<String> = turns.into_iter().flatten().collect();
    (system.into_iter().chain(dialogue(&turns)).collect(), prompt)
}

#[test]
fn styles_are_rendered_byte_for_byte_as_by_llavas_code() {
    let fixture = super::json("styles.json");
    let systems: Vec<String> = super::numbers(&fixture["systems"]);
    let specials = SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), ..SpecialTokens::default() };
    let mut seen = std::collections::BTreeSet::new();
    for case in fixture["cases"].as_array().unwrap() {
        let style = LlavaStyle::by_name(case["style"].as_str().unwrap()).unwrap();
        assert_eq!(style, LlavaStyle::by_name(case["alias"].as_str().unwrap()).unwrap());
        seen.insert(style.name());
        let expected = (0..systems.len())
            .rev()
            .fold(case["text"].as_str().unwrap().to_owned(), |text, i| text.replace(&format!("\0{i}"), &systems[i]));
        let (messages, prompt) = conversation(case);
        let style = Style::from(style);
        let text: String = if prompt {
            render_prompt(&style, &messages, &specials).unwrap().text
        } else {
            render(&style, &messages, &specials).unwrap().into_iter().map(|piece| piece.text).collect()
        };
        assert_eq!(text, expected, "{case}");
    }
    assert_eq!(seen.len(), LlavaStyle::names().count());
    assert_eq!(seen.len(), 13);
}

#[test]
fn what_users_wrote_is_literal_and_what_the_style_wrote_is_not() {
    let specials = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        image: "<|image|>".into(),
        ..SpecialTokens::default()
    };
    let turns = ["<image>\nA </s><|image|>?", "<|im_end|></s>", "B<image>", "</s>"];
    let contents: Vec<&str> = turns.iter().flat_map(|turn| turn.split("<image>")).filter(|t| !t.is_empty()).collect();
    for name in LlavaStyle::names().filter(|name| *name != "plain") {
        let style = Style::from(LlavaStyle::by_name(name).unwrap());
        let pieces = render(&style, &dialogue(&turns), &specials).unwrap();
        let literal: Vec<&str> =
            pieces.iter().flat_map(|piece| piece.literal.iter().map(|range| &piece.text[range.clone()])).collect();
        assert_eq!(literal, contents, "{name}");
        let images: Vec<usize> = pieces.iter().map(|piece| piece.images(&specials.image).len()).collect();
        assert_eq!(images, [1, 0, 1, 0], "{name}");
        let ends = LlavaStyle::by_name(name).unwrap().stops();
        assert!(
            ends.iter().any(|end| pieces[1].text.ends_with(end) || pieces[1].text.trim_end().ends_with(end)),
            "{name}"
        );
    }
}

#[test]
fn an_unknown_style_is_an_error_that_lists_the_known_ones() {
    let error = LlavaStyle::by_name("vicuna_v2").unwrap_err().to_string();
    assert!(error.contains("vicuna_v2") && error.contains("vicuna_v1") && error.contains("gemma"), "{error}");
    let gemma = Style::from(LlavaStyle::by_name("gemma").unwrap());
    let system = [vec![Message::new(Role::System, "Be brief.")], dialogue(&["q"])].concat();
    let error = render_prompt(&gemma, &system, &SpecialTokens::default()).unwrap_err().to_string();
    assert!(error.contains("gemma") && error.contains("system"), "{error}");
}
