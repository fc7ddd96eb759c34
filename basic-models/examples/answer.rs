//! Loads a checkpoint and answers a prompt about an image.
//!
//!     cargo run -p basic-models --example answer -- CHECKPOINT IMAGE "USER: <image>\nWhat is it? ASSISTANT:"
//!
//! CHECKPOINT is a directory of a Hugging Face LLaVA model or of LLaVA's own code, or a name in the local Hugging Face
//! cache. Without arguments, the example combines the repository's two small backbones with an untrained projector: its
//! answer has words of the right kind but is meaningless. `basic demo` and `examples/shapes.toml` train such a model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use basic_core::DeviceSpec;
use basic_models::generate::{GenerationConfig, GenerationDefaults, TextOptions, generate_text};
use basic_models::processor::tokenize_prompt;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::tensor::DType;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Opening reads the configuration, tokenizer and processor, but no weights yet.
    let checkpoint = match args.next() {
        Some(path) => Checkpoint::open(Path::new(&path))?,
        None => Checkpoint::assemble(&repository.join("assets/vision"), &repository.join("assets/llm"), 0)?,
    };
    let image = args.next().map_or_else(|| repository.join("tests/fixtures/images/b.png"), PathBuf::from);
    let text =
        args.next().unwrap_or_else(|| "USER: <image>\\ndescribe the image ASSISTANT:".into()).replace("\\n", "\n");

    let device = DeviceSpec::Auto.open()?;
    // In the files' own type, `checkpoint.stored_dtype()`, a large model usually takes half the memory.
    let model = checkpoint.load(DType::F32, &device)?;

    // The prompt: <image> is expanded to as many positions as the image has visual embeddings, or patches and newlines if
    // the model cuts it into tiles.
    let prompt = tokenize_prompt(&checkpoint.tokenizer, &text, &[checkpoint.tiles(&image)?])?;
    // The image, processed as the checkpoint's settings require, and its patch features.
    let prompt = ImageTokens { pixels: vec![checkpoint.pixels(&image)?.data], ..prompt.into() };
    let batch = Batch::collate(std::slice::from_ref(&prompt), checkpoint.pad_id(), checkpoint.image_shape(), &device);
    let features = model.features(&batch);

    let defaults = GenerationDefaults::load(&checkpoint.dir)?;
    let config = GenerationConfig::greedy(64, defaults.end_ids(&checkpoint), checkpoint.pad_id());
    let options = TextOptions { tokenizer: &checkpoint.tokenizer, stop: &[] };
    // The observer gets each piece of text as it is generated, and can end the answer.
    let mut observer = |piece: basic_models::generate::Piece<'_>| {
        print!("{}", piece.text);
        ControlFlow::Continue(())
    };
    let answers = generate_text(&model, &[prompt], features, &config, &options, &mut observer)?;
    println!("\n({} tokens)", answers[0].generated.ids.len());
    Ok(())
}
