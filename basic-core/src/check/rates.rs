//! Measures how fast a device performs the operations of a training step. The sizes are those of a 7B decoder on four
//! samples of 705 positions (`basic bench --preset 7b --micro-batch 4`), and of its vision encoder.

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Distribution, ExecutionError, Int, Tensor, TensorData};
use serde::Serialize;
use thiserror::Error;

use crate::ops::{self, AdamWStep, HeadLayout};

/// How long an operation is repeated.
const SPAN: Duration = Duration::from_millis(200);
/// About how much work is queued before waiting for the device.
const ROUND: Duration = Duration::from_millis(20);
/// The most bytes of results that are held until then.
const HELD: f64 = (4_u64 << 30) as f64;
/// Rows of the decoder: four samples of 705 positions.
const ROWS: usize = 2820;
const HIDDEN: usize = 4096;
const INNER: usize = 11008;
const VOCABULARY: usize = 32000;
/// Image positions of the four samples.
const PATCHES: usize = 2304;
/// Text positions of the four samples.
const TEXT: usize = 512;

/// The measured rate of an operation.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// The operation and its sizes.
    pub name: String,
    /// Seconds per run.
    pub seconds: f64,
    /// Floating-point operations per second, in units of 1e12; only those that the result needs are counted.
    pub tflops: f64,
    /// Bytes per second, in units of 1e9; every input counts as read once and every output as written once.
    pub gigabytes: f64,
}

/// Why nothing was timed.
#[derive(Debug, Error)]
pub enum RateError {
    /// The device failed.
    #[error("the device failed: {0:?}")]
    Run(ExecutionError),
    /// No operation's name contains the text.
    #[error("no operation has '{0}' in its name: leave out --only to see all of them")]
    None(String),
}

struct Timer<'a> {
    only: &'a str,
    device: &'a Device,
    dtype: DType,
    rates: Vec<Rate>,
    report: &'a mut dyn FnMut(&Rate),
}

impl Timer<'_> {
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let plain = self.device.clone().without_autodiff();
        Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), &plain).cast(self.dtype)
    }

    fn leaf<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        self.random(shape).autodiff().require_grad()
    }

    /// Times `run`, which reads and writes `elements` numbers in all. Its results are held until the device has
    /// computed them, because fusion computes nothing that is dropped before.
    fn time<T>(
        &mut self,
        name: &str,
        flops: f64,
        elements: usize,
        mut run: impl FnMut() -> T,
    ) -> Result<(), RateError> {
        if !name.contains(self.only) {
            return Ok(());
        }
        let bytes = (elements * self.dtype.size()) as f64;
        let mut seconds_of = |count: usize| -> Result<f64, RateError> {
            let start = Instant::now();
            let held: Vec<T> = (0..count).map(|_| run()).collect();
            self.device.sync().map_err(RateError::Run)?;
            let seconds = start.elapsed().as_secs_f64();
            drop(held);
            Ok(seconds)
        };
        // The first runs compile and tune. Then two rounds of as many runs as hide the wait for the device, because
        // fusion generates different kernels for many runs than for one.
        let mut one = f64::MAX;
        for _ in 0..3 {
            one = seconds_of(1)?;
        }
        let fitting = (HELD / bytes.max(1.0)) as usize;
        let together = ((ROUND.as_secs_f64() / one.max(1e-6)) as usize).clamp(1, fitting.clamp(1, 64));
        for _ in 0..2 {
            seconds_of(together)?;
        }
        let (mut total, mut count) = (0.0, 0);
        while total < SPAN.as_secs_f64() {
            total += seconds_of(together)?;
            count += together;
        }
        let seconds = total / count as f64;
        let rate =
            Rate { name: name.into(), seconds, tflops: flops / seconds / 1e12, gigabytes: bytes / seconds / 1e9 };
        (self.report)(&rate);
        self.rates.push(rate);
        Ok(())
    }

    /// `[m, k] x [k, n]`; `turned` says which operands are transposed views.
    fn product(&mut self, name: &str, [m, k, n]: [usize; 3], turned: [bool; 2]) -> Result<(), RateError> {
        let a = if turned[0] { self.random([k, m]).transpose() } else { self.random([m, k]) };
        let b = if turned[1] { self.random([n, k]).transpose() } else { self.random([k, n]) };
        let name = format!("{name} {m}x{k}x{n}");
        self.time(&name, 2.0 * (m * k * n) as f64, m * k + k * n + m * n, || ops::product(a.clone(), b.clone()))
    }

    /// Times the forward pass, then forward and backward together.
    fn attention(&mut self, name: &str, [b, t, heads, kv, width]: [usize; 5]) -> Result<(), RateError> {
        let first = Tensor::<2, Int>::zeros([1, t], &self.device.clone().without_autodiff());
        // Half of all pairs. Two products forward, five more backward.
        let flops = 2.0 * (b * heads * t * t * width) as f64;
        let elements = 2 * b * t * (heads + kv) * width;
        let (q, k, v) =
            (self.random([b, t, heads, width]), self.random([b, t, kv, width]), self.random([b, t, kv, width]));
        self.time(&format!("attention forward {name}"), flops, elements, || {
            ops::attention(q.clone(), k.clone(), v.clone(), first.clone())
        })?;
        let (q, k, v) = (self.leaf([b, t, heads, width]), self.leaf([b, t, kv, width]), self.leaf([b, t, kv, width]));
        self.time(&format!("attention with backward {name}"), 3.5 * flops, 3 * elements, || {
            let output = ops::attention(q.clone(), k.clone(), v.clone(), first.clone()).output;
            let gradients = output.sum().backward();
            (q.grad(&gradients), k.grad(&gradients), v.grad(&gradients))
        })
    }
}

