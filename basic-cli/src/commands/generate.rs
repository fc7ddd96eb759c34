//! Runs `basic generate`.

use std::io::{IsTerminal, stdout};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Error, Result, bail};
use basic_models::generate::{
    Answer, Finish, GenerateError, GenerationConfig, GenerationDefaults, TextOptions, check_context, generate_text,
};
use basic_models::nn::Llava;
use basic_models::processor::tokenize_prompt;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::tensor::Tensor;
use serde_json::json;

use super::model::{open, open_device};
use crate::args::{Generate, MAX_NEW_TOKENS, Tokens};
use crate::output::{closed, print_json, print_text, say, tell};

/// Answers one prompt.
pub fn generate(args: Generate) -> Result<()> {
    let device = open_device(&args.device, args.dtype)?;
    let mut checkpoint = open(&args.checkpoint, &device)?;
    checkpoint.images = checkpoint.images.with_max_pixels(args.max_pixels);
    let (mut config, stop) = settings(&checkpoint, &args.tokens, args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS))?;
    let text = args.prompt.replace("\\n", "\n");
    let tiles = args.image.iter().map(|image| checkpoint.tiles(image)).collect::<Result<Vec<_>, _>>()?;
    let prompt = tokenize_prompt(&checkpoint.tokenizer, &text, &tiles).context("--prompt")?;
    // The prompt and the images are checked before the weights are read, which may be large.
    check_context(&checkpoint.config, prompt.ids.len(), args.max_new_tokens.unwrap_or(1)).context("--prompt")?;
    let room = checkpoint.config.text_config.context().saturating_sub(prompt.ids.len());
    config.max_new_tokens = config.max_new_tokens.min(room);
    let pixels = pixels(&checkpoint, &args.image)?;
    let model = checkpoint.load(args.dtype.into(), &device)?;
    let prompt = ImageTokens { pixels, ..prompt.into() };
    let features = features(&model, &prompt, checkpoint.image_shape());
    let options = TextOptions { tokenizer: &checkpoint.tokenizer, stop: &stop };
    let printer = Printer::new(!args.json && (args.stream || stdout().is_terminal()));
    let answers = generate_text(&model, &[prompt], features, &config, &options, &mut |piece| printer.print(piece.text));
    let answer = answers.map_err(|error| blamed(error, &checkpoint))?.pop().unwrap_or_default();
    if args.json {
        let generated = answer.generated;
        return print_json(&json!({
            "ids": generated.ids,
            "gaps": generated.gaps,
            "text": answer.text,
            "top5": generated.top5,
            "finish_reason": generated.finish,
        }));
    }
    say!("{}", if printer.on { "" } else { &answer.text });
    if args.max_new_tokens.is_none() {
        tell_of_a_cut(&answer);
    }
    Ok(())
}

/// Prints a note if an answer was cut at the default limit or because the context is full.
pub(super) fn tell_of_a_cut(answer: &Answer) {
    let tokens = answer.generated.ids.len();
    match (answer.generated.finish, tokens < MAX_NEW_TOKENS) {
        (Finish::Length, false) => {
            tell!("note: the answer was cut at {tokens} tokens: --max-new-tokens raises that");
        }
        (Finish::Length, true) => tell!("note: the answer was cut at {tokens} tokens: the model's context is full"),
        _ => {}
    }
}

/// Adds the checkpoint's path to an error of generation that the checkpoint causes.
pub(super) fn blamed(error: GenerateError, checkpoint: &Checkpoint) -> Error {
    match error {
        GenerateError::NotFinite { .. } => Error::new(error).context(checkpoint.dir.display().to_string()),
        error => error.into(),
    }
}

/// The generation settings for a checkpoint, and the texts that end an answer.
pub(super) fn settings(
    checkpoint: &Checkpoint,
    args: &Tokens,
    max_new_tokens: usize,
) -> Result<(GenerationConfig, Vec<String>)> {
    let defaults = defaults(checkpoint)?;
    let config = GenerationConfig {
        repetition_penalty: args.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        sampling: args.sampling(&defaults),
        ..GenerationConfig::greedy(max_new_tokens, defaults.end_ids(checkpoint), checkpoint.pad_id())
    };
    Ok((config, args.stops(&defaults)))
}

/// The settings in a checkpoint's generation_config.json, with a warning about those that are not followed.
pub(super) fn defaults(checkpoint: &Checkpoint) -> Result<GenerationDefaults> {
    let defaults = GenerationDefaults::load(&checkpoint.dir)?;
    if !defaults.not_followed.is_empty() {
        let (dir, keys) = (checkpoint.dir.display(), defaults.not_followed.join(", "));
        tell!("warning: {dir}: generation_config.json sets what is not followed: {keys}");
    }
    Ok(defaults)
}

/// The patch features of a prompt's images, from their pixel values.
pub(super) fn features(model: &Llava, prompt: &ImageTokens, shape: [usize; 3]) -> Option<Tensor<2>> {
    let device = model.device().without_autodiff();
    model.features(&Batch::collate(std::slice::from_ref(prompt), 0, shape, &device))
}

/// The pixel values of each image, CHW, tile after tile.
pub(super) fn pixels(checkpoint: &Checkpoint, images: &[PathBuf]) -> Result<Vec<Vec<f32>>> {
    let [_, height, width] = checkpoint.image_shape();
    let mut all = Vec::new();
    for path in images {
        let pixels = checkpoint.pixels(path)?;
        if (pixels.height, pixels.width) != (height, width) {
            let (path, h, w) = (path.display(), pixels.height, pixels.width);
            bail!("{path}: the image processor makes {h} x {w} pixels, the vision encoder takes {height} x {width}");
        }
        all.push(pixels.data);
    }
    Ok(all)
}

/// Prints the pieces of an answer on standard output as they are generated.
pub(super) struct Printer {
    pub on: bool,
}

impl Printer {
    pub fn new(on: bool) -> Self {
        Self { on }
    }

    /// Prints a piece. Ends the generation if standard output is closed.
    pub fn print(&self, text: &str) -> ControlFlow<()> {
        if self.on && !text.is_empty() {
            print_text(text);
        }
        if self.on && closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
