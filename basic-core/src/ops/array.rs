//! A wrapper that gives the backend's primitives as methods; the portable implementations are written with it.

use super::Kernels;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{DType, IndexingUpdateOp, Shape, Slice};

/// A float tensor of backend `B`.
pub struct Array<B: Backend>(pub FloatTensor<B>);

impl<B: Backend> Clone for Array<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The type in which softmaxes and sums of `dtype` values are computed: f32, or f64 for f64.
pub fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

fn range(start: usize, len: usize) -> Slice {
    (start..start + len).into()
}

impl<B: Backend> Array<B> {
    pub fn dims(&self) -> Vec<usize> {
        self.0.shape().to_vec()
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    pub fn zeros(dims: &[usize], dtype: DType, device: &B::Device) -> Self {
        Self(B::float_zeros(Shape::from(dims.to_vec()), device, dtype.into()))
    }

    pub fn cast(self, dtype: DType) -> Self {
        match self.0.dtype() == dtype {
            true => self,
            false => Self(B::float_cast(self.0, dtype.into())),
        }
    }

    pub fn reshape(self, dims: &[usize]) -> Self {
        Self(B::float_reshape(self.0, Shape::from(dims.to_vec())))
    }

    pub fn expand(self, dims: &[usize]) -> Self {
        Self(B::float_expand(self.0, Shape::from(dims.to_vec())))
    }

    pub fn swap(self, a: usize, b: usize) -> Self {
        Self(B::float_swap_dims(self.0, a, b))
    }

    pub fn narrow(self, dim: usize, start: usize, len: usize) -> Self {
        let mut slices: Vec<Slice> = self.dims().iter().map(|d| range(0, *d)).collect();
        slices[dim] = range(start, len);
        Self(B::float_slice(self.0, &slices))
    }

    /// Adds `part`, which may be shorter along `dim`, to the first entries of `self`.
    pub fn add_front(self, dim: usize, part: Self) -> Self {
        let len = part.dims()[dim];
        if len == self.dims()[dim] {
            return self.add(part);
        }
        let slices: Vec<Slice> = part.dims().iter().map(|d| range(0, *d)).collect();
        let sum = self.clone().narrow(dim, 0, len).add(part);
        Self(B::float_slice_assign(self.0, &slices, sum.0))
    }

    pub fn cat(parts: Vec<Self>, dim: usize) -> Self {
        let mut parts: Vec<_> = parts.into_iter().map(|part| part.0).collect();
        match parts.len() {
            1 => Self(parts.remove(0)),
            _ => Self(B::float_cat(parts, dim)),
        }
    }

    pub fn select(self, dim: usize, rows: IntTensor<B>) -> Self {
        Self(B::float_select(self.0, dim, rows))
    }

    /// Adds each row of `value` to the row of `self` at the index in `rows`; an index may occur many times.
    pub fn select_add(self, dim: usize, rows: IntTensor<B>, value: Self) -> Self {
        Self(B::float_select_assign(self.0, dim, rows, value.0, IndexingUpdateOp::Add))
    }

    pub fn gather(self, dim: usize, at: IntTensor<B>) -> Self {
        Self(B::float_gather(dim, self.0, at))
    }

    pub fn scatter_add(self, dim: usize, at: IntTensor<B>, value: Self) -> Self {
        Self(B::float_scatter(dim, self.0, at, value.0, IndexingUpdateOp::Add))
    }

    pub fn matmul(self, other: Self) -> Self {
        Self(B::float_matmul(self.0, other.0))
    }

    /// The product in type `dtype`: see [`Kernels::product_kernel`].
    pub fn product(self, other: Self, dtype: DType) -> Self
    where
        B: Kernels,
    {
        Self(B::product_kernel(self.0, other.0, dtype))
    }

    pub fn add(self, other: Self) -> Self {
        Self(B::float_add(self.0, other.0))
    }

    pub fn sub(self, other: Self) -> Self {
        Self(B::float_sub(self.0, other.0))
    }

    pub fn mul(self, other: Self) -> Self {
        Self(B::float_mul(self.0, other.0))
    }

    pub fn div(self, other: Self) -> Self {
        Self(B::float_div(self.0, other.0))
    }

    pub fn scale(self, by: f64) -> Self {
        Self(B::float_mul_scalar(self.0, by.into()))
    }

    pub fn plus(self, value: f64) -> Self {
        Self(B::float_add_scalar(self.0, value.into()))
    }

    pub fn neg(self) -> Self {
        Self(B::float_neg(self.0))
    }

    pub fn square(self) -> Self {
        Self(B::float_mul(self.0.clone(), self.0))
    }

    pub fn sqrt(self) -> Self {
        Self(B::float_sqrt(self.0))
    }

    pub fn exp(self) -> Self {
        Self(B::float_exp(self.0))
    }

    pub fn log(self) -> Self {
        Self(B::float_log(self.0))
    }

    pub fn erf(self) -> Self {
        Self(B::float_erf(self.0))
    }

    pub fn tanh(self) -> Self {
        Self(B::float_tanh(self.0))
    }

    /// `1 / (1 + e^-x)`, computed in the accumulator's type. Burn's default computes f64 in f32.
    pub fn sigmoid(self) -> Self {
        let dtype = self.dtype();
        let x = self.cast(accumulator(dtype));
        Self(B::float_recip(x.neg().exp().plus(1.0).0)).cast(dtype)
    }

    pub fn clamp_min(self, min: f64) -> Self {
        Self(B::float_clamp_min(self.0, min.into()))
    }

    pub fn sum_dim(self, dim: usize) -> Self {
        Self(B::float_sum_dim(self.0, dim))
    }

    /// The sum of all elements, `[1]`.
    pub fn sum(self) -> Self {
        Self(B::float_sum(self.0))
    }

    pub fn mask_fill(self, mask: BoolTensor<B>, value: f64) -> Self {
        Self(B::float_mask_fill(self.0, mask, value.into()))
    }

    /// True for elements that are at most `value`; a mask for `mask_fill`.
    pub fn at_most(&self, value: f64) -> BoolTensor<B> {
        let store = get_or_init_device_settings::<B>(&self.0.device()).bool_dtype;
        B::float_lower_equal_elem(self.0.clone(), value.into(), store)
    }

    /// The log-sum-exp over the last dimension, which is kept with length one. NaN if an entry is NaN.
    pub fn log_sum_exp(&self) -> Self {
        let last = self.dims().len() - 1;
        let top = Self(B::float_max_dim(self.0.clone(), last));
        let sum = self.clone().sub(top.clone()).exp().sum_dim(last);
        sum.log().add(top)
    }

    /// The softmax over the last dimension, and the log-sum-exp.
    pub fn softmax(self) -> (Self, Self) {
        let last = self.dims().len() - 1;
        let top = Self(B::float_max_dim(self.0.clone(), last));
        let powers = self.sub(top.clone()).exp();
        let sum = powers.clone().sum_dim(last);
        (powers.div(sum.clone()), sum.log().add(top))
    }
}

/// Which of `keys` keys each query must not see, `[B or 1, 1, n, keys]`, true for hidden ones.
///
/// # Shapes
/// - positions: `[B or 1, n]`, the last key that a query sees
/// - first: `[B or 1, n]`, the first key that a query sees
pub fn hidden_keys<B: Backend>(positions: IntTensor<B>, first: IntTensor<B>, keys: usize) -> BoolTensor<B> {
    let device = positions.device();
    let settings = get_or_init_device_settings::<B>(&device);
    let (b, n) = {
        let (p, f) = (positions.shape(), first.shape());
        (p[0].max(f[0]), p[1])
    };
    let column = |rows: IntTensor<B>| {
        let own = rows.shape()[0];
        let rows = B::int_cast(B::int_reshape(rows, Shape::from(vec![own, 1, n, 1])), settings.int_dtype);
        B::int_expand(rows, Shape::from(vec![b, 1, n, keys]))
    };
    let key = B::int_arange(0..keys as i64, &device, settings.int_dtype);
    let key = B::int_expand(B::int_reshape(key, Shape::from(vec![1, 1, 1, keys])), Shape::from(vec![b, 1, n, keys]));
    let late = B::int_greater(key.clone(), column(positions), settings.bool_dtype);
    let early = B::int_lower(key, column(first), settings.bool_dtype);
    B::bool_or(late, early)
}
