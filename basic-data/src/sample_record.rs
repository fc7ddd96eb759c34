//! Converts a record of any of the common layouts into image names and turns; used by every reader.

use std::path::Path;
use std::sync::Arc;

use basic_models::outside::{Budget, FileLimits, excerpt, file_limits};
use basic_models::processor::{Message, PLACEHOLDER, ProcessorError, from_llava, from_llava_without_images};
use serde_json::{Value, json};

use super::keys::{CAPTION_KEYS, TURN_KEYS};
use super::scan::MARK;
use super::{DataError, ImageSource, Sample, greeting, media};

/// Why a record is not a valid sample.
#[derive(Debug)]
pub(super) enum Fault {
    /// A reason in words.
    Reason(String),
    /// An image file that is missing or not allowed.
    Image(String),
    /// An error of the conversation's checks.
    Conversation(ProcessorError),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

impl Fault {
    /// The error for the sample at `place` in `file`.
    pub fn at(self, file: &Path, place: &str) -> DataError {
        let (path, place) = (file.to_path_buf(), place.to_owned());
        match self {
            Self::Reason(reason) => DataError::Sample { path, place, reason },
            Self::Image(reason) => DataError::ImageFile { path, place, reason },
            Self::Conversation(source) => DataError::Conversation { path, place, source },
        }
    }
}

/// How messages name a sample: its index in the file, and its id if it has one.
pub(super) fn place(index: usize, id: &Value) -> String {
    match id {
        Value::Null => format!("{index}"),
        Value::String(id) => format!("{index} (id {id})"),
        id => format!("{index} (id {id})"),
    }
}

/// The keys under which a record names its images.
const IMAGE_KEYS: [&str; 4] = ["image", "images", "file_name", "file_names"];

/// The names of a record's image files.
pub(super) fn image_names(record: &Value) -> Result<Vec<&str>, Fault> {
    // Some sets mark text-only samples with a blank name.
    let Some((key, value)) = IMAGE_KEYS.iter().map(|key| (key, &record[key])).find(|(_, value)| !is_blank(value))
    else {
        return Ok(Vec::new());
    };
    let names = match value {
        Value::String(name) => Some(vec![name.as_str()]),
        Value::Array(names) => names.iter().map(Value::as_str).collect(),
        _ => return Err(format!("\"{key}\" must be a file name or a list of them").into()),
    };
    names.ok_or_else(|| format!("\"{key}\" must hold file names").into())
}

/// Whether a value names no image: null, a blank text, or a list of only such values.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(name) => name.trim().is_empty(),
        Value::Array(names) => names.iter().all(is_blank),
        _ => false,
    }
}

/// The budget of one sample of a file: an eighth of the file's budget, because several threads read samples at once.
pub(super) fn budget(file: &Path) -> Budget {
    let limits = file_limits();
    Budget::within(file, FileLimits { bytes: limits.bytes / 8, ..limits })
}

/// The bytes of a text without a leading UTF-8 byte-order mark.
pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(MARK).unwrap_or(bytes)
}

/// A caption from a file's bytes, without the byte-order mark, which must not bear loss, and without surrounding white
/// space.
///
/// # Errors
///
/// The bytes are not UTF-8.
pub(super) fn caption(bytes: &[u8]) -> Result<&str, std::str::Utf8Error> {
    Ok(std::str::from_utf8(without_mark(bytes))?.trim())
}

/// A sample made of a record's turns and of images that were already found.
pub(super) fn sample(
    file: &Arc<Path>,
    place: String,
    record: &Value,
    images: Vec<ImageSource>,
) -> Result<Sample, DataError> {
    if let Some(reason) = media::unusable(record, images.len()) {
        return Err(Fault::Reason(reason).at(file, &place));
    }
    let (record, dropped_turns) = greeting::dropped(record);
    let messages = turns(&record, images.len()).map_err(|fault| fault.at(file, &place))?;
    Ok(Sample { file: file.clone(), place, images, messages, dropped_turns })
}

