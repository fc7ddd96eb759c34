//! Runs `basic analyze`: the token lens on an image or on a data set.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use basic_data::{ImageSource, SetConfig, VisionCache};
use basic_eval::lens::{
    Cases, Grid, Lens, LensError, LensOptions, Meaning, Pictured, Reading, Replacement, Rule, Scenes, Survey, Truth,
    content_words, lens_html, replaced_prompt, replacement, seen_image, survey,
};
use basic_models::atomic_file::write_atomically;
use basic_models::checkpoint::CheckpointError;
use basic_models::generate::{
    GenerateError, GenerationConfig, GenerationDefaults, TextOptions, check_context, generate_text,
};
use basic_models::nn::Llava;
use basic_models::processor::tokenize_prompt;
use basic_models::{Checkpoint, ImageTokens};
use burn::tensor::Device;
use serde::Serialize;

use super::model::{open, open_device};
use crate::args::Analyze;
use crate::output::{bar, print_json, print_text};

mod lens_text;

use lens_text::{tell_reading, tell_survey};

/// Runs `basic analyze`.
pub fn analyze(args: Analyze) -> Result<()> {
    let options = LensOptions {
        basic: args.basic(),
        top: if args.data.is_some() { 1 } else { args.top.into() },
        all: args.data.is_none(),
        layers: (!args.layers.is_empty()).then(|| args.layers.clone()),
        meaning: Meaning { rule: args.rule().map_err(|reason| anyhow!(reason))?, min_similarity: args.min_similarity },
    };
    let device = open_device(&args.device, args.dtype)?;
    let mut checkpoints = Vec::new();
    for path in std::iter::once(&args.checkpoint).chain(&args.compare) {
        let mut checkpoint = open(path, &device)?;
        checkpoint.images = checkpoint.images.with_max_pixels(args.max_pixels);
        options.check(&checkpoint.config).with_context(|| path.display().to_string())?;
        checkpoints.push((path.clone(), checkpoint));
    }
    match &args.data {
        Some(data) => over_data(&args, data, &options, &checkpoints, &device),
        None => over_image(&args, &options, &checkpoints, &device),
    }
}

/// A checkpoint's reading in the form of the JSON output.
#[derive(Serialize)]
struct Told {
    checkpoint: PathBuf,
    /// The number of decoder layers (L).
    layers: usize,
    k: usize,
    grid: Grid,
    end_token: Option<u32>,
    token_norm: f64,
    #[serde(flatten)]
    reading: Reading,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Answers>,
}

/// The answers of the replacement experiment on one prompt.
#[derive(Serialize)]
struct Answers {
    answer: String,
    replaced: String,
}

