//! What the demo measures: `summary.json`, and the input of the terminal's table and of `report.html`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::conclusion::{Conclusion, PairedSeed};
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
    /// How many runs were trained at a time.
    pub workers: usize,
    /// Seconds from the start.
    pub seconds: f64,
    /// How many seeds were asked for. A demo that was stopped, or is not yet done, has fewer.
    pub seeds: usize,
    /// What the demo shows; none before the first seed is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conclusion: Option<Conclusion>,
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
    /// Conversations in the finetune stage, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversations: Option<usize>,
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
    /// The pretrain stage at its best step on the validation split, where that was looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// After the finetune stage, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<Stage>,
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
    /// What only `--full` measures and shows.
    #[serde(flatten)]
    pub details: Option<Details>,
    /// A few answered questions.
    pub samples: Vec<SampleAnswer>,
}

/// What is measured of a stage besides its answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Details {
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
