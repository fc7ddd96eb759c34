//! What the demo measures: `summary.json`, and the input of the terminal's table and of `report.html`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::studies::SampleAnswer;

/// The demo's whole outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// basic's version.
    pub version: String,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// The device as `--device` names it.
    pub device: String,
    /// Seconds from start to end.
    pub seconds: f64,
    /// The settings, such as few and many captions.
    pub settings: Vec<Setting>,
    /// Chance level of exact match per question kind: the score of always giving the kind's most frequent answer.
    pub majority: BTreeMap<String, f64>,
}

/// One data setting in which both arms ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setting {
    /// Short name: `few` or `many`.
    pub name: String,
    /// A sentence that says what it is.
    pub description: String,
    /// Captioned images in the pretrain stage.
    pub captions: usize,
    /// Conversations in the finetune stage.
    pub conversations: usize,
    /// Questions of the eval split.
    pub eval_questions: usize,
    /// BASIC's weight of the directional loss.
    pub lambda_das: f64,
    /// BASIC's weight of the semantic loss.
    pub lambda_sds: f64,
    /// `llava`, then `basic`.
    pub arms: Vec<Arm>,
}

/// All runs of one arm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Arm {
    /// `llava` (the baseline) or `basic`.
    pub name: String,
    /// One run a seed.
    pub runs: Vec<Run>,
}

/// One arm with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The seed of projector and data order; the other arm's run with the same seed has the same ones.
    pub seed: u64,
    /// After the pretrain stage: the decoder is frozen.
    pub pretrain: Stage,
    /// The pretrain stage at its best step on the validation split.
    pub best: Best,
    /// After the finetune stage.
    pub finetune: Stage,
}

/// A stage's outcome on the eval split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stage {
    /// Training steps.
    pub steps: usize,
    /// Exact match over all questions, 0 to 1.
    pub accuracy: f64,
    /// Exact match per question kind, 0 to 1.
    pub per_kind: BTreeMap<String, f64>,
    /// Mean cross entropy of the eval images' captions.
    pub caption_loss: f64,
    /// Share of object patches whose visual embedding's nearest token names something true of the object.
    pub grounded: f64,
    /// The same with the patches shuffled among the images: chance.
    pub grounded_chance: f64,
    /// Mean length of the visual embeddings.
    pub v_norm: f64,
    /// Mean length of the token embeddings.
    pub token_norm: f64,
    /// Norms of the gradients with respect to the projector of lm, das and sds (unweighted), at the stage's end.
    pub gradient_norms: BTreeMap<String, f64>,
    /// Median seconds of a training step.
    pub step_seconds: f64,
    /// The losses along the way.
    pub curve: Vec<CurvePoint>,
    /// A few answered questions.
    pub samples: Vec<SampleAnswer>,
}

/// The pretrain stage stopped where the validation split was answered best.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Best {
    /// That step.
    pub step: usize,
    /// Exact match on the validation split there, 0 to 1.
    pub validation_accuracy: f64,
    /// Exact match on the eval split there, 0 to 1.
    pub accuracy: f64,
}

/// The losses of one step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Step, from 1.
    pub step: usize,
    /// Language-model loss.
    pub lm: f64,
    /// Directional alignment loss, unweighted; 0 in the baseline, which does not compute it.
    pub das: f64,
    /// Semantic distribution loss, unweighted; 0 in the baseline.
    pub sds: f64,
    /// The objective.
    pub total: f64,
}
