//! Damages bytes without regard to their format, and chat templates.

use rand::{Rng, RngExt};

use super::pick;

/// Texts that readers of JSON, TOML and templates may mishandle.
const WORDS: [&str; 18] = [
    "null",
    "-1",
    "0",
    "1e309",
    "NaN",
    "18446744073709551616",
    "9223372036854775807",
    "4611686018427387904",
    "\"\"",
    "[]",
    "{}",
    "true",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\"\\ud800\"",
    "\"../../../etc/passwd\"",
    "\"\u{0}\"",
    "{% for a in range(9) %}",
    "1e-320",
];

/// Snippets that are expensive, wrong or unusual in a template.
const SNIPPETS: [&str; 30] = [
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% set x = 'a' * 100000000 %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(70) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% macro m(a) %}{{ m(a ~ a) }}{% endmacro %}{{ m('x') }}",
    "{% if ",
    "{% endif %}",
    "{% raw %}",
    "{{ ",
    " }}",
    "{# ",
    "{{ messages[0]['content'][0] }}",
    "{{ messages[-99]['role'] }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ 1 // 0 }}",
    "{{ 2 ** 9999999 }}",
    "{{ range(10, 0, 0) }}",
    "{{ '%0999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ messages | tojson(indent=999999999) }}",
    "{{ messages | batch(0) | list }}",
    "{{ (messages * 999999) | join('x') }}",
    "{{ 'x'.center(999999999) }}",
    "{{ 'x' | indent(999999999) }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Q%') }}",
    "{% include 'chat_template' %}",
    "{{ self }}{{ loop }}{{ caller() }}",
    "{{ 'é'[1:0:-1] }}{{ 'x'[::0] }}",
];

/// A damaged copy of `bytes`: one to four changes.
pub fn damaged(bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..pick(&[1, 1, 1, 2, 3, 4], random) {
        change(&mut bytes, random);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, random: &mut impl Rng) {
    if bytes.is_empty() {
        bytes.push(random.random());
        return;
    }
    // Most changes fall into the first or the last 512 bytes, where headers and footers are.
    let near = bytes.len().min(512);
    let at = match random.random_range(0..4) {
        0 | 1 => random.random_range(0..near),
        2 => bytes.len() - near + random.random_range(0..near),
        _ => random.random_range(0..bytes.len()),
    };
    let end = |length: usize| (at + length).min(bytes.len());
    match random.random_range(0..9) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = pick(&[0, 1, 0x7F, 0x80, 0xFF], random),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end(random.random_range(1..64)))),
        4 => {
            let copy = bytes[at..end(random.random_range(1..64))].to_vec();
            let to = random.random_range(0..=bytes.len());
            bytes.splice(to..to, copy);
        }
        5 => {
            let end = end(pick(&[2, 4, 8], random));
            let value = pick(&[u64::MAX, 1 << 31, 1 << 62, 0, 0x7FFF_FFFF], random);
            let value = if random.random() { value.to_le_bytes() } else { value.to_be_bytes() };
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
        6 | 7 => word(bytes, at, random),
        _ => {
            let run = vec![bytes[at]; random.random_range(1..4096)];
            bytes.splice(at..at, run);
        }
    }
}

/// Replaces the next number, string or name by one of [`WORDS`].
fn word(bytes: &mut Vec<u8>, at: usize, random: &mut impl Rng) {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'_' | b'"');
    let Some(start) = bytes[at..].iter().position(part).map(|offset| at + offset) else { return };
    let end = bytes[start..].iter().position(|byte| !part(byte)).map_or(bytes.len(), |length| start + length);
    bytes.splice(start..end, pick(&WORDS, random).bytes());
}

/// A damaged chat template: with snippets between its blocks, blocks removed or doubled, or deeply nested brackets.
pub fn template(bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.random_range(1..=3) {
        let opens = |pair: &[u8]| pair == b"{{" || pair == b"{%";
        let mut places: Vec<usize> = bytes.windows(2).enumerate().filter(|(_, w)| opens(w)).map(|(at, _)| at).collect();
        places.push(bytes.len());
        let at = pick(&places, random);
        let next = places.iter().copied().find(|place| *place > at).unwrap_or(bytes.len());
        match random.random_range(0..8) {
            0..=3 => drop(bytes.splice(at..at, pick(&SNIPPETS, random).bytes())),
            4 => drop(bytes.drain(at..next)),
            5 => {
                let block = bytes[at..next].to_vec();
                let to = pick(&places, random);
                bytes.splice(to..to, block);
            }
            6 => {
                let many = pick(&[50, 900, 5000, 40_000], random);
                let (before, after) = pick(&[("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("x.", "")], random);
                let text = format!("{{{{ {}1{} }}}}", before.repeat(many), after.repeat(many));
                bytes.splice(at..at, text.into_bytes());
            }
            _ => change(&mut bytes, random),
        }
    }
    bytes
}
