//! Runs `basic eval`: answers a file of questions, or runs benchmarks.

mod benchmarks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use basic_data::{ImageBase, StyleChoice, VisionCache};
use basic_eval::benchmarks::{Judged, PREDICTIONS, RANKED, RANKED_FROM_TOKENS, ScoreRecord, metrics};
use basic_eval::lens::{Lens, LensOptions, check_replaceable};
use basic_eval::questions::{
    ChoiceScore, EvalOptions, Prediction, Question, Ranker, answer, check_choices, check_prompts, images, rank_choices,
    read_questions, score, score_choices, write_predictions,
};
use basic_models::Checkpoint;
use basic_models::checkpoint::resolve;
use basic_models::nn::Llava;
use basic_train::parallel::Group;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::own_device;
use crate::args::{Choices, Eval};
use crate::output::{bar, print_json, say};

const CACHE_MIB: usize = 256;

/// How long the processes of an evaluation wait for each other at its end.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Runs `basic eval`, also as one of several processes that were launched together: they share the questions of a
/// file.
pub fn eval(args: Eval) -> Result<()> {
    match &Group::join()? {
        None => evaluate(args, None),
        Some(group) => group.run(|| evaluate(args, Some(group)), crate::message),
    }
}

fn evaluate(mut args: Eval, launched: Option<&Group>) -> Result<()> {
    if let Some(group) = launched {
        args.device.device = own_device(group, &args.devices, args.device.device)?;
        group.collective.set_time_limit(PATIENCE);
    }
    // The snapshot of a hub name belongs to the cache.
    let folder = resolve(&args.checkpoint)?;
    anyhow::ensure!(
        args.out.is_some() || folder == args.checkpoint,
        "--out: {} is a name on the hub, and nothing is written to its files in the cache: say where the answers go",
        args.checkpoint.display()
    );
    match (args.data.clone(), args.root.clone()) {
        (Some(data), _) => file(&args, &data, launched),
        (None, Some(root)) => benchmarks::of_benchmarks(&args, &root, launched),
        // clap already requires one of the two.
        (None, None) => anyhow::bail!("give a file of questions, or --bench and --root"),
    }
}

fn open(args: &Eval) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::open(&args.checkpoint)?;
    super::model::warn(&checkpoint);
    checkpoint.images = checkpoint.images.with_max_pixels(args.max_pixels);
    Ok(checkpoint)
}

/// The name of the conversation style of the prompts.
fn conversation(args: &Eval, checkpoint: &Checkpoint) -> Result<String> {
    args.conversation.resolve(checkpoint, false)?;
    Ok(match args.conversation {
        StyleChoice::Named(style) => style.name(),
        StyleChoice::Auto if checkpoint.template.is_none() => "vicuna_v1",
        StyleChoice::Auto | StyleChoice::Template => "template",
    }
    .into())
}

fn file(args: &Eval, data: &Path, launched: Option<&Group>) -> Result<()> {
    let questions = read_questions(data)?;
    let base = ImageBase::of(args.images.as_deref(), data, args.image_root.as_deref())?;
    // The images are checked before the weights are read, which may be large.
    let images = images(&questions, &base).map_err(|error| error.of(data))?;
    let checkpoint = open(args)?;
    let conversation = conversation(args, &checkpoint)?;
    let mut options =
        EvalOptions { batch_size: args.batch_size, conversation: args.conversation, ..EvalOptions::default() };
    options.max_new_tokens = args.max_new_tokens.unwrap_or(options.max_new_tokens);
    let by_choices = args.choices == Some(Choices::Likelihood);
    let checked = match by_choices {
        true => check_choices(&checkpoint, &questions, &images, &options),
        false => check_prompts(&checkpoint, &questions, &images, &options),
    };
    checked.map_err(|error| error.of(data))?;
    if args.replace {
        check_replaceable(&checkpoint.config).with_context(|| args.checkpoint.display().to_string())?;
    }
    let model = checkpoint.load(args.dtype.into(), &args.device.device.open()?)?;
    let asked = Asked { launched, args, data, questions, base, checkpoint, conversation, options, model };
    if by_choices { asked.by_choices() } else { asked.by_answers() }
}

/// A file of questions with the model that answers them.
struct Asked<'a> {
    launched: Option<&'a Group>,
    args: &'a Eval,
    data: &'a Path,
    questions: Vec<Question>,
    base: ImageBase,
    checkpoint: Checkpoint,
    conversation: String,
    options: EvalOptions,
    model: Llava,
}

