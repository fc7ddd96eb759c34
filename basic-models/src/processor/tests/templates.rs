use super::super::*;
use super::{dialogue, json, numbers, tokenizer};

fn whole(pieces: &[RenderedPiece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

#[test]
fn templates_render_as_in_transformers_with_lists_and_with_texts() {
    let specials = tokenizer("bytelevel").specials().clone();
    for case in json("bytelevel.json")["rendered"].as_array().unwrap() {
        let style = Style::from(ChatTemplate::new(case["template"].as_str().unwrap(), "here").unwrap());
        let turns: Vec<String> = numbers(&case["turns"]);
        let messages = dialogue(&turns);
        let pieces = render(&style, &messages, &specials).unwrap();
        assert_eq!(whole(&pieces), case["text"].as_str().unwrap());
        let answers: Vec<_> = pieces.iter().filter(|piece| piece.supervised).collect();
        assert_eq!(answers.len(), turns.len() / 2);
        for (piece, answer) in answers.iter().zip(turns.iter().skip(1).step_by(2)) {
            let (before, after) = if case["name"] == "llava" { (" ", " ") } else { ("", "<|im_end|>\n") };
            assert_eq!(piece.text, format!("{before}{answer}{after}"));
        }
        let prompt = render_prompt(&style, &messages[..turns.len() - 1], &specials).unwrap().text;
        assert_eq!(prompt, case["prompt"].as_str().unwrap());
    }
}

#[test]
fn a_template_that_rewrites_the_prompt_is_an_error_that_says_where() {
    let source = "{% for m in messages %}{% if loop.last %}>{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                  {% if add_generation_prompt %}assistant:{% endif %}";
    let style = Style::from(ChatTemplate::new(source, "marks_the_last.jinja").unwrap());
    let error = render(&style, &dialogue(&["é", "a"]), &SpecialTokens::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::NotAPrefix { turn: 1, at: 0, .. }), "{error}");
    assert!(error.to_string().contains("marks_the_last.jinja"));
}

#[test]
fn a_template_that_trims_the_generation_prompt_is_an_error() {
    let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";
    let style = Style::from(ChatTemplate::new(source, "t").unwrap());
    let error = render(&style, &dialogue(&["q", "answer"]), &SpecialTokens::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::NotAPrefix { turn: 1, at: 18, .. }), "{error}");
}

#[test]
fn a_template_that_mentions_types_but_takes_texts_gets_texts() {
    let source = r#"{% for m in messages %}{{ m['content'] | trim }}{{ '{"type": "x"}' if false }};{% endfor %}{% if add_generation_prompt %}A:{% endif %}"#;
    let style = Style::from(ChatTemplate::new(source, "t").unwrap());
    let prompt = render_prompt(&style, &dialogue(&["<image>\nq "]), &SpecialTokens::default()).unwrap().text;
    assert_eq!(prompt, "<image>\nq;A:");
    let printed = r#"{% for m in messages %}{{ m['content'] }}{# 'type' #}{% endfor %}"#;
    let style = Style::from(ChatTemplate::new(printed, "t").unwrap());
    assert_eq!(render_prompt(&style, &dialogue(&["q"]), &SpecialTokens::default()).unwrap().text, "q");
}

#[test]
fn a_templates_own_refusal_and_its_syntax_errors_are_reported() {
    let refusing = "{{ raise_exception('only short questions, please') }}";
    let style = Style::from(ChatTemplate::new(refusing, "strict.jinja").unwrap());
    let message = render_prompt(&style, &dialogue(&["q"]), &SpecialTokens::default()).unwrap_err().to_string();
    assert!(message.contains("strict.jinja") && message.contains("only short questions, please"), "{message}");
    let error = ChatTemplate::new("{% for %}", "broken.jinja").unwrap_err().to_string();
    assert!(error.contains("broken.jinja") && error.contains("line 1"), "{error}");
}