/// The turns of a record with `images` images: LLaVA's `conversations` of `from` and `value`, a chat's `messages` of
/// `role` and `content`, The Cauldron's `texts` of `user` and `assistant` (each under any of [`TURN_KEYS`]), or a
/// `caption` or `text`.
///
/// LLaVA's turns mark with `<image>` in a question where each image goes. Other layouts often don't: if no question
/// contains an `<image>`, the images go before the first question. The same applies to LLaVA's turns if only an answer
/// contains an `<image>`. An `<image>` in an answer or a system text, and any in a record without images, is plain
/// text.
pub(super) fn turns(record: &Value, images: usize) -> Result<Vec<Message>, Fault> {
    let list = TURN_KEYS.iter().map(|key| (*key, &record[key])).find(|(_, value)| !value.is_null());
    let caption = CAPTION_KEYS.iter().map(|key| (*key, &record[key])).find(|(_, value)| !value.is_null());
    let llava = match (list, caption) {
        (Some((key, list)), _) => match list.get(0) {
            Some(first) if first.get("user").or(first.get("assistant")).is_some() => {
                Some(with_places(pairs(key, list)?, images).into())
            }
            Some(first) if first.get("role").is_some() => Some(with_places(chat(key, list)?, images).into()),
            _ => Some(placed(list, images)),
        },
        (None, Some((key, caption))) => {
            let text = caption.as_str().ok_or_else(|| format!("\"{key}\" must be a text"))?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            if images == 0 {
                return Err(format!("has a \"{key}\" but no image").into());
            }
            let turns = vec![json!({"from": "human", "value": ""}), json!({"from": "gpt", "value": text})];
            Some(with_places(turns, images).into())
        }
        (None, None) => None,
    };
    let read = if images == 0 { from_llava_without_images } else { from_llava };
    let messages = match llava {
        Some(turns) => read(&turns),
        None => read(record),
    };
    counted(messages.map_err(Fault::Conversation)?, images)
}

fn counted(messages: Vec<Message>, images: usize) -> Result<Vec<Message>, Fault> {
    let places: usize = messages.iter().map(Message::images).sum();
    if places != images {
        return Err(format!(
            "has {images} image(s) but {places} \"{PLACEHOLDER}\" in its questions: write one for each image"
        )
        .into());
    }
    Ok(messages)
}

/// LLaVA's turns unchanged, or with the images before the first question if only an answer contains an `<image>`.
fn placed(list: &Value, images: usize) -> Value {
    match list.as_array() {
        Some(turns) if images > 0 && turns.iter().any(holds_place) => with_places(turns.clone(), images).into(),
        _ => list.clone(),
    }
}

fn holds_place(turn: &Value) -> bool {
    turn["value"].as_str().is_some_and(|text| text.contains(PLACEHOLDER))
}

/// The turns with the images placed before the first question, unless a question already marks where images go.
fn with_places(mut turns: Vec<Value>, images: usize) -> Vec<Value> {
    if !turns.iter().any(|turn| turn["from"] == "human" && holds_place(turn))
        && let Some(first) = turns.iter_mut().find(|turn| turn["from"] == "human")
    {
        let text = first["value"].as_str().unwrap_or_default();
        let lines = vec![PLACEHOLDER; images].join("\n");
        first["value"] = match (images, text) {
            (0, text) => text.into(),
            (_, "") => lines.into(),
            (_, text) => format!("{lines}\n{text}").into(),
        };
    }
    turns
}

/// Converts `[{"user": .., "assistant": ..}, ..]` to LLaVA's turns.
fn pairs(key: &str, list: &Value) -> Result<Vec<Value>, Fault> {
    let mut turns = Vec::new();
    for (index, pair) in list.as_array().into_iter().flatten().enumerate() {
        for (name, from) in [("user", "human"), ("assistant", "gpt")] {
            let text = pair[name].as_str().ok_or_else(|| format!("{key}[{index}] must have a text \"{name}\""))?;
            turns.push(json!({"from": from, "value": text}));
        }
    }
    Ok(turns)
}

