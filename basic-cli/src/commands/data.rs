//! Runs `basic data check`, `show` and `export`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use basic_data::{
    CheckOptions, CheckReport, ExportOptions, ImageSource, Images, LoaderConfig, OneSet, Preparer, Reason, Sample,
    Samples, SetConfig, Token, check, export, tokens,
};
use basic_models::Checkpoint;
use basic_models::atomic_file::write_atomically;
use basic_models::processor::Style;
use basic_train::recipe::{Recipe, Stage};
use basic_train::train;
use serde_json::{Value, json};

use super::model::warn;
use crate::args::{Check, Conversations, Export, ImagesArg, OnErrorArg, Show};
use crate::output::{bar, print_json, say, tell};

/// The preparer that tokenizes as training would; `None` without `--checkpoint` and `--recipe`.
fn preparer(args: &Conversations) -> Result<Option<Preparer>> {
    if let Some(recipe) = &args.recipe {
        return Ok(Some(train::preparer(&Recipe::open(recipe, &[])?, &mut |text| tell!("warning: {text}"))?));
    }
    let Some(dir) = &args.checkpoint else { return Ok(None) };
    let checkpoint = Checkpoint::open(dir)?;
    warn(&checkpoint);
    let style = args.conversation.resolve(&checkpoint, Stage::from(args.stage) == Stage::Pretrain)?;
    Ok(Some(Preparer::new(&checkpoint, style, &LoaderConfig::default())?))
}

/// The name of the conversation style.
fn style_name(preparer: &Preparer) -> &'static str {
    match preparer.style() {
        Style::Template(_) => "template",
        Style::Named(style) => style.name(),
    }
}

fn in_words(style: &str) -> String {
    match style {
        "template" => "the checkpoint's chat template".into(),
        style => format!("{style}, one of LLaVA's"),
    }
}

/// Runs `basic data check`.
pub fn data_check(args: Check) -> Result<()> {
    let preparer = preparer(&args.conversations)?;
    let style = preparer.as_ref().map(style_name);
    let mut reports = Vec::new();
    for path in &args.data {
        let set = OneSet::open(&args.reading.of(path))?;
        let options = CheckOptions { preparer: preparer.as_ref(), sample: args.sample.map(|n| n as usize) };
        let progress = bar("check", options.sample.unwrap_or(usize::MAX).min(set.len()));
        let report = check(&set, &options, |more| progress.inc(more as u64))?;
        progress.finish_and_clear();
        if !args.json {
            print_report(&set, &report, style);
        }
        reports.push((set, report));
    }
    if args.json {
        let sets: Vec<Value> = reports
            .iter()
            .map(|(set, report)| {
                let mut value = serde_json::to_value(report)?;
                value["path"] = set.path().display().to_string().into();
                value["format"] = set.format().name().into();
                if let Some(style) = style {
                    value["conversation"] = style.into();
                }
                Ok(value)
            })
            .collect::<Result<_>>()?;
        let sum = |of: fn(&CheckReport) -> usize| reports.iter().map(|(_, report)| of(report)).sum::<usize>();
        let (samples, unusable) = (sum(|report| report.samples), sum(|report| report.unusable));
        print_json(&json!({"samples": samples, "unusable": unusable, "sets": sets}))?;
    }
    Ok(())
}

