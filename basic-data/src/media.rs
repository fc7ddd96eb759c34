//! Detects what a record refers to that a sample cannot hold: video, sound, and images under keys that are not read.
//!
//! Such a record must not be trained on as text alone: its answers would be about something the model has not seen.

use serde_json::Value;

use super::keys::TURN_KEYS;

/// Keys of records, turns and content parts that hold videos and sound.
const CLIPS: [(&str, &str); 2] = [("video", "a video"), ("audio", "sound")];
/// The suffixes that such a key may have.
const ENDS: [&str; 10] = ["", "s", "_path", "_paths", "_file", "_files", "_url", "_urls", "_name", "_names"];
/// Types of content parts that hold videos and sound.
const PARTS: [(&str, &str); 5] = [
    ("video", "a video"),
    ("video_url", "a video"),
    ("audio", "sound"),
    ("audio_url", "sound"),
    ("input_audio", "sound"),
];
/// The file extensions of videos.
const FILMS: [&str; 16] =
    ["mp4", "m4v", "webm", "mkv", "avi", "mov", "mpg", "mpeg", "m2ts", "wmv", "flv", "ogv", "3gp", "3g2", "vob", "mts"];
/// The file extensions of sound.
const SOUNDS: [&str; 15] =
    ["wav", "mp3", "flac", "ogg", "oga", "opus", "m4a", "m4b", "aac", "wma", "aif", "aiff", "amr", "au", "weba"];
/// The file extensions of image formats that are not decoded.
const OTHER_FORMATS: [&str; 8] = ["tif", "tiff", "heic", "heif", "avif", "jxl", "jp2", "jfif"];
/// Keys under which other programs name images, which are not read here.
const OTHER_IMAGES: [&str; 10] = [
    "image_path",
    "image_paths",
    "image_file",
    "image_files",
    "image_url",
    "image_urls",
    "img",
    "imgs",
    "img_path",
    "img_paths",
];

/// Why a record with `images` images cannot be trained on, if it refers to more than text and those images.
pub(super) fn unusable(record: &Value, images: usize) -> Option<String> {
    if let Some(reason) = clip(record, "the record") {
        return Some(reason);
    }
    if images == 0
        && let Some(key) = OTHER_IMAGES.iter().find(|key| holds(&record[**key]))
    {
        return Some(format!(
            "names an image under \"{key}\", which is not read: write it under \"image\" or \"images\""
        ));
    }
    TURN_KEYS.iter().filter_map(|key| Some((key, record[*key].as_array()?))).find_map(|(key, turns)| {
        turns.iter().enumerate().find_map(|(index, turn)| in_turn(turn, images, &format!("{key}[{index}]")))
    })
}

fn in_turn(turn: &Value, images: usize, place: &str) -> Option<String> {
    if let Some(reason) = clip(turn, place) {
        return Some(reason);
    }
    if images == 0
        && let Some(key) = ["image", "images"].iter().find(|key| holds(&turn[**key]))
    {
        return Some(format!(
            "{place} has a \"{key}\", which is not read there: write it beside \"conversations\" or \"messages\""
        ));
    }
    let parts = ["content", "value"].iter().find_map(|key| turn[*key].as_array())?;
    parts.iter().find_map(|part| {
        let kind = part["type"].as_str().and_then(|kind| PARTS.iter().find(|(name, _)| *name == kind));
        kind.map(|(_, what)| said(place, what)).or_else(|| clip(part, place))
    })
}

/// What a key holds, if it is a key for videos or sound.
fn clip_of(key: &str) -> Option<&'static str> {
    let (_, what) = CLIPS.iter().find(|(stem, _)| key.strip_prefix(stem).is_some_and(|end| ENDS.contains(&end)))?;
    Some(*what)
}

/// Whether a column of this name holds what [`unusable`] looks for.
pub(super) fn is_media(column: &str) -> bool {
    clip_of(column).is_some() || OTHER_IMAGES.contains(&column)
}

