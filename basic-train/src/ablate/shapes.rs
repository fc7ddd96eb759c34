//! What the demo measures of a trained model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use basic_models::nn::Llava;
use basic_models::processor::{Message, Role, Style};
use basic_models::{Batch, Checkpoint};
use burn::module::Module;
use burn::tensor::Device;

use super::plan::Paths;
use super::summary::{CurvePoint, SampleAnswer, Stage};
use super::{DemoError, Event, Observer, norms};
use crate::analysis::{grounding, mean_loss};
use crate::data::{ImageBase, Sample, VisionCache, prepare};
use crate::evaluate::{EvalError, EvalOptions, Question, answer, read_questions, score};
use crate::inspect::inspect;
use crate::recipe::Recipe;
use crate::shapes::{SceneRecord, Split};

/// Images that grounding and caption loss are measured on.
const IMAGES: usize = 100;
/// Questions of the validation split that are asked along the way.
const VALIDATION: usize = 400;
/// Answers shown in the report.
const SHOWN: usize = 6;

/// The splits to measure on.
pub struct Bench {
    /// The data set.
    pub(crate) images: ImageBase,
    /// Questions of the eval split.
    pub eval: Vec<Question>,
    validation: Vec<Question>,
    /// Scenes of the eval split that grounding is measured on.
    pub(crate) scenes: Vec<SceneRecord>,
    captions: Vec<Sample>,
    device: Device,
}

impl Bench {
    /// Reads the data set that the demo has written.
    pub fn open(paths: &Paths, device: &Device) -> Result<Self, DemoError> {
        let images = ImageBase::new(&paths.data, None)?.advising("a Shapes data set holds its images itself");
        let path = paths.data.join("eval.jsonl");
        let eval = read_questions(&path)?;
        let mut validation = read_questions(&paths.data.join("validation.jsonl"))?;
        validation.truncate(VALIDATION);
        let lines = |path: &PathBuf| {
            basic_models::outside::read_text(path).map_err(|source| DemoError::Io { path: path.clone(), source })
        };
        let scene_file = paths.data.join("scenes.jsonl");
        let mut scenes: Vec<SceneRecord> = Vec::new();
        for line in lines(&scene_file)?.lines() {
            let record: SceneRecord =
                serde_json::from_str(line).map_err(|e| DemoError::Io { path: scene_file.clone(), source: e.into() })?;
            if record.split == Split::Eval {
                scenes.push(record);
            }
        }
        scenes.truncate(IMAGES);
        let mut samples: Vec<Sample> = Vec::new();
        for line in lines(&path)?.lines() {
            let value: serde_json::Value =
                serde_json::from_str(line).map_err(|e| DemoError::Io { path: path.clone(), source: e.into() })?;
            let name = value["image"].as_str().unwrap_or_default();
            let wrong = |source| EvalError::Image { question: samples.len().to_string(), source };
            let image = images.file(name).map_err(|source| wrong(source).of(&path))?;
            if samples.last().is_some_and(|s| s.images[0].name() == image) {
                continue;
            }
            let caption = value["caption"].as_str().unwrap_or_default();
            samples.push(Sample {
                file: path.as_path().into(),
                place: samples.len().to_string(),
                images: vec![image.into()],
                messages: vec![Message::new(Role::User, "<image>"), Message::new(Role::Assistant, caption)],
                dropped_turns: 0,
            });
        }
        samples.truncate(IMAGES);
        let device = device.clone().without_autodiff();
        Ok(Self { images, eval, validation, scenes, captions: samples, device })
    }

    /// The score of always giving a kind's most frequent answer; `overall` too.
    pub fn majority(&self) -> BTreeMap<String, f64> {
        let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for question in &self.eval {
            *counts.entry(&question.category).or_default().entry(&question.answer).or_default() += 1;
        }
        let most = |answers: &BTreeMap<&str, usize>| answers.values().copied().max().unwrap_or(0);
        let right: usize = counts.values().map(most).sum();
        let mut shares: BTreeMap<String, f64> = counts
            .iter()
            .map(|(kind, answers)| (kind.to_string(), most(answers) as f64 / answers.values().sum::<usize>() as f64))
            .collect();
        shares.insert("overall".into(), right as f64 / self.eval.len().max(1) as f64);
        shares
    }

