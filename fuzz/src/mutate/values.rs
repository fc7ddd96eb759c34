//! Damages the values of JSON and TOML.

use rand::{Rng, RngExt};
use serde_json::{Map, Value, json};

use super::{bytes, pick};

/// A placeholder for text that no value can represent; it is replaced after serialization.
const RAW: &str = "\u{E000}raw";

/// A damaged JSON value.
pub fn json(bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else { return bytes::damaged(bytes, random) };
    let raws = changes(&mut value, random);
    let text = if random.random() { serde_json::to_string(&value) } else { serde_json::to_string_pretty(&value) };
    let Ok(text) = text else { return bytes::damaged(bytes, random) };
    let text = raws.into_iter().fold(text, |text, raw| text.replacen(&format!("\"{RAW}\""), &raw, 1));
    // Removes the mark from keys, which makes them duplicates of existing keys.
    text.replace("\u{E001}", "").into_bytes()
}

/// Damaged lines of JSON.
pub fn lines(bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..random.random_range(1..=2) {
        let at = random.random_range(0..lines.len());
        match random.random_range(0..8) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => lines.insert(
                at,
                pick(&[&b""[..], b"  ", b"null", b"[]", b"{}", b"\xEF\xBB\xBF", b"\r", b"0"], random).to_vec(),
            ),
            _ => lines[at] = json(&lines[at], random).into_iter().filter(|byte| *byte != b'\n').collect(),
        }
        if lines.is_empty() {
            lines.push(Vec::new());
        }
    }
    lines.join(&b'\n')
}

/// A damaged TOML document.
pub fn toml(bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let parsed = std::str::from_utf8(bytes).ok().and_then(|text| toml::from_str::<Value>(text).ok());
    let Some(mut value) = parsed else { return bytes::damaged(bytes, random) };
    let raws = changes(&mut value, random);
    let Ok(text) = toml::to_string(&value) else { return bytes::damaged(bytes, random) };
    let odd = ["nan", "inf", "-inf", "0x7fffffffffffffff", "1979-05-27", "'''a\nb'''", "{ a = 1, a = 2 }", "1_0e2_0"];
    let text = raws.into_iter().fold(text, |text, raw| {
        let raw = if random.random() { (pick(&odd, random)).to_string() } else { raw };
        text.replacen(&format!("\"{RAW}\""), &raw, 1)
    });
    text.replace("\u{E001}", "").into_bytes()
}

/// Makes one to three changes. Returns the texts that replace `RAW`, in no particular order.
fn changes(value: &mut Value, random: &mut impl Rng) -> Vec<String> {
    let mut raws = Vec::new();
    for _ in 0..random.random_range(1..=3) {
        let donor = node(value, &mut place(value, random)).map(|node| node.clone()).unwrap_or_default();
        if let Some(node) = node(value, &mut place(value, random)) {
            change(node, donor, &mut raws, random);
        }
    }
    raws
}

/// The number of a random value inside `value`: uniformly over all values, or by descending from the top at random, so
/// that the entries of a large table do not dominate.
fn place(value: &Value, random: &mut impl Rng) -> usize {
    if random.random() {
        return random.random_range(0..count(value));
    }
    let (mut at, mut number) = (value, 0);
    while random.random_ratio(3, 4) {
        let members: Vec<&Value> = match at {
            Value::Array(list) if !list.is_empty() => list.iter().collect(),
            Value::Object(map) if !map.is_empty() => map.values().collect(),
            _ => break,
        };
        let chosen = random.random_range(0..members.len());
        number += 1 + members[..chosen].iter().map(|member| count(member)).sum::<usize>();
        at = members[chosen];
    }
    number
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value with this number in depth-first order.
fn node<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| node(value, left)),
        Value::Object(map) => map.values_mut().find_map(|value| node(value, left)),
        _ => None,
    }
}