/// The error for a video or sound under a key of an object, if there is one.
fn clip(object: &Value, place: &str) -> Option<String> {
    let fields = object.as_object()?;
    fields.iter().find_map(|(key, value)| clip_of(key).filter(|_| holds(value)).map(|what| said(place, what)))
}

fn said(place: &str, what: &str) -> String {
    format!("{place} carries {what}: images and text alone are supported; leave the sample out")
}

/// What is wrong with a file with this extension (in lower case), if it is a video, sound or an image that is not
/// decoded.
pub(super) fn unread(extension: &str) -> Option<&'static str> {
    let kinds: [(&[&str], _); 3] = [
        (&FILMS, "is a video: images and text alone are supported; leave the sample out"),
        (&SOUNDS, "is sound: images and text alone are supported; leave the sample out"),
        (&OTHER_FORMATS, "is an image of a format that is not read: convert it to PNG or JPEG"),
    ];
    kinds.iter().find(|(endings, _)| endings.contains(&extension)).map(|(_, reason)| *reason)
}

/// Whether a value names or holds anything. Null, blank text, a bare number, a flag, and lists and objects of only
/// nulls, blank texts and flags do not.
fn holds(value: &Value) -> bool {
    // The samples of a sound are numbers, so numbers inside a list or an object count.
    let inside = |value: &Value| value.is_number() || holds(value);
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => items.iter().any(inside),
        Value::Object(fields) => fields.values().any(inside),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::unusable;

    fn with(key: &str, value: Value) -> Value {
        let mut record =
            json!({"conversations": [{"from": "human", "value": "What happens?"}, {"from": "gpt", "value": "A"}]});
        record[key] = value;
        record
    }

    #[test]
    fn films_and_sounds_are_named_wherever_a_record_has_them() {
        for (record, mention) in [
            (with("video", json!("x.mp4")), "a video"),
            (with("videos", json!(["x.mp4"])), "a video"),
            (with("videos", json!([["1.jpg", "2.jpg"]])), "a video"),
            (with("audio", json!({"path": "x.wav", "bytes": null})), "sound"),
            (with("audios", json!(["", "x.wav"])), "sound"),
            (with("audio", json!({"array": [0.0, 0.1]})), "sound"),
            (with("video_path", json!("x.mp4")), "a video"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
                "messages[0]",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "video_url"}]}]}),
                "messages[1]",
            ),
            (json!({"messages": [{"role": "user", "content": "a", "video": "x.mp4"}]}), "messages[0] carries a video"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "audio": "b"}]}]}),
                "sound",
            ),
        ] {
            for images in [0, 1] {
                let said = unusable(&record, images).unwrap_or_default();
                assert!(said.contains(mention) && said.contains("images and text alone"), "{record}: {said}");
            }
        }
    }

    #[test]
    fn what_is_empty_or_only_spoken_of_is_text() {
        for record in [
            with("video", json!("")),
            with("videos", json!([])),
            with("videos", json!([null, " "])),
            with("audio", Value::Null),
            with("audio", json!({"path": null})),
            with("video_id", json!("x")),
            with("videography", json!("x")),
            with("has_audio", json!("yes")),
            with("audio", json!(false)),
            json!({"conversations": [{"from": "human", "value": "<video> and <audio>"}, {"from": "gpt", "value": "<video>"}]}),
        ] {
            assert_eq!(unusable(&record, 0), None, "{record}");
        }
    }

    #[test]
    fn an_image_under_a_key_that_nothing_reads_is_no_text_only_sample() {
        assert!(unusable(&with("image_path", json!("a.png")), 0).unwrap().contains("image_path"));
        assert!(
            unusable(&json!({"messages": [{"role": "user", "content": "a", "images": ["a.png"]}]}), 0)
                .unwrap()
                .contains("messages[0]")
        );
        assert_eq!(unusable(&with("image_url", json!("http://a")), 1), None, "where the image came from");
    }
}
