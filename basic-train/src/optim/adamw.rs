//! AdamW over a module's parameters. Burn's own keeps its moments in the gradient's type and takes some ten passes a
//! parameter; this one keeps them in f32 and calls the fused step.

use basic_core::ops::{AdamWMoments, AdamWStep, adamw};
use burn::optim::{AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

use super::OptimizerConfig;

/// The settings, as Burn's `ModuleOptimizer` calls it per parameter.
#[derive(Debug, Clone)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

impl From<&OptimizerConfig> for AdamW {
    fn from(config: &OptimizerConfig) -> Self {
        let OptimizerConfig { beta1, beta2, epsilon, weight_decay, .. } = *config;
        Self { beta1, beta2, epsilon, weight_decay }
    }
}

impl Optimizer for AdamW {
    // Burn's derive of `RecordState` names its own crate, so that no other crate can derive it: its state is used.
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let Self { beta1, beta2, epsilon, weight_decay } = *self;
        let (time, moments) = match state {
            Some(state) => (state.time + 1, Some(AdamWMoments { first: state.moment_1, second: state.moment_2 })),
            None => (1, None),
        };
        let step = AdamWStep { lr, beta1, beta2, epsilon, weight_decay, time };
        let (tensor, AdamWMoments { first, second }) = adamw(tensor, grad, moments, step);
        let state = AdaptiveMomentumState { time, moment_1: first, moment_2: second, max_moment_2: None };
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.to_device(device)
    }
}
