//! The output and the log-sum-exp of attention: a loop over blocks of keys, in which each lane keeps the maximum and
//! the sum of its two rows.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::tiles::{
    LANES, PLANES, Pair, Product, ROWS, SIDE, arrived, exponential, fill, left, multiply_columns, multiply_rows, pitch,
    rounded, sees, zeros,
};

/// The score of a hidden key.
const HIDDEN: f32 = -1.0e30;

/// The maximum over the four lanes that share a row.
#[cube]
fn row_max(value: f32) -> f32 {
    let pair = max(value, plane_shuffle_xor(value, 1u32));
    max(pair, plane_shuffle_xor(pair, 2u32))
}

/// The sum over the four lanes that share a row.
#[cube]
pub fn row_sum(value: f32) -> f32 {
    let pair = value + plane_shuffle_xor(value, 1u32);
    pair + plane_shuffle_xor(pair, 2u32)
}

/// A cube takes 64 queries of one head, and each plane 16 of them.
///
/// q `[B, T, heads, width]`, k and v `[B, keys, kv_heads, width]`, first `[B or 1, T]`; output as q, lse `[B, heads, T]`.
#[cube(launch, address_type = "dynamic")]
pub fn forward_kernel<E: Float, N: Size, P: Size>(
    q: &Tensor<Vector<E, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    first: &Tensor<i32>,
    output: &mut Tensor<Vector<E, P>>,
    lse: &mut Tensor<f32>,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    first_rows: usize,
    scale: f32,
    #[comptime] vectors: usize,
    #[comptime] causal: bool,
    #[comptime] ahead: bool,
    #[define(E)] _dtype: ElemType,
) {
    let product = Product::<E>::new(16usize, 8usize, 16usize);
    let steps = comptime!(vectors / 2);
    // Two blocks: one is computed with while the next is loaded.
    let mut k_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(2 * ROWS * pitch(vectors)), 16usize);
    let mut v_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(2 * ROWS * pitch(vectors)), 16usize);
    let barrier = Barrier::shared(CUBE_DIM, UNIT_POS == 0);
    let mut lowest = Shared::<[u32]>::new_slice(ROWS);

    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let kv_head = head / (heads / kv_heads);
    // The last queries have the most keys, so they come first.
    let start = (queries.div_ceil(ROWS) - 1 - CUBE_POS_X as usize) * ROWS;
    let past = keys - queries;

    // The first key that each query sees.
    if UNIT_POS < ROWS as u32 {
        let query = min(start + UNIT_POS as usize, queries - 1);
        let mut low = first[batch % first_rows * queries + query] as u32;
        if causal {
            low = min(low, (past + query) as u32);
        }
        lowest[UNIT_POS as usize] = low;
    }
    // The queries are loaded through the keys' tile.
    let q_step = heads * vectors;
    let q_base = (batch * queries * heads + head) * vectors;
    fill(&mut k_tile, 0usize, q, q_base, q_step, start, queries, vectors, false);
    sync_cube();
    let mut own = Sequence::<Array<Vector<E, Pair>>>::new();
    #[unroll]
    for step in 0..steps {
        own.push(left(&product, &k_tile, plane * SIDE, step, vectors));
    }
    let nearest = plane_min(min(lowest[lane], lowest[lane + LANES])) as usize;
    let furthest = plane_max(max(lowest[lane], lowest[lane + LANES])) as usize;
    let upper = start + plane * SIDE + lane / 4;
    let lower = upper + 8;
    let upper_low = lowest[plane * SIDE + lane / 4] as usize;
    let lower_low = lowest[plane * SIDE + lane / 4 + 8] as usize;
    let mut upper_high = keys - 1;
    let mut lower_high = keys - 1;
    let mut end = keys;
    // All of the cube's queries see the keys up to here.
    let mut common = keys;
    if causal {
        common = past + start + 1;
        upper_high = past + min(upper, queries - 1);
        lower_high = past + min(lower, queries - 1);
        end = past + min(start + ROWS, queries);
    }

    let mut out = zeros(vectors);
    let mut upper_max = HIDDEN.runtime();
    let mut lower_max = HIDDEN.runtime();
    let mut upper_sum = 0.0f32.runtime();
    let mut lower_sum = 0.0f32.runtime();
    let kv_step = kv_heads * vectors;
    let kv_base = (batch * keys * kv_heads + kv_head) * vectors;
    let begin = nearest / ROWS * ROWS;
    sync_cube();
    fill(&mut k_tile, 0usize, k, kv_base, kv_step, begin, keys, vectors, ahead);
    fill(&mut v_tile, 0usize, v, kv_base, kv_step, begin, keys, vectors, ahead);
    let mut at = 0usize.runtime();
    for block in range_stepped(begin, end, ROWS) {
        arrived(&barrier, ahead);
        // The other half is no longer needed and can be overwritten.
        let other = ROWS - at;
        if block + ROWS < end {
            fill(&mut k_tile, other, k, kv_base, kv_step, block + ROWS, keys, vectors, ahead);
            fill(&mut v_tile, other, v, kv_base, kv_step, block + ROWS, keys, vectors, ahead);
        }

        let mut scores = zeros(comptime!(ROWS / 8));
        #[unroll]
        for pair in 0..comptime!(ROWS / SIDE) {
            #[unroll]
            for step in 0..steps {
                multiply_rows(
                    &product,
                    own.index(step),
                    &k_tile,
                    at + pair * SIDE,
                    step,
                    &mut scores,
                    comptime!(2 * pair),
                    vectors,
                );
            }
        }

        let mut upper_new = upper_max;
        let mut lower_new = lower_max;
        let whole = block >= furthest && block + ROWS <= common;
        #[unroll]
        for n in 0..comptime!(ROWS / 8) {
            let tile = scores.index_mut(n);
            let mut up = tile[0] * Vector::new(scale);
            let mut low = tile[1] * Vector::new(scale);
            if !whole {
                let key = block + n * 8 + lane % 4 * 2;
                #[unroll]
                for e in 0..2usize {
                    if !sees(key + e, upper_low, upper_high) {
                        up.insert(e, HIDDEN);
                    }
                    if !sees(key + e, lower_low, lower_high) {
                        low.insert(e, HIDDEN);
                    }
                }
            }
            #[unroll]
            for e in 0..2usize {
                upper_new = max(upper_new, up.extract(e));
                lower_new = max(lower_new, low.extract(e));
            }
            tile[0] = up;
            tile[1] = low;
        }
        upper_new = row_max(upper_new);
        lower_new = row_max(lower_new);
        let upper_factor = exponential(upper_max - upper_new);
        let lower_factor = exponential(lower_max - lower_new);
        upper_max = upper_new;
        lower_max = lower_new;
        // Makes the probabilities of hidden keys zero in a row that has not seen any key yet.
        let upper_from = select(upper_max > HIDDEN, upper_max, 0.0f32);
        let lower_from = select(lower_max > HIDDEN, lower_max, 0.0f32);
        upper_sum *= upper_factor;
        lower_sum *= lower_factor;
        #[unroll]
        for n in 0..comptime!(ROWS / 8) {
            let tile = scores.index_mut(n);
            let mut up = Vector::<f32, Pair>::new(0.0f32);
            let mut low = Vector::<f32, Pair>::new(0.0f32);
            #[unroll]
            for e in 0..2usize {
                let a = exponential(tile[0].extract(e) - upper_from);
                let b = exponential(tile[1].extract(e) - lower_from);
                upper_sum += a;
                lower_sum += b;
                up.insert(e, a);
                low.insert(e, b);
            }
            tile[0] = up;
            tile[1] = low;
        }
        #[unroll]
        for n in 0..vectors {
            let tile = out.index_mut(n);
            tile[0] *= Vector::new(upper_factor);
            tile[1] *= Vector::new(lower_factor);
        }
        #[unroll]
        for pair in 0..comptime!(ROWS / SIDE) {
            let p = rounded::<E>(&scores, comptime!(2 * pair));
            #[unroll]
            for step in 0..steps {
                let row = at + pair * SIDE;
                multiply_columns(&product, &p, &v_tile, row, step, &mut out, comptime!(2 * step), vectors);
            }
        }
        at = other;
    }

    upper_sum = row_sum(upper_sum);
    lower_sum = row_sum(lower_sum);
    let pairs = comptime!(vectors * 4);
    let base = (batch * queries * heads + head) * pairs + lane % 4;
    let lse_base = (batch * heads + head) * queries;
    if upper < queries {
        #[unroll]
        for n in 0..vectors {
            let value = out.index(n)[0] / Vector::new(upper_sum);
            output[base + upper * heads * pairs + n * 4] = Vector::cast_from(value);
        }
        if lane.is_multiple_of(4) {
            lse[lse_base + upper] = upper_max + upper_sum.ln();
        }
    }
    if lower < queries {
        #[unroll]
        for n in 0..vectors {
            let value = out.index(n)[1] / Vector::new(lower_sum);
            output[base + lower * heads * pairs + n * 4] = Vector::cast_from(value);
        }
        if lane.is_multiple_of(4) {
            lse[lse_base + lower] = lower_max + lower_sum.ln();
        }
    }
}

/// The number of cubes and of units in each, for `rows` queries or keys.
pub fn grid(rows: usize, heads: usize, batch: usize) -> (CubeCount, CubeDim) {
    let cubes = CubeCount::Static(rows.div_ceil(ROWS) as u32, heads as u32, batch as u32);
    (cubes, CubeDim::new_2d(LANES as u32, PLANES as u32))
}
