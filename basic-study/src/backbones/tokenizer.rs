//! The word-level tokenizer of Shapes, as a Hugging Face tokenizer.json.

use basic_data::shapes::vocabulary;
use serde_json::{Value, json};

/// The special tokens. They have the lowest ids; the chat template's role words and the words of Shapes follow.
const SPECIAL: [&str; 5] = ["<pad>", "<s>", "</s>", "<unk>", "<image>"];
const ROLES: [&str; 2] = ["USER", "ASSISTANT"];

/// The id of the padding token.
pub const PAD: u32 = 0;
/// The id of the token that begins a sequence.
pub const BOS: u32 = 1;
/// The id of the token that ends a sequence.
pub const EOS: u32 = 2;

/// The chat template: `USER: question ASSISTANT: answer</s>`.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\
{% if message['role'] == 'user' %} {% else %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}";

/// All tokens in the order of their ids.
pub fn tokens() -> Vec<String> {
    let words = vocabulary().into_iter().filter(|w| !ROLES.contains(w));
    SPECIAL.into_iter().chain(ROLES).chain(words).map(String::from).collect()
}

/// The content of tokenizer.json.
pub fn tokenizer_json() -> Value {
    let tokens = tokens();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    })
}

/// The content of tokenizer_config.json.
pub fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512,
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "extra_special_tokens": {"image_token": "<image>"}, "image_token": "<image>",
        "processor_class": "LlavaProcessor", "clean_up_tokenization_spaces": false
    })
}
