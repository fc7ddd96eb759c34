//! Computes the losses and gradients of one batch, either in one graph, or layer by layer with recomputed activations.
//!
//! Burn's own gradient checkpointing recomputes single operations and keeps what the expensive ones saved, so a decoder
//! of 32 layers would still hold the activations of all of them. Here only the residual stream between the layers is
//! kept: the decoder runs once without a graph, and the backward pass runs each layer again from its input, one at a
//! time.

use std::collections::BTreeMap;
use std::convert::Infallible;

use basic_core::{Losses, Objective, ObjectiveError, Supervision, Targets};
use basic_models::Batch;
use basic_models::nn::{Llava, LossCounts, Visual};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use crate::optim::GradientSink;

/// The result of a batch.
#[derive(Debug)]
pub struct Backward {
    /// The batch's share of the losses, without a graph.
    pub losses: Losses,
    /// The batch's share of the gradients; `None` if no trainable parameter is reached, or if they went elsewhere.
    pub gradients: Option<GradientsParams>,
    /// The visual embeddings, without a graph.
    pub v: Option<Tensor<2>>,
    /// The supervisory embeddings and patch weights from the decoder's shallow layers.
    pub targets: Option<Targets>,
}

/// The losses and gradients of `batch`, averaged over `counts`.
///
/// # Errors
///
/// [`ObjectiveError`] if a setting of the objective does not fit the decoder.
pub fn backward(
    model: &Llava,
    batch: &Batch,
    objective: &Objective,
    counts: LossCounts,
    recompute: bool,
) -> Result<Backward, ObjectiveError> {
    let mut gradients = GradientsParams::new();
    let found = backward_into(model, batch, objective, counts, recompute, &mut gradients)?;
    Ok(Backward { gradients: Some(gradients).filter(|gradients| !gradients.is_empty()), ..found })
}

/// [`backward`], whose gradients go to `sink` as they are found: with `recompute` layer by layer, otherwise all at the
/// end. The result has none.
///
/// # Errors
///
/// [`ObjectiveError`] if a setting of the objective does not fit the decoder.
pub fn backward_into(
    model: &Llava,
    batch: &Batch,
    objective: &Objective,
    counts: LossCounts,
    recompute: bool,
    sink: &mut impl GradientSink,
) -> Result<Backward, ObjectiveError> {
    if recompute {
        return layer_by_layer(model, batch, objective, counts, sink);
    }
    let forward = model.forward(batch, objective)?;
    let (v, targets) = (forward.visual.v.clone().map(Tensor::without_autodiff), forward.targets().cloned());
    let losses = model.losses_over(batch, forward, objective, counts);
    let total = losses.total();
    if total.is_tracked() {
        sink.take(model, GradientsParams::from_grads(total.backward(), model));
    }
    let losses = losses.without_autodiff();
    Ok(Backward { losses, gradients: None, v, targets })
}