impl Answers {
    /// The answers with their labels on the page.
    fn shown(&self) -> [(&'static str, String); 2] {
        [("Answer", self.answer.clone()), ("Answer from the nearest tokens alone", self.replaced.clone())]
    }
}

#[derive(Serialize)]
struct Readings {
    prompt: String,
    images: Vec<PathBuf>,
    meaningful: Meaning,
    caption: Option<String>,
    checkpoints: Vec<Told>,
}

fn over_image(
    args: &Analyze,
    options: &LensOptions,
    checkpoints: &[(PathBuf, Checkpoint)],
    device: &Device,
) -> Result<()> {
    let text = args.prompt.clone().unwrap_or_default().replace("\\n", "\n");
    let images: Vec<ImageSource> = args.image.iter().cloned().map(ImageSource::File).collect();
    let scenes =
        args.labels.as_deref().filter(|_| options.meaning.rule == Rule::Labels).map(Scenes::read).transpose()?;
    // Everything is checked before the weights are read, which may be large.
    let mut prompts = Vec::new();
    let mut seen = Vec::new();
    for (_, checkpoint) in checkpoints {
        let prompt =
            tokenize_prompt(&checkpoint.tokenizer, text.as_str(), &ImageSource::tiles_of(&images, checkpoint)?)
                .context("--prompt")?;
        check_context(&checkpoint.config, prompt.ids.len(), new_tokens(args, 64))?;
        prompts.push(ImageTokens::from(prompt));
        seen.push(images.iter().map(|image| seen_image(checkpoint, image)).collect::<Result<Vec<_>, _>>()?);
    }
    let mut told = Vec::new();
    for ((path, checkpoint), prompt) in checkpoints.iter().zip(prompts) {
        let model = checkpoint.load(args.dtype.into(), device)?;
        let mut lens = Lens::new(&model, checkpoint, options.clone()).map_err(broken(path))?;
        let truth = |image: &ImageSource| match (&scenes, &args.caption, options.meaning.rule) {
            (Some(scenes), _, Rule::Labels) => scenes.truth(image.name(), lens.grid()),
            (_, Some(caption), Rule::Caption) => Ok(Truth::Words(content_words(caption))),
            _ => Ok(Truth::Any),
        };
        let truths: Vec<Truth> = images.iter().map(truth).collect::<Result<_, _>>()?;
        let reading = lens.read(prompt.clone(), &images, &truths).map_err(broken(path))?;
        let replaced = args
            .replace
            .then(|| answers(&model, checkpoint, &lens, &prompt, &images, new_tokens(args, 64)))
            .transpose()
            .map_err(broken(path))?;
        told.push(Told {
            checkpoint: path.clone(),
            layers: checkpoint.config.text_config.num_hidden_layers,
            k: lens.k(),
            grid: lens.grid().clone(),
            end_token: lens.end_token(),
            token_norm: lens.vocabulary().mean_norm(),
            reading,
            replaced,
        });
    }
    let readings = Readings {
        prompt: text,
        images: args.image.clone(),
        meaningful: options.meaning,
        caption: args.caption.clone(),
        checkpoints: told,
    };
    if let Some(out) = &args.out {
        let html = page(&readings, &seen)?;
        write(&out.join("lens.html"), html.as_bytes())?;
        write(&out.join("lens.json"), &serde_json::to_vec(&readings)?)?;
    }
    if args.json {
        return print_json(&readings);
    }
    let caption = args.caption.as_deref();
    let told = readings.checkpoints.iter().map(|told| tell_reading(told, options.meaning, caption));
    let mut text: String = told.collect();
    if let Some(out) = &args.out {
        text += &format!("{}\n", out.join("lens.html").display());
    }
    print_text(&text);
    Ok(())
}

fn new_tokens(args: &Analyze, usual: usize) -> usize {
    if args.replace { args.max_new_tokens.unwrap_or(usual) } else { 0 }
}

fn page(readings: &Readings, seen: &[Vec<String>]) -> Result<String, LensError> {
    let name = |path: &PathBuf| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let pictured = readings.checkpoints.iter().zip(seen).map(|(told, seen)| Pictured {
        name: told.checkpoint.display().to_string(),
        reading: &told.reading,
        grid: &told.grid,
        k: told.k,
        answers: told.replaced.iter().flat_map(Answers::shown).collect(),
        images: readings.images.iter().map(name).zip(seen.iter().cloned()).collect(),
    });
    let models: Vec<Pictured<'_>> = pictured.collect();
    let facts = [
        ("Prompt", readings.prompt.clone()),
        ("Meaningful is", said(readings.meaningful, readings.caption.as_deref())),
    ];
    lens_html(&models, &facts)
}

/// The rule for meaningful embeddings in words.
fn said(meaning: Meaning, caption: Option<&str>) -> String {
    let rule = match (meaning.rule, caption) {
        (Rule::Caption, Some(caption)) => {
            let mut words: Vec<String> = content_words(caption).into_iter().collect();
            words.sort();
            format!("a nearest token among: {}", words.join(", "))
        }
        (Rule::Caption, None) => "a nearest token among the content words of the answers".into(),
        (Rule::Labels, _) => "a nearest token that is true of the patch’s object".into(),
        (Rule::Word, _) => "a nearest token that is a whole word".into(),
    };
    match meaning.min_similarity {
        Some(least) => format!("{rule}; cosine at least {least}"),
        None => rule,
    }
}

/// Adds the checkpoint's path to errors that the checkpoint causes: numbers that are not finite.
fn broken<E: Into<anyhow::Error>>(checkpoint: &Path) -> impl Fn(E) -> anyhow::Error + '_ {
    |error| {
        let error = error.into();
        let own = error.chain().any(|cause| {
            let lens = cause.downcast_ref::<LensError>();
            let generated = cause.downcast_ref::<GenerateError>();
            matches!(lens, Some(LensError::NotFinite { .. } | LensError::Generate(GenerateError::NotFinite { .. })))
                || matches!(generated, Some(GenerateError::NotFinite { .. }))
        });
        if own { error.context(checkpoint.display().to_string()) } else { error }
    }
}

