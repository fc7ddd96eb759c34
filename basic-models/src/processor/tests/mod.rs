//! Tests of conformance with transformers (fixtures from
//! tests/reference/{processor,image,style,tokenizer,label,tile}_fixtures.py) and of behaviour on bad input.

mod bounds;
mod config;
mod conversations;
mod corpus;
mod hostile_tokenizers;
mod images;
mod labels;
mod masks;
mod mutations;
mod templates;
mod tiles;
mod tokens;

use std::path::{Path, PathBuf};

use super::{Message, Role, TokenIds, Tokenizer};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/processor")
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

/// "bytelevel" is the reference checkpoint's tokenizer, "llama" a small version of Llama 1's and 2's.
fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::load(&fixtures().join(name), &TokenIds::default()).unwrap()
}

/// A conversation in which questions and answers alternate.
fn dialogue<S: AsRef<str>>(turns: &[S]) -> Vec<Message> {
    let role = |i: usize| {
        if i.is_multiple_of(2) { Role::User } else { Role::Assistant }
    };
    turns.iter().enumerate().map(|(i, text)| Message::new(role(i), text.as_ref())).collect()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}
