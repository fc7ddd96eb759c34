//! `basic eval --bench`: answers and scores benchmarks, in one process or in several.

use std::path::{Path, PathBuf};

use anyhow::Result;
use basic_core::DeviceSpec;
use basic_eval::benchmarks::{
    self, Answers, Benchmark, BenchmarkError, Metric, Peers, Rankings, ScoreRecord, Task, find, metrics, respond,
};
use basic_eval::questions::EvalOptions;
use basic_models::Checkpoint;
use basic_models::checkpoint::resolve;
use basic_models::nn::Llava;
use basic_train::parallel::Group;
use burn::tensor::DType;
use serde::Serialize;

use super::{conversation, open};
use crate::args::{Choices, Eval};
use crate::output::{bar, print_json, say};

/// The result of a benchmark in the form of the JSON output.
#[derive(Serialize)]
struct Told {
    name: String,
    questions: usize,
    metrics: Vec<Metric>,
    answers: PathBuf,
    submission: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    checkpoint: PathBuf,
    /// The conversation style of the prompts: "template", or one of LLaVA's styles.
    conversation: String,
    benchmarks: Vec<Told>,
}

pub(super) fn of_benchmarks(args: &Eval, root: &Path, launched: Option<&Group>) -> Result<()> {
    // Every folder is read before the first answer, so that a wrong one is reported at once.
    let mut tasks = Vec::new();
    for name in &args.bench {
        let benchmark = find(name)?;
        let task: Task = benchmark.open_within(root, args.image_root.as_deref())?;
        tasks.push((benchmark, task));
    }
    let by_likelihood = args.choices == Some(Choices::Likelihood);
    if by_likelihood && tasks.iter().all(|(_, task)| task.rankable().next().is_none()) {
        let names = args.bench.join(", ");
        anyhow::bail!("{names}: no question has options that could be ranked: leave out --choices");
    }
    let checkpoint = open(args)?;
    let conversation = conversation(args, &checkpoint)?;
    for (benchmark, task) in &tasks {
        let checked = benchmarks::check_prompts(&checkpoint, &options(args, benchmark), &task.questions);
        checked.map_err(|error| named(benchmark, error))?;
        if by_likelihood {
            let checked = benchmarks::check_options(&checkpoint, &options(args, benchmark), task);
            checked.map_err(|error| named(benchmark, error))?;
        }
    }
    let models = models(args, &checkpoint)?;
    let mut report = Report { checkpoint: args.checkpoint.clone(), conversation, benchmarks: Vec::new() };
    for (benchmark, task) in tasks {
        let asked = OneBenchmark { args, checkpoint: &checkpoint, models: &models, benchmark, task: &task };
        report.benchmarks.extend(asked.run(&report.conversation, launched)?);
    }
    if launched.is_some_and(|group| group.collective.rank() > 0) {
        return Ok(());
    }
    if args.json {
        return print_json(&report);
    }
    report.benchmarks.iter().for_each(print);
    Ok(())
}

/// The model on each device. Models on the same device share their weights.
fn models(args: &Eval, checkpoint: &Checkpoint) -> Result<Vec<Llava>> {
    let specs = if args.devices.is_empty() { vec![args.device.device] } else { args.devices.clone() };
    let mut models: Vec<(DeviceSpec, Llava)> = Vec::new();
    for spec in specs {
        let model = match models.iter().find(|(other, _)| *other == spec) {
            Some((_, model)) => model.clone(),
            None => checkpoint.load(args.dtype.into(), &spec.open()?)?,
        };
        models.push((spec, model));
    }
    Ok(models.into_iter().map(|(_, model)| model).collect())
}

fn options(args: &Eval, benchmark: &Benchmark) -> EvalOptions {
    let max_new_tokens = args.max_new_tokens.unwrap_or(benchmark.max_new_tokens);
    EvalOptions { batch_size: args.batch_size, max_new_tokens, conversation: args.conversation }
}

/// Adds the benchmark's name to an error about its questions.
fn named(benchmark: &Benchmark, error: BenchmarkError) -> anyhow::Error {
    match error {
        BenchmarkError::Eval(error) => anyhow::Error::new(error).context(benchmark.name.to_string()),
        error => error.into(),
    }
}

/// The processes that share a benchmark's questions.
struct Processes<'a>(&'a Group);

impl Peers for Processes<'_> {
    fn rank(&self) -> usize {
        self.0.collective.rank()
    }

    fn world(&self) -> usize {
        self.0.collective.world()
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        self.0.collective.gather_bytes(mine).map_err(|error| error.to_string())
    }
}