fn change(node: &mut Value, donor: Value, raws: &mut Vec<String>, random: &mut impl Rng) {
    match (random.random_range(0..8), &mut *node) {
        (0 | 1, _) => *node = odd(random),
        (2, _) => {
            raws.push(raw(random));
            *node = json!(RAW);
        }
        (3, _) => *node = donor,
        (4.., Value::Object(map)) if !map.is_empty() => members(map, donor, random),
        (4.., Value::Array(list)) if !list.is_empty() => {
            let at = random.random_range(0..list.len());
            match random.random_range(0..5) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, donor),
                2 => {
                    let copies = vec![list[at].clone(); pick(&[1, 2, 100, 3000], random)];
                    list.splice(at..at, copies);
                }
                3 => list.reverse(),
                _ => list.clear(),
            }
        }
        (4.., Value::Number(number)) => {
            let value = number.as_f64().unwrap_or_default();
            *node = match random.random_range(0..8) {
                0 => json!(number.as_i64().unwrap_or_default().wrapping_add(1)),
                1 => json!(number.as_i64().unwrap_or_default().wrapping_sub(1)),
                2 => json!(-value),
                3 => json!(value * 1e6),
                4 => json!((value * 65536.0) as i64),
                5 => json!(value + 0.5),
                6 => json!(number.to_string()),
                _ => json!([number.clone()]),
            };
        }
        (4.., Value::String(text)) => {
            *text = match random.random_range(0..7) {
                0 => text.repeat(pick(&[2, 1000], random)),
                1 => text.chars().rev().collect(),
                2 => text.chars().take(text.chars().count() / 2).collect(),
                3 => format!("{text}\u{0}"),
                4 => format!("<image>{text}<image>"),
                5 => format!("../{text}"),
                _ => text.to_uppercase(),
            };
        }
        _ => *node = odd(random),
    }
}

fn members(map: &mut Map<String, Value>, donor: Value, random: &mut impl Rng) {
    let names: Vec<String> = map.keys().cloned().collect();
    let name = names[random.random_range(0..names.len())].clone();
    match random.random_range(0..5) {
        0 => drop(map.remove(&name)),
        // The mark is removed after serialization, which leaves the key twice.
        1 => drop(map.insert(format!("{name}\u{E001}"), donor)),
        2 => {
            let value = map.remove(&name).unwrap_or_default();
            map.insert(names[random.random_range(0..names.len())].clone() + pick(&["", "_", " ", "s"], random), value);
        }
        3 => drop(map.insert(name, donor)),
        _ => {
            let value = map[&name].clone();
            (0..pick(&[1, 3000], random)).for_each(|i| drop(map.insert(format!("{name}{i}"), value.clone())));
        }
    }
}

/// An unusual value.
fn odd(random: &mut impl Rng) -> Value {
    let nested = |depth: usize| (0..depth).fold(json!([]), |inner, _| json!([inner]));
    match random.random_range(0..26) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(0.5),
        5 => json!(1e308),
        6 => json!(-1e-308),
        7 => json!(1u64 << 53),
        8 => json!(i64::MAX),
        9 => json!(i64::MIN),
        10 => json!(u64::MAX),
        11 => json!(1u64 << 31),
        12 => json!(65536),
        13 => json!(""),
        14 => json!("x".repeat(100_000)),
        15 => json!("\u{0}\u{1b}[31m\u{202e}"),
        16 => json!("図 é\u{301}\u{FEFF}"),
        17 => json!("../../../etc/passwd"),
        18 => json!("/dev/zero"),
        19 => json!([]),
        20 => json!({}),
        21 => json!({"a": {"a": [null]}}),
        22 => nested(100),
        23 => json!(vec![1; 10_000]),
        24 => json!("a\nb\r\n\tc"),
        _ => json!(["a", 1, null, {}]),
    }
}

/// A text that is not a valid value, or one beyond the range of values.
fn raw(random: &mut impl Rng) -> String {
    match random.random_range(0..12) {
        0 => "1e309".into(),
        1 => "NaN".into(),
        2 => "18446744073709551616".into(),
        3 => "1e-400".into(),
        4 => "-0".into(),
        5 => "\"\\ud800\"".into(),
        6 => "[".repeat(10_000) + &"]".repeat(10_000),
        7 => "{\"a\":".repeat(200) + "1" + &"}".repeat(200),
        8 => "9".repeat(5000),
        9 => "{\"a\":1,\"a\":2}".into(),
        10 => "[".repeat(100_000),
        _ => "1.0000000000000000000000000000000000001".into(),
    }
}
