//! What is measured of a stage's model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_core::{DeviceSpec, Objective};
use basic_data::{ImageBase, VisionCache};
use basic_eval::benchmarks::{Answers, find, metrics, respond};
use basic_eval::losses::inspect;
use basic_eval::measures::{grounding, mean_lengths, mean_loss};
use basic_eval::questions::{EvalOptions, Question, answer, read_questions, score};
use basic_models::Checkpoint;
use basic_models::nn::Llava;
use basic_train::recipe::Recipe;
use basic_train::train::Stores;
use burn::module::Module;
use burn::tensor::{DType, Device};

use super::AblateError;
use super::event::{Event, Observer};
use super::expand::Expanded;
use super::held_out::{CaptionSet, ChoiceSet, HeldOutConfig};
use super::lens::LensSet;
use super::result::{SampleAnswer, Values};
use super::shapes::ShapesSet;
use super::study::{EvaluationConfig, Measure, StageConfig, StopBy};

/// Memory for the features of evaluation images, in MiB.
const CACHE_MIB: usize = 512;

/// Questions and where their images lie.
#[derive(Debug)]
pub(super) struct Questions {
    list: Vec<Question>,
    base: ImageBase,
}

impl Questions {
    pub fn open(path: &Path, images: Option<&Path>, limit: Option<usize>) -> Result<Self, AblateError> {
        let mut list = read_questions(path)?;
        list.truncate(limit.unwrap_or(usize::MAX));
        let base = ImageBase::of(images, path, None)?.advising("make that folder, or one above it, evaluation.images");
        // Before anything is trained.
        basic_eval::questions::images(&list, &base).map_err(|error| error.of(path))?;
        Ok(Self { list, base })
    }
}

/// Measures models on one device.
pub(super) struct Evaluator {
    config: EvaluationConfig,
    root: Option<PathBuf>,
    questions: Option<Questions>,
    /// The questions by which each stage's best step is found.
    validation: Vec<Option<Arc<Questions>>>,
    shapes: Option<ShapesSet>,
    captions: Option<CaptionSet>,
    choices: Option<ChoiceSet>,
    lens: Option<LensSet>,
    device: Device,
    /// So many answers are kept to be shown.
    samples: usize,
    cache: VisionCache,
    /// What the cached features were made by.
    encoder: String,
}

/// A trained model, as it is looked at.
pub(super) struct Loaded {
    pub checkpoint: Checkpoint,
    /// On the autodiff device.
    pub model: Llava,
}

impl Loaded {
    pub fn open(dir: &Path, dtype: DType, device: &Device) -> Result<Self, AblateError> {
        let checkpoint = Checkpoint::open(dir)?;
        let model = checkpoint.load(dtype, device)?;
        Ok(Self { checkpoint, model })
    }
}

impl Evaluator {
    /// Opens what the study measures on; nothing that it lists may be absent.
    pub fn open(study: &Expanded, spec: DeviceSpec) -> Result<Self, AblateError> {
        let config = study.study.evaluation.clone();
        let wrong = |reason: String| AblateError::Study { path: study.path.clone(), reason };
        let at = |path: &PathBuf| study.places().place(path).map_err(wrong);
        let device = spec.open()?.autodiff();
        let images = config.images.as_ref().map(at).transpose()?;
        let open = |path: &PathBuf, limit| Questions::open(&at(path)?, images.as_deref(), limit);
        let questions = config.questions.as_ref().map(|path| open(path, config.limit)).transpose()?;
        let validation = |stage: &StageConfig| {
            let stop = stage.early_stopping.as_ref()?;
            let path = stop.questions.as_ref().filter(|_| stop.by == StopBy::Accuracy)?;
            Some(open(path, stop.limit))
        };
        let validation = study.study.stages.iter().map(|stage| validation(stage).transpose().map(|q| q.map(Arc::new)));
        let validation = validation.collect::<Result<_, _>>()?;
        let shapes = config.shapes.as_ref().map(|dir| ShapesSet::open(&at(dir)?, &device)).transpose()?;
        let held_out = |config: &Option<HeldOutConfig>| config.as_ref().map(|c| c.placed(&at)).transpose();
        let batch = config.batch_size;
        let captions = held_out(&config.captions)?.map(|c| CaptionSet::open(&c, batch, &device)).transpose()?;
        let choices = held_out(&config.choices)?.map(|c| ChoiceSet::open(&c)).transpose()?;
        let lens = config.lens.as_ref().map(|lens| LensSet::open(lens, &at)).transpose()?;
        for name in &config.benchmarks {
            // Their files are read here for a wrong one to be told before anything is trained.
            find(name)?.open(&config.root.as_ref().map(at).transpose()?.unwrap_or_default())?;
        }
        let root = config.root.as_ref().map(at).transpose()?;
        let cache = VisionCache::new(CACHE_MIB);
        let samples = study.samples;
        let encoder = String::new();
        Ok(Self {
            config,
            root,
            questions,
            validation,
            shapes,
            captions,
            choices,
            lens,
            device,
            samples,
            cache,
            encoder,
        })
    }