    /// Exact match on the validation questions.
    pub fn validation_accuracy(
        &self,
        model: &Llava,
        checkpoint: &Checkpoint,
        cache: &mut VisionCache,
    ) -> Result<f64, DemoError> {
        self.accuracy(&self.validation, model, checkpoint, cache)
    }

    /// Exact match on the eval questions.
    pub fn eval_accuracy(
        &self,
        model: &Llava,
        checkpoint: &Checkpoint,
        cache: &mut VisionCache,
    ) -> Result<f64, DemoError> {
        self.accuracy(&self.eval, model, checkpoint, cache)
    }

    fn accuracy(
        &self,
        questions: &[Question],
        model: &Llava,
        checkpoint: &Checkpoint,
        cache: &mut VisionCache,
    ) -> Result<f64, DemoError> {
        let options = options();
        let predictions = answer(model, checkpoint, questions, &self.images, &options, cache, &mut |_| {})?;
        Ok(score(&predictions).accuracy)
    }

    /// Everything that the summary says of a stage.
    #[allow(clippy::too_many_arguments)]
    pub fn measure(
        &self,
        trained: &Llava,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        curve: Vec<CurvePoint>,
        step_seconds: f64,
        cache: &mut VisionCache,
        observer: Observer,
    ) -> Result<Stage, DemoError> {
        let model = trained.valid();
        let predictions = answer(&model, checkpoint, &self.eval, &self.images, &options(), cache, &mut |done| {
            observer(Event::Done(done));
        })?;
        let scores = score(&predictions);
        let grounding = grounding(&model, checkpoint, &self.scenes, &self.images, cache)?;
        let batches = self.caption_batches(&model, checkpoint, cache)?;
        let caption_loss = mean_loss(&model, &batches)?;
        // Each loss's pull on the projector, on captions that nothing was trained on.
        let (report, _) = inspect(trained.clone(), &batches[0], &recipe.objective)?;
        let every = (predictions.len() / SHOWN).max(1);
        let samples = predictions.iter().step_by(every).take(SHOWN).map(|p| SampleAnswer {
            image: p.image.clone().unwrap_or_default(),
            question: p.text.clone(),
            expected: p.expected.clone(),
            answer: p.answer.clone(),
            kind: p.category.clone(),
        });
        Ok(Stage {
            steps: curve.len(),
            accuracy: scores.accuracy,
            per_kind: scores.per_type.into_iter().map(|(kind, s)| (kind, s.accuracy)).collect(),
            caption_loss,
            grounded: grounding.share,
            grounded_chance: grounding.chance,
            v_norm: grounding.v_norm,
            token_norm: grounding.token_norm,
            gradient_norms: norms(&report.grad_norms),
            step_seconds,
            curve,
            samples: samples.collect(),
        })
    }

    /// The eval images with their captions.
    pub(crate) fn caption_batches(
        &self,
        model: &Llava,
        checkpoint: &Checkpoint,
        cache: &mut VisionCache,
    ) -> Result<Vec<Batch>, DemoError> {
        let mut batches = Vec::new();
        for chunk in self.captions.chunks(25) {
            let (mut tokens, mut images) = (Vec::new(), Vec::new());
            for sample in chunk {
                let prepared = prepare(sample, checkpoint, &Style::plain())?;
                tokens.push(prepared.tokens);
                images.extend(prepared.images);
            }
            let mut batch = Batch::collate(&tokens, checkpoint.pad_id(), checkpoint.image_shape(), &self.device);
            batch.features = cache.features(model, checkpoint, &images)?;
            batches.push(batch);
        }
        Ok(batches)
    }
}

fn options() -> EvalOptions {
    EvalOptions { batch_size: 64, max_new_tokens: 8, ..EvalOptions::default() }
}