/// A benchmark with the models that answer it.
struct OneBenchmark<'a> {
    args: &'a Eval,
    checkpoint: &'a Checkpoint,
    models: &'a [Llava],
    benchmark: Benchmark,
    task: &'a Task,
}

impl OneBenchmark<'_> {
    /// Answers what has no answer yet, and scores all; of several processes, the first one writes the scores.
    fn run(&self, conversation: &str, launched: Option<&Group>) -> Result<Option<Told>> {
        let Self { args, checkpoint, models, benchmark, task } = self;
        let processes = launched.map(Processes);
        let peers = processes.as_ref().map(|processes| processes as &dyn Peers);
        let out = args.out.clone().unwrap_or_else(|| args.checkpoint.join("eval")).join(benchmark.name);
        let options = options(args, benchmark);
        let max_new_tokens = options.max_new_tokens;
        let weights = weights(&resolve(&args.checkpoint)?)?;
        let mut made = format!("by {weights} with at most {max_new_tokens} tokens, prompts by {conversation}");
        let dtype = DType::from(args.dtype);
        if dtype != DType::F32 {
            made += &format!(", computed in {dtype:?}");
        }
        let mut answers = match peers {
            Some(peers) => Answers::open_among(peers, &out, &task.questions, &made, args.fresh)?,
            None => Answers::open(&out, &task.questions, &made, args.fresh)?,
        };
        let path = answers.path().to_path_buf();
        let progress = bar(benchmark.name, task.questions.len());
        respond(models.to_vec(), peers, checkpoint, &options, &task.questions, &mut answers, &|done| {
            progress.set_position(done as u64);
        })
        .map_err(|error| named(benchmark, error))?;
        progress.finish_and_clear();
        let texts = answers.texts(&task.questions)?;
        let mut judged = task.judge(&texts);
        if args.choices == Some(Choices::Likelihood) && task.rankable().next().is_some() {
            let made = format!("by {weights}, prompts by {conversation}");
            let ranked = task.ranked_questions();
            let mut rankings = match peers {
                Some(peers) => Rankings::open_among(peers, &out, &ranked, &made, args.fresh)?,
                None => Rankings::open(&out, &ranked, &made, args.fresh)?,
            };
            let progress = bar(benchmark.name, ranked.len());
            benchmarks::rank(models.to_vec(), peers, checkpoint, &options, task, &mut rankings, &|done| {
                progress.set_position(done as u64);
            })
            .map_err(|error| named(benchmark, error))?;
            progress.finish_and_clear();
            task.judge_ranking(&rankings.finish(&ranked)?, &mut judged)?;
        }
        if peers.is_some_and(|peers| peers.rank() > 0) {
            return Ok(None);
        }
        let record = ScoreRecord {
            name: benchmark.name.into(),
            checkpoint: args.checkpoint.clone(),
            conversation: conversation.into(),
            images: None,
            image_roots: task.image_roots().to_vec(),
            measure: task.measure().map(String::from),
            questions: judged.len(),
            metrics: task.measure().map(|measure| metrics(measure, &judged)).unwrap_or_default(),
        };
        record.write_judged(&out, &judged)?;
        Ok(Some(Told {
            name: record.name,
            questions: task.questions.len(),
            metrics: record.metrics,
            answers: path,
            submission: task.submit(&texts, &out)?,
        }))
    }
}

/// Identifies a checkpoint's weights by their folder, size and time, because training may have replaced them.
fn weights(checkpoint: &Path) -> Result<String> {
    let (mut bytes, mut latest) = (0, std::time::UNIX_EPOCH);
    for entry in std::fs::read_dir(checkpoint)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            let meta = std::fs::metadata(entry.path())?;
            bytes += meta.len();
            latest = latest.max(meta.modified()?);
        }
    }
    let seconds = latest.duration_since(std::time::UNIX_EPOCH)?.as_secs();
    Ok(format!("{} (weights of {bytes} bytes, written at {seconds})", checkpoint.canonicalize()?.display()))
}

fn print(told: &Told) {
    for Metric { name, value, low, high, questions, points } in &told.metrics {
        let (full, unit) = points.map_or((100.0, '%'), |points| (points, ' '));
        let (value, low, high) = (full * value, full * low, full * high);
        say!("{:<12} {name:<34} {value:7.2}{unit}  [{low:.2}, {high:.2}]  of {questions}", told.name);
    }
    if told.metrics.is_empty() {
        say!("{:<12} {} answers; their score is its server's", told.name, told.questions);
    }
    if let Some(path) = &told.submission {
        say!("{:<12} to submit: {}", told.name, path.display());
    }
}
