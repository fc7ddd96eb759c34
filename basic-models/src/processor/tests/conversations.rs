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
    // As preprocess_multimodal leaves them: only the turn with the placeholder is stripped.
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
        render(&Style::VicunaV1, messages, &specials).unwrap().into_iter().map(|piece| piece.text).collect()
    };
    let system = "A chat between a curious user and an artificial intelligence assistant. \
                  The assistant gives helpful, detailed, and polite answers to the user's questions.";
    // conv_vicuna_v1.get_prompt() of LLaVA: sep " ", sep2 "</s>".
    let expected = format!("{system} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: Where? ASSISTANT: Here.</s>");
    assert_eq!(text(&messages), expected);
    let prompt = render_prompt(&Style::VicunaV1, &messages[..3], &specials).unwrap();
    assert_eq!(prompt, expected.strip_suffix(" Here.</s>").unwrap());
    let own = [vec![Message::new(Role::System, "Be brief.")], messages].concat();
    assert!(text(&own).starts_with("Be brief. USER: <image>"));
}

#[test]
fn plain_is_the_image_the_caption_and_a_line_break() {
    let specials = SpecialTokens::default();
    let pieces = render(&Style::Plain, &dialogue(&["<image>\nDescribe it.", "a dog"]), &specials).unwrap();
    assert_eq!(pieces, [Piece::prompt("<image>"), Piece::answer("a dog\n")]);
    assert_eq!(render_prompt(&Style::Plain, &dialogue(&["Describe.\n<image>"]), &specials).unwrap(), "<image>");
    for turns in [vec!["no image", "a dog"], vec!["<image>", "a", "b", "c"]] {
        let error = render(&Style::Plain, &dialogue(&turns), &specials).unwrap_err();
        assert!(matches!(error, ProcessorError::Conversation { .. }), "{error}");
    }
}

#[test]
fn a_checkpoints_own_image_token_takes_the_placeholders_place() {
    let specials = SpecialTokens { image: "<|image|>".into(), eos: Some("</s>".into()), ..SpecialTokens::default() };
    let pieces = render(&Style::VicunaV1, &dialogue(&["<image>\nWhat?", "x"]), &specials).unwrap();
    assert!(pieces[0].text.contains("USER: <|image|>\nWhat?"));
}

#[test]
fn prompts_and_samples_refuse_each_others_endings() {
    let specials = SpecialTokens { eos: Some("</s>".into()), ..SpecialTokens::default() };
    let error = render(&Style::VicunaV1, &dialogue(&["q"]), &specials).unwrap_err();
    assert!(matches!(error, ProcessorError::Unanswered { turn: 0 }));
    let error = render_prompt(&Style::VicunaV1, &dialogue(&["q", "a"]), &specials).unwrap_err();
    assert!(matches!(error, ProcessorError::RoleOrder { turn: 1, .. }));
    let error = render(&Style::VicunaV1, &dialogue(&["q", " "]), &specials).unwrap_err();
    assert!(matches!(error, ProcessorError::EmptyMessage { turn: 1, .. }));
    assert!(matches!(render(&Style::VicunaV1, &[], &specials), Err(ProcessorError::NoMessages)));
    let error = render(&Style::VicunaV1, &dialogue(&["q", "a"]), &SpecialTokens::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::MissingToken { what: "end-of-sequence", .. }));
}
