//! AdamW in one pass over its four arrays, and sums of squares.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::adamw::{AdamWStep, Coefficients, SQUARES_PART, Updated};
use super::math::{simd, sum};
use super::{TASK, elements, ordered, tensor};

/// Updates arrays in place if nothing else holds them, and copies of them otherwise.
pub fn adamw(
    parameter: FlexTensor,
    grad: FlexTensor,
    first: FlexTensor,
    second: FlexTensor,
    step: AdamWStep,
) -> Updated<Flex> {
    let [mut parameter, mut first, mut second] = [parameter, first, second].map(whole);
    let grad = ordered(grad);
    let Coefficients { keep, rate, root } = Coefficients::of(&step);
    let [keep, rate, root, epsilon, scale] = [keep, rate, root, step.epsilon, step.grad_scale].map(|x| x as f32);
    let [beta1, beta2] = [step.beta1, step.beta2].map(|x| x as f32);
    let [rest1, rest2] = [1.0 - step.beta1, 1.0 - step.beta2].map(|x| x as f32);
    parameter
        .storage_mut::<f32>()
        .par_chunks_mut(TASK)
        .zip(first.storage_mut::<f32>().par_chunks_mut(TASK))
        .zip(second.storage_mut::<f32>().par_chunks_mut(TASK))
        .zip(elements(&grad).par_chunks(TASK))
        .for_each(|(((p, m), v), g)| {
            simd(
                #[inline(always)]
                || {
                    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                        let g = *g * scale;
                        *m = *m * beta1 + g * rest1;
                        *v = *v * beta2 + g * g * rest2;
                        *p = *p * keep - rate * *m / (v.sqrt() * root + epsilon);
                    }
                },
            )
        });
    (parameter, first, second)
}

/// The tensor, copied unless its storage is exactly its elements in order.
fn whole(tensor: FlexTensor) -> FlexTensor {
    let elements = tensor.layout().num_elements();
    let own = tensor.is_contiguous() && tensor.layout().start_offset() == 0;
    match own && tensor.bytes().len() == elements * size_of::<f32>() {
        true => tensor,
        false => tensor.to_contiguous(),
    }
}

/// The sums of the squares of parts.
pub fn sums_of_squares(x: FlexTensor) -> FlexTensor {
    let x = ordered(x);
    let part = |x: &[f32]| {
        simd(
            #[inline(always)]
            || sum(x.len(), |i| x[i] * x[i]),
        )
    };
    let parts: Vec<f32> = elements(&x).par_chunks(SQUARES_PART).map(part).collect();
    let count = parts.len();
    tensor(parts, &[count])
}
