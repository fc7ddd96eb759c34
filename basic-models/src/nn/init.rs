//! Initializes weights from a seed. They are drawn on the host, so that they are the same on every backend.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The distribution of new weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InitScheme {
    /// PyTorch's default for `nn.Linear`, U(-1/sqrt(in), 1/sqrt(in)) for weights and biases, with which LLaVA
    /// initializes its projector.
    TorchLinear,
    /// N(0, std) for matrices and tables, and zero biases, as transformers initializes its decoders.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

/// The standard deviation of a resampler's learned queries and positions, as in the original projects: Flamingo's
/// latents, BERT's queries and Honeybee's positions.
fn learned(name: &str) -> Option<f64> {
    match name {
        "latents" => Some(1.0),
        "query_tokens" | "pos_emb" => Some(0.02),
        _ => None,
    }
}

/// Replaces all parameters of `module` by new ones. Those of norms keep their initial values (a scale of 1, which is a
/// weight of 0 if the norm scales by 1 + weight, and a shift of 0).
///
/// Burn's own initializers draw on the device, so that each backend would get different weights and runs
/// could not be compared.
pub fn seeded_init<M: Module>(module: M, scheme: InitScheme, seed: u64, device: &Device) -> M {
    module.map(&mut Seeded {
        scheme,
        rng: ChaCha8Rng::seed_from_u64(seed),
        path: Vec::new(),
        fan_in: 1,
        device: device.clone(),
    })
}

struct Seeded {
    scheme: InitScheme,
    rng: ChaCha8Rng,
    path: Vec<(String, String)>,
    fan_in: usize,
    device: Device,
}

impl ModuleMapper for Seeded {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.into(), container.into()));
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape: Vec<usize> = param.lazy_shape().to_vec();
        let name = self.path.last().map(|(name, _)| name.as_str()).unwrap_or_default();
        if matches!(name, "gamma" | "beta") {
            let start = param.into_value().without_autodiff().into_data();
            let tensor = Tensor::<D>::from_data(start, &self.device);
            return Param::initialized(ParamId::new(), tensor).set_require_grad(true);
        }
        let count: usize = shape.iter().product();
        if name == "weight" {
            // A linear weight is [in, out] in Burn, a convolution's [out, in, h, w].
            self.fan_in = if D == 2 { shape[0] } else { shape[1..].iter().product() };
        }
        let mut normals = |std: f64| (0..count).map(|_| (normal(&mut self.rng) * std) as f32).collect();
        let values: Vec<f32> = match (name, self.scheme) {
            (name, _) if learned(name).is_some() => normals(learned(name).unwrap_or(1.0)),
            // As transformers' `LlavaNextModel` draws it.
            ("image_newline", _) => normals(1.0 / (count as f64).sqrt()),
            (_, InitScheme::TorchLinear) => {
                let bound = 1.0 / (self.fan_in as f32).sqrt();
                (0..count).map(|_| (self.rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
            }
            ("bias", InitScheme::Normal { .. }) => vec![0.0; count],
            (_, InitScheme::Normal { std }) => normals(std),
        };
        let tensor = Tensor::<D>::from_data(TensorData::new(values, shape), &self.device);
        Param::initialized(ParamId::new(), tensor).set_require_grad(true)
    }
}

/// A standard normal draw (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    (-2.0 * u.ln()).sqrt() * angle.cos()
}
