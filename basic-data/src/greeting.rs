//! Drops an answer that comes before the first question, as LLaVA does.

use std::borrow::Cow;

use serde_json::Value;

use super::keys::TURN_KEYS;

/// The record without an answer at the beginning of its turns, and the number of dropped turns (0 or 1).
///
/// As in LLaVA's `preprocess_v1`, at most one turn is dropped, and only if a question follows it.
pub(super) fn dropped(record: &Value) -> (Cow<'_, Value>, usize) {
    let first = TURN_KEYS.iter().find(|key| !record[**key].is_null());
    let place = first.and_then(|key| Some((*key, unasked(record[*key].as_array()?)?)));
    let Some((key, place)) = place else { return (Cow::Borrowed(record), 0) };
    let mut record = record.clone();
    if let Some(turns) = record[key].as_array_mut() {
        turns.remove(place);
    }
    (Cow::Owned(record), 1)
}

/// The index of an answer that comes before the first question, if a question follows it.
fn unasked(turns: &[Value]) -> Option<usize> {
    let speaker = |turn: &Value| turn["from"].as_str().or_else(|| turn["role"].as_str()).map(String::from);
    let place = usize::from(speaker(turns.first()?).as_deref() == Some("system"));
    let answers = matches!(speaker(turns.get(place)?).as_deref(), Some("gpt" | "assistant"));
    let asked = turns.get(place + 1).and_then(speaker);
    (answers && matches!(asked.as_deref(), Some("human" | "user"))).then_some(place)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::dropped;

    fn speakers(turns: &[&str], key: &str, role: &str) -> Value {
        json!({key: turns.iter().map(|from| json!({role: from, "value": "x"})).collect::<Vec<_>>()})
    }

    #[test]
    fn the_answer_before_the_first_question_goes_and_no_other() {
        for (turns, left) in [
            (&["gpt", "human", "gpt"][..], &["human", "gpt"][..]),
            (&["system", "gpt", "human", "gpt"], &["system", "human", "gpt"]),
            (&["human", "gpt"], &["human", "gpt"]),
            (&["gpt"], &["gpt"]),
            (&["gpt", "gpt", "human", "gpt"], &["gpt", "gpt", "human", "gpt"]),
            (&[], &[]),
        ] {
            let record = speakers(turns, "conversations", "from");
            let (found, count) = dropped(&record);
            assert_eq!(*found, speakers(left, "conversations", "from"), "{turns:?}");
            assert_eq!(count, turns.len() - left.len());
        }
        let chat = speakers(&["assistant", "user", "assistant"], "messages", "role");
        assert_eq!(dropped(&chat).1, 1);
        assert_eq!(dropped(&json!({"caption": "a"})).1, 0);
    }
}
