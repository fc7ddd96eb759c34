//! Rotary positions and SwiGLU: each element is read once and written once.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, element, like, rows, units, width};

/// A unit rotates one vector of a head's first half against its partner in the second half.
#[cube(launch, address_type = "dynamic")]
fn rotate_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    cos: &Tensor<Vector<E, N>>,
    sin: &Tensor<Vector<E, N>>,
    y: &mut Tensor<Vector<E, N>>,
    count: usize,
    heads: usize,
    positions: usize,
    #[comptime] half: usize,
    #[comptime] inverse: bool,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let head = ABSOLUTE_POS / half;
    let column = ABSOLUTE_POS % half;
    let first = head * (2 * half) + column;
    let angle = ((head / heads) % positions) * half + column;
    let a = Vector::<f32, N>::cast_from(x[first]);
    let b = Vector::<f32, N>::cast_from(x[first + half]);
    let c = Vector::<f32, N>::cast_from(cos[angle]);
    let s = Vector::<f32, N>::cast_from(sin[angle]);
    if inverse {
        y[first] = Vector::cast_from(a * c + b * s);
        y[first + half] = Vector::cast_from(b * c - a * s);
    } else {
        y[first] = Vector::cast_from(a * c - b * s);
        y[first + half] = Vector::cast_from(b * c + a * s);
    }
}

/// x `[B, T, heads, width]`, cos and sin `[B or 1, T, width / 2]`.
pub fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, inverse: bool) -> CubeTensor {
    let (x, cos, sin) = (rows(x), rows(cos), rows(sin));
    let shape = x.meta.shape().to_vec();
    let half = shape[3] / 2;
    let vector = width(&x, half);
    let y = like(&x, shape.clone(), x.dtype);
    let count = x.meta.num_elements() / 2 / vector;
    let (cubes, dim) = units(&x, count);
    let positions = cos.meta.shape()[0] * cos.meta.shape()[1];
    let client = x.client.clone();
    let (address, dtype) = (addresses(&[&x, &cos, &y]), element(x.dtype));
    rotate_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        vector,
        x.into_tensor_arg(),
        cos.into_tensor_arg(),
        sin.into_tensor_arg(),
        y.clone().into_tensor_arg(),
        count,
        shape[2],
        positions,
        half / vector,
        inverse,
        dtype,
    );
    y
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + (-x).exp())
}

#[cube(launch, address_type = "dynamic")]
fn swiglu_kernel<E: Float, N: Size>(
    gate: &Tensor<Vector<E, N>>,
    up: &Tensor<Vector<E, N>>,
    y: &mut Tensor<Vector<E, N>>,
    count: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let g = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let u = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = Vector::cast_from(g * sigmoid(g) * u);
}

/// `silu(gate) * up`.
pub fn swiglu(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let (gate, up) = (rows(gate), rows(up));
    let vector = width(&gate, gate.meta.num_elements());
    let y = like(&gate, gate.meta.shape().to_vec(), gate.dtype);
    let count = gate.meta.num_elements() / vector;
    let (cubes, dim) = units(&gate, count);
    let client = gate.client.clone();
    let (address, dtype) = (addresses(&[&gate, &up, &y]), element(gate.dtype));
    swiglu_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        vector,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        y.clone().into_tensor_arg(),
        count,
        dtype,
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn swiglu_backward_kernel<E: Float, N: Size>(
    gate: &Tensor<Vector<E, N>>,
    up: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    gate_grad: &mut Tensor<Vector<E, N>>,
    up_grad: &mut Tensor<Vector<E, N>>,
    count: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let one = Vector::<f32, N>::new(1.0f32);
    let g = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let u = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let d = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    let s = sigmoid(g);
    gate_grad[ABSOLUTE_POS] = Vector::cast_from(d * u * s * (one + g * (one - s)));
    up_grad[ABSOLUTE_POS] = Vector::cast_from(d * g * s);
}

/// The gradients with respect to gate and up.
pub fn swiglu_backward(gate: CubeTensor, up: CubeTensor, grad: CubeTensor) -> (CubeTensor, CubeTensor) {
    let (gate, up, grad) = (rows(gate), rows(up), rows(grad));
    let vector = width(&gate, gate.meta.num_elements());
    let shape = gate.meta.shape().to_vec();
    let (gate_grad, up_grad) = (like(&gate, shape.clone(), gate.dtype), like(&gate, shape, gate.dtype));
    let count = gate.meta.num_elements() / vector;
    let (cubes, dim) = units(&gate, count);
    let client = gate.client.clone();
    let (address, dtype) = (addresses(&[&gate, &up, &grad, &gate_grad]), element(gate.dtype));
    swiglu_backward_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        vector,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        grad.into_tensor_arg(),
        gate_grad.clone().into_tensor_arg(),
        up_grad.clone().into_tensor_arg(),
        count,
        dtype,
    );
    (gate_grad, up_grad)
}
