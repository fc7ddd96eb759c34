//! Adds tokens that tokenizer.json lacks but that `added_tokens_decoder` of tokenizer_config.json or
//! added_tokens.json lists.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::config::read_json_if_exists;
use super::timed::Clock;
use super::tokenizer_build::build_tokenizer;
use super::{PLACEHOLDER, ProcessorError, Result};

/// A token listed in one of these files.
pub(super) struct Named {
    pub id: u32,
    pub content: String,
    pub flags: Value,
}

/// The bytes of tokenizer.json with the tokens that the other files add to it, in transformers' order: after the
/// existing ones, by ascending id. If there are none, the bytes are unchanged.
///
/// # Errors
/// Returns `Unsupported` if a file lists a token with another id than the one that it gets, which is the one that
/// transformers uses.
pub(super) fn with_added_tokens(dir: &Path, path: &Path, bytes: Vec<u8>, config: &Value) -> Result<Vec<u8>> {
    let (from, mut named) = named_tokens(dir, config)?;
    if named.is_empty() {
        return Ok(bytes);
    }
    named.sort_by_key(|token| token.id);
    let load = |message: String| ProcessorError::LoadTokenizer { path: path.into(), message };
    let mut inner = build_tokenizer(path, &bytes)?;
    let known = inner.get_added_tokens_decoder();
    let had: Vec<Option<u32>> = named.iter().map(|token| inner.token_to_id(&token.content)).collect();
    let (mut entries, mut added) = (Vec::new(), Vec::new());
    let mut contents = HashSet::new();
    for (token, had) in named.iter().zip(&had) {
        if had.is_none_or(|id| !known.contains_key(&id)) && contents.insert(token.content.as_str()) {
            let flag = |key: &str| token.flags[key] == json!(true);
            let one = AddedToken::from(token.content.as_str(), flag("special"))
                .normalized(flag("normalized"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"));
            added.push(one);
            let mut entry = token.flags.clone();
            entry["id"] = token.id.into();
            entry["content"] = token.content.as_str().into();
            entries.push(entry);
        }
    }
    // All at once, because the library rebuilds its search structure at each call. Normalizing tokens may take long.
    let adding = move || {
        inner.add_tokens(&added);
        Ok(inner)
    };
    let inner = Clock::default().run(bytes.len(), adding).map_err(|e| load(e.to_string()))?;
    for (token, had) in named.iter().zip(had) {
        let gets = inner.token_to_id(&token.content);
        if gets != Some(token.id) && had.is_none() {
            let gets = gets.map_or("none".into(), |id| id.to_string());
            return Err(ProcessorError::Unsupported {
                path: from,
                key: token.id.to_string(),
                value: format!("the token {:?}, whose id in tokenizer.json is {gets}", token.content),
                supported: "the id that follows those of tokenizer.json",
            });
        }
    }
    if entries.is_empty() {
        return Ok(bytes);
    }
    let mut whole: Value = serde_json::from_slice(&bytes).map_err(|e| load(e.to_string()))?;
    match &mut whole["added_tokens"] {
        Value::Array(added) => added.extend(entries),
        added => *added = entries.into(),
    }
    Ok(whole.to_string().into_bytes())
}

/// The tokens and the file that lists them; `added_tokens_decoder` takes precedence, as in transformers.
pub(super) fn named_tokens(dir: &Path, config: &Value) -> Result<(PathBuf, Vec<Named>)> {
    let unsupported = |path: &Path, key: &str, value: &Value, supported| ProcessorError::Unsupported {
        path: path.into(),
        key: key.into(),
        value: value.to_string(),
        supported,
    };
    let path = dir.join("tokenizer_config.json");
    let listed = &config["added_tokens_decoder"];
    if !listed.is_null() && !listed.is_object() {
        return Err(unsupported(&path, "added_tokens_decoder", listed, "an object of tokens by their ids"));
    }
    if let Some(decoder) = listed.as_object() {
        let tokens = decoder.iter().map(|(key, token)| {
            let wrong = || unsupported(&path, key, token, "a token's id with its \"content\"");
            let id = key.parse().map_err(|_| wrong())?;
            let content = token["content"].as_str().filter(|content| !content.is_empty()).ok_or_else(wrong)?;
            let flag = |flag: &str, default: bool| match &token[flag] {
                Value::Null => Ok(default),
                Value::Bool(set) => Ok(*set),
                _ => Err(unsupported(&path, key, token, "a token whose flags are true or false")),
            };
            let special = flag("special", false)?;
            let flags = json!({
                "single_word": flag("single_word", false)?, "lstrip": flag("lstrip", false)?,
                "rstrip": flag("rstrip", false)?, "normalized": flag("normalized", !special)?, "special": special,
            });
            Ok(Named { id, content: content.into(), flags })
        });
        let tokens = tokens.collect::<Result<_>>()?;
        return Ok((path, tokens));
    }
    let path = dir.join("added_tokens.json");
    let tokens = match read_json_if_exists(&path)? {
        None => return Ok((path, Vec::new())),
        Some(Value::Object(tokens)) => tokens,
        Some(other) => return Err(unsupported(&path, "", &other, "an object of tokens and their ids")),
    };
    let map = read_json_if_exists(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
    let special = |content: &str| {
        content == PLACEHOLDER
            || [config, &map].into_iter().filter_map(Value::as_object).flatten().any(|(key, value)| {
                let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                (key.ends_with("_token") || key.ends_with("_special_tokens"))
                    && list.iter().any(|token| token == content || token["content"] == content)
            })
    };
    let tokens = tokens.iter().map(|(content, id)| {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or_else(|| unsupported(&path, content, id, "a token's id"))?;
        let special = special(content);
        let flags = json!({
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": !special, "special": special,
        });
        Ok(Named { id: number, content: content.clone(), flags })
    });
    let tokens = tokens.collect::<Result<_>>()?;
    Ok((path, tokens))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::processor::{TokenIds, Tokenizer};

    fn load(config: Value, added: Option<Value>) -> crate::processor::Result<Tokenizer> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "<s>": 2 }, "merges": [] });
        write("tokenizer.json", &json!({ "version": "1.0", "added_tokens": [], "model": model }));
        write("tokenizer_config.json", &config);
        if let Some(added) = added {
            write("added_tokens.json", &added);
        }
        Tokenizer::load(dir.path(), &TokenIds::default())
    }

    #[test]
    fn tokens_beside_tokenizer_json_get_the_ids_that_their_file_says() {
        let token = |content: &str| json!({ "content": content, "special": true });
        let config =
            json!({ "added_tokens_decoder": { "4": token("<pic>"), "3": token("<image>"), "2": token("<s>") } });
        let tokenizer = load(config, None).unwrap();
        assert_eq!(tokenizer.encode("a<image>b<pic><s>", false).unwrap(), [0, 3, 1, 4, 2]);
        let tokenizer = load(json!({}), Some(json!({ "<image>": 3 }))).unwrap();
        assert_eq!(tokenizer.encode("<image>ba", false).unwrap(), [3, 1, 0]);
        assert_eq!(tokenizer.image_id().unwrap(), 3);
    }

    #[test]
    fn an_id_that_contradicts_tokenizer_json_is_an_error_that_names_file_and_token() {
        let error = load(json!({}), Some(json!({ "<image>": 99 }))).unwrap_err().to_string();
        assert!(error.contains("added_tokens.json") && error.contains("99") && error.contains("<image>"), "{error}");
        let error = load(json!({ "added_tokens_decoder": { "x": { "content": "<image>" } } }), None).unwrap_err();
        assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
    }
}
