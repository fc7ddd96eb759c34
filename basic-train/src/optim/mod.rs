//! One optimization step (backward pass, clipping by the global norm, AdamW) and the learning-rate schedule.

mod adamw;
mod gradients;
mod schedule;
mod sharded;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorReadError};
use serde::{Deserialize, Serialize};

use adamw::Rates;
pub use adamw::{Group, ParameterState, States};
pub use gradients::{GradientSink, GradientSquares, add_gradients, gradient_squares};
pub(crate) use gradients::{squares_of, total_squares};
pub use schedule::{Schedule, ScheduleKind};

/// AdamW's settings. The defaults are LLaVA's: no weight decay, PyTorch's betas and epsilon, clipping at 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate; by default LLaVA's for the stage (1e-3 and 2e-5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Decoupled weight decay of matrices; biases and norms have none.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { lr: None, weight_decay: 0.0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, max_grad_norm: 1.0 }
    }
}

/// AdamW with its state and with clipping by the global norm (Burn's clipping treats each parameter separately).
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<Group>,
    states: States,
    /// The numbers of updates of the parameters of which other ranks hold all state.
    elsewhere: BTreeMap<String, usize>,
}

/// The values that a step read back from the device, in one transfer.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReadout {
    /// The requested values.
    pub values: Vec<f32>,
    /// The global gradient norm before clipping.
    pub grad_norm: f32,
    /// The norm of each parameter's gradient, by path, in the module's order.
    pub norms: Vec<(String, f64)>,
}

impl StepReadout {
    /// Whether the values and the gradients are all finite.
    pub fn is_finite(&self) -> bool {
        self.grad_norm.is_finite() && self.values.iter().all(|value| value.is_finite())
    }

    /// The norm over the parameters whose path begins with `prefix`; `None` if none of them has a gradient.
    pub fn norm_below(&self, prefix: &str) -> Option<f64> {
        let mut of_part = self.norms.iter().filter(|(name, _)| name.starts_with(prefix)).peekable();
        of_part.peek()?;
        Some(of_part.map(|(_, norm)| norm * norm).sum::<f64>().sqrt())
    }
}

impl Optimizer {
    /// An optimizer with empty moments and one learning rate and weight decay for all parameters.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self { config: config.clone(), groups: Vec::new(), states: States::new(), elsewhere: BTreeMap::new() }
    }

    /// Sets learning rates and weight decays by path; the first matching group applies to a parameter.
    pub fn with_groups(self, groups: Vec<Group>) -> Self {
        Self { groups, ..self }
    }

    /// The state, by the parameters' paths; of a parameter that is divided among ranks, that of this rank's piece.
    pub fn states(&self) -> &States {
        &self.states
    }

    /// Restores a saved state.
    pub fn set_states(&mut self, states: States) {
        self.states = states;
        self.elsewhere.clear();
    }

    /// Restores the number of updates of a parameter of which other ranks hold all state.
    pub fn set_elsewhere(&mut self, name: String, updates: usize) {
        self.elsewhere.insert(name, updates);
    }

    /// The number of updates of each parameter, by path; the same on all ranks.
    pub fn updates(&self) -> BTreeMap<String, usize> {
        let own = self.states.iter().map(|(name, state)| (name.clone(), state.time));
        own.chain(self.elsewhere.clone()).collect()
    }

    /// The same optimizer with its state on another device.
    pub fn to_device(mut self, device: &Device) -> Self {
        for state in self.states.values_mut() {
            let moved = |tensor: &Tensor<1>| tensor.clone().to_device(device);
            (state.first, state.second) = (moved(&state.first), moved(&state.second));
            state.master = state.master.as_ref().map(moved);
        }
        self
    }

    /// Backward pass from `loss`, clipping, and update. `report` holds further `[1]` tensors to read back; the loss is the
    /// last of the readout's values. If the loss
    /// or the gradients are not finite, which the readout shows, the parameters stay unchanged.
    ///
    /// # Errors
    ///
    /// [`TensorReadError`] if the values could not be read from the device.
    pub fn step<M: Module>(
        &mut self,
        module: M,
        loss: &Tensor<1>,
        report: &[Tensor<1>],
        lr: f64,
    ) -> Result<(M, StepReadout), TensorReadError> {
        let grads = GradientsParams::from_grads(loss.backward(), &module);
        let mut report = report.to_vec();
        report.push(loss.clone());
        let readout = read_out(&module, &grads, report)?;
        Ok((self.apply(module, grads, &readout, lr), readout))
    }

    /// Clips and updates with gradients that the caller has summed. If the readout is not finite, the parameters stay
    /// unchanged.
    pub fn apply<M: Module>(&mut self, module: M, grads: GradientsParams, readout: &StepReadout, lr: f64) -> M {
        if !readout.is_finite() {
            return module;
        }
        let grad_scale = self.clipping(readout);
        let Self { config, groups, states, .. } = self;
        adamw::update(module, grads, Rates { config, groups, lr, grad_scale }, states)
    }

    /// The factor by which the gradients are clipped: 1 if their norm is not too large.
    fn clipping(&self, readout: &StepReadout) -> f64 {
        let (norm, most) = (f64::from(readout.grad_norm), self.config.max_grad_norm);
        if most > 0.0 && norm > most { most / (norm + 1e-6) } else { 1.0 }
    }
}

