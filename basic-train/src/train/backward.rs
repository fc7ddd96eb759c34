//! The losses and gradients of one batch: in one graph, or layer by layer with the activations computed again.
//!
//! Burn's own gradient checkpointing recomputes single operations and keeps what the expensive ones saved, so that a
//! decoder of 32 layers still holds the activations of all of them. Here only the residual stream between the layers is
//! held: the decoder runs once without a graph, and in the backward pass each layer runs again from its input, alone.

use basic_core::{LossParts, Objective, ObjectiveError, Supervision, Targets};
use basic_models::Batch;
use basic_models::nn::{Counts, Forward, Llava};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::optim::add_gradients;

/// What a batch gave.
#[derive(Debug)]
pub struct Backward {
    /// Its share of the losses, without a graph.
    pub losses: LossParts,
    /// Its share of the gradients; `None` where no trainable parameter is reached.
    pub gradients: Option<GradientsParams>,
    /// The visual embeddings, without a graph.
    pub v: Option<Tensor<2>>,
    /// What the shallow layers said about them.
    pub targets: Option<Targets>,
}

/// Losses and gradients of `batch`, which is averaged over `counts`.
///
/// # Errors
///
/// [`ObjectiveError`] where a knob does not fit the decoder.
pub fn backward(
    model: &Llava,
    batch: &Batch,
    objective: &Objective,
    counts: Counts,
    recompute: bool,
) -> Result<Backward, ObjectiveError> {
    if recompute {
        return layer_by_layer(model, batch, objective, counts);
    }
    let forward = model.forward(batch, objective)?;
    let (v, targets) = (forward.v.clone().map(Tensor::without_autodiff), forward.targets.clone());
    let losses = model.losses_over(batch, forward, objective, counts);
    let gradients = losses.total.is_tracked().then(|| GradientsParams::from_grads(losses.total.backward(), model));
    Ok(Backward { losses: plain(losses), gradients: gradients.filter(|g| !g.is_empty()), v, targets })
}

fn plain(LossParts { lm, das, sds, total }: LossParts) -> LossParts {
    let [lm, das, sds, total] = [lm, das, sds, total].map(Tensor::without_autodiff);
    LossParts { lm, das, sds, total }
}

fn layer_by_layer(
    model: &Llava,
    batch: &Batch,
    objective: &Objective,
    counts: Counts,
) -> Result<Backward, ObjectiveError> {
    let device = model.device();
    let decoder = &model.language_model;
    let mut supervision = Supervision::new(objective, decoder.num_layers(), &batch.layout, &device)?;
    let (masks, rope) = model.positions(batch);
    let v = model.visual_embeddings(batch);
    let embeddings = model.splice(batch, v.clone());
    let [b, t, d] = embeddings.dims();

    // Forward, without a graph: the inputs of the layers are all that stays.
    let still = decoder.valid();
    let mut inputs = Vec::with_capacity(still.num_layers());
    let mut x = embeddings.clone().without_autodiff().reshape([b * t, d]);
    for (index, layer) in still.layers().iter().enumerate() {
        let (y, seen) = layer.forward(x.clone(), b, &rope, &masks, None);
        if let Some(supervision) = supervision.as_mut() {
            supervision.observe(index, &y.clone().reshape([b, t, d]), &seen);
        }
        inputs.push(x);
        x = y;
    }
    drop(still);
    let targets = supervision.and_then(Supervision::finish);

    // The head.
    let top = leaf(x, &device);
    let hidden = decoder.finish(top.clone()).reshape([b, t, d]);
    let lm = counts.share(model.lm_loss(batch, hidden), batch);
    let mut gradients = GradientsParams::new();
    let mut upstream = None;
    if lm.is_tracked() {
        let mut found = lm.backward();
        upstream = top.grad_remove(&mut found);
        gradients = GradientsParams::from_module(&mut found, model);
    }
    let lm = lm.without_autodiff();

    // The layers, last to first, each run once more. The gradient of sum(y g) with respect to y is g.
    while let Some(input) = inputs.pop() {
        let Some(g) = upstream.take() else { break };
        let layer = &decoder.layers()[inputs.len()];
        let x = leaf(input, &device);
        let (y, _) = layer.forward(x.clone(), b, &rope, &masks, None);
        let mut found = (y * g.autodiff()).sum().backward();
        upstream = x.grad_remove(&mut found);
        gradients = add_gradients(model, gradients, GradientsParams::from_module(&mut found, layer));
    }

    // The embeddings and the projector, with the supervision losses, which bypass the decoder.
    let forward = Forward { hidden: embeddings.clone(), v: v.clone(), targets: targets.clone() };
    let table = decoder.table();
    let losses = objective.combine(lm, forward.v, forward.targets.as_ref(), table, counts.image_samples);
    let mut total = losses.total.clone();
    if let Some(g) = upstream
        && embeddings.is_tracked()
    {
        let below = (embeddings.reshape([b * t, d]) * g.autodiff()).sum();
        total = total + below.cast(losses.total.dtype());
    }
    if total.is_tracked() {
        let found = GradientsParams::from_grads(total.backward(), model);
        gradients = add_gradients(model, gradients, found);
    }
    let gradients = Some(gradients).filter(|gradients| !gradients.is_empty());
    Ok(Backward { losses: plain(losses), gradients, v: v.map(Tensor::without_autodiff), targets })
}

/// A tensor at which a graph begins.
fn leaf<const D: usize>(x: Tensor<D>, device: &burn::tensor::Device) -> Tensor<D> {
    let x = x.autodiff();
    match device.gradient_checkpointing_strategy() {
        Some(strategy) => x.with_gradient_checkpointing_strategy(strategy),
        None => x,
    }
    .require_grad()
}
