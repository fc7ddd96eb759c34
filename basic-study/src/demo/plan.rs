//! What the demo trains: two data settings, two arms, two stages.

use std::path::{Path, PathBuf};

use basic_core::{Basic, DeviceSpec, Objective};
use basic_data::LoaderConfig;
use basic_train::optim::{OptimizerConfig, Schedule};
use basic_train::recipe::{DataConfig, ModelConfig, Parts, Recipe, SaveConfig, Stage, TrainConfig, WatchConfig};
use serde::{Deserialize, Serialize};

/// One data setting. The pretrain stage's learning rate (for the baseline) and the lambdas were chosen on the validation
/// split (docs/demo.md tells how); nothing was chosen on the eval split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `few` or `many`.
    pub name: String,
    /// A sentence that says what it is.
    pub description: String,
    /// Captioned images in the pretrain stage.
    pub captions: usize,
    /// Steps of the pretrain stage.
    pub pretrain_steps: usize,
    /// The pretrain stage's learning rate.
    pub pretrain_lr: f64,
    /// Conversations in the finetune stage.
    pub conversations: usize,
    /// Steps of the finetune stage.
    pub finetune_steps: usize,
    /// The finetune stage's learning rate.
    pub finetune_lr: f64,
    /// Samples a step.
    pub batch_size: usize,
    /// Weight of the directional loss.
    pub lambda_das: f64,
    /// Weight of the semantic loss.
    pub lambda_sds: f64,
}

impl Plan {
    /// The demo's settings.
    pub fn all() -> Vec<Self> {
        let few = Self {
            name: "few".into(),
            description: "24 captioned images, seen many times: the projector can overfit".into(),
            captions: 24,
            pretrain_steps: 160,
            pretrain_lr: 4e-3,
            conversations: 24,
            finetune_steps: 80,
            finetune_lr: 2e-4,
            batch_size: 16,
            lambda_das: 0.2,
            lambda_sds: 0.05,
        };
        let many = Self {
            name: "many".into(),
            description: "2,000 captioned images, each seen about once: plenty for a small projector".into(),
            captions: 2000,
            conversations: 2000,
            ..few.clone()
        };
        vec![few, many]
    }

    /// The knobs of an arm: `llava` trains without supervision.
    pub fn objective(&self, arm: &str) -> Objective {
        match arm {
            "llava" => Objective::llava(),
            _ => Basic { lambda_das: self.lambda_das, lambda_sds: self.lambda_sds, ..Basic::default() }.into(),
        }
    }

    /// The recipe of a stage, as `basic train` would read it.
    pub fn recipe(&self, stage: Stage, arm: &str, seed: u64, device: DeviceSpec, paths: &Paths) -> Recipe {
        let pretrain = stage == Stage::Pretrain;
        let model = match pretrain {
            true => ModelConfig {
                vision: Some(paths.backbones.join("vision")),
                llm: Some(paths.backbones.join("llm")),
                ..ModelConfig::default()
            },
            false => {
                ModelConfig { checkpoint: Some(paths.run(&self.name, arm, seed, "pretrain")), ..ModelConfig::default() }
            }
        };
        let (file, limit, steps, lr) = match pretrain {
            true => ("pretrain.json", self.captions, self.pretrain_steps, self.pretrain_lr),
            false => ("finetune.json", self.conversations, self.finetune_steps, self.finetune_lr),
        };
        Recipe {
            stage,
            seed,
            device,
            output: Some(paths.run(&self.name, arm, seed, if pretrain { "pretrain" } else { "finetune" })),
            model,
            data: DataConfig { limit: Some(limit), ..DataConfig::new(paths.data.join(file)) },
            objective: self.objective(arm),
            optimizer: OptimizerConfig { lr: Some(lr), ..OptimizerConfig::default() },
            schedule: Schedule::default(),
            train: TrainConfig { batch_size: self.batch_size, steps: Some(steps), ..TrainConfig::default() },
            loader: LoaderConfig::default(),
            parts: Parts::default(),
            checkpoint: SaveConfig::default(),
            eval: None,
            watch: WatchConfig::default(),
        }
    }
}

/// Where the demo's files lie.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `--out`.
    pub out: PathBuf,
    /// The backbones' directories.
    pub backbones: PathBuf,
    /// The data set.
    pub data: PathBuf,
}

impl Paths {
    /// The layout below `out`.
    pub fn new(out: &Path) -> Self {
        Self { out: out.into(), backbones: out.join("backbones"), data: out.join("data") }
    }

    /// A run's directory.
    pub fn run(&self, setting: &str, arm: &str, seed: u64, stage: &str) -> PathBuf {
        self.out.join("runs").join(format!("{setting}-{arm}-seed{seed}")).join(stage)
    }
}
