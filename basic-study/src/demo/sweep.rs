//! How the demo's lambdas are chosen: on the validation split, with seeds that the demo does not use.

use basic_data::VisionCache;
use basic_models::Checkpoint;
use basic_train::recipe::Stage;
use burn::module::Module;
use burn::tensor::DType;
use serde::Serialize;

use super::measure::Bench;
use super::{DemoConfig, DemoError, Event, Observer, Paths, Plan, prepare_world, train};

/// The first seed of a sweep; the demo's own begin at 0.
const FIRST_SEED: u64 = 100;

/// One pair of lambdas; both 0 is the baseline.
#[derive(Debug, Clone, Serialize)]
pub struct SweepRow {
    /// Weight of the directional loss.
    pub lambda_das: f64,
    /// Weight of the semantic loss.
    pub lambda_sds: f64,
    /// Exact match on the validation split after the pretrain stage, per seed.
    pub last: Vec<f64>,
    /// The same at each run's best step.
    pub best: Vec<f64>,
}

/// Runs the pretrain stage of `plan` for every pair of lambdas and asks the validation split; the eval split is not
/// looked at.
///
/// # Errors
///
/// [`DemoError`] that names the file.
pub fn sweep(
    config: &DemoConfig,
    plan: &Plan,
    grid: &[(f64, f64)],
    observer: Observer,
) -> Result<Vec<SweepRow>, DemoError> {
    let paths = Paths::new(&config.out);
    let device = prepare_world(config, &paths, observer)?;
    let bench = Bench::open(&paths, &device)?;
    let mut cache = VisionCache::new(256);
    let mut rows = Vec::new();
    for (lambda_das, lambda_sds) in grid.iter().copied() {
        let plan = Plan { lambda_das, lambda_sds, ..plan.clone() };
        let arm = if lambda_das == 0.0 && lambda_sds == 0.0 { "llava" } else { "basic" };
        let mut row = SweepRow { lambda_das, lambda_sds, last: Vec::new(), best: Vec::new() };
        for seed in FIRST_SEED..FIRST_SEED + config.seeds as u64 {
            let recipe = plan.recipe(Stage::Pretrain, arm, seed, config.device, &paths);
            let checkpoint = Checkpoint::assemble(&paths.backbones.join("vision"), &paths.backbones.join("llm"), seed)?;
            let model = checkpoint.load(DType::F32, &device)?;
            let (mut best, mut last) = (0f64, 0f64);
            let label = format!("{lambda_das} {lambda_sds} seed {seed}");
            train(&recipe, &checkpoint, model, &label, observer, |step, model| {
                if step % config.validate_every.max(1) == 0 || step == plan.pretrain_steps {
                    last = bench.validation_accuracy(&model.valid(), &checkpoint, &mut cache)?;
                    best = best.max(last);
                }
                Ok(())
            })?;
            row.last.push(last);
            row.best.push(best);
        }
        observer(Event::Stage(
            &format!("das {lambda_das} sds {lambda_sds}: last {:?} best {:?}", row.last, row.best),
            1,
        ));
        rows.push(row);
    }
    Ok(rows)
}