    /// How many questions the study asks.
    pub fn questions(&self) -> usize {
        self.questions.as_ref().map_or(0, |questions| questions.list.len())
    }

    /// The questions by which a stage's best step is found.
    pub fn validation(&self, stage: usize) -> Option<Arc<Questions>> {
        self.validation.get(stage).cloned().flatten()
    }

    /// The device, with autodiff.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Features of images are kept as long as the same frozen vision encoder sees them in the same way.
    pub fn keep_features(&mut self, first: &Recipe, chain: &[Recipe], run: &Path) -> Result<(), AblateError> {
        let frozen = chain.iter().all(Recipe::freezes_encoders);
        let model = &first.model;
        let last = chain.last().unwrap_or(first);
        let encoder = match frozen {
            true => format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                model.vision,
                model.checkpoint,
                last.model.image_grid_pinpoints,
                last.model.image_aspect_ratio,
                last.model.max_pixels,
                last.train.dtype,
                last.train.vision_store
            ),
            false => run.display().to_string(),
        };
        if encoder != self.encoder {
            let store = if frozen { Stores::open(last)?.own } else { None };
            self.cache = VisionCache::new(CACHE_MIB).with_store(store);
            self.encoder = encoder;
        }
        Ok(())
    }

    /// Exact match on other questions than the study's: those of a validation set.
    pub fn accuracy(&mut self, loaded: &Loaded, questions: &Questions) -> Result<f64, AblateError> {
        let options = self.options();
        let model = loaded.model.valid();
        let answers = answer(
            &model,
            &loaded.checkpoint,
            &questions.list,
            &questions.base,
            &options,
            &mut self.cache,
            &mut |_| {},
        )?;
        Ok(score(&answers).accuracy)
    }

    /// Accuracy and benchmarks, as far as `measures` has them, and some of the answers to the questions. Answers to
    /// benchmarks are kept in `dir`.
    pub fn scores(
        &mut self,
        loaded: &Loaded,
        measures: &[Measure],
        dir: &Path,
        observer: Observer,
    ) -> Result<(Values, Vec<SampleAnswer>), AblateError> {
        let (mut values, mut samples) = (Values::new(), Vec::new());
        let model = loaded.model.valid();
        let options = self.options();
        if let (true, Some(questions)) = (measures.contains(&Measure::Accuracy), &self.questions) {
            let (list, root) = (&questions.list, &questions.base);
            let mut told = |done| observer(Event::Done(done));
            let answers = answer(&model, &loaded.checkpoint, list, root, &options, &mut self.cache, &mut told)?;
            samples = SampleAnswer::spread(&answers, self.samples);
            let scores = score(&answers);
            values.insert("accuracy".into(), scores.accuracy);
            values.extend(scores.per_type.into_iter().map(|(kind, s)| (format!("accuracy.{kind}"), s.accuracy)));
        }
        if measures.contains(&Measure::Benchmarks) {
            for name in &self.config.benchmarks {
                let benchmark = find(name)?;
                let task = benchmark.open(self.root.as_deref().unwrap_or(Path::new(".")))?;
                let out = dir.join(name);
                let mut answers = Answers::open(&out, &task.questions, &format!("for {}", dir.display()), false)?;
                let options = EvalOptions { max_new_tokens: benchmark.max_new_tokens, ..options.clone() };
                let models = vec![model.clone()];
                respond(models, None, &loaded.checkpoint, &options, &task.questions, &mut answers, &|_| {})?;
                let texts = answers.texts(&task.questions)?;
                let judged = task.judge(&texts);
                let metrics = task.measure().map(|measure| metrics(measure, &judged)).unwrap_or_default();
                // Where the true answers are hidden, this is what their server takes.
                task.submit(&texts, &out)?;
                // Some benchmarks have numbers of parts alone: a part stands for none of the others.
                if let Some(first) = metrics.first() {
                    let scores: Vec<f64> = judged.iter().filter_map(|answer| answer.score).collect();
                    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
                    values.insert(name.clone(), if first.name.contains(", ") { mean } else { first.value });
                }
                values.extend(metrics.into_iter().map(|metric| (format!("{name}.{}", metric.name), metric.value)));
            }
        }
        Ok((values, samples))
    }

    /// What is measured on scenes, captions and choices.
    pub fn held_out(
        &mut self,
        loaded: &Loaded,
        measures: &[Measure],
        objective: &Objective,
        observer: Observer,
    ) -> Result<Values, AblateError> {
        let mut values = Values::new();
        let (checkpoint, model) = (&loaded.checkpoint, loaded.model.valid());
        let has = |measure: Measure| measures.contains(&measure);
        if let Some(shapes) = self.shapes.as_ref().filter(|_| has(Measure::Grounding) || has(Measure::VNorm)) {
            let found = grounding(&model, checkpoint, &shapes.scenes, &shapes.images, &mut self.cache)?;
            if has(Measure::Grounding) {
                values.insert("grounding".into(), found.share);
                values.insert("grounding_chance".into(), found.chance);
            }
            if has(Measure::VNorm) {
                values.insert("v_norm".into(), found.v_norm);
                values.insert("token_norm".into(), found.token_norm);
            }
        }
        let captions = self.captions.as_ref().or(self.shapes.as_ref().map(|shapes| &shapes.captions));
        let on_captions = [Measure::CaptionLoss, Measure::Gradients, Measure::VNorm].into_iter().any(has);
        if let Some(captions) = captions.filter(|_| on_captions) {
            let batches = captions.batches(&model, checkpoint, &mut self.cache)?;
            if has(Measure::CaptionLoss) {
                values.insert("caption_loss".into(), mean_loss(&model, &batches)?);
            }
            if has(Measure::VNorm) && self.captions.is_some() {
                let [v_norm, token_norm] = mean_lengths(&model, &batches)?;
                values.insert("v_norm".into(), v_norm);
                values.insert("token_norm".into(), token_norm);
            }
            if let (true, Some(batch)) = (has(Measure::Gradients), batches.first()) {
                let (report, _) = inspect(loaded.model.clone(), batch, objective)?;
                let norms = report.grad_norms;
                for (name, norm) in norms.named() {
                    values.insert(format!("gradient.{name}"), f64::from(*norm));
                }
            }
        }
        for (measure, replace) in [(Measure::Choices, false), (Measure::ReplacedChoices, true)] {
            if let Some(choices) = self.choices.as_ref().filter(|_| has(measure)) {
                let batch_size = self.config.batch_size;
                values.extend(choices.values(loaded, batch_size, replace, &mut self.cache, observer)?);
            }
        }
        Ok(values)
    }

    /// What the token lens measures.
    pub fn lens(&self, loaded: &Loaded, measures: &[Measure]) -> Result<Values, AblateError> {
        match &self.lens {
            Some(set) if measures.contains(&Measure::Lens) => {
                set.values(&loaded.model.valid(), &loaded.checkpoint, self.config.max_new_tokens)
            }
            _ => Ok(Values::new()),
        }
    }

    fn options(&self) -> EvalOptions {
        EvalOptions {
            batch_size: self.config.batch_size,
            max_new_tokens: self.config.max_new_tokens,
            ..EvalOptions::default()
        }
    }
}
