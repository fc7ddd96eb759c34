//! Formats the results of the token lens for the terminal.

use std::collections::HashMap;
use std::fmt::Write as _;

use basic_eval::lens::{ImageReading, LayerReading, Meaning, Rule, WordRank};

use super::{Surveyed, Told, said};

/// A text to which lines are added.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn push(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// The result for a prompt: one line per layer, with the tokens that are nearest to most patches.
pub(super) fn tell_reading(told: &Told, meaning: Meaning, caption: Option<&str>) -> String {
    let mut lines = Lines::default();
    lines.push(format_args!("{}", told.checkpoint.display()));
    lines.push(format_args!(
        "  {} layers, k = {}; mean length of the token embeddings {:.3}",
        told.layers, told.k, told.token_norm
    ));
    for (number, image) in told.reading.images.iter().enumerate() {
        let side = told.grid.side;
        lines.push(format_args!(
            "  image {}: {} visual embeddings, {side} x {side} of them patches",
            number + 1,
            image.attention.len()
        ));
        if image.text_rows == 0 {
            lines.push(format_args!("  no text follows it: there is no attention to show"));
        }
        lines.push(format_args!(
            "  layer  meaningful  end token  cosine    length   angle  nearest tokens of most patches"
        ));
        for layer in &image.layers {
            lines.push(format_args!("{}", line(told, layer)));
        }
        lines.push(format_args!("{}", most_attended(told, image)));
    }
    lines.push(format_args!("  meaningful is {}", said(meaning, caption)));
    if let Some(answers) = &told.replaced {
        lines.push(format_args!("  answer                            {}", answers.answer));
        lines.push(format_args!("  answer from nearest tokens alone  {}", answers.replaced));
    }
    lines.0
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.1}%", 100.0 * share))
}

fn mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let n = values.len().max(1) as f32;
    values.sum::<f32>() / n
}

/// A token's text on one line.
fn shown(told: &Told, id: u32) -> String {
    let text = told.reading.tokens.get(&id).map_or("", |token| token.text.trim());
    if text.is_empty() { format!("#{id}") } else { text.escape_debug().to_string() }
}

fn line(told: &Told, layer: &LayerReading) -> String {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for (id, _) in layer.nearest.iter().filter_map(|near| near.first()) {
        *counts.entry(*id).or_default() += 1;
    }
    let mut counts: Vec<(u32, usize)> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|(id, n)| (std::cmp::Reverse(*n), *id));
    let most = counts.iter().take(6).map(|(id, n)| format!("{} {n}", shown(told, *id)));
    format!(
        "  {:>5}  {:>10}  {:>9}  {:>6.3}  {:>8.3}  {:>5.1}°  {}",
        layer.layer,
        percent(layer.meaningful_share),
        percent(layer.end_share),
        mean(layer.nearest.iter().map(|near| near.first().map_or(0.0, |(_, cosine)| *cosine))),
        mean(layer.norm.iter().copied()),
        mean(layer.angle.iter().copied()),
        most.collect::<Vec<_>>().join(", ")
    )
}

/// The patches that the text attends to most, with their nearest tokens at the first layer that was read.
fn most_attended(told: &Told, image: &ImageReading) -> String {
    let mut order: Vec<usize> = (0..image.attention.len()).collect();
    order.sort_by(|a, b| image.attention[*b].total_cmp(&image.attention[*a]));
    let Some(first) = image.layers.first() else { return String::new() };
    let patches = order.iter().take(5).map(|patch| {
        let place = serde_json::to_string(&told.grid.places[*patch]).unwrap_or_default();
        let tokens: Vec<String> =
            first.nearest[*patch].iter().map(|(id, cosine)| format!("{} {cosine:.3}", shown(told, *id))).collect();
        format!("  {place:<12} a = {:.5}: {}", image.attention[*patch], tokens.join(", "))
    });
    format!("  most attended, [row, column], at layer {}:\n{}", first.layer, patches.collect::<Vec<_>>().join("\n"))
}

/// The result for a data set: one line per layer.
pub(super) fn tell_survey(told: &Surveyed) -> String {
    let mut lines = Lines::default();
    let survey = &told.survey;
    lines.push(format_args!("{}", told.checkpoint.display()));
    lines.push(format_args!(
        "  {} images of {} samples, {} visual embeddings each; k = {}",
        survey.images, survey.samples, survey.visual_tokens, survey.k
    ));
    lines.push(format_args!("  meaningful is {}", said(survey.meaningful, None)));
    lines.push(format_args!(
        "  layer  meaningful  [95% interval]    chance  per image  end token  cosine to it  cosine    length   angle  between images  rank of words"
    ));
    for layer in &survey.layers {
        lines.push(format_args!(
            "  {:>5}  {:>10}  [{:>5.1}, {:>5.1}]  {:>8}  {:>9.1}  {:>9}  {:>12}  {:>6.3}  {:>8.3}  {:>5.1}°  {:>14}  {:>13}",
            layer.layer,
            percent(Some(layer.meaningful)),
            100.0 * layer.low,
            100.0 * layer.high,
            percent(layer.chance),
            layer.per_image,
            percent(layer.end_share),
            layer.end_cosine.map_or_else(|| "-".into(), |cosine| format!("{cosine:.3}")),
            layer.similarity,
            layer.norm,
            layer.angle,
            layer.anisotropy.as_ref().map_or_else(|| "-".into(), |found| format!("{:.3}", found.cosine)),
            layer.word_rank.as_ref().map_or_else(|| "-".into(), |rank| format!("{:.3}", rank.mean)),
        ));
    }
    if let Some(WordRank { mean, low, high }) = &survey.target_word_rank {
        lines.push(format_args!(
            "  rank of the captions' words by V^: {mean:.3} [{low:.3}, {high:.3}]; 0.5 by chance, 0 at best"
        ));
    }
    if let Some(found) = &survey.target_anisotropy {
        let most: Vec<String> = found.dimensions.iter().map(|(at, added)| format!("{added:.3} by {at}")).collect();
        lines.push(format_args!(
            "  mean cosine between the V^ of different images: {:.3}, and these dimensions add most: {}",
            found.cosine,
            most.join(", ")
        ));
    }
    if let Some(first) = survey.layers.first().filter(|layer| layer.layer == 0) {
        let of = match survey.meaningful.rule {
            Rule::Labels => format!("{:.1} that show an object", first.counted as f64 / survey.images.max(1) as f64),
            Rule::Caption | Rule::Word => survey.visual_tokens.to_string(),
        };
        lines.push(format_args!("  meaningful initial embeddings of an image: {:.1} of {of}", first.per_image));
    }
    if let Some(replaced) = &told.replaced {
        for metric in [&replaced.accuracy, &replaced.replaced] {
            let (value, low, high) = (100.0 * metric.value, 100.0 * metric.low, 100.0 * metric.high);
            lines.push(format_args!(
                "  {:<22} {value:6.2}%  [{low:.2}, {high:.2}]  of {}",
                metric.name, metric.questions
            ));
        }
        lines.push(format_args!("  the same answer        {:6.2}%", 100.0 * replaced.same));
    }
    lines.0
}
