//! Attention whose scores have a soft cap: values, gradients and read-out beside the composition of plain tensors.

use basic_core::ops;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use proptest::prelude::*;

use crate::attention::{Pattern, asked, first, pattern, sizes};
use crate::compare::*;
use crate::harness::*;
use crate::reference::{self, First, Sizes, flat};

/// The probabilities `[B, heads, T, keys]` of scores `cap tanh(s / cap)`.
fn probabilities(x: &[Leaf], sizes: &Sizes, first: &First, cap: f64) -> Tensor<4> {
    // Multiplied and not divided: Burn's gradient of a division by a number computes f64 in f32.
    let capped = (reference::scores(x, sizes, first) * cap.recip()).tanh() * cap;
    let hidden = first.hidden(sizes, &x[0]).expand(capped.dims());
    softmax(capped.mask_fill(hidden, -1e30), 3)
}

/// Inputs: q, k, v. The scores reach a few units, so that caps around 1 bend them strongly.
fn output(sizes: Sizes, first: First, cap: f64, seed: u64) -> Pair {
    let known = first.clone();
    Pair {
        name: "attention with a cap",
        inputs: reference::qkv(&sizes, seed),
        differentiable: &[true, true, true],
        op: Box::new(move |x| {
            let first = first.tensor(&x[0]);
            flat(ops::capped_attention(x[0].view(), x[1].view(), x[2].view(), first, Some(cap)).output)
        }),
        reference: Box::new(move |x| {
            let p = probabilities(x, &sizes, &known, cap);
            flat(p.matmul(reference::repeated(x[2].view(), &sizes)).swap_dims(1, 2))
        }),
    }
}

/// Two read-outs of `rows`, `[B, n]`; inputs: q, k, v, the read-outs' weights. No gradient.
fn mass(sizes: Sizes, first: First, rows: Vec<i64>, cap: f64, seed: u64) -> Pair {
    let (b, n) = (sizes.batch, rows.len() / sizes.batch);
    let mut inputs = reference::qkv(&sizes, seed);
    inputs.push(Values::uniform(&[b, 2, n], 0.0, 1.0, &mut Random(!seed)));
    let (known, asked) = (first.clone(), rows.clone());
    Pair {
        name: "attention mass with a cap",
        inputs,
        differentiable: &[false, false, false, false],
        op: Box::new(move |x| {
            let first = first.tensor(&x[0]);
            let lse = ops::capped_attention(x[0].view(), x[1].view(), x[2].view(), first.clone(), Some(cap)).lse;
            let rows = x[0].ints(&rows, [b, n]);
            flat(ops::attention_mass(x[0].view(), x[1].view(), lse, first, rows, x[3].view(), Some(cap)))
        }),
        reference: Box::new(move |x| {
            let p = probabilities(x, &sizes, &known, cap).mean_dim(1).squeeze_dim::<3>(1); // [B, T, keys]
            let rows = x[0].ints(&asked, [b, n, 1]).expand([b, n, sizes.keys()]);
            flat(x[3].view::<3>().matmul(p.gather(1, rows)))
        }),
    }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn capped_scores_give_the_materialized_softmax_and_its_gradients(
        sizes in sizes(), pattern in pattern(), shared: bool, cap in 0.5..4.0f64, seed: u64,
    ) {
        let first = first(&sizes, pattern, shared, seed);
        check_full(&output(sizes, first.clone(), cap, seed));
        check_full(&mass(sizes, first, asked(&sizes, 3, seed), cap, seed));
    }
}

#[test]
fn a_read_out_of_more_rows_than_a_block_holds_is_that_of_all() {
    // A row of scores takes 4.3 MB, so that a block of 64 MiB holds 15 of the 40 rows.
    let sizes = Sizes { batch: 1, queries: 8, past: 4200, kv_heads: 2, group: 128, width: 2 };
    check_full(&mass(sizes, first(&sizes, Pattern::Packed(900), false, 5), asked(&sizes, 40, 5), 2.0, 5));
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn a_cap_in_half_types_is_near_the_materialized_softmax(
        sizes in sizes(), pattern in pattern(), shared: bool, seed: u64,
    ) {
        let first = first(&sizes, pattern, shared, seed);
        for pair in [output(sizes, first.clone(), 2.0, seed), mass(sizes, first, asked(&sizes, 3, seed), 2.0, seed)] {
            for (dtype, tolerance) in [(DType::BF16, Tolerance::BF16), (DType::F16, Tolerance::F16)] {
                check(&pair, &Place::new(&flex(), dtype), tolerance);
            }
        }
    }
}
