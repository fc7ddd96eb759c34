//! AdamW over a module's parameters, with its state keyed by their paths.
//!
//! Burn's AdamW keeps its moments in the gradient's type, has no master weights, and keys its records by random ids
//! that a Hugging Face directory does not contain. A custom state type cannot be used with its `ModuleOptimizer`,
//! because the derive of `RecordState` names Burn's own crate. This implementation therefore visits the module itself.

use std::collections::BTreeMap;

use basic_core::ops::{AdamWMoments, AdamWStep, adamw, adamw_with_master};
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

/// What an update has in common for all parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates<'a> {
    pub config: &'a OptimizerConfig,
    pub groups: &'a [Group],
    pub lr: f64,
    /// The factor on all gradients, from clipping.
    pub grad_scale: f64,
}

impl Rates<'_> {
    /// Updates a parameter, or a piece of it, of n elements: from its value `[n]` in its own type, its gradient `[n]` and
    /// its state to its new value and state. Only a `matrix`, of two or more dimensions, has weight decay.
    pub(super) fn advance(
        &self,
        name: &str,
        matrix: bool,
        value: Tensor<1>,
        grad: Tensor<1>,
        held: Option<ParameterState>,
    ) -> (Tensor<1>, ParameterState) {
        let (n, dtype) = (value.dims()[0], value.dtype());
        let group = self.groups.iter().find(|group| name.starts_with(&group.prefix));
        let decay = group.map_or(self.config.weight_decay, |group| group.weight_decay);
        let (time, moments, master) = match held.filter(|state| state.first.dims() == [n]) {
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
            weight_decay: if matrix { decay } else { 0.0 },
            grad_scale: self.grad_scale,
            time,
        };
        let (value, master, AdamWMoments { first, second }) = match dtype {
            DType::BF16 | DType::F16 => {
                let master = master.unwrap_or_else(|| value.clone().cast(DType::F32));
                let (value, master, moments) = adamw_with_master(value, master, grad, moments, step);
                (value, Some(master), moments)
            }
            _ => {
                let (value, moments) = adamw(master.unwrap_or(value), grad, moments, step);
                (value, None, moments)
            }
        };
        (value, ParameterState { time, first, second, master })
    }
}

/// Gives a parameter another value, which `change` makes of the old one, without autodiff; the id and what concerns
/// autodiff stay.
pub(super) fn replaced<const D: usize>(
    param: Param<Tensor<D>>,
    change: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    let (id, tensor, mapper) = param.consume();
    let (tracked, strategy) = (tensor.is_require_grad(), tensor.gradient_checkpointing_strategy());
    let autodiff = tensor.is_autodiff();
    let mut tensor = change(tensor.without_autodiff());
    if autodiff {
        tensor = tensor.autodiff();
        if let Some(strategy) = strategy {
            tensor = tensor.with_gradient_checkpointing_strategy(strategy);
        }
        tensor = tensor.set_require_grad(tracked);
    }
    Param::from_mapped_value(id, tensor, mapper)
}

/// Updates every parameter that has a gradient.
pub(super) fn update<M: Module>(module: M, grads: GradientsParams, rates: Rates, states: &mut States) -> M {
    module.map(&mut Update { path: ParamPath::new(""), grads, rates, states })
}

struct Update<'a> {
    path: ParamPath,
    grads: GradientsParams,
    rates: Rates<'a>,
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
        replaced(param, |tensor| {
            let (dims, n) = (tensor.dims(), tensor.shape().num_elements());
            let name = self.path.slot(&dims).name;
            let held = self.states.remove(&name);
            let (value, state) = self.rates.advance(&name, D >= 2, tensor.reshape([n]), grad.reshape([n]), held);
            self.states.insert(name, state);
            value.reshape(dims)
        })
    }
}