/// Converts `[{"role": .., "content": ..}, ..]` to LLaVA's turns; a content is a text, or a list of texts and images.
fn chat(key: &str, list: &Value) -> Result<Vec<Value>, Fault> {
    let turn = |(index, message): (usize, &Value)| {
        let from = match message["role"].as_str() {
            Some("system") => "system",
            Some("user") => "human",
            Some("assistant") => "gpt",
            _ => {
                let found = excerpt(&message["role"].to_string());
                return Err(format!("{key}[{index}].role is {found}, expected \"user\", \"assistant\" or \"system\""));
            }
        };
        let content = match &message["content"] {
            Value::String(text) => Some(text.clone()),
            Value::Array(parts) => parts.iter().map(part).collect(),
            _ => None,
        };
        let shows = |part: &Value| part["type"].as_str().is_some_and(|kind| kind.starts_with("image"));
        if from != "human" && message["content"].as_array().is_some_and(|parts| parts.iter().any(shows)) {
            return Err(format!("{key}[{index}] shows an image that isn't the user's: put it into a question"));
        }
        let text = content.ok_or_else(|| {
            format!(
                "{key}[{index}].content must be a text, or a list of {{\"type\": \"text\"}} and {{\"type\": \"image\"}}"
            )
        })?;
        Ok(json!({"from": from, "value": text}))
    };
    Ok(list.as_array().into_iter().flatten().enumerate().map(turn).collect::<Result<_, String>>()?)
}

