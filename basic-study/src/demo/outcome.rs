//! From the study's runs to the demo's summary.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::ARMS;
use super::study::SETTINGS;
use super::summary::{Arm, Best, CurvePoint, Details, Run, Setting, Stage};
use crate::studies::AblateError;
use crate::studies::embedded_study::{CellRun, StageRun};
use basic_eval::questions::Question;

/// The settings that were run, with the runs of the seeds that both arms have done.
pub(super) fn settings(runs: &[CellRun], eval_questions: usize) -> Result<Vec<Setting>, AblateError> {
    let mut settings = Vec::new();
    for (name, description) in SETTINGS {
        let of_setting = |run: &&CellRun| run.setting.as_deref() == Some(name) && run.whole;
        let here: Vec<&CellRun> = runs.iter().filter(of_setting).collect();
        let both = |seed: u64| ARMS.iter().all(|arm| here.iter().any(|run| run.seed == seed && run.cell == *arm));
        let here: Vec<&CellRun> = here.iter().filter(|run| both(run.seed)).copied().collect();
        let Some([pretrain, later @ ..]) = here.last().map(|run| run.stages.as_slice()) else { continue };
        let objective = &pretrain.recipe.objective;
        let arms = ARMS.iter().map(|arm| {
            let runs = here.iter().filter(|run| run.cell == *arm).filter_map(|run| of_run(run).transpose());
            Ok(Arm { name: (*arm).into(), runs: runs.collect::<Result<_, AblateError>>()? })
        });
        settings.push(Setting {
            name: name.into(),
            description: description.into(),
            captions: pretrain.recipe.data.limit.unwrap_or_default(),
            conversations: later.first().map(|stage| stage.recipe.data.limit.unwrap_or_default()),
            eval_questions,
            lambda_das: objective.basic.lambda_das,
            lambda_sds: objective.basic.lambda_sds,
            arms: arms.collect::<Result<_, AblateError>>()?,
        });
    }
    Ok(settings)
}

fn of_run(run: &CellRun) -> Result<Option<Run>, AblateError> {
    let Some((pretrain, later)) = run.stages.split_first() else { return Ok(None) };
    let best = pretrain.result.values.contains_key("best.step").then(|| Best {
        step: value(pretrain, "best.step") as usize,
        validation_accuracy: value(pretrain, "best.validation"),
        accuracy: value(pretrain, "best.accuracy"),
    });
    let finetune = later.first().map(stage).transpose()?;
    Ok(Some(Run { seed: run.seed, pretrain: stage(pretrain)?, best, finetune }))
}

/// A number of a stage; JSON has none for what is not finite.
fn value(stage: &StageRun, name: &str) -> f64 {
    stage.result.values.get(name).copied().unwrap_or(f64::NAN)
}

fn stage(run: &StageRun) -> Result<Stage, AblateError> {
    let value = |name: &str| value(run, name);
    let below = |prefix: &str| -> BTreeMap<String, f64> {
        let values = run.result.values.iter();
        values.filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_string(), *value))).collect()
    };
    let values = &run.result.values;
    let details = values.contains_key("caption_loss").then(|| -> Result<Details, AblateError> {
        Ok(Details {
            caption_loss: value("caption_loss"),
            grounded: value("grounding"),
            grounded_chance: value("grounding_chance"),
            v_norm: value("v_norm"),
            token_norm: value("token_norm"),
            gradient_norms: below("gradient."),
            step_seconds: run.result.step_seconds,
            curve: curve(&run.run)?,
        })
    });
    Ok(Stage {
        steps: run.result.steps,
        accuracy: value("accuracy"),
        per_kind: below("accuracy."),
        details: details.transpose()?,
        samples: run.result.samples.clone(),
    })
}

/// The losses of a run's steps.
fn curve(run: &Path) -> Result<Vec<CurvePoint>, AblateError> {
    let path = run.join("metrics.jsonl");
    let text = basic_models::outside::read_text(&path).map_err(AblateError::io(&path))?;
    let point = |line: &str| -> Result<CurvePoint, AblateError> {
        let step: Value = serde_json::from_str(line).map_err(|error| AblateError::io(&path)(error.into()))?;
        // A loss that was not computed is 0; one that is not finite is null. They are written as single precision.
        let loss = |key: &str| match step.get(key) {
            None => 0.0,
            Some(value) => value.as_f64().map_or(f64::NAN, |value| f64::from(value as f32)),
        };
        let at = step["step"].as_u64().unwrap_or_default() as usize;
        Ok(CurvePoint { step: at, lm: loss("lm"), das: loss("das"), sds: loss("sds"), total: loss("total") })
    };
    text.lines().map(point).collect()
}

/// The score of always giving a kind's most frequent answer; `overall` too.
pub(super) fn majority(questions: &[Question]) -> BTreeMap<String, f64> {
    let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for question in questions {
        *counts.entry(&question.category).or_default().entry(&question.answer).or_default() += 1;
    }
    let most = |answers: &BTreeMap<&str, usize>| answers.values().copied().max().unwrap_or(0);
    let right: usize = counts.values().map(most).sum();
    let mut shares: BTreeMap<String, f64> = counts
        .iter()
        .map(|(kind, answers)| (kind.to_string(), most(answers) as f64 / answers.values().sum::<usize>() as f64))
        .collect();
    shares.insert("overall".into(), right as f64 / questions.len().max(1) as f64);
    shares
}
