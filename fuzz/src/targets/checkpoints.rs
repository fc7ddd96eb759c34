//! Targets for images and for the files of checkpoints.

use std::fs;
use std::io;
use std::path::Path;

use image::{DynamicImage, ImageFormat, RgbImage};

use super::{Target, data, seeds};
use crate::mutate::{Kind, palette, split, varint};
use crate::outputs::Leaves;

const CONVERT: &[&str] = &["convert", "model", "out"];
const CHECK: &[&str] = &["data", "check", "data.json", "--checkpoint", "model", "--conversation", "vicuna_v1"];
const ASSEMBLE: &[&str] = &["assemble", "--vision", "model/tower", "--llm", "llm.gguf", "--out", "out"];
const ASSEMBLE_OWN: &[&str] = &["assemble", "--vision", "model/tower", "--llm", "gguf/model.gguf", "--out", "out"];
const ASSEMBLE_FUSED: &[&str] =
    &["assemble", "--vision", "towers/dinov2", "--vision", "towers/siglip", "--llm", "llm.gguf", "--out", "model"];
const ASSEMBLE_FLEXIBLE: &[&str] = &["assemble", "--vision", "towers/siglip2", "--llm", "llm.gguf", "--out", "model"];
const RENDER: &[&str] = &["data", "check", "data.json", "--checkpoint", "model", "--conversation", "template"];
const MERGE: &[&str] = &["merge", "model", "adapter", "out"];
const OUT: Leaves = Leaves::Checkpoint("out");

