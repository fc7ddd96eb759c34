//! Attaches adapters to a part of the model: its weights are frozen, and the targets get factors.

use std::collections::BTreeMap;

use burn::module::{LoraAdapter, Module, Param, Reparameterizer};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::quantize::Blocks;
use super::{AdapterError, LoraConfig, Quantization};
use crate::parameters::{Slot, slots};

/// A linear layer that can have an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    /// The path of the weight inside the part.
    pub path: String,
    pub inputs: usize,
    pub outputs: usize,
}

impl Site {
    /// The layer's last name.
    fn leaf(&self) -> &str {
        let module = self.path.strip_suffix(".weight").unwrap_or(&self.path);
        module.rsplit('.').next().unwrap_or(module)
    }
}

/// The two factors of a layer in Burn's layout, `[inputs, rank]` and `[rank, outputs]`, row-major.
#[derive(Debug, Clone)]
pub(crate) struct Factors {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub rank: usize,
    pub scale: f64,
}

/// The last names of a part's linear layers, each once, in the order in which they occur.
pub fn targets<M: Module>(part: &M) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for site in sites(part) {
        if !names.iter().any(|name| name == site.leaf()) {
            names.push(site.leaf().to_string());
        }
    }
    names
}

/// Freezes `part` and adds adapters to its targets: A is drawn from U(-1/sqrt(in), 1/sqrt(in)) as in PEFT, and B is
/// zero, so that the model computes the same as before. `prefix` is the part's name (`language_model`); `dtype` is the
/// type that the model computes with. A is drawn on the host from the seed and the layer's name, so that its values are
/// the same on every device and do not depend on which other layers have adapters.
///
/// Layers that no hidden state passes through (a vision encoder's pooling head) are left out.
///
/// # Errors
///
/// Returns an [`AdapterError`] that names the key, the target or the matrix.
pub fn attach<M: Module>(
    part: M,
    prefix: &str,
    config: &LoraConfig,
    seed: u64,
    dtype: DType,
) -> Result<M, AdapterError> {
    config.validate()?;
    let sites = sites(&part);
    if sites.is_empty() {
        return Err(AdapterError::NoTargets(prefix.into()));
    }
    for target in &config.targets {
        if !sites.iter().any(|site| site.leaf() == target) {
            let (prefix, target) = (prefix.to_string(), target.clone());
            return Err(AdapterError::UnknownTarget { prefix, target, known: targets(&part) });
        }
    }
    let chosen =
        sites.into_iter().filter(|s| config.targets.is_empty() || config.targets.iter().any(|t| t == s.leaf()));
    let chosen = chosen.map(|site| {
        let factors = fresh(&format!("{prefix}.{}", site.path), &site, config, seed);
        (site.path, factors)
    });
    attach_factors(part, prefix, chosen.collect(), config.quantize, dtype)
}

/// Freezes `part` and attaches the given factors, which are listed by the weights' paths inside the part.
pub(crate) fn attach_factors<M: Module>(
    part: M,
    prefix: &str,
    factors: BTreeMap<String, Factors>,
    quantize: Option<Quantization>,
    dtype: DType,
) -> Result<M, AdapterError> {
    let found = slots(&part, "");
    if found.iter().any(|slot| slot.is_adapter()) {
        return Err(AdapterError::Attached(prefix.into()));
    }
    let mut blocks = None;
    if let Some(quantize) = quantize {
        for slot in found.iter().filter(|slot| factors.contains_key(&slot.name)) {
            let outputs = slot.shape[0];
            if !outputs.is_multiple_of(usize::from(quantize.block)) {
                let name = format!("{prefix}.{}", slot.name);
                return Err(AdapterError::Block { name, outputs, block: quantize.block });
            }
        }
        if let Some(device) = part.devices().first() {
            blocks = Some(Blocks::new(quantize, device)?);
        }
    }
    Ok(part.apply_reparameterization(Attach { factors, blocks, dtype }))
}

/// The linear layers of the part that hidden states pass through.
fn sites<M: Module>(part: &M) -> Vec<Site> {
    let linear = slots(part, "").into_iter().filter(|slot| slot.transposed && !slot.is_adapter());
    // The numbers are those of several encoders in a list.
    let path = |slot: &Slot| slot.name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').to_string();
    let reached = linear.filter(|slot| slot.name.ends_with(".weight") && !path(slot).starts_with("head."));
    reached.map(|slot| Site { inputs: slot.shape[1], outputs: slot.shape[0], path: slot.name }).collect()
}

fn fresh(name: &str, site: &Site, config: &LoraConfig, seed: u64) -> Factors {
    // FNV-1a, which is specified, so that a seed gives the same adapters in every release.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&hash.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(bytes);
    let bound = 1.0 / (site.inputs as f32).sqrt();
    let a = (0..site.inputs * config.rank).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect();
    let b = vec![0.0; config.rank * site.outputs];
    Factors { a, b, rank: config.rank, scale: config.alpha / config.rank as f64 }
}

struct Attach {
    factors: BTreeMap<String, Factors>,
    blocks: Option<Blocks>,
    dtype: DType,
}

impl Attach {
    fn parameter(&self, values: Vec<f32>, shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), (device, self.dtype)))
    }
}

impl Reparameterizer for Attach {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        let param = param.set_require_grad(false);
        let Some(Factors { a, b, rank, scale }) = self.factors.remove(path) else { return (param, None) };
        let device = param.lazy_device();
        let (inputs, outputs) = (a.len() / rank, b.len() / rank);
        let a = self.parameter(a, [inputs, rank], &device);
        let b = self.parameter(b, [rank, outputs], &device);
        let param = match &mut self.blocks {
            Some(blocks) => blocks.quantize(param),
            None => param,
        };
        (param, Some(LoraAdapter { a, b, scale }))
    }
}
