//! Limits for the numbers in a recipe, far beyond any real run. Within them no arithmetic overflows and no 32-bit
//! number becomes infinite or 0. docs/limits.md lists them.

use std::ops::RangeInclusive;

use basic_data::DataError;

use super::{Part, PartConfig, Recipe};

/// The largest number of optimizer steps in a run.
pub const MOST_STEPS: usize = 1_000_000_000;
/// The largest number of samples in a step; its product with `loader.prefetch` has its own limits
/// ([`basic_data::LoaderConfig`]).
const MOST_SAMPLES: usize = 1_000_000;
/// The largest number of passes over the data.
const MOST_EPOCHS: f64 = 1e6;
/// The largest cache of features in MiB, in memory and on disk: 16 TiB.
const MOST_CACHE: usize = 1 << 24;
/// The largest rank of adapters.
const MOST_RANK: usize = 1 << 16;
/// The longest time in seconds that ranks wait for each other: a day.
const MOST_SECONDS: usize = 86_400;
/// The largest number of tokens in an answer.
const MOST_TOKENS: usize = 1 << 20;
/// The range of learning rates, weight decays and norms.
const RATES: RangeInclusive<f64> = 0.0..=1e30;
/// The range of AdamW's epsilon, which must be above 0 as a 32-bit number.
const EPSILONS: RangeInclusive<f64> = 1e-30..=1e6;

