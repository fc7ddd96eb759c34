//! The cache of keys and values for the positions that a generation has processed.

use burn::tensor::{DType, Device, Tensor};

use crate::config::DecoderConfig;

/// The keys and values of each layer, allocated once for a whole generation.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>, // [B, capacity, kv heads, head_dim] each
    length: usize,
    capacity: usize,
}

impl KvCache {
    /// A cache for `batch` sequences of at most `capacity` positions.
    pub fn new(config: &DecoderConfig, batch: usize, capacity: usize, dtype: DType, device: &Device) -> Self {
        let shape = [batch, capacity, config.kv_heads(), config.head_dim()];
        let empty = || Tensor::zeros(shape, (device, dtype));
        Self { layers: (0..config.num_hidden_layers).map(|_| Some((empty(), empty()))).collect(), length: 0, capacity }
    }

    /// The number of positions in the cache.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The number of positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Removes all but the first `length` positions.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Makes room for `capacity` positions; if it had less room, its content is copied.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity <= self.capacity {
            return;
        }
        let held = self.length;
        let grown = |old: Tensor<4>| {
            let [b, _, h, d] = old.dims();
            let new = Tensor::zeros([b, capacity, h, d], (&old.device(), old.dtype()));
            match held {
                0 => new,
                _ => new.slice_assign([0..b, 0..held, 0..h, 0..d], old.narrow(1, 0, held)),
            }
        };
        for layer in &mut self.layers {
            *layer = layer.take().map(|(keys, values)| (grown(keys), grown(values)));
        }
        self.capacity = capacity;
    }

    /// A cache of the same positions for `batch` sequences that continue this one's single sequence by at most `more`
    /// positions each.
    pub(crate) fn repeated(&self, batch: usize, more: usize) -> Self {
        let (held, capacity) = (self.length, self.length + more);
        let repeated = |old: &Tensor<4>| {
            let [_, _, h, d] = old.dims();
            let new = Tensor::zeros([batch, capacity, h, d], (&old.device(), old.dtype()));
            match held {
                0 => new,
                _ => new.slice_assign(
                    [0..batch, 0..held, 0..h, 0..d],
                    old.clone().narrow(1, 0, held).expand([batch, held, h, d]),
                ),
            }
        };
        let layers = self.layers.iter().map(|layer| layer.as_ref().map(|(k, v)| (repeated(k), repeated(v)))).collect();
        Self { layers, length: held, capacity }
    }

    /// Takes over the first `length` positions of another cache of the same shapes, in place of what this one holds.
    pub(crate) fn copy_from(&mut self, other: &Self, length: usize) {
        let length = length.min(other.length).min(self.capacity);
        if length > 0 {
            let taken = |new: Tensor<4>, old: &Tensor<4>| {
                let [b, _, h, d] = old.dims();
                new.slice_assign([0..b, 0..length, 0..h, 0..d], old.clone().narrow(1, 0, length))
            };
            for (own, others) in self.layers.iter_mut().zip(&other.layers) {
                if let (Some((keys, values)), Some((k, v))) = (own.take(), others) {
                    *own = Some((taken(keys, k), taken(values, v)));
                }
            }
        }
        self.length = length;
    }

    /// Appends a layer's new keys and values and returns all of that layer's.
    ///
    /// # Shapes
    /// - k, v: `[B, T, kv heads, head_dim]`
    /// - output: `[B, len + T, kv heads, head_dim]` each
    pub(crate) fn extend(&mut self, layer: usize, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let Some((keys, values)) = self.layers[layer].take() else {
            return (k, v);
        };
        let [b, t, h, d] = k.dims();
        let range = [0..b, self.length..self.length + t, 0..h, 0..d];
        let keys = keys.slice_assign(range.clone(), k);
        let values = values.slice_assign(range, v);
        let held = (keys.clone().narrow(1, 0, self.length + t), values.clone().narrow(1, 0, self.length + t));
        self.layers[layer] = Some((keys, values));
        held
    }

    /// Adds `t` positions to the length, after all layers have appended theirs.
    pub(crate) fn advance(&mut self, t: usize) {
        self.length += t;
    }
}