/// Times those operations on `device` in `dtype` whose names contain `only`; `report` is called after each.
///
/// # Errors
///
/// Returns [`RateError`] if the device fails or no name contains `only`.
pub fn rates(device: &Device, dtype: DType, only: &str, report: &mut dyn FnMut(&Rate)) -> Result<Vec<Rate>, RateError> {
    let device = device.clone().autodiff();
    let mut t = Timer { only, device: &device, dtype, rates: Vec::new(), report };
    let big = t.random([16384, 16384]);
    t.time("scale 16384x16384", 0.0, 2 * 16384 * 16384, || big.clone() * 1.5)?;
    drop(big);
    t.product("product", [8192, 8192, 8192], [false, false])?;
    t.product("projection", [ROWS, HIDDEN, HIDDEN], [false, false])?;
    t.product("up", [ROWS, HIDDEN, INNER], [false, false])?;
    t.product("down", [ROWS, INNER, HIDDEN], [false, false])?;
    t.product("up, input gradient", [ROWS, INNER, HIDDEN], [false, true])?;
    t.product("down, input gradient", [ROWS, HIDDEN, INNER], [false, true])?;
    t.product("up, weight gradient", [HIDDEN, ROWS, INNER], [true, false])?;
    t.product("logits", [TEXT, HIDDEN, VOCABULARY], [false, true])?;
    t.product("tower", [2308, 1024, 4096], [false, false])?;
    t.attention("4x705, 32 heads of 128", [4, 705, 32, 32, 128])?;
    t.attention("4x705, 32 heads on 4 of 64", [4, 705, 32, 4, 64])?;
    losses(&mut t)?;
    elementwise(&mut t)?;
    if t.rates.is_empty() {
        return Err(RateError::None(only.into()));
    }
    Ok(t.rates)
}

