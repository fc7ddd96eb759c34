//! Inputs on the host, and functions of them that are evaluated under autodiff.

use basic_core::DeviceSpec;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

pub use burn::tensor::DType;

/// Flex and NdArray, without autodiff.
pub fn devices() -> Vec<Device> {
    let devices: Vec<Device> = [DeviceSpec::Cpu, DeviceSpec::NdArray].iter().flat_map(DeviceSpec::open).collect();
    assert_eq!(devices.len(), 2, "the reference needs both CPU backends: --features ndarray");
    devices
}

/// Flex, the backend that has 16-bit types.
pub fn flex() -> Device {
    devices().remove(0)
}

/// A configuration with the same cases on every run, so that no tolerance fails at random;
/// `PROPTEST_RNG_SEED` draws others.
pub fn cases(n: u32) -> ProptestConfig {
    let config = ProptestConfig::with_cases(n);
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(0),
        given => given,
    };
    ProptestConfig { rng_seed, failure_persistence: None, ..config }
}

/// SplitMix64: the sequence depends only on the seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A random index below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The values of a tensor on the host.
#[derive(Debug, Clone)]
pub struct Values {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
}

impl Values {
    pub fn new(dims: &[usize], values: &[f64]) -> Self {
        assert_eq!(dims.iter().product::<usize>(), values.len());
        Self { dims: dims.to_vec(), values: values.to_vec() }
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(dims: &[usize], low: f64, high: f64, random: &mut Random) -> Self {
        let n = dims.iter().product();
        Self { dims: dims.to_vec(), values: (0..n).map(|_| random.uniform(low, high)).collect() }
    }

    /// Random signs and magnitudes in `[0.5, 1.5)`, so that every row has a direction.
    pub fn away_from_zero(dims: &[usize], random: &mut Random) -> Self {
        let mut values = Self::uniform(dims, 0.5, 1.5, random);
        values.values.iter_mut().for_each(|x| *x = if random.below(2) == 0 { *x } else { -*x });
        values
    }

    /// The values rounded to `dtype`.
    pub fn rounded(&self, dtype: DType) -> Self {
        let data = TensorData::new(self.values.clone(), [self.values.len()]).convert_dtype(dtype);
        Self { dims: self.dims.clone(), values: data.iter::<f64>().collect() }
    }

    fn permuted(&self, order: &[usize]) -> Self {
        let dims: Vec<usize> = order.iter().map(|dim| self.dims[*dim]).collect();
        let strides: Vec<usize> = (0..self.dims.len()).map(|dim| self.dims[dim + 1..].iter().product()).collect();
        let values = (0..self.values.len()).map(|flat| {
            let (mut rest, mut at) = (flat, 0);
            for (dim, len) in dims.iter().enumerate().rev() {
                at += rest % len * strides[order[dim]];
                rest /= len;
            }
            self.values[at]
        });
        Self { values: values.collect(), dims }
    }
}

/// The memory layout of an input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Layout {
    Contiguous,
    /// Dimensions in reverse order.
    Transposed,
    /// The middle of longer rows, with NaNs on both sides.
    Narrowed,
}

/// How an input takes part in autodiff.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Role {
    /// A leaf that requires its gradient.
    Tracked,
    /// On the autodiff device, without a gradient.
    Constant,
    /// On the plain device.
    Plain,
}

/// The number of elements beside a narrowed row, on the left and in total.
const BORDER: (usize, usize) = (1, 3);

/// An input as a function gets it: a flat leaf, and a view of it.
pub struct Leaf {
    leaf: Tensor<1>,
    dims: Vec<usize>,
    layout: Layout,
}

impl Leaf {
    fn new(input: &Values, role: Role, place: &Place) -> Self {
        let stored = match place.layout {
            Layout::Contiguous => input.values.clone(),
            Layout::Transposed => input.permuted(&(0..input.dims.len()).rev().collect::<Vec<_>>()).values,
            Layout::Narrowed => {
                let (left, width) = (BORDER.0, input.dims.last().copied().unwrap_or(1));
                let rows = input.values.len() / width.max(1);
                let mut stored = vec![f64::NAN; rows * (width + BORDER.1)];
                for (row, values) in input.values.chunks(width.max(1)).enumerate() {
                    stored[row * (width + BORDER.1) + left..][..width].copy_from_slice(values);
                }
                stored
            }
        };
        let device = match role {
            Role::Plain => place.device.clone(),
            _ if place.checkpointing => place.device.clone().autodiff().gradient_checkpointing(),
            _ => place.device.clone().autodiff(),
        };
        let n = stored.len();
        let leaf = Tensor::<1>::from_data(TensorData::new(stored, [n]), (&device, place.dtype));
        let leaf = if role == Role::Tracked { leaf.require_grad() } else { leaf };
        Self { leaf, dims: input.dims.clone(), layout: place.layout }
    }