impl Asked<'_> {
    /// Generates the answers and scores exact match.
    fn by_answers(&self) -> Result<()> {
        let Self { data, base, checkpoint, options, model, .. } = self;
        let questions = self.own();
        let progress = bar("eval", questions.len());
        let mut cache = VisionCache::new(CACHE_MIB);
        let predictions = answer(model, checkpoint, questions, base, options, &mut cache, &mut |done| {
            progress.set_position(done as u64);
        });
        let predictions = self.all(predictions.map_err(|error| error.of(data))?)?;
        progress.finish_and_clear();
        if !self.leads() {
            return Ok(());
        }
        let out = self.out(PREDICTIONS);
        write_predictions(&out, &predictions)?;
        self.record("exact match", predictions.iter(), &out)?;
        let mut scores = score(&predictions);
        scores.predictions = Some(out);
        if self.args.json {
            return print_json(&scores);
        }
        for (kind, score) in &scores.per_type {
            say!("{kind:<12} {:6.2}%  of {}", 100.0 * score.accuracy, score.questions);
        }
        say!("{:<12} {:6.2}%  of {}", "overall", 100.0 * scores.accuracy, scores.questions);
        Ok(())
    }

    /// Ranks each question's choices by their likelihood.
    fn by_choices(&self) -> Result<()> {
        let Self { data, base, checkpoint, options, model, .. } = self;
        let questions = self.own();
        let progress = bar("eval", questions.len());
        let mut cache = VisionCache::new(CACHE_MIB);
        let lens = self.args.replace.then(|| Lens::new(model, checkpoint, LensOptions::nearest())).transpose()?;
        let ranker = lens.iter().fold(Ranker::new(checkpoint, options)?, Ranker::replacing);
        let rankings = rank_choices(&ranker, model, questions, base, &mut cache, &mut |done| {
            progress.set_position(done as u64);
        });
        let rankings = self.all(rankings.map_err(|error| error.of(data))?)?;
        progress.finish_and_clear();
        if !self.leads() {
            return Ok(());
        }
        let (ending, measure) = match self.args.replace {
            true => (RANKED_FROM_TOKENS, "most likely choice from nearest tokens"),
            false => (RANKED, "most likely choice"),
        };
        let out = self.out(ending);
        write_predictions(&out, &rankings)?;
        self.record(measure, rankings.iter().map(|ranking| &ranking.prediction), &out)?;
        let mut scores = score_choices(&rankings);
        scores.predictions = Some(out);
        if self.args.json {
            return print_json(&scores);
        }
        let line = |kind: &str, score: &ChoiceScore| {
            say!(
                "{kind:<12} {:6.2}%  by length {:6.2}%  chance {:.2}%  rank {:.2}, by length {:.2}  of {}",
                100.0 * score.accuracy,
                100.0 * score.accuracy_normalized,
                100.0 * score.chance,
                score.rank,
                score.rank_normalized,
                score.questions
            );
        };
        scores.per_type.iter().for_each(|(kind, score)| line(kind, score));
        line("overall", &scores.all);
        Ok(())
    }

    fn leads(&self) -> bool {
        self.launched.is_none_or(|group| group.collective.rank() == 0)
    }

    /// The questions of this process: whole batches, so that their composition does not depend on the processes.
    fn own(&self) -> &[Question] {
        let Some(Group { collective, .. }) = self.launched else { return &self.questions };
        let size = self.options.batch_size.max(1);
        let batches = self.questions.len().div_ceil(size);
        let start = |rank: usize| (batches * rank / collective.world() * size).min(self.questions.len());
        &self.questions[start(collective.rank())..start(collective.rank() + 1)]
    }

    /// What all processes have found, in the order of the questions.
    fn all<T: Serialize + DeserializeOwned>(&self, own: Vec<T>) -> Result<Vec<T>> {
        Ok(match self.launched {
            Some(group) => group.collective.share(&own)?.into_iter().flatten().collect(),
            None => own,
        })
    }

    fn stem(&self) -> String {
        self.data.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn out(&self, ending: &str) -> PathBuf {
        let out = || self.args.checkpoint.join("eval").join(format!("{}{ending}", self.stem()));
        self.args.out.clone().unwrap_or_else(out)
    }

    /// Writes the score beside the predictions, for `basic compare` and `basic report`.
    fn record<'p>(&self, measure: &str, predictions: impl Iterator<Item = &'p Prediction>, out: &Path) -> Result<()> {
        let judged: Vec<_> = predictions.enumerate().map(|(place, line)| Judged::of(line, place)).collect();
        let record = ScoreRecord {
            name: self.stem(),
            checkpoint: self.args.checkpoint.clone(),
            conversation: self.conversation.clone(),
            images: Some(std::path::absolute(Path::new(".").join(self.base.path()))?),
            image_roots: self.base.roots().map(Path::to_path_buf).collect(),
            measure: Some(measure.into()),
            questions: judged.len(),
            metrics: metrics(measure, &judged),
        };
        Ok(record.write(out)?)
    }
}