fn print_report(set: &OneSet, report: &CheckReport, style: Option<&str>) {
    say!("{} ({}): {} samples, {} checked", set.path().display(), set.format(), report.samples, report.checked);
    let counted = |counts: &std::collections::BTreeMap<usize, usize>| {
        counts.iter().map(|(number, samples)| format!("{number}: {samples}")).collect::<Vec<_>>().join(", ")
    };
    say!("  text only    {}", report.text_only);
    say!("  images       {} (samples by number: {})", report.images, counted(&report.images_per_sample));
    say!("  turns        samples by number of answers: {}", counted(&report.turns_per_sample));
    if report.dropped_turns > 0 {
        say!("  dropped      {} answers before the first question, as LLaVA does", report.dropped_turns);
    }
    if let Some(style) = style {
        say!("  style        {}", in_words(style));
    }
    if let Some(tokens) = &report.tokens {
        if let Some(first) = &tokens.first_unknown {
            say!(
                "  warning      the tokenizer does not know {} tokens of {} samples, which train as its <unk>; the first: {first}",
                tokens.unknown,
                tokens.with_unknown
            );
        }
        say!(
            "  tokens       {} to {}, median {}, 95% up to {}; {} in all, {} bear loss",
            tokens.min,
            tokens.max,
            tokens.median,
            tokens.p95,
            tokens.total,
            tokens.targets
        );
        let most = tokens.histogram.iter().map(|bucket| bucket.samples).max().unwrap_or(1).max(1);
        for bucket in &tokens.histogram {
            let width = (bucket.samples * 40).div_ceil(most);
            say!("  {:>6} .. {:<6} {:>8} {}", bucket.from, bucket.to - 1, bucket.samples, "█".repeat(width));
        }
        match tokens.max_length == tokens.context {
            true => say!("  over the context of {}: {}", tokens.context, tokens.over_context),
            false => say!("  over loader.max_length = {}: {}", tokens.max_length, tokens.over_context),
        }
        say!("  without a target: {}", tokens.without_target);
    }
    say!("  training would leave out {} of {}", report.unusable, report.checked);
    for (reason, problem) in &report.problems {
        let name = match reason {
            Reason::Invalid => "not a sample that can be trained on",
            Reason::BrokenImage => "an image is missing or broken",
            Reason::OverContext => "longer than the context",
            Reason::NoTarget => "no token bears loss",
        };
        say!("  {name}: {}", problem.samples);
        for message in &problem.first {
            say!("    {message}");
        }
        if problem.samples > problem.first.len() {
            say!("    …");
        }
    }
}

/// Runs `basic data show`.
pub fn data_show(args: Show) -> Result<()> {
    let preparer = preparer(&args.conversations)?;
    let set = OneSet::open(&args.reading.of(&args.data))?;
    if args.index >= set.len() {
        bail!("{}: has {} samples, from 0: there is no sample {}", args.data.display(), set.len(), args.index);
    }
    let sample = set.sample(args.index)?;
    let images = save_images(&sample, args.out.as_deref())?;
    let tokens = preparer.as_ref().map(|preparer| tokens(&sample, preparer)).transpose()?;
    if args.json {
        let mut value = shown(&sample, &images, tokens.as_deref());
        if let Some(preparer) = &preparer {
            value["conversation"] = style_name(preparer).into();
        }
        return print_json(&value);
    }
    say!("{}: sample {}", sample.file.display(), sample.place);
    if sample.dropped_turns > 0 {
        say!("dropped    {} answer before the first question, as LLaVA does", sample.dropped_turns);
    }
    for message in &sample.messages {
        say!("{:<10} {}", message.role.name(), message.content.replace('\n', "\n           "));
    }
    for (image, width, height, saved) in &images {
        let saved = saved.as_ref().map(|path| format!(", saved as {}", path.display())).unwrap_or_default();
        say!("image      {image}, {width} x {height}{saved}");
    }
    if let Some(preparer) = &preparer {
        say!("style      {}", in_words(style_name(preparer)));
    }
    if let Some(tokens) = tokens {
        say!("tokens     {} ({} bear loss, in [brackets])", total(&tokens), targets(&tokens));
        say!("{}", tokens.iter().map(marked).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

type Saved<'a> = (&'a ImageSource, u32, u32, Option<PathBuf>);

/// Decodes the images, and saves them if `out` is given.
fn save_images<'a>(sample: &'a Sample, out: Option<&Path>) -> Result<Vec<Saved<'a>>> {
    let save = |(number, image): (usize, &'a ImageSource)| {
        let pixels = image.decode().map_err(|error| sample.image_error(error.into()))?;
        let path = out.map(|out| match number {
            0 => out.to_path_buf(),
            _ => {
                let stem = out.file_stem().unwrap_or_default().to_string_lossy();
                out.with_file_name(format!("{stem}-{number}.png"))
            }
        });
        if let Some(path) = &path {
            let mut png = std::io::Cursor::new(Vec::new());
            pixels.write_to(&mut png, image::ImageFormat::Png).context("the image cannot be written as PNG")?;
            write_atomically(path, png.get_ref()).with_context(|| path.display().to_string())?;
        }
        Ok((image, pixels.width(), pixels.height(), path))
    };
    sample.images.iter().enumerate().map(save).collect()
}

