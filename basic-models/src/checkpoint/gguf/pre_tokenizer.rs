//! llama.cpp's names for the pre-tokenizers of byte-level BPE: how a text is cut before merges apply.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::processor::{Result, Tokenizer};

/// The text by whose token ids `convert_hf_to_gguf.py` of llama.cpp recognizes a tokenizer.
const PROBE: &str = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL";

/// The SHA-256 of the ids of [`PROBE`], written as a Python list, for the tokenizers of the families that are read, and
/// llama.cpp's names.
const KNOWN: [(&str, &str); 17] = [
    ("0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5", "llama-bpe"),
    ("c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d", "smaug-bpe"),
    ("9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e", "falcon3"),
    ("e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea", "qwen2"),
    ("d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c", "qwen2"),
    ("b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5", "deepseek-r1-qwen"),
    ("855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249", "smollm"),
    ("63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e", "tekken"),
    ("0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3", "pixtral"),
    ("3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454", "gpt-2"),
    ("0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4", "gpt-2"),
    ("fcace8b9cac38ce847670c970cd5892031a753a1ef381abd1d9af00f713da085", "phi-2"),
    ("32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3", "stablelm2"),
    ("a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e", "dbrx"),
    ("ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e", "gpt-4o"),
    ("d353350c764d8c3b39c763113960e4fb4919bea5fbf208a0e3b22e8469dc7406", "llama4"),
    ("ad851be1dba641f2e3711822f816db2c265f788b37c63b4e1aeacb9ee92de8eb", "gigachat"),
];

/// The patterns of Llama 3's and of Qwen's tokenizer.json.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A pre-tokenizer whose form in tokenizer.json is known.
pub(super) struct Known {
    /// llama.cpp's name.
    pub name: &'static str,
    /// Other names of llama.cpp for the same.
    aliases: &'static [&'static str],
    /// Whether words that are tokens are taken whole.
    pub ignore_merges: bool,
    /// Whether texts are first brought into Unicode's form NFC, which llama.cpp leaves out.
    pub composed: bool,
    /// Its steps in tokenizer.json.
    steps: fn() -> Vec<Value>,
}

static FORMS: [Known; 5] = [
    Known {
        name: "gpt-2",
        aliases: &["phi-2"],
        ignore_merges: false,
        composed: false,
        steps: || vec![byte_level(true)],
    },
    Known {
        name: "smollm",
        aliases: &[],
        ignore_merges: false,
        composed: false,
        steps: || vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)],
    },
    Known {
        name: "llama-bpe",
        aliases: &["llama3", "llama-v3", "falcon3", "pixtral"],
        ignore_merges: true,
        composed: false,
        steps: || vec![split(LLAMA3), byte_level(false)],
    },
    Known {
        name: "smaug-bpe",
        aliases: &["dbrx"],
        ignore_merges: false,
        composed: false,
        steps: || vec![split(LLAMA3), byte_level(false)],
    },
    Known {
        name: "qwen2",
        aliases: &["deepseek-r1-qwen", "stablelm2"],
        ignore_merges: false,
        composed: true,
        steps: || vec![split(QWEN), byte_level(false)],
    },
];

fn byte_level(regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex })
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

impl Known {
    /// The pre-tokenizer with llama.cpp's name `name`.
    pub fn of(name: &str) -> Option<&'static Self> {
        FORMS.iter().find(|form| form.name == name || form.aliases.contains(&name))
    }

    /// Its form in tokenizer.json.
    pub fn to_json(&self) -> Value {
        match &(self.steps)()[..] {
            [one] => one.clone(),
            steps => json!({ "type": "Sequence", "pretokenizers": steps }),
        }
    }
}

/// The names that can be read, for messages.
pub(super) fn readable() -> String {
    FORMS.iter().map(|form| form.name).collect::<Vec<_>>().join(", ")
}

/// llama.cpp's name for a tokenizer's pre-tokenizer: by the ids of the probe, as its own converter finds it, otherwise
/// by the form in tokenizer.json. `None` if neither is known.
pub(super) fn name(tokenizer: &Tokenizer, json: &Value) -> Result<Option<&'static str>> {
    let ids: Vec<String> = tokenizer.encode(PROBE, true)?.iter().map(u32::to_string).collect();
    let digest: [u8; 32] = Sha256::digest(format!("[{}]", ids.join(", "))).into();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some((_, name)) = KNOWN.iter().find(|(known, _)| *known == digest) {
        return Ok(Some(name));
    }
    Ok(by_form(json))
}

fn by_form(json: &Value) -> Option<&'static str> {
    let normalizer = &json["normalizer"];
    let composed = normalizer["type"] == "NFC";
    if !normalizer.is_null() && !composed {
        return None;
    }
    let pre = &json["pre_tokenizer"];
    let steps: Vec<&Value> = match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"].as_array()?.iter().collect(),
        _ => vec![pre],
    };
    let ignore_merges = json["model"]["ignore_merges"] == json!(true);
    let same = |form: &&Known| {
        let wanted = (form.steps)();
        let equal = |(found, wanted): (&&Value, &Value)| {
            // `trim_offsets` concerns the places of tokens alone.
            let keys = ["type", "add_prefix_space", "use_regex", "individual_digits", "pattern", "behavior", "invert"];
            keys.iter().all(|key| found[*key] == wanted[*key])
        };
        form.ignore_merges == ignore_merges
            && (!composed || form.composed)
            && steps.len() == wanted.len()
            && steps.iter().zip(&wanted).all(equal)
    };
    FORMS.iter().find(same).map(|form| form.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_gives_its_name_and_a_name_its_form() {
        for form in &FORMS {
            let normalizer = if form.composed { json!({ "type": "NFC" }) } else { Value::Null };
            let model = json!({ "ignore_merges": form.ignore_merges });
            let json = json!({ "normalizer": normalizer, "pre_tokenizer": form.to_json(), "model": model });
            assert_eq!(by_form(&json), Some(form.name));
            for name in form.aliases {
                assert_eq!(Known::of(name).map(|known| known.name), Some(form.name));
            }
        }
        let prefixed = json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true });
        assert_eq!(by_form(&json!({ "pre_tokenizer": prefixed, "model": {} })), None);
        let lower = json!({ "normalizer": { "type": "Lowercase" }, "pre_tokenizer": FORMS[0].to_json(), "model": {} });
        assert_eq!(by_form(&lower), None);
    }
}
