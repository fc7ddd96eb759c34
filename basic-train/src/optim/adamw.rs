//! AdamW over a module's parameters, with its state keyed by their paths.
//!
//! Burn's AdamW keeps its moments in the gradient's type, has no master weights, and keys its records by random ids
//! that a Hugging Face directory does not contain. A custom state type cannot be used with its `ModuleOptimizer`,
//! because the derive of `RecordState` names Burn's own crate. This implementation therefore visits the module itself.

use std::collections::BTreeMap;

use basic_core::ops::{AdamWMoments, AdamWStep, adamw};
use basic_models::checkpoint::ParamPath;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use super::OptimizerConfig;

/// AdamW's state for a parameter of n elements.
#[derive(Debug, Clone)]
pub struct ParameterState {
    /// Number of updates so far.
    pub time: usize,
    /// Exponential mean of the gradients, `[n]`, f32.
    pub first: Tensor<1>,
    /// Exponential mean of their squares, `[n]`, f32.
    pub second: Tensor<1>,
    /// The parameter itself in f32, `[n]`, if the module holds it in 16 bits.
    pub master: Option<Tensor<1>>,
}

/// The learning rate and weight decay of the parameters below a path.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The beginning of the parameters' paths, such as `language_model`.
    pub prefix: String,
    /// A factor on the learning rate of the step.
    pub rate: f64,
    /// Decoupled weight decay of matrices; biases and norms have none, as in transformers' trainer.
    pub weight_decay: f64,
}

/// The state of all parameters that have been updated, by path.
pub type States = BTreeMap<String, ParameterState>;

/// Updates every parameter that has a gradient.
pub(super) fn update<M: Module>(
    module: M,
    grads: GradientsParams,
    config: &OptimizerConfig,
    groups: &[Group],
    lr: f64,
    states: &mut States,
) -> M {
    module.map(&mut Update { path: ParamPath::new(""), grads, config, groups, lr, states })
}

struct Update<'a> {
    path: ParamPath,
    grads: GradientsParams,
    config: &'a OptimizerConfig,
    groups: &'a [Group],
    lr: f64,
    states: &'a mut States,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(grad) = self.grads.remove::<D>(param.id) else { return param };
        let (id, tensor, mapper) = param.consume();
        let (dims, dtype, tracked) = (tensor.dims(), tensor.dtype(), tensor.is_require_grad());
        let (strategy, autodiff) = (tensor.gradient_checkpointing_strategy(), tensor.is_autodiff());
        let n = tensor.shape().num_elements();
        let name = self.path.slot(&dims).name;
        let group = self.groups.iter().find(|group| name.starts_with(&group.prefix));
        let decay = group.map_or(self.config.weight_decay, |group| group.weight_decay);
        let held = self.states.remove(&name).filter(|state| state.first.dims() == [n]);
        let (time, moments, master) = match held {
            Some(ParameterState { time, first, second, master }) => {
                (time + 1, Some(AdamWMoments { first, second }), master)
            }
            None => (1, None, None),
        };
        let step = AdamWStep {
            lr: self.lr * group.map_or(1.0, |group| group.rate),
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            epsilon: self.config.epsilon,
            weight_decay: if D >= 2 { decay } else { 0.0 },
            time,
        };
        let half = matches!(dtype, DType::BF16 | DType::F16);
        let tensor = tensor.without_autodiff().reshape([n]);
        let value = match master {
            Some(master) => master,
            None if half => tensor.cast(DType::F32),
            None => tensor,
        };
        let (value, AdamWMoments { first, second }) = adamw(value, grad.reshape([n]), moments, step);
        let (tensor, master) = if half { (value.clone().cast(dtype), Some(value)) } else { (value, None) };
        self.states.insert(name, ParameterState { time, first, second, master });
        let mut tensor = tensor.reshape(dims);
        if autodiff {
            tensor = tensor.autodiff();
            if let Some(strategy) = strategy {
                tensor = tensor.with_gradient_checkpointing_strategy(strategy);
            }
            tensor = tensor.set_require_grad(tracked);
        }
        Param::from_mapped_value(id, tensor, mapper)
    }
}