fn layer_by_layer(
    model: &Llava,
    batch: &Batch,
    objective: &Objective,
    counts: LossCounts,
    sink: &mut impl GradientSink,
) -> Result<Backward, ObjectiveError> {
    let device = model.device();
    let decoder = &model.language_model;
    let mut supervision = model.supervision(batch, objective)?;
    let (masks, rope) = model.positions(batch);
    let features = model.features(batch);
    let v = features.clone().map(|features| model.multi_modal_projector.forward(features));
    let embeddings = model.splice(batch, v.clone());
    let [b, t, d] = embeddings.dims();

    // Forward pass without a graph; only the inputs of the layers are kept.
    let still = decoder.valid();
    let mut inputs = vec![embeddings.clone().without_autodiff().reshape([b * t, d])];
    let walked = still.walk(inputs[0].clone(), b, &rope, &masks, None, |index, hidden, seen| {
        if let Some(supervision) = supervision.as_mut().filter(|supervision| supervision.wants(index)) {
            supervision.observe(index, &hidden.clone().reshape([b, t, d]), seen);
        }
        inputs.push(hidden.clone());
        Ok::<_, Infallible>(())
    });
    let x = match walked {
        Ok(x) => x,
        Err(never) => match never {},
    };
    inputs.pop();
    drop(still);
    let rows = supervision.as_ref().map(Supervision::image_rows);
    let mut observed = supervision.map(Supervision::finish);

    // The output head.
    let top = leaf(x, &device);
    let hidden = decoder.finish(top.clone()).reshape([b, t, d]);
    let lm = counts.share(model.lm_loss(batch, hidden), batch);
    let mut upstream = None;
    if lm.is_tracked() {
        let mut found = lm.backward();
        upstream = top.grad_remove(&mut found);
        sink.take(model, GradientsParams::from_module(&mut found, model));
    }
    let lm = lm.without_autodiff();

    // The terms. If they use outputs of layers, these outputs and v become leaves. The leaves' gradients are passed on
    // to the layers and to the projector, whose graph is walked only once, at the end.
    let mut taps = BTreeMap::new();
    for (index, output) in observed.iter_mut().flat_map(|observed| &mut observed.taps) {
        *output = leaf(output.clone(), &device);
        taps.insert(*index, output.clone());
    }
    let at_leaf = !taps.is_empty();
    let of_terms = if at_leaf { v.clone().map(|v| leaf(v.without_autodiff(), &device)) } else { v.clone() };
    let visual = Visual { v: of_terms, features, observed };
    let losses = model.losses_with(lm, batch, &visual, objective, counts);
    let mut bottom = losses.total();
    let mut into_layers: BTreeMap<usize, Tensor<2>> = BTreeMap::new();
    if at_leaf && bottom.is_tracked() {
        let mut found = bottom.backward();
        into_layers =
            taps.into_iter().filter_map(|(index, leaf)| Some((index, leaf.grad_remove(&mut found)?))).collect();
        let into_v = visual.v.as_ref().and_then(|leaf| leaf.grad_remove(&mut found));
        sink.take(model, GradientsParams::from_module(&mut found, model));
        bottom = match v.as_ref().zip(into_v) {
            Some((v, g)) => (v.clone() * g.autodiff()).sum().cast(DType::F32),
            None => bottom.without_autodiff(),
        };
    }

    // Each layer runs again, from the last to the first. The gradient of sum(y g) with respect to y is g.
    while let Some(input) = inputs.pop() {
        let index = inputs.len();
        let of_terms = into_layers.remove(&index).zip(rows.as_ref());
        if upstream.is_none() && of_terms.is_none() {
            if into_layers.is_empty() {
                break;
            }
            continue;
        }
        let layer = &decoder.layers()[index];
        let x = leaf(input, &device);
        let (y, _) = layer.forward(x.clone(), b, &rope, &masks, None);
        let mut through = of_terms.map(|(g, rows)| (y.clone().select(0, rows.clone()) * g.autodiff()).sum());
        if let Some(g) = upstream.take() {
            let above = (y * g.autodiff()).sum();
            through = Some(match through {
                Some(terms) => terms + above,
                None => above,
            });
        }
        let Some(through) = through else { continue };
        let mut found = through.backward();
        upstream = x.grad_remove(&mut found);
        sink.take(model, GradientsParams::from_module(&mut found, layer));
        drop(found);
        sink.layer_done(index);
    }

    // The embeddings and the projector, together with the terms that bypass the decoder.
    if let Some(g) = upstream
        && embeddings.is_tracked()
    {
        let below = (embeddings.reshape([b * t, d]) * g.autodiff()).sum();
        bottom = bottom.clone() + below.cast(bottom.dtype());
    }
    if bottom.is_tracked() {
        sink.take(model, GradientsParams::from_grads(bottom.backward(), model));
    }
    let targets = visual.targets().cloned();
    let losses = losses.without_autodiff();
    Ok(Backward { losses, gradients: None, v: v.map(Tensor::without_autodiff), targets })
}

/// A tensor at which a new graph begins.
fn leaf<const D: usize>(x: Tensor<D>, device: &burn::tensor::Device) -> Tensor<D> {
    let x = x.autodiff();
    match device.gradient_checkpointing_strategy() {
        Some(strategy) => x.with_gradient_checkpointing_strategy(strategy),
        None => x,
    }
    .require_grad()
}