/// The answers to a prompt by greedy decoding, without and with the replacement.
fn answers(
    model: &Llava,
    checkpoint: &Checkpoint,
    lens: &Lens<'_>,
    prompt: &ImageTokens,
    images: &[ImageSource],
    max_new_tokens: usize,
) -> Result<Answers> {
    let defaults = GenerationDefaults::load(&checkpoint.dir)?;
    let config = GenerationConfig::greedy(max_new_tokens, defaults.end_ids(checkpoint), checkpoint.pad_id());
    let options = TextOptions { tokenizer: &checkpoint.tokenizer, stop: &[] };
    let features = VisionCache::new(0).features(model, checkpoint, images)?;
    let nearest = features.clone().map(|features| lens.nearest_tokens(features)).transpose()?.unwrap_or_default();
    let text = |prompt: ImageTokens, features| -> Result<String> {
        let answers =
            generate_text(model, &[prompt], features, &config, &options, &mut |_| std::ops::ControlFlow::Continue(()))?;
        Ok(answers.into_iter().next().unwrap_or_default().text.trim().to_string())
    };
    Ok(Answers { answer: text(prompt.clone(), features)?, replaced: text(replaced_prompt(prompt, &nearest), None)? })
}

/// A checkpoint's survey in the form of the JSON output.
#[derive(Serialize)]
struct Surveyed {
    checkpoint: PathBuf,
    #[serde(flatten)]
    survey: Survey,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Replacement>,
}

#[derive(Serialize)]
struct Surveys {
    data: PathBuf,
    checkpoints: Vec<Surveyed>,
}

fn over_data(
    args: &Analyze,
    data: &Path,
    options: &LensOptions,
    checkpoints: &[(PathBuf, Checkpoint)],
    device: &Device,
) -> Result<()> {
    let config: SetConfig = args.reading.of(data);
    let cases = Cases::open_within(&config, args.image_root.as_deref())?;
    let limit = args.limit.map(|n| n as usize);
    let indices = cases.with_images(limit, true)?;
    let asked = if args.replace { cases.with_images(limit, false)? } else { Vec::new() };
    let beside = || data.parent().unwrap_or(Path::new("")).join("scenes.jsonl");
    let labelled = options.meaning.rule == Rule::Labels;
    let scenes = labelled.then(|| Scenes::read(&args.labels.clone().unwrap_or_else(beside))).transpose()?;
    let mut all = Vec::new();
    for (at, (path, checkpoint)) in checkpoints.iter().enumerate() {
        let style = args.conversation.resolve(checkpoint, false).map_err(CheckpointError::from)?;
        let model = checkpoint.load(args.dtype.into(), device)?;
        let mut lens = Lens::new(&model, checkpoint, options.clone()).map_err(broken(path))?;
        let progress = bar("analyze", indices.len());
        let survey = survey(&mut lens, &cases, &indices, &style, scenes.as_ref(), &mut |done| {
            progress.set_position(done as u64)
        })
        .map_err(broken(path))?;
        progress.finish_and_clear();
        let replaced = match args.replace {
            false => None,
            true => {
                let progress = bar("replace", asked.len());
                let found = replacement(&mut lens, &cases, &asked, &style, new_tokens(args, 16), &mut |done| {
                    progress.set_position(done as u64);
                })
                .map_err(broken(path))?;
                progress.finish_and_clear();
                Some(found)
            }
        };
        if let (Some(out), Some(found)) = (&args.out, &replaced) {
            let lines: Vec<String> = found.answers.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
            let name = if at == 0 { "replaced.jsonl".to_string() } else { format!("replaced-{}.jsonl", at + 1) };
            write(&out.join(name), (lines.join("\n") + "\n").as_bytes())?;
        }
        all.push(Surveyed { checkpoint: path.clone(), survey, replaced });
    }
    let surveys = Surveys { data: data.to_path_buf(), checkpoints: all };
    if let Some(out) = &args.out {
        write(&out.join("survey.json"), format!("{:#}\n", serde_json::to_value(&surveys)?).as_bytes())?;
    }
    if args.json {
        return print_json(&surveys);
    }
    print_text(&surveys.checkpoints.iter().map(tell_survey).collect::<String>());
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, bytes).with_context(|| path.display().to_string())
}