impl Recipe {
    /// The first number that is out of its limits, with its key.
    pub(super) fn out_of_bounds(&self) -> Option<String> {
        let train = &self.train;
        let eval = self.eval.as_ref();
        let counts = [
            ("train.batch_size", Some(train.batch_size), 1..=MOST_SAMPLES),
            ("train.micro_batch", train.micro_batch, 1..=train.batch_size),
            ("train.steps", train.steps, 1..=MOST_STEPS),
            ("train.vision_cache_mib", Some(train.vision_cache_mib), 0..=MOST_CACHE),
            ("train.vision_store_mib", train.vision_store_mib, 0..=MOST_CACHE),
            ("train.max_nonfinite", Some(train.max_nonfinite), 0..=MOST_STEPS),
            (
                "parallel.timeout_s",
                usize::try_from(self.parallel.timeout_s).ok().or(Some(usize::MAX)),
                1..=MOST_SECONDS,
            ),
            ("checkpoint.every", self.checkpoint.every, 1..=MOST_STEPS),
            ("checkpoint.keep_last", Some(self.checkpoint.keep_last), 1..=usize::MAX),
            ("eval.every", eval.map(|eval| eval.every), 1..=MOST_STEPS),
            ("eval.samples", eval.map(|eval| eval.samples), 1..=usize::MAX),
            ("eval.max_new_tokens", eval.map(|eval| eval.max_new_tokens), 0..=MOST_TOKENS),
            ("parts.vision.rank", self.parts.vision.rank, 1..=MOST_RANK),
            ("parts.projector.rank", self.parts.projector.rank, 1..=MOST_RANK),
            ("parts.decoder.rank", self.parts.decoder.rank, 1..=MOST_RANK),
            ("parts.fused_vision.rank", self.parts.of(Part::FusedVision).rank, 1..=MOST_RANK),
        ];
        for (key, value, bounds) in counts {
            if let Some(value) = value.filter(|value| !bounds.contains(value)) {
                let (least, most) = (bounds.start(), bounds.end());
                return Some(match *most {
                    usize::MAX => format!("{key} is {value}, it must be at least {least}"),
                    _ => format!("{key} is {value}, it must be at least {least} and at most {most}"),
                });
            }
        }
        let optimizer = &self.optimizer;
        let of = |part: &PartConfig| [part.lr, part.weight_decay, part.alpha];
        let [vision, projector, decoder, head, fused] = Part::ALL.map(|part| of(self.parts.of(part)));
        let numbers = [
            ("optimizer.lr", Some(self.lr()), RATES),
            ("optimizer.weight_decay", Some(optimizer.weight_decay), RATES),
            ("optimizer.max_grad_norm", Some(optimizer.max_grad_norm), RATES),
            ("optimizer.epsilon", Some(optimizer.epsilon), EPSILONS),
            ("parts.vision.lr", vision[0], RATES),
            ("parts.vision.weight_decay", vision[1], RATES),
            ("parts.vision.alpha", vision[2], RATES),
            ("parts.projector.lr", projector[0], RATES),
            ("parts.projector.weight_decay", projector[1], RATES),
            ("parts.projector.alpha", projector[2], RATES),
            ("parts.decoder.lr", decoder[0], RATES),
            ("parts.decoder.weight_decay", decoder[1], RATES),
            ("parts.decoder.alpha", decoder[2], RATES),
            ("parts.head.lr", head[0], RATES),
            ("parts.head.weight_decay", head[1], RATES),
            ("parts.fused_vision.lr", fused[0], RATES),
            ("parts.fused_vision.weight_decay", fused[1], RATES),
            ("parts.fused_vision.alpha", fused[2], RATES),
        ];
        for (key, value, bounds) in numbers {
            // NaN is in no range.
            if let Some(value) = value.filter(|value| !bounds.contains(value)) {
                let (least, most) = (bounds.start(), bounds.end());
                return Some(match *most {
                    _ if *least > 0.0 => {
                        format!("{key} is {value:e}, it must be a number above 0, from {least:e} to {most:e}")
                    }
                    _ => format!(
                        "{key} is {value:e}, it must be a finite number, at least {least:e} and at most {most:e}"
                    ),
                });
            }
        }
        if train.epochs.is_some_and(|epochs| epochs > MOST_EPOCHS) {
            return Some(format!("train.epochs must be above 0 and at most {MOST_EPOCHS}"));
        }
        // AdamW divides by 1 - beta, in 32 bits.
        let betas = [("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)];
        let close = |beta: f64| (beta as f32) >= 1.0;
        betas.into_iter().find(|(_, beta)| close(*beta)).map(|(key, _)| format!("{key} is too close to 1"))
    }
}

/// Returns an error for more steps than a run may have, which epochs over large data may amount to.
///
/// # Errors
///
/// [`DataError::Set`] that names the data.
pub(crate) fn bounded(recipe: &Recipe, steps: usize) -> Result<usize, DataError> {
    if steps <= MOST_STEPS {
        return Ok(steps);
    }
    let path = recipe.data.all_sets().into_iter().next().map(|set| set.path).unwrap_or_default();
    let reason = format!("{steps} steps are more than {MOST_STEPS}: lower train.epochs, or raise train.batch_size");
    Err(DataError::Set { path, reason })
}

#[cfg(test)]
mod tests {
    use super::super::Recipe;

    fn recipe(more: &str) -> Result<(), String> {
        let text = format!(
            "stage = \"pretrain\"\nmodel.checkpoint = \"m\"\ndata.path = \"d\"\ntrain.batch_size = 2\ntrain.steps = 3\n{more}"
        );
        toml::from_str::<Recipe>(&text).map_err(|error| error.to_string())?.check()
    }

    #[test]
    fn ordinary_numbers_and_the_bounds_themselves_pass() {
        for more in [
            "",
            "optimizer.lr = 0.0",
            "optimizer.lr = 1e30",
            "objective.lambda_das = 1e40",
            "loader.prefetch = 1024",
            "checkpoint.keep_last = 9223372036854775807",
            "checkpoint.every = 1000000000",
            "optimizer.beta2 = 0.9999",
            "parallel = { shard = \"optimizer\", timeout_s = 86400 }",
            "parallel.timeout_s = 1",
        ] {
            assert_eq!(recipe(more), Ok(()), "{more}");
        }
    }

    #[test]
    fn a_number_out_of_its_bounds_is_named_by_its_key() {
        for more in [
            "train.micro_batch = 3",
            "train.micro_batch = 0",
            "train.vision_cache_mib = 9223372036854775807",
            "train.vision_store_mib = 9223372036854775807",
            "train.vision_store = \"\"",
            "train.max_nonfinite = 9223372036854775807",
            "checkpoint.every = 0",
            "parallel.timeout_s = 0",
            "parallel.timeout_s = 86401",
            "checkpoint.every = 9223372036854775807",
            "checkpoint.keep_last = 0",
            "loader.prefetch = 1000000000",
            "optimizer.lr = nan",
            "optimizer.lr = -1e-3",
            "optimizer.lr = 1e300",
            "optimizer.weight_decay = inf",
            "optimizer.max_grad_norm = nan",
            "optimizer.epsilon = 0.0",
            "optimizer.epsilon = 1e-60",
            "optimizer.beta1 = 1.0",
            "optimizer.beta2 = 0.99999999999999",
            "schedule.warmup_ratio = nan",
            "schedule.warmup_ratio = 1.5",
            "objective.lambda_das = -1.0",
            "objective.lambda_sds = nan",
            "objective.k = 0",
            "parts.projector.lr = inf",
            "parts.decoder = { mode = \"lora\", rank = 9223372036854775807 }",
            "parts.decoder = { mode = \"lora\", alpha = nan }",
            "parts.decoder = { mode = \"lora\", rank = 0 }",
        ] {
            let key =
                more.split(" = ").next().unwrap().trim_start_matches("optimizer.").trim_start_matches("checkpoint.");
            let said = recipe(more).unwrap_err();
            assert!(said.contains(key.trim_end_matches(".every")), "{more}: {said}");
        }
        let batch = |n: &str| {
            let text = format!("stage = \"pretrain\"\nmodel.checkpoint = \"m\"\ndata.path = \"d\"\ntrain = {n}");
            toml::from_str::<Recipe>(&text).map_err(|error| error.to_string())?.check()
        };
        for train in [
            "{ batch_size = 0, steps = 1 }",
            "{ batch_size = 9223372036854775807, steps = 1 }",
            "{ batch_size = 1, steps = 9223372036854775807 }",
            "{ batch_size = 1, steps = 0 }",
            "{ batch_size = 1, epochs = 1e300 }",
            "{ batch_size = 1, epochs = nan }",
            "{ batch_size = 1, epochs = -1.0 }",
            "{ batch_size = 1, steps = -1 }",
        ] {
            assert!(batch(train).is_err(), "{train}");
        }
    }
}