    fn viewed<const D: usize>(&self, flat: Tensor<1>) -> Tensor<D> {
        let mut dims: [usize; D] = self.dims.clone().try_into().expect("the rank of the input");
        if dims.contains(&0) {
            // Burn's `reshape` reads a zero as "keep this dimension".
            let empty = Tensor::zeros(dims, (&flat.device(), flat.dtype()));
            return if flat.is_require_grad() { empty.require_grad() } else { empty };
        }
        match self.layout {
            Layout::Contiguous => flat.reshape(dims),
            Layout::Transposed => {
                dims.reverse();
                flat.reshape(dims).permute(std::array::from_fn(|dim| D - 1 - dim))
            }
            Layout::Narrowed => {
                let width = dims[D - 1];
                dims[D - 1] += BORDER.1;
                flat.reshape(dims).narrow(D - 1, BORDER.0, width)
            }
        }
    }

    pub fn view<const D: usize>(&self) -> Tensor<D> {
        self.viewed(self.leaf.clone())
    }

    /// The leaf itself, in the order of its layout.
    pub fn flat(&self) -> Tensor<1> {
        self.leaf.clone()
    }

    /// The same leaf.
    pub fn again(&self) -> Self {
        self.scaled(1.0)
    }

    /// A multiple of the leaf, which is not a leaf itself.
    pub fn scaled(&self, by: f64) -> Self {
        Self { leaf: self.leaf.clone() * by, dims: self.dims.clone(), layout: self.layout }
    }

    /// Integers on the leaf's device.
    pub fn ints<const D: usize>(&self, values: &[i64], dims: [usize; D]) -> Tensor<D, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), dims), &self.leaf.device())
    }

    pub fn device(&self) -> Device {
        self.leaf.device()
    }

    pub fn dtype(&self) -> DType {
        self.leaf.dtype()
    }

    /// The gradient of the view.
    pub fn grad(&self, grads: &burn::tensor::Gradients) -> Option<Vec<f64>> {
        let grad = self.leaf.grad(grads)?;
        assert_eq!(grad.dtype(), self.leaf.dtype(), "a gradient has its input's type");
        Some(match self.dims.len() {
            1 => read(self.viewed::<1>(grad)),
            2 => read(self.viewed::<2>(grad)),
            3 => read(self.viewed::<3>(grad)),
            _ => read(self.viewed::<4>(grad)),
        })
    }
}

/// A function of inputs, its result flattened.
pub type Function = Box<dyn Fn(&[Leaf]) -> Tensor<1>>;

/// An operation, and a plain composition of Burn tensors that it must agree with.
pub struct Pair {
    pub name: &'static str,
    pub inputs: Vec<Values>,
    pub differentiable: &'static [bool],
    pub op: Function,
    pub reference: Function,
}

/// The device and the type to evaluate a function with.
#[derive(Debug, Clone)]
pub struct Place {
    pub device: Device,
    pub dtype: DType,
    pub layout: Layout,
    pub checkpointing: bool,
}

impl Place {
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self { device: device.clone(), dtype, layout: Layout::Contiguous, checkpointing: false }
    }
}

pub struct Outcome {
    pub value: Vec<f64>,
    /// The gradient with respect to each input, if it got one.
    pub grads: Vec<Option<Vec<f64>>>,
}

impl Outcome {
    pub fn bits(&self) -> Vec<u64> {
        let grads = self.grads.iter().flatten().flatten();
        self.value.iter().chain(grads).map(|x| x.to_bits()).collect()
    }
}

pub fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The cotangent of a result: 3.5 for a loss, otherwise multiples of 1/8 in [-2, 2], which every type
/// represents exactly.
pub fn cotangent(n: usize) -> Vec<f64> {
    let mut random = Random(n as u64);
    match n {
        1 => vec![3.5],
        _ => (0..n).map(|_| random.below(33) as f64 / 8.0 - 2.0).collect(),
    }
}

pub fn leaves(inputs: &[Values], roles: &[Role], place: &Place) -> Vec<Leaf> {
    assert_eq!(inputs.len(), roles.len());
    inputs.iter().zip(roles).map(|(input, role)| Leaf::new(input, *role, place)).collect()
}

/// The value and the gradients.
pub fn run(function: &Function, inputs: &[Values], roles: &[Role], place: &Place) -> Outcome {
    let leaves = leaves(inputs, roles, place);
    let out = function(&leaves);
    let value = read(out.clone());
    if !out.is_tracked() {
        return Outcome { value, grads: leaves.iter().map(|_| None).collect() };
    }
    let n = value.len();
    let by = Tensor::<1>::from_data(TensorData::new(cotangent(n), [n]), (&out.device(), out.dtype()));
    let grads = (out * by).sum().backward();
    Outcome { value, grads: leaves.iter().map(|leaf| leaf.grad(&grads)).collect() }
}
