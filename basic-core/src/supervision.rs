//! Collects what the supervision methods need from one forward pass. The decoder calls it after each layer.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::methods::{Evidence, FeatureSource, Heads, Method, Objective, Observer};
use crate::{Losses, Term};

/// The positions of one image of a batch, and of the text that follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpan {
    /// The index of its sample in the batch.
    pub sample: usize,
    /// The row of the batch that holds the sample. A packed row holds several samples.
    pub row: usize,
    /// The image's positions in the row (m of them).
    pub positions: Vec<usize>,
    /// The positions in the row of the same sample's text after the image, in order, without padding and image
    /// positions (n of them).
    pub text_rows: Vec<usize>,
}

/// The images of a batch, in sample order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SupervisionLayout {
    /// Rows of the batch.
    pub batch: usize,
    /// Positions in a (padded) sequence.
    pub sequence: usize,
    /// The images, in the order of their visual embeddings.
    pub images: Vec<ImageSpan>,
}

impl SupervisionLayout {
    /// The number of samples that have an image with text after it; the methods' terms are averaged over these.
    pub fn image_samples(&self) -> usize {
        let mut samples: Vec<usize> =
            self.images.iter().filter(|image| !image.text_rows.is_empty()).map(|image| image.sample).collect();
        samples.dedup();
        samples.len()
    }

    /// All image positions as rows of the flattened `[B * T]` sequence, `[M]`.
    pub fn flat_positions(&self) -> Vec<i64> {
        self.images
            .iter()
            .flat_map(|image| image.positions.iter().map(|p| (image.row * self.sequence + p) as i64))
            .collect()
    }
}

/// What a method's observer computes from the decoder's layers; no gradient flows through it.
#[derive(Debug, Clone)]
pub struct Targets {
    /// The supervisory embeddings `V^`, `[M, d]` in f32.
    pub embeddings: Tensor<2>,
    /// The patch weights `a`, `[M]` in f32; 0 for an image without text after it.
    pub weights: Tensor<1>,
}

/// The inputs of a layer's attention and its log-sum-exp, from which its probabilities can be computed.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Rotated queries, `[B, T, heads, head_dim]`.
    pub q: Tensor<4>,
    /// Rotated keys, `[B, T, kv_heads, head_dim]`.
    pub k: Tensor<4>,
    /// The log-sum-exp of each query's scores, `[B, heads, T]`, which [`ops::attention`](crate::ops::attention) returns.
    pub lse: Tensor<3>,
    /// The first visible key of each query, `[B or 1, T]`.
    pub first: Tensor<2, Int>,
    /// The soft cap of the scores, if the decoder has one.
    pub cap: Option<f64>,
}

/// Collects, during one forward pass, what all methods of an objective need.
#[derive(Debug)]
pub struct Supervision {
    /// One per method, in the objective's order.
    observers: Vec<Option<Box<dyn Observer>>>,
    layers: usize,
    rows: Tensor<1, Int>, // [M], into [B * T]
    tapped: Vec<usize>,
    taps: BTreeMap<usize, Tensor<2>>,
}

impl Supervision {
    /// A collector for one forward pass over a decoder of `layers` layers; `None` if nothing is supervised. The
    /// objective's settings must have been checked ([`Objective::check`]).
    pub fn new(objective: &Objective, layers: usize, layout: &SupervisionLayout, device: &Device) -> Option<Self> {
        if !objective.supervises() || layout.images.is_empty() {
            return None;
        }
        let device = device.clone().without_autodiff();
        let methods = objective.methods();
        let on = |method: &&dyn Method| method.supervises();
        let mut tapped: Vec<usize> = methods.iter().copied().filter(on).flat_map(|m| m.taps(layers)).collect();
        tapped.sort_unstable();
        tapped.dedup();
        let observer =
            |method: &&dyn Method| method.supervises().then(|| method.observer(layers, layout, &device)).flatten();
        let rows = layout.flat_positions();
        let m = rows.len();
        Some(Self {
            observers: methods.iter().map(observer).collect(),
            layers,
            rows: Tensor::from_data(TensorData::new(rows, [m]), &device),
            tapped,
            taps: BTreeMap::new(),
        })
    }