#[test]
fn pythons_methods_special_tokens_and_json_work_in_templates() {
    let source = "{{ bos_token }}{% for m in messages %}{{ m.content.strip().split(' ')[0].upper() }}{{ {'a': ['<', 1], 'b': tools} | tojson }}{% endfor %}\
                  {{ strftime_now('%M:%S') if strftime_now is defined }}";
    let style = Style::from(ChatTemplate::new(source, "t").unwrap());
    let specials = SpecialTokens { bos: Some("<s>".into()), ..SpecialTokens::default() };
    let text = render_prompt(&style, &dialogue(&[" hi there "]), &specials).unwrap().text;
    // json.dumps({"a": ["<", 1], "b": None})
    assert_eq!(text, r#"<s>HI{"a": ["<", 1], "b": null}00:00"#);
    let wrong = Style::from(ChatTemplate::new("{{ strftime_now('%Q!') }}", "t").unwrap());
    let error = render_prompt(&wrong, &dialogue(&["q"]), &SpecialTokens::default()).unwrap_err().to_string();
    assert!(error.contains("strftime_now") && error.contains("%Q!"), "{error}");
}

#[test]
fn the_template_is_found_in_each_of_its_files_in_transformers_order() {
    let dir = tempfile::tempdir().unwrap();
    let found = || {
        let template = ChatTemplate::load(dir.path()).unwrap()?;
        Some(render_prompt(&Style::from(template), &dialogue(&["q"]), &SpecialTokens::default()).unwrap().text)
    };
    assert_eq!(found(), None);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tools", "template": "0"}, {"name": "default", "template": "1"}]}"#,
    );
    assert_eq!(found().as_deref(), Some("1"));
    write("chat_template.json", r#"{"chat_template": "2"}"#);
    assert_eq!(found().as_deref(), Some("2"));
    write("chat_template.jinja", "3\n");
    assert_eq!(found().as_deref(), Some("3"));
}

/// The texts that the loss covers.
fn answers(source: &str, turns: &[&str]) -> Vec<String> {
    let style = Style::from(ChatTemplate::new(source, "t").unwrap());
    let pieces = render(&style, &dialogue(turns), &SpecialTokens::default()).unwrap();
    pieces.into_iter().filter(|piece| piece.supervised).map(|piece| piece.text).collect()
}

/// Like Qwen3's: the thoughts of an earlier answer are dropped, and the last answer has thoughts even
/// if there are none.
const FORGETFUL: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}\
    {% set said = m.content.split('</think>')[-1].lstrip('\\n') %}\
    {% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content else '' %}\
    {% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}{% else %}{{ m.content }}{% endif %}\
    <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn answers_are_labelled_where_they_stand_when_a_template_rewrites_earlier_ones() {
    let plain = answers(FORGETFUL, &["hi", "red", "and", "blue", "so", "green"]);
    assert_eq!(plain, ["red<|im_end|>\n", "blue<|im_end|>\n", "<think>\n\n</think>\n\ngreen<|im_end|>\n"]);
    let thinking =
        answers(FORGETFUL, &["hi", "<think>\nabc\n</think>\n\nred", "and", "<think>\nxyz\n</think>\n\nblue"]);
    assert_eq!(thinking, ["red<|im_end|>\n", "<think>\nxyz\n</think>\n\nblue<|im_end|>\n"]);
}

#[test]
fn white_space_at_the_ends_of_turns_stays_or_goes_as_the_template_has_it() {
    let chatml = |content: &str| {
        format!(
            "{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ {content} }}}}[end]{{% endfor %}}\
             {{% if add_generation_prompt %}}[assistant]{{% endif %}}"
        )
    };
    let turns = ["a \n", "b\n\n", " c ", " d ", "\n", "e"];
    assert_eq!(answers(&chatml("m.content"), &turns), ["b\n\n[end]", " d [end]", "e[end]"]);
    assert_eq!(answers(&chatml("m.content | trim"), &turns), ["b[end]", "d[end]", "e[end]"]);
}