fn losses(t: &mut Timer<'_>) -> Result<(), RateError> {
    let table = t.random([VOCABULARY, HIDDEN]);
    let (v, target) = (t.leaf([PATCHES, HIDDEN]), t.random([PATCHES, HIDDEN]));
    let weights = Tensor::<1>::ones([PATCHES], &t.device.clone().without_autodiff()) / PATCHES as f64;
    // The logits of both sides, and the gradient.
    let flops = 6.0 * (PATCHES * HIDDEN * VOCABULARY) as f64;
    t.time("semantic_distribution with backward", flops, table.shape().num_elements(), || {
        let loss = ops::semantic_distribution(v.clone(), target.clone(), table.clone(), weights.clone());
        v.grad(&loss.backward())
    })?;
    t.time("directional_alignment with backward", 0.0, 3 * PATCHES * HIDDEN, || {
        let loss = ops::directional_alignment(v.clone(), target.clone(), weights.clone());
        v.grad(&loss.backward())
    })?;
    let hidden = t.leaf([TEXT, HIDDEN]);
    let head = t.random([HIDDEN, VOCABULARY]).autodiff();
    let labels: Vec<i64> = (0..TEXT as i64).collect();
    let flops = 4.0 * (TEXT * HIDDEN * VOCABULARY) as f64;
    t.time("linear_cross_entropy with backward", flops, 2 * HIDDEN * VOCABULARY, || {
        let loss = ops::linear_cross_entropy(hidden.clone(), head.clone(), HeadLayout::TokenColumns, &labels);
        hidden.grad(&loss.backward())
    })
}

fn elementwise(t: &mut Timer<'_>) -> Result<(), RateError> {
    let (x, gamma) = (t.leaf([ROWS, HIDDEN]), t.random([HIDDEN]).autodiff());
    t.time("rms_norm with backward", 0.0, 4 * ROWS * HIDDEN, || {
        x.grad(&ops::rms_norm(x.clone(), gamma.clone(), 1e-5).sum().backward())
    })?;
    let (gate, up) = (t.leaf([ROWS, INNER]), t.leaf([ROWS, INNER]));
    t.time("swiglu with backward", 0.0, 8 * ROWS * INNER, || {
        let gradients = ops::swiglu(gate.clone(), up.clone()).sum().backward();
        (gate.grad(&gradients), up.grad(&gradients))
    })?;
    let q = t.leaf([4, 705, 32, 128]);
    let angles = t.random([1, 705, 64]);
    t.time("rotate with backward", 0.0, 4 * ROWS * HIDDEN, || {
        q.grad(&ops::rotate(q.clone(), angles.clone(), angles.clone()).sum().backward())
    })?;
    let ids: Vec<i64> = (0..ROWS as i64).map(|i| i * 7 % VOCABULARY as i64).collect();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [ROWS]), &t.device.clone().without_autodiff());
    let table = t.leaf([VOCABULARY, HIDDEN]);
    t.time("embedding with backward", 0.0, 3 * ROWS * HIDDEN + VOCABULARY * HIDDEN, || {
        table.grad(&ops::embedding(table.clone(), ids.clone()).sum().backward())
    })?;
    let (parameter, gradient) = (t.random([HIDDEN, INNER]).cast(DType::F32), t.random([HIDDEN, INNER]));
    let mut moments = None;
    let step =
        AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, grad_scale: 1.0, time: 1 };
    // Three f32 numbers are read and written for each parameter, and the gradient is read.
    let bytes = HIDDEN * INNER * (24 / t.dtype.size() + 1);
    t.time("adamw 4096x11008", 0.0, bytes, || {
        let (_, kept) = ops::adamw(parameter.clone(), gradient.clone().cast(DType::F32), moments.take(), step);
        moments = Some(kept);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceSpec;

    #[test]
    fn a_rate_is_the_work_over_the_mean_time() {
        let device = DeviceSpec::Cpu.open().unwrap();
        let mut told = Vec::new();
        let mut report = |rate: &Rate| told.push(rate.name.clone());
        let mut t = Timer { only: "", device: &device, dtype: DType::F32, rates: Vec::new(), report: &mut report };
        t.product("product", [16, 32, 8], [true, true]).unwrap();
        t.attention("small", [1, 9, 4, 2, 8]).unwrap();
        let rates = t.rates;
        assert_eq!(told.len(), 3);
        for rate in &rates {
            assert!(rate.seconds > 0.0 && rate.tflops > 0.0, "{rate:?}");
        }
        let flops = rates[0].tflops * rates[0].seconds * 1e12;
        let bytes = rates[0].gigabytes * rates[0].seconds * 1e9;
        assert!((flops - 8192.0).abs() < 1e-3 && (bytes - 3584.0).abs() < 1e-3, "{:?}", rates[0]);
    }
}