const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: \
    {% for c in message['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] | trim }}{% endif %}\
    {% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}ASSISTANT: {% endif %}";

const ADDED: &str = r#"{"<image>": 358}"#;
const SPECIAL: &str = r#"{"bos_token": {"content": "<s>", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false}, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": ["<image>"]}"#;

/// The targets of images and checkpoints.
pub(super) fn targets(fixtures: &Path) -> Vec<Target> {
    let new = |format, name, kind, damaged, line| {
        let target = Target::new(format, name, kind, damaged, line);
        target.with(fixtures.join("images/a.png"), "a.png").text("data.json", data())
    };
    let plain = |format, name, kind, damaged, line| {
        new(format, name, kind, damaged, line).with(fixtures.join("plain"), "model")
    };
    let of = |model: &str, target: Target| target.with(fixtures.join(model), "model").leaves(OUT);
    let image = |name, kind, damaged, line, bytes: Vec<u8>| {
        plain("images", name, kind, damaged, line).text(damaged, bytes).leaves(Leaves::File("out.safetensors"))
    };
    let bin = "model/pytorch_model-00002-of-00002.bin";
    let config = |name, damaged| plain("configs", name, Kind::Json, damaged, CONVERT).leaves(OUT);
    let tokens = |name, damaged| plain("tokenizers", name, Kind::Json, damaged, CHECK);
    let adapter = |name, from: &str, kind, damaged| {
        plain("adapters", name, kind, damaged, MERGE).with(fixtures.join(from), "adapter").leaves(OUT)
    };
    // A model of several vision encoders, and one whose images have grids of their own.
    let assembled = |name, from: &str, damaged, line: &'static [&'static str]| {
        let target = new("configs", name, Kind::Json, damaged, CONVERT).with(fixtures.join(from), "towers");
        target.with(fixtures.join("gguf/decoder.gguf"), "llm.gguf").made(line).leaves(OUT)
    };
    let png = fs::read(fixtures.join("images/a.png")).unwrap_or_default();
    vec![
        image("png", Kind::Png, "i.png", &["preprocess", "model", "i.png", "out.safetensors"], png),
        image(
            "png with a palette",
            Kind::Png,
            "i.png",
            &["preprocess", "model", "i.png", "out.safetensors"],
            palette(),
        ),
        image(
            "jpeg",
            Kind::Bytes,
            "i.jpg",
            &["preprocess", "model", "i.jpg", "out.safetensors"],
            picture(ImageFormat::Jpeg),
        ),
        image(
            "webp",
            Kind::Bytes,
            "i.webp",
            &["preprocess", "model", "i.webp", "out.safetensors"],
            picture(ImageFormat::WebP),
        ),
        image(
            "gif",
            Kind::Bytes,
            "i.gif",
            &["preprocess", "model", "i.gif", "out.safetensors"],
            picture(ImageFormat::Gif),
        ),
        image(
            "bmp",
            Kind::Bytes,
            "i.bmp",
            &["preprocess", "model", "i.bmp", "out.safetensors"],
            picture(ImageFormat::Bmp),
        ),
        plain("safetensors", "safetensors", Kind::Safetensors, "model/model.safetensors", CONVERT).leaves(OUT),
        of(
            "sharded",
            new("safetensors", "safetensors index", Kind::Json, "model/model.safetensors.index.json", CONVERT),
        ),
        of("original", new(".bin pickles", "bin", Kind::Zip, bin, CONVERT)),
        of("original", new(".bin pickles", "legacy bin", Kind::Pickles, bin, CONVERT)).with(seeds("legacy.bin"), bin),
        of("original", new(".bin pickles", "bin of a tower", Kind::Zip, "model/tower/pytorch_model.bin", CONVERT)),
        of("original", new(".bin pickles", "bin, inspected", Kind::Zip, bin, &["inspect", "model"]))
            .leaves(Leaves::Nothing),
        of("original", new(".bin pickles", "bin index", Kind::Json, "model/pytorch_model.bin.index.json", CONVERT)),
        config("config.json", "model/config.json"),
        config("generation_config.json", "model/generation_config.json"),
        config("processor_config.json", "model/processor_config.json"),
        of(
            "transformers4",
            new("configs", "preprocessor_config.json", Kind::Json, "model/preprocessor_config.json", CONVERT),
        ),
        of("original", new("configs", "LLaVA's config.json", Kind::Json, "model/config.json", CONVERT)),
        of("original", new("configs", "a tower's config.json", Kind::Json, "model/tower/config.json", CONVERT)),
        plain("configs", "config.json, inspected", Kind::Json, "model/config.json", &["inspect", "model", "--json"]),
        plain(
            "configs",
            "processor_config.json, used",
            Kind::Json,
            "model/processor_config.json",
            &["preprocess", "model", "a.png", "out.safetensors"],
        )
        .leaves(Leaves::File("out.safetensors")),
        assembled("config.json of fused encoders", "fused", "model/config.json", ASSEMBLE_FUSED),
        assembled(
            "preprocessor_config.json of fused encoders",
            "fused",
            "model/preprocessor_config.json",
            ASSEMBLE_FUSED,
        ),
        assembled("config.json of a flexible encoder", "flexible", "model/config.json", ASSEMBLE_FLEXIBLE),
        new(
            "configs",
            "preprocessor_config.json of a flexible encoder",
            Kind::Json,
            "tower/preprocessor_config.json",
            &["preprocess", "tower", "a.png", "out.safetensors"],
        )
        .with(fixtures.join("flexible/siglip2"), "tower")
        .leaves(Leaves::File("out.safetensors")),
        tokens("tokenizer.json", "model/tokenizer.json"),
        plain("tokenizers", "tokenizer.json, converted", Kind::Json, "model/tokenizer.json", CONVERT).leaves(OUT),
        tokens("tokenizer_config.json", "model/tokenizer_config.json"),
        tokens("added_tokens.json", "model/added_tokens.json").text("model/added_tokens.json", ADDED),
        tokens("special_tokens_map.json", "model/special_tokens_map.json")
            .text("model/special_tokens_map.json", SPECIAL),
        plain("templates", "chat template", Kind::Template, "model/chat_template.jinja", RENDER)
            .text("model/chat_template.jinja", TEMPLATE),
        plain("templates", "chat_template.json", Kind::Json, "model/chat_template.json", RENDER)
            .text("model/chat_template.json", serde_json::json!({"chat_template": TEMPLATE}).to_string()),
        plain("SentencePiece", "tokenizer.model", Kind::Fields, "model/tokenizer.model", CHECK)
            .with(
                fixtures.join("../../basic-models/tests/fixtures/processor/vicuna/tokenizer.model"),
                "model/tokenizer.model",
            )
            .text("model/added_tokens.json", ADDED)
            .adjusted(pieces_alone),
        of("original", new("GGUF", "decoder.gguf", Kind::Gguf, "llm.gguf", ASSEMBLE))
            .with(fixtures.join("gguf/decoder.gguf"), "llm.gguf"),
        of("original", new("GGUF", "GGUF of a checkpoint", Kind::Gguf, "gguf/model.gguf", ASSEMBLE_OWN))
            .with(fixtures.join("plain"), "plain")
            .made(&["convert", "plain", "gguf", "--gguf", "--quant", "q8_0"]),
        adapter("adapter_config.json", "adapters/peft", Kind::Json, "adapter/adapter_config.json"),
        adapter("adapter_config.json, patterns", "adapters/patterns", Kind::Json, "adapter/adapter_config.json"),
        adapter("adapter_model.safetensors", "adapters/peft", Kind::Safetensors, "adapter/adapter_model.safetensors"),
    ]
}

/// An image in another format than PNG.
fn picture(format: ImageFormat) -> Vec<u8> {
    let picture = RgbImage::from_fn(20, 14, |x, y| image::Rgb([x as u8 * 12, y as u8 * 18, (x * y) as u8]));
    let mut bytes = io::Cursor::new(Vec::new());
    // Encoding in memory does not fail; if it did, the empty undamaged input would be refused.
    let _ = DynamicImage::from(picture).write_to(&mut bytes, format);
    bytes.into_inner()
}

/// Removes tokenizer.json, and all pieces of tokenizer.model for which the embedding table has no row.
fn pieces_alone(folder: &Path) -> io::Result<()> {
    const PIECES: usize = 358;
    let model = folder.join("model");
    fs::remove_file(model.join("tokenizer.json"))?;
    let path = model.join("tokenizer.model");
    let fields = split(&fs::read(&path)?).ok_or_else(|| io::Error::other("tokenizer.model"))?;
    let (mut kept, mut out) = (0, Vec::new());
    for (number, data) in fields {
        kept += usize::from(number == 1);
        if number != 1 || kept <= PIECES {
            varint(&mut out, number << 3 | 2);
            varint(&mut out, data.len() as u64);
            out.extend(data);
        }
    }
    fs::write(path, out)
}
