//! AdamW in one pass over its four arrays, and sums of squares.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::adamw::{AdamWStep, Coefficients, Updated};
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
    let [keep, rate, root, epsilon] = [keep, rate, root, step.epsilon].map(|x| x as f32);
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
                        *m = *m * beta1 + *g * rest1;
                        *v = *v * beta2 + *g * *g * rest2;
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

/// The sum of the squares, `[1]`: the sums of tasks of a fixed size, added in order.
pub fn sum_of_squares(x: FlexTensor) -> FlexTensor {
    let x = ordered(x);
    let part = |x: &[f32]| {
        simd(
            #[inline(always)]
            || sum(x.len(), |i| x[i] * x[i]),
        )
    };
    let parts: Vec<f32> = elements(&x).par_chunks(TASK).map(part).collect();
    tensor(vec![parts.into_iter().map(f64::from).sum::<f64>() as f32], &[1])
}
