use super::super::*;
use super::{fixtures, json, numbers, tokenizer};
use crate::config::Tiles;

#[test]
fn ids_and_texts_are_those_of_transformers() {
    for name in ["bytelevel", "llama"] {
        let tokenizer = tokenizer(name);
        let fixture = json(&format!("{name}.json"));
        for case in fixture["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = numbers(&case["ids"]);
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), numbers::<u32>(&case["bare"]), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap(), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["skipped"].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn a_prompt_with_two_images_expands_as_in_llava_processor() {
    let tokenizer = tokenizer("bytelevel");
    let fixture = json("bytelevel.json");
    let per_image = ProcessorConfig::clip(7).image_tokens(28, 28);
    let prompt =
        tokenize_prompt(&tokenizer, fixture["prompt"].as_str().unwrap(), &vec![Tiles::whole(per_image); 2]).unwrap();
    assert_eq!(prompt.ids, numbers::<u32>(&fixture["expanded"]));
    for places in &prompt.image_positions {
        assert_eq!(places.len(), 16);
        assert!(prompt.ids[places.clone()].iter().all(|&id| id == tokenizer.image_id().unwrap()));
    }
}

#[test]
fn each_placeholder_expands_to_its_own_count() {
    assert_eq!(expand_images("a<image>b<image>", PLACEHOLDER, &[2, 0]).unwrap(), "a<image><image>b");
    assert_eq!(expand_images("no image", PLACEHOLDER, &[]).unwrap(), "no image");
}

#[test]
fn a_placeholder_count_other_than_the_images_is_an_error_with_both_counts() {
    let error = expand_images("a <image> and <image>", PLACEHOLDER, &[4]).unwrap_err();
    assert!(matches!(error, ProcessorError::PlaceholderCount { placeholders: 2, images: 1, .. }));
    let message = error.to_string();
    assert!(message.contains("2 image placeholder") && message.contains("1 image(s)"), "{message}");
}

#[test]
fn special_tokens_may_be_strings_or_objects_and_config_ids_fill_gaps() {
    let dir = tempfile::tempdir().unwrap();
    copy_tokenizer_files(&fixtures().join("bytelevel"), dir.path()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>", "lstrip": false}, "pad_token": null}"#);
    write("special_tokens_map.json", r#"{"eos_token": {"content": "</s>"}}"#);
    let config = TokenIds { pad: Some(0), image: Some(358), ..TokenIds::default() };
    let tokenizer = Tokenizer::load(dir.path(), &config).unwrap();
    assert_eq!(*tokenizer.ids(), TokenIds { bos: Some(1), eos: Some(2), pad: Some(0), image: Some(358) });
    assert_eq!(tokenizer.specials().image, "<image>");
    assert_eq!((tokenizer.vocab_size(), tokenizer.id_of("</s>")), (359, Some(2)));
    assert_eq!(tokenizer.token_of(2).as_deref(), Some("</s>"));
}

#[test]
fn a_tokenizer_file_that_is_missing_or_damaged_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let load = || Tokenizer::load(dir.path(), &TokenIds::default()).map(|_| ()).unwrap_err();
    assert!(matches!(load(), ProcessorError::MissingFile { .. }));
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": \"1.0\"").unwrap();
    assert!(matches!(load(), ProcessorError::LoadTokenizer { .. }));
    assert!(load().to_string().contains("tokenizer.json"));
}

#[test]
fn a_tokenizer_without_an_image_token_serves_texts_and_refuses_images() {
    let mut tokenizer = tokenizers::Tokenizer::from_file(fixtures().join("bytelevel/tokenizer.json")).unwrap();
    tokenizer.with_padding(None);
    let specials = SpecialTokens { image: "<picture>".into(), ..SpecialTokens::default() };
    let tokenizer = Tokenizer::new(tokenizer, specials).unwrap();
    assert!(tokenize_prompt(&tokenizer, "hi", &[]).is_ok());
    let error = tokenize_prompt(&tokenizer, "<picture>", &[Tiles::whole(16)]).unwrap_err();
    assert!(matches!(error, ProcessorError::MissingToken { what: "image", .. }), "{error}");
}
