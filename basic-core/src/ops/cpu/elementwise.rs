//! SwiGLU, root-mean-square normalization and rotary positions, in one pass each way.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::math::{dot, sigmoid, simd, sum};
use super::{TASK, elements, ordered, tensor};

/// The number of rows that one task takes.
fn task_rows(width: usize) -> usize {
    TASK.div_ceil(width.max(1))
}

/// `silu(gate) * up`.
pub fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
    let (gate, up) = (ordered(gate), ordered(up));
    let mut out = vec![0f32; elements(&gate).len()];
    let tasks = out.par_chunks_mut(TASK).zip(elements(&gate).par_chunks(TASK)).zip(elements(&up).par_chunks(TASK));
    tasks.for_each(|((out, gate), up)| {
        simd(
            #[inline(always)]
            || {
                for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
                    *out = *g * sigmoid(*g) * *u;
                }
            },
        )
    });
    tensor(out, &gate.layout().shape().to_vec())
}

/// The gradients with respect to gate and up.
pub fn swiglu_backward(gate: FlexTensor, up: FlexTensor, grad: FlexTensor) -> [FlexTensor; 2] {
    let (gate, up, grad) = (ordered(gate), ordered(up), ordered(grad));
    let n = elements(&gate).len();
    let (mut gate_grad, mut up_grad) = (vec![0f32; n], vec![0f32; n]);
    gate_grad
        .par_chunks_mut(TASK)
        .zip(up_grad.par_chunks_mut(TASK))
        .zip(elements(&gate).par_chunks(TASK))
        .zip(elements(&up).par_chunks(TASK))
        .zip(elements(&grad).par_chunks(TASK))
        .for_each(|((((gate_grad, up_grad), gate), up), grad)| {
            simd(
                #[inline(always)]
                || {
                    let outs = gate_grad.iter_mut().zip(up_grad);
                    for ((outs, (g, u)), grad) in outs.zip(gate.iter().zip(up)).zip(grad) {
                        let s = sigmoid(*g);
                        *outs.0 = *grad * *u * (s * (1.0 + *g * (1.0 - s)));
                        *outs.1 = *grad * (*g * s);
                    }
                },
            )
        });
    let shape = gate.layout().shape().to_vec();
    [tensor(gate_grad, &shape), tensor(up_grad, &shape)]
}

/// The reciprocal of a row's root mean square.
#[inline(always)]
fn reciprocal_root(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt()
}

/// The normalized rows.
pub fn rms_norm(x: FlexTensor, gamma: FlexTensor, epsilon: f64) -> FlexTensor {
    let (x, gamma) = (ordered(x), ordered(gamma));
    let weight = elements(&gamma);
    let d = weight.len();
    let mut out = vec![0f32; elements(&x).len()];
    let size = d * task_rows(d);
    if size > 0 {
        out.par_chunks_mut(size).zip(elements(&x).par_chunks(size)).for_each(|(out, x)| {
            simd(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let by = reciprocal_root(x, epsilon as f32);
                        for ((out, x), g) in out.iter_mut().zip(x).zip(weight) {
                            *out = *x * by * *g;
                        }
                    }
                },
            )
        });
    }
    tensor(out, &x.layout().shape().to_vec())
}

/// The gradients with respect to x and, if it is trained, gamma.
pub fn rms_norm_backward(
    x: FlexTensor,
    gamma: FlexTensor,
    epsilon: f64,
    trained: bool,
    grad: FlexTensor,
) -> (FlexTensor, Option<FlexTensor>) {
    let (x, gamma, grad) = (ordered(x), ordered(gamma), ordered(grad));
    let weight = elements(&gamma);
    let d = weight.len();
    let mut out = vec![0f32; elements(&x).len()];
    let size = d * task_rows(d);
    // Each task sums its rows' part of gamma's gradient; the parts are then added in order.
    let mut parts = Vec::new();
    if size > 0 {
        let tasks = out.par_chunks_mut(size).zip(elements(&x).par_chunks(size)).zip(elements(&grad).par_chunks(size));
        tasks
            .map(|((out, x), grad)| {
                let mut part = vec![0f32; if trained { d } else { 0 }];
                simd(
                    #[inline(always)]
                    || {
                        for ((out, x), g) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(grad.chunks_exact(d)) {
                            let by = reciprocal_root(x, epsilon as f32);
                            let mean = sum(d, |i| g[i] * weight[i] * x[i]) * by / d as f32;
                            for (((out, x), g), w) in out.iter_mut().zip(x).zip(g).zip(weight) {
                                *out = (*g * *w - *x * by * mean) * by;
                            }
                            for ((part, x), g) in part.iter_mut().zip(x).zip(g) {
                                *part += *g * *x * by;
                            }
                        }
                    },
                );
                part
            })
            .collect_into_vec(&mut parts);
    }
    let gamma_grad = trained.then(|| {
        let mut total = vec![0f32; d];
        for part in &parts {
            total.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        tensor(total, &[d])
    });
    (tensor(out, &x.layout().shape().to_vec()), gamma_grad)
}

/// The rotated heads of `[B, T, heads, head_dim]`.
pub fn rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, inverse: bool) -> FlexTensor {
    let (x, cos, sin) = (ordered(x), ordered(cos), ordered(sin));
    let shape = x.layout().shape().to_vec();
    let (row, half) = (shape[2] * shape[3], shape[3] / 2);
    let angles = elements(&cos).len() / half.max(1); // rows of the tables: T, or B * T
    let sign = if inverse { -1.0 } else { 1.0 };
    let mut out = vec![0f32; elements(&x).len()];
    let rows = task_rows(row);
    if row > 0 && angles > 0 {
        let tasks = out.par_chunks_mut(rows * row).zip(elements(&x).par_chunks(rows * row)).enumerate();
        tasks.for_each(|(task, (out, x))| {
            simd(
                #[inline(always)]
                || {
                    for (i, (out, x)) in out.chunks_exact_mut(row).zip(x.chunks_exact(row)).enumerate() {
                        let at = (task * rows + i) % angles * half;
                        let (cos, sin) = (&elements(&cos)[at..at + half], &elements(&sin)[at..at + half]);
                        for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                            let ((left, right), (a, b)) = (out.split_at_mut(half), x.split_at(half));
                            for j in 0..half {
                                let (c, s) = (cos[j], sin[j] * sign);
                                left[j] = a[j] * c - b[j] * s;
                                right[j] = b[j] * c + a[j] * s;
                            }
                        }
                    }
                },
            )
        });
    }
    tensor(out, &shape)
}