fn part(part: &Value) -> Option<String> {
    match part["type"].as_str()? {
        "text" => part["text"].as_str().map(String::from),
        "image" | "image_url" => Some(format!("{PLACEHOLDER}\n")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Fault, image_names, turns};

    fn texts(record: &Value, images: usize) -> Vec<String> {
        turns(record, images).unwrap().into_iter().map(|m| format!("{}: {}", m.role.name(), m.content)).collect()
    }

    fn refused(record: &Value, images: usize) -> String {
        match turns(record, images).unwrap_err() {
            Fault::Reason(reason) | Fault::Image(reason) => reason,
            Fault::Conversation(error) => error.to_string(),
        }
    }

    #[test]
    fn every_layout_of_the_same_turns_is_the_same_sample() {
        let expected = ["user: <image>\nwhat?", "assistant: a cat", "user: colour?", "assistant: red"];
        let llava = json!({"conversations": [
            {"from": "human", "value": "what?\n<image>"}, {"from": "gpt", "value": "a cat"},
            {"from": "human", "value": "colour?"}, {"from": "gpt", "value": "red"}]});
        let cauldron = json!({"texts": [
            {"user": "what?", "assistant": "a cat", "source": "x"}, {"user": "colour?", "assistant": "red"}]});
        let chat = json!({"messages": [
            {"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": "colour?"}, {"role": "assistant", "content": "red"}]});
        let parts = json!({"messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
            {"role": "user", "content": "colour?"}, {"role": "assistant", "content": "red"}]});
        for record in [llava, cauldron, chat, parts] {
            assert_eq!(texts(&record, 1), expected, "{record}");
        }
    }

    #[test]
    fn images_without_a_place_go_before_the_first_question() {
        let record = json!({"messages": [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "compare"}, {"role": "assistant", "content": "same"}]});
        assert_eq!(texts(&record, 2)[1], "user: <image>\n<image>\ncompare");
        assert_eq!(texts(&record, 0)[1], "user: compare");
        assert_eq!(texts(&json!({"caption": "a cat"}), 1), ["user: <image>", "assistant: a cat"]);
        assert_eq!(texts(&json!({"text": "two cats", "caption": null}), 2)[0], "user: <image>\n<image>");
    }

    #[test]
    fn llavas_own_turns_must_say_where_each_image_goes() {
        let record = json!({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]});
        assert!(refused(&record, 1).contains("<image>"));
        let chat =
            json!({"messages": [{"role": "user", "content": "<image> x"}, {"role": "assistant", "content": "y"}]});
        assert!(refused(&chat, 2).contains("2 image(s) but 1"));
    }

    #[test]
    fn a_placeholder_outside_questions_or_without_images_is_text() {
        let talk = |question: &str, answer: &str| json!({"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]});
        let html = "How does HTML show <image>?";
        assert_eq!(
            texts(&talk(html, "With an <image> tag."), 0),
            [format!("user: {html}"), "assistant: With an <image> tag.".into()]
        );
        assert_eq!(turns(&talk(html, "x"), 0).unwrap()[0].images(), 0);
        assert_eq!(
            texts(&talk("which tag?", "The <image> tag"), 2),
            ["user: <image>\n<image>\nwhich tag?", "assistant: The <image> tag"]
        );
        assert_eq!(
            texts(&talk("<image>\nwhich?", "An <image>, or <image>"), 1)[1],
            "assistant: An <image>, or <image>"
        );
        let chat = json!({"messages": [
            {"role": "system", "content": "<image>"},
            {"role": "user", "content": "which?"},
            {"role": "assistant", "content": "<image>"},
        ]});
        assert_eq!(texts(&chat, 1), ["system: <image>", "user: <image>\nwhich?", "assistant: <image>"]);
        let shown = json!({"messages": [
            {"role": "user", "content": "which?"},
            {"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "this"}]},
        ]});
        assert!(refused(&shown, 1).contains("messages[1]"));
    }

    #[test]
    fn a_blank_question_is_no_fault() {
        let blank = json!({"conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
            {"from": "human", "value": ""}, {"from": "gpt", "value": "c"},
        ]});
        assert_eq!(texts(&blank, 0), ["user: a", "assistant: b", "user: ", "assistant: c"]);
    }

    #[test]
    fn what_is_no_conversation_says_where() {
        for (record, mention) in [
            (json!({"caption": 3}), "\"caption\" must be a text"),
            (json!({"caption": ""}), "empty"),
            (json!({"texts": [{"user": "a"}]}), "texts[0]"),
            (json!({"messages": [{"role": "robot", "content": "a"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}), "messages[0].content"),
            (json!({"texts": []}), "empty"),
            (json!({"texts": 3}), "found a number"),
            (json!({"id": 3}), "conversations"),
            (json!(3), "conversations"),
        ] {
            let said = refused(&record, 1);
            assert!(said.contains(mention), "{record}: {said}");
        }
        assert!(refused(&json!({"caption": "a cat"}), 0).contains("no image"));
    }

    #[test]
    fn images_are_named_one_by_one_or_in_a_list() {
        assert_eq!(image_names(&json!({"image": "a.png"})).unwrap(), ["a.png"]);
        assert_eq!(image_names(&json!({"images": ["a.png", "b.png"], "image": null})).unwrap(), ["a.png", "b.png"]);
        assert_eq!(image_names(&json!({"file_name": "a.png"})).unwrap(), ["a.png"]);
        assert!(image_names(&json!({"id": 1})).unwrap().is_empty());
        for blank in [json!(""), json!("  "), json!([]), json!([""]), json!([null, ""]), json!(null)] {
            assert!(image_names(&json!({"image": blank})).unwrap().is_empty(), "{blank}");
            assert_eq!(image_names(&json!({"image": blank, "images": ["a.png"]})).unwrap(), ["a.png"], "{blank}");
        }
        assert_eq!(image_names(&json!({"image": ["a.png", ""]})).unwrap(), ["a.png", ""], "the file will be missed");
        assert!(image_names(&json!({"image": 3})).is_err());
        assert!(image_names(&json!({"image": [3]})).is_err());
    }
}
