//! AdamW over a module's parameters, with its state keyed by their paths.
//!
//! Burn's AdamW keeps its moments in the gradient's type, has no master weights, and keys its records by random ids
//! that a Hugging Face directory does not contain. A custom state type cannot be used with its `ModuleOptimizer`,
//! because the derive of `RecordState` names Burn's own crate. This implementation therefore visits the module itself.

use std::collections::{BTreeMap, HashMap};

use basic_core::ops::{AdamWMoments, AdamWParameter, AdamWStep, AdamWUpdate, UPDATES_TOGETHER, adamw_each};
use basic_models::checkpoint::ParamPath;
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Shape, Tensor};

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

/// A parameter, or a piece of it, of n elements, before an update or after it.
pub(super) struct Held {
    pub name: String,
    /// Whether it has two or more dimensions: others have no weight decay.
    pub matrix: bool,
    /// Its value `[n]`, in its own type.
    pub value: Tensor<1>,
    /// Its state; none before its first update.
    pub state: Option<ParameterState>,
}

impl Rates<'_> {
    /// Updates parameters by their gradients, `[n]` each. Afterwards all have a state.
    pub(super) fn advance(&self, before: Vec<(Held, Tensor<1>)>) -> Vec<Held> {
        let (mut before, mut after) = (before.into_iter(), Vec::new());
        while before.len() > 0 {
            // The first step makes the state of so many before it frees their gradients.
            after.extend(self.together(before.by_ref().take(UPDATES_TOGETHER)));
        }
        after
    }

    fn together(&self, before: impl Iterator<Item = (Held, Tensor<1>)>) -> Vec<Held> {
        let (mut updates, mut names) = (Vec::new(), Vec::new());
        for (Held { name, matrix, value, state }, grad) in before {
            let (n, dtype) = (value.dims()[0], value.dtype());
            let (time, moments, master) = match state.filter(|state| state.first.dims() == [n]) {
                Some(ParameterState { time, first, second, master }) => {
                    (time + 1, Some(AdamWMoments { first, second }), master)
                }
                None => (1, None, None),
            };
            let step = self.step(&name, matrix, time);
            let parameter = match dtype {
                DType::BF16 | DType::F16 => {
                    let master = master.unwrap_or_else(|| value.clone().cast(DType::F32));
                    AdamWParameter { value, master: Some(master), moments }
                }
                _ => AdamWParameter { value: master.unwrap_or(value), master: None, moments },
            };
            updates.push(AdamWUpdate { parameter, grad, step });
            names.push((name, matrix, time));
        }
        let updated = names.into_iter().zip(adamw_each(updates));
        let held = |((name, matrix, time), AdamWParameter { value, master, moments })| {
            let state = moments.map(|AdamWMoments { first, second }| ParameterState { time, first, second, master });
            Held { name, matrix, value, state }
        };
        updated.map(held).collect()
    }

    /// The settings of a parameter's update number `time`.
    fn step(&self, name: &str, matrix: bool, time: usize) -> AdamWStep {
        let group = self.groups.iter().find(|group| name.starts_with(&group.prefix));
        let decay = group.map_or(self.config.weight_decay, |group| group.weight_decay);
        AdamWStep {
            lr: self.lr * group.map_or(1.0, |group| group.rate),
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            epsilon: self.config.epsilon,
            weight_decay: if matrix { decay } else { 0.0 },
            grad_scale: self.grad_scale,
            time,
        }
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

/// Updates every parameter that has a gradient. All of them are taken out of the module, so that nothing else holds their
/// memory, updated together, and put back.
pub(super) fn update<M: Module>(module: M, grads: GradientsParams, rates: Rates, states: &mut States) -> M {
    let mut take =
        Take { path: ParamPath::new(""), grads, states, taken: Vec::new(), places: Vec::new(), instead: None };
    let module = module.map(&mut take);
    let Take { taken, places, .. } = take;
    let mut values = HashMap::new();
    for ((id, shape), Held { name, value, state, .. }) in places.into_iter().zip(rates.advance(taken)) {
        if let Some(state) = state {
            states.insert(name, state);
        }
        values.insert(id, (value, shape));
    }
    module.map(&mut PutBack { values })
}

/// Takes the parameters that have a gradient.
struct Take<'a> {
    path: ParamPath,
    grads: GradientsParams,
    states: &'a mut States,
    taken: Vec<(Held, Tensor<1>)>,
    places: Vec<(ParamId, Shape)>,
    /// What stays in the place of each.
    instead: Option<Tensor<1>>,
}

impl ModuleMapper for Take<'_> {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let id = param.id;
        let Some(grad) = self.grads.remove::<D>(id) else { return param };
        replaced(param, |tensor| {
            let shape = tensor.shape();
            let n = shape.num_elements();
            let name = self.path.slot(&tensor.dims()).name;
            let state = self.states.remove(&name);
            let instead = self.instead.get_or_insert_with(|| Tensor::zeros([1], &tensor.device())).clone();
            let held = Held { name, matrix: D >= 2, value: tensor.reshape([n]), state };
            self.taken.push((held, grad.reshape([n])));
            self.places.push((id, shape));
            instead.reshape([1; D])
        })
    }
}

/// Puts values in the places of parameters.
struct PutBack {
    values: HashMap<ParamId, (Tensor<1>, Shape)>,
}

impl ModuleMapper for PutBack {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.values.remove(&param.id) {
            Some((value, shape)) => replaced(param, |_| value.reshape(shape)),
            None => param,
        }
    }
}
