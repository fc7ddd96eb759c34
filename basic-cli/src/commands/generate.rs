//! `basic generate`.

use std::io::{IsTerminal, Write, stdout};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use basic_models::Checkpoint;
use basic_models::generate::{GenerationConfig, GenerationDefaults, TextOptions, check_context, generate_text};
use basic_models::processor::tokenize_prompt;
use burn::tensor::{Tensor, TensorData};
use serde_json::json;

use super::model::{open, open_device};
use crate::args::{Generate, Tokens};
use crate::output::{print_json, say, tell};

/// Answers one prompt.
pub fn generate(args: Generate) -> Result<()> {
    let device = open_device(&args.device, args.dtype)?;
    let mut checkpoint = open(&args.checkpoint, &device)?;
    checkpoint.images = checkpoint.images.with_max_pixels(args.max_pixels);
    let (config, stop) = settings(&checkpoint, &args.tokens, args.max_new_tokens)?;
    let text = args.prompt.replace("\\n", "\n");
    let count = args.image.len();
    let prompt =
        tokenize_prompt(&checkpoint.tokenizer, &text, checkpoint.visual_tokens(), count).context("--prompt")?;
    // Before the weights are read: they may be large.
    check_context(&checkpoint.config, prompt.ids.len(), config.max_new_tokens)?;
    let pixels = pixels(&checkpoint, &args.image)?;
    let model = checkpoint.load(args.dtype.into(), &device)?;
    let features = model.encode(Tensor::from_data(pixels, &device));
    let options = TextOptions { tokenizer: &checkpoint.tokenizer, stop: &stop };
    let mut printer = Printer::new(!args.json && (args.stream || stdout().is_terminal()));
    let answers = generate_text(&model, &[prompt.into()], Some(features), &config, &options, &mut |piece| {
        printer.print(piece.text)
    });
    let answer = answers?.pop().unwrap_or_default();
    printer.check()?;
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
    Ok(())
}

/// The settings of a checkpoint's generation, and the texts at which it stops.
pub(super) fn settings(
    checkpoint: &Checkpoint,
    args: &Tokens,
    max_new_tokens: usize,
) -> Result<(GenerationConfig, Vec<String>)> {
    let defaults = GenerationDefaults::load(&checkpoint.dir)?;
    if !defaults.not_followed.is_empty() {
        let (dir, keys) = (checkpoint.dir.display(), defaults.not_followed.join(", "));
        tell!("warning: {dir}: generation_config.json sets what is not followed: {keys}");
    }
    let config = GenerationConfig {
        repetition_penalty: args.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        sampling: args.sampling(&defaults),
        ..GenerationConfig::greedy(max_new_tokens, defaults.end_ids(checkpoint), checkpoint.pad_id())
    };
    Ok((config, args.stops(&defaults)))
}

/// The pixel values of images, `[images, channels, height, width]`.
pub(super) fn pixels(checkpoint: &Checkpoint, images: &[PathBuf]) -> Result<TensorData> {
    let [channels, height, width] = checkpoint.image_shape();
    let mut all = Vec::new();
    for path in images {
        let pixels = checkpoint.pixels(path)?;
        if (pixels.height, pixels.width) != (height, width) {
            let (path, h, w) = (path.display(), pixels.height, pixels.width);
            bail!("{path}: the image processor makes {h} x {w} pixels, the vision encoder takes {height} x {width}");
        }
        all.extend(pixels.data);
    }
    Ok(TensorData::new(all, [images.len(), channels, height, width]))
}

/// Prints pieces of an answer on standard output as they come.
pub(super) struct Printer {
    pub on: bool,
    failed: Option<std::io::Error>,
}

impl Printer {
    pub fn new(on: bool) -> Self {
        Self { on, failed: None }
    }

    /// Breaks off where nobody reads any more.
    pub fn print(&mut self, text: &str) -> ControlFlow<()> {
        if !self.on || text.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut out = stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    pub fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), |error| Err(error).context("standard output"))
    }
}