fn total(tokens: &[Token]) -> usize {
    tokens.iter().map(|token| token.count).sum()
}

fn targets(tokens: &[Token]) -> usize {
    tokens.iter().filter(|token| token.loss).map(|token| token.count).sum()
}

fn marked(token: &Token) -> String {
    let text = match token.count {
        1 => token.text.replace('\n', "\\n"),
        count => format!("{}×{count}", token.text),
    };
    if token.loss { format!("[{text}]") } else { text }
}

fn shown(sample: &Sample, images: &[Saved], tokens: Option<&[Token]>) -> Value {
    let image = |(image, width, height, saved): &Saved| {
        let saved = saved.as_ref().map(|path| path.display().to_string());
        json!({"name": image.to_string(), "width": width, "height": height, "saved": saved})
    };
    let message =
        |message: &basic_models::processor::Message| json!({"role": message.role.name(), "content": message.content});
    let mut value = json!({
        "file": sample.file.display().to_string(),
        "place": sample.place,
        "dropped_turns": sample.dropped_turns,
        "messages": sample.messages.iter().map(message).collect::<Vec<_>>(),
        "images": images.iter().map(image).collect::<Vec<_>>(),
    });
    if let Some(tokens) = tokens {
        value["length"] = total(tokens).into();
        value["targets"] = targets(tokens).into();
        value["tokens"] = json!(tokens);
    }
    value
}

/// Runs `basic data export`.
pub fn data_export(args: Export) -> Result<()> {
    let config = SetConfig {
        images: args.from_images.clone(),
        format: args.from_format,
        split: args.from_split.clone(),
        limit: args.limit,
        ..SetConfig::new(&args.data)
    };
    let set = OneSet::open(&config)?;
    let images = match args.images {
        ImagesArg::Copy => Images::Copy,
        ImagesArg::Reference => match set.root() {
            Some(root) => Images::Reference(root.into()),
            None => bail!("{}: holds its images itself: write it with --images copy", args.data.display()),
        },
    };
    let usual = ExportOptions::new(args.format);
    if args.shard.is_some() && args.format.is_one_file() {
        bail!("--shard is for archives and Parquet files: {} is one file", args.format.name());
    }
    let options = ExportOptions {
        images,
        gzip: args.gzip,
        shard: args.shard.map_or(usual.shard, |shard| shard as usize),
        overwrite: args.overwrite,
        sources: [Some(args.data.clone()), args.from_images.clone()].into_iter().flatten().collect(),
        max_skipped: match args.on_error {
            OnErrorArg::Error if args.max_skipped.is_some() => bail!("--max-skipped goes with --on-error skip"),
            OnErrorArg::Error => 0,
            OnErrorArg::Skip => args.max_skipped.unwrap_or_default().of(set.len()),
        },
        ..usual
    };
    let progress = bar("export", set.len());
    let written = export(&set, &args.out, &options, |more| progress.inc(more as u64))?;
    progress.finish_and_clear();
    if args.json {
        return print_json(&written);
    }
    say!(
        "{}: {} samples and {} images in {} data file(s)",
        written.path.display(),
        written.samples,
        written.images,
        written.files
    );
    if written.skipped > 0 {
        say!("{} broken samples were left out; the first:", written.skipped);
        written.first_skipped.iter().for_each(|message| say!("  {message}"));
    }
    if let Some(root) = &written.images_root {
        say!("its images are read with images = {:?}", root.display().to_string());
    }
    Ok(())
}