/// Reads back the values of all tensors in `report`, concatenated, and the norms of all gradients.
///
/// # Errors
///
/// [`TensorReadError`] if the values could not be read from the device.
pub fn read_out<M: Module>(
    module: &M,
    grads: &GradientsParams,
    report: Vec<Tensor<1>>,
) -> Result<StepReadout, TensorReadError> {
    let GradientSquares { names, parts, sums } = gradient_squares(module, grads);
    let mut read: Vec<Tensor<1>> = report.into_iter().map(|t| t.without_autodiff().cast(DType::F32)).collect();
    let shown: usize = read.iter().map(|t| t.dims()[0]).sum();
    read.extend(sums);
    if read.is_empty() {
        return Ok(StepReadout { values: Vec::new(), grad_norm: 0.0, norms: Vec::new() });
    }
    let mut values = Tensor::cat(read, 0).try_into_vec_as::<f32>()?;
    let squares = total_squares(&values[shown..], parts);
    values.truncate(shown);
    // Summed on the host in the order of the parameters, so that every run gives the same bits.
    let grad_norm = squares.iter().sum::<f64>().sqrt() as f32;
    let norms = names.into_iter().zip(squares).map(|(name, square)| (name, square.sqrt())).collect();
    Ok(StepReadout { values, grad_norm, norms })
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::Tensor;

    use super::*;

    #[derive(Module, Debug)]
    struct Pair {
        wide: Param<Tensor<2>>,
        bias: Param<Tensor<1>>,
    }

    fn pair(dtype: DType) -> Pair {
        let device = Device::default().autodiff();
        let wide = Tensor::<2>::ones([3, 2], (&device, dtype)) * 0.75;
        let bias = Tensor::<1>::ones([2], (&device, dtype));
        Pair { wide: Param::from_tensor(wide), bias: Param::from_tensor(bias) }
    }

    fn steps(mut pair: Pair, optimizer: &mut Optimizer, count: usize, lr: f64) -> Pair {
        for _ in 0..count {
            let loss = pair.wide.val().cast(DType::F32).sum() + pair.bias.val().cast(DType::F32).sum();
            (pair, _) = optimizer.step(pair, &loss.reshape([1]), &[], lr).unwrap();
        }
        pair
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.without_autodiff().cast(DType::F32).try_into_vec_as::<f32>().unwrap()
    }

    #[test]
    fn updates_too_small_for_bfloat16_add_up_in_the_master_weights() {
        // bfloat16 has steps of 2^-8 between 0.5 and 1, so a step of 1e-4 alone changes nothing there.
        let config = OptimizerConfig { max_grad_norm: 0.0, ..OptimizerConfig::default() };
        let mut optimizer = Optimizer::new(&config);
        let after = steps(pair(DType::BF16), &mut optimizer, 1, 1e-4);
        assert_eq!(values(after.wide.val()), vec![0.75; 6]);
        let after = steps(after, &mut optimizer, 199, 1e-4);
        // The gradient is always 1, so AdamW moves by the learning rate: 0.75 - 200 * 1e-4, rounded to bfloat16.
        for value in values(after.wide.val()) {
            assert!((value - 0.73).abs() <= 1.0 / 512.0, "{value}");
        }
        let masters: Vec<_> = optimizer.states().values().map(|state| state.master.clone().unwrap()).collect();
        assert!(values(masters[1].clone()).iter().all(|master| (master - 0.73).abs() < 1e-5));
        assert_eq!(after.wide.val().dtype(), DType::BF16);
    }

    #[test]
    fn gradients_are_clipped_by_the_norm_of_all_of_them() {
        // All eight elements have gradient 1, so that their norm is the root of 8.
        for (dtype, max_grad_norm, clipped) in
            [(DType::F32, 1.0, 8f32.sqrt().recip()), (DType::BF16, 1.0, 8f32.sqrt().recip()), (DType::F32, 3.0, 1.0)]
        {
            let mut optimizer = Optimizer::new(&OptimizerConfig { max_grad_norm, ..OptimizerConfig::default() });
            let pair = pair(dtype);
            let loss = pair.wide.val().cast(DType::F32).sum() + pair.bias.val().cast(DType::F32).sum();
            let (_, readout) = optimizer.step(pair, &loss.reshape([1]), &[], 1e-3).unwrap();
            assert!((readout.grad_norm - 8f32.sqrt()).abs() < 1e-6, "{}", readout.grad_norm);
            for state in optimizer.states().values() {
                let first = values(state.first.clone());
                assert!(first.iter().all(|m| (m - 0.1 * clipped).abs() < 1e-6), "{dtype:?}: {first:?}");
            }
        }
    }

    #[test]
    fn groups_set_rates_by_path_and_decay_matrices_alone() {
        let config = OptimizerConfig { max_grad_norm: 0.0, ..OptimizerConfig::default() };
        let group = |prefix: &str, rate| Group { prefix: prefix.into(), rate, weight_decay: 0.5 };
        let mut optimizer = Optimizer::new(&config).with_groups(vec![group("wide", 1e-2), group("bias", 2e-2)]);
        let after = steps(pair(DType::F32), &mut optimizer, 1, 1.0);
        // 0.75 (1 - 0.01 * 0.5) - 0.01; the bias does not decay: 1 - 0.02.
        assert!(values(after.wide.val()).iter().all(|value| (value - 0.73625).abs() < 1e-6));
        assert!(values(after.bias.val()).iter().all(|value| (value - 0.98).abs() < 1e-6));
        assert!(after.wide.is_require_grad() && after.bias.is_require_grad());
        assert_eq!(optimizer.states().keys().collect::<Vec<_>>(), ["bias", "wide"]);
    }

    #[test]
    fn a_readout_that_is_not_finite_changes_nothing() {
        let mut optimizer = Optimizer::new(&OptimizerConfig::default());
        let before = pair(DType::F32);
        let loss = before.wide.val().sum() * f32::INFINITY;
        let (after, readout) = optimizer.step(before, &loss.reshape([1]), &[], 0.1).unwrap();
        assert!(!readout.is_finite());
        assert_eq!(values(after.wide.val()), vec![0.75; 6]);
        assert!(optimizer.states().is_empty());
    }
}