    /// Whether any method uses layer `index` (0-based).
    pub fn wants(&self, index: usize) -> bool {
        self.tapped.contains(&index) || self.observers.iter().flatten().any(|observer| observer.wants(index))
    }

    /// The layers (0-based) through whose outputs the methods' terms have a gradient.
    pub fn tapped(&self) -> &[usize] {
        &self.tapped
    }

    /// The image positions as rows of the flattened `[B * T]` sequence, `[M]`.
    pub fn image_rows(&self) -> Tensor<1, Int> {
        self.rows.clone()
    }

    /// Takes what the methods need from layer `index` (0-based).
    ///
    /// # Shapes
    /// - hidden: `[B, T, d]`, the layer's output on the residual stream
    pub fn observe(&mut self, index: usize, hidden: &Tensor<3>, seen: &Seen) {
        let [b, t, d] = hidden.dims();
        if self.tapped.contains(&index) && !self.taps.contains_key(&index) {
            let rows = hidden.clone().reshape([b * t, d]).select(0, self.rows.clone());
            self.taps.insert(index, rows);
        }
        for observer in self.observers.iter_mut().flatten().filter(|observer| observer.wants(index)) {
            observer.observe(index, hidden, seen);
        }
    }

    /// Returns what was collected.
    pub fn finish(self) -> Observed {
        let targets = self.observers.into_iter().map(|observer| observer.and_then(|observer| observer.finish()));
        Observed { targets: targets.collect(), layers: self.layers, taps: self.taps }
    }
}

/// What [`Supervision`] collected in a forward pass.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// One per method, in the objective's order.
    targets: Vec<Option<Targets>>,
    layers: usize,
    /// The outputs of the tapped layers (0-based) at the image positions, `[M, d]`.
    pub taps: BTreeMap<usize, Tensor<2>>,
}

impl Observed {
    /// The supervisory embeddings and patch weights of the first method that computes them.
    pub fn targets(&self) -> Option<&Targets> {
        self.targets.iter().flatten().next()
    }
}

/// What the losses of a batch are computed from, besides what [`Supervision`] collected.
#[derive(Debug, Clone, Copy)]
pub struct Supervised<'a> {
    /// The visual embeddings of all images of the batch, in sample order, `[M, d]`.
    pub v: &'a Tensor<2>,
    /// The raw input embedding table E, `[V, d]`.
    pub table: &'a Tensor<2>,
    /// The patch features of the model's own vision encoder, `[images * positions, width]`.
    pub features: Option<&'a Tensor<2>>,
    /// The patch features of another encoder ([`Objective::encoder`]), `[images * positions, width]`.
    pub other_features: Option<&'a Tensor<2>>,
    /// The methods' trainable heads.
    pub heads: &'a Heads,
    /// The positions of images and text.
    pub layout: &'a SupervisionLayout,
    /// Samples of the whole batch that have an image with text after it.
    pub image_samples: usize,
}

impl Objective {
    /// The losses of a batch: the language model's, given as `lm`, `[1]`, and the terms of every method. If
    /// `supervised` or `observed` is `None` because no image is supervised, all terms are 0.
    pub fn losses(&self, lm: Tensor<1>, supervised: Option<Supervised>, observed: Option<&Observed>) -> Losses {
        let device = lm.device();
        let terms = self.methods().into_iter().enumerate().flat_map(|(index, method)| -> Vec<Term> {
            let evidence = supervised.zip(observed).map(|(supervised, observed)| Evidence {
                v: supervised.v,
                table: supervised.table,
                targets: observed.targets.get(index).and_then(Option::as_ref),
                layers: observed.layers,
                taps: &observed.taps,
                features: match method.features() {
                    Some(FeatureSource::Encoder(_)) => supervised.other_features,
                    _ => supervised.features,
                },
                heads: supervised.heads,
                layout: supervised.layout,
                image_samples: supervised.image_samples,
            });
            method.terms(evidence.as_ref(), &device)
        });
        let terms = terms.collect();
        Losses { lm, terms }
    }
}
