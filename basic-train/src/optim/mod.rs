//! One optimization step: backward, global-norm clipping, AdamW; and the learning-rate schedule.

mod adamw;
mod clip;
mod schedule;

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Tensor, TensorReadError};
use serde::{Deserialize, Serialize};

pub use clip::{add_gradients, gradient_squares, scale_gradients};
pub use schedule::{Schedule, ScheduleKind};

/// AdamW's settings. The defaults are LLaVA's: no weight decay, PyTorch's betas and epsilon, clipping at 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate; by default the stage's own (LLaVA's 1e-3 and 2e-5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Decoupled weight decay, on all trainable parameters.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { lr: None, weight_decay: 0.0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, max_grad_norm: 1.0 }
    }
}

/// AdamW with its moments, and clipping by the global norm (Burn's own clips each parameter by itself).
pub struct Optimizer {
    adamw: ModuleOptimizer,
    max_grad_norm: f64,
}

/// What a step read back from the device, in one transfer.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReadout {
    /// The values asked for.
    pub values: Vec<f32>,
    /// The global gradient norm before clipping.
    pub grad_norm: f32,
}

impl Optimizer {
    /// An optimizer with empty moments.
    pub fn new(config: &OptimizerConfig) -> Self {
        let adamw = ModuleOptimizer::from(adamw::AdamW::from(config));
        Self { adamw, max_grad_norm: config.max_grad_norm }
    }

    /// Backward from `loss`, clip, update. `report` are further `[1]` tensors to read back. The parameters stay as they
    /// were where the loss or the gradients are not finite; the readout shows it.
    ///
    /// # Errors
    ///
    /// The device's, where the values could not be read.
    pub fn step<M: Module>(
        &mut self,
        module: M,
        loss: &Tensor<1>,
        report: &[Tensor<1>],
        lr: f64,
    ) -> Result<(M, StepReadout), TensorReadError> {
        let grads = GradientsParams::from_grads(loss.backward(), &module);
        let squares = gradient_squares(&module, &grads);
        let mut read: Vec<Tensor<1>> = report.iter().map(|t| t.clone().without_autodiff()).collect();
        read.push(loss.clone().without_autodiff());
        let shown = read.len();
        read.extend(squares);
        let mut values = Tensor::cat(read, 0).try_into_vec_as::<f32>()?;
        // Summed on the host in the parameters' order: the same bits on every run.
        let norm = values.drain(shown..).map(f64::from).sum::<f64>().sqrt();
        let readout = StepReadout { grad_norm: norm as f32, values };
        if !norm.is_finite() || !readout.values.iter().all(|v| v.is_finite()) {
            return Ok((module, readout));
        }
        Ok((self.clip_and_step(module, grads, norm, lr), readout))
    }

    /// Clips and updates from gradients that the caller has summed up. The parameters stay as they were where the
    /// gradients are not finite.
    ///
    /// # Errors
    ///
    /// The device's, where the norm could not be read.
    pub fn update<M: Module>(&mut self, module: M, grads: GradientsParams, lr: f64) -> Result<M, TensorReadError> {
        let squares = gradient_squares(&module, &grads);
        if squares.is_empty() {
            return Ok(module);
        }
        let squares = Tensor::cat(squares, 0).try_into_vec_as::<f32>()?;
        let norm = squares.into_iter().map(f64::from).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Ok(module);
        }
        Ok(self.clip_and_step(module, grads, norm, lr))
    }

    fn clip_and_step<M: Module>(&mut self, module: M, grads: GradientsParams, norm: f64, lr: f64) -> M {
        let grads = match self.max_grad_norm > 0.0 && norm > self.max_grad_norm {
            true => scale_gradients(&module, grads, self.max_grad_norm / (norm + 1e-6)),
            false => grads,
        };
        self.adamw.step(lr, module, grads)
    }
}
