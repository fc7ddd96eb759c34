//! The operations as plain compositions of Burn's tensor functions.

use basic_core::ops::{AdamWMoments, AdamWStep};
use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{Bool, Int, Tensor};

fn unit_rows(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().square().sum_dim(1).sqrt();
    x / length
}

pub fn directional_alignment(v: Tensor<2>, target: Tensor<2>, weights: Tensor<1>) -> Tensor<1> {
    let distance = (unit_rows(v) - unit_rows(target)).square().sum_dim(1);
    (distance.squeeze_dim::<1>(1) * weights).sum()
}

pub fn semantic_distribution(v: Tensor<2>, target: Tensor<2>, table: Tensor<2>, weights: Tensor<1>) -> Tensor<1> {
    let columns = table.transpose();
    let log_p = log_softmax(target.matmul(columns.clone()), 1);
    let log_q = log_softmax(v.matmul(columns), 1);
    let divergence = (log_p.clone().exp() * (log_p - log_q)).sum_dim(1);
    (divergence.squeeze_dim::<1>(1) * weights).sum()
}

pub fn cross_entropy(hidden: Tensor<2>, head: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    log_softmax(hidden.matmul(head), 1).gather(1, labels.unsqueeze_dim::<2>(1)).mean().neg()
}

pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [b, t, heads, width] = q.dims();
    let [q, k, v] = [q, k, v].map(|x| x.swap_dims(1, 2));
    let scores = q.matmul(k.transpose()) * (width as f64).powf(-0.5);
    let hidden = Tensor::<2, Bool>::tril_mask([t, t], 0, &scores.device());
    let scores = scores.mask_fill(hidden.reshape([1, 1, t, t]).expand([b, heads, t, t]), f32::MIN / 2.0);
    softmax(scores, 3).matmul(v).swap_dims(1, 2)
}

pub fn rotate(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let wide = |angles: Tensor<3>| Tensor::cat(vec![angles.clone(), angles], 2).unsqueeze_dim::<4>(2);
    let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
    x * wide(cos) + Tensor::cat(vec![second.neg(), first], 3) * wide(sin)
}

pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate) * up
}

pub fn rms_norm(x: Tensor<2>, gamma: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let root = (x.clone().square().mean_dim(1) + epsilon).sqrt();
    x / root * gamma.unsqueeze()
}

pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    let cdf = ((x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    x * cdf
}

pub fn adamw(
    parameter: Tensor<2>,
    grad: Tensor<2>,
    moments: AdamWMoments<2>,
    step: AdamWStep,
) -> (Tensor<2>, AdamWMoments<2>) {
    let time = step.time as i32;
    let first = moments.first * step.beta1 + grad.clone() * (1.0 - step.beta1);
    let second = moments.second * step.beta2 + grad.square() * (1.0 - step.beta2);
    let mean = first.clone() / (1.0 - step.beta1.powi(time));
    let spread = (second.clone() / (1.0 - step.beta2.powi(time))).sqrt() + step.epsilon;
    let parameter = parameter * (1.0 - step.lr * step.weight_decay) - mean / spread * step.lr;
    (parameter, AdamWMoments { first, second })
}
