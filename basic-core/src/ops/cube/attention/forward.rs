//! Output and log-sum-exp: the keys go by in blocks, and each lane keeps the maximum and the sum of its two rows.

use cubecl::prelude::*;

use super::tiles::{
    LANES, PLANES, Pair, Product, ROWS, SIDE, fill, left, multiply_columns, multiply_rows, pitch, rounded, sees, zeros,
};

/// What hidden scores are: above it is what was seen.
const HIDDEN: f32 = -1.0e30;

/// The larger over the four lanes that share a row.
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

/// A cube takes 64 queries of one head, a plane 16 of them.
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
    #[define(E)] _dtype: ElemType,
) {
    let product = Product::<E>::new(16usize, 8usize, 16usize);
    let steps = comptime!(vectors / 2);
    let mut k_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    let mut v_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    let mut lowest = Shared::<[u32]>::new_slice(ROWS);

    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let kv_head = head / (heads / kv_heads);
    // The last queries have the most to do and come first.
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
    // The queries pass through the keys' tile.
    let q_step = heads * vectors;
    fill(&mut k_tile, q, (batch * queries * heads + head) * vectors, q_step, start, queries, vectors);
    sync_cube();
    let mut own = Sequence::<Array<Vector<E, Pair>>>::new();
    #[unroll]
    for step in 0..steps {
        own.push(left(&product, &k_tile, plane * SIDE, step, vectors));
    }
    let here = min(lowest[lane], lowest[lane + LANES]);
    let nearest = plane_min(here) as usize;
    let upper = start + plane * SIDE + lane / 4;
    let lower = upper + 8;
    let upper_low = lowest[plane * SIDE + lane / 4] as usize;
    let lower_low = lowest[plane * SIDE + lane / 4 + 8] as usize;
    let mut upper_high = keys - 1;
    let mut lower_high = keys - 1;
    let mut end = keys;
    if causal {
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
    for block in range_stepped(nearest / ROWS * ROWS, end, ROWS) {
        sync_cube();
        fill(&mut k_tile, k, kv_base, kv_step, block, keys, vectors);
        fill(&mut v_tile, v, kv_base, kv_step, block, keys, vectors);
        sync_cube();

        let mut scores = zeros(comptime!(ROWS / 8));
        #[unroll]
        for pair in 0..comptime!(ROWS / SIDE) {
            #[unroll]
            for step in 0..steps {
                multiply_rows(
                    &product,
                    own.index(step),
                    &k_tile,
                    pair * SIDE,
                    step,
                    &mut scores,
                    comptime!(2 * pair),
                    vectors,
                );
            }
        }

        let mut upper_new = upper_max;
        let mut lower_new = lower_max;
        #[unroll]
        for n in 0..comptime!(ROWS / 8) {
            let tile = scores.index_mut(n);
            let key = block + n * 8 + lane % 4 * 2;
            let mut up = Vector::<f32, Pair>::new(HIDDEN);
            let mut low = Vector::<f32, Pair>::new(HIDDEN);
            #[unroll]
            for e in 0..2usize {
                if sees(key + e, upper_low, upper_high) {
                    up.insert(e, tile[0].extract(e) * scale);
                }
                if sees(key + e, lower_low, lower_high) {
                    low.insert(e, tile[1].extract(e) * scale);
                }
                upper_new = max(upper_new, up.extract(e));
                lower_new = max(lower_new, low.extract(e));
            }
            tile[0] = up;
            tile[1] = low;
        }
        upper_new = row_max(upper_new);
        lower_new = row_max(lower_new);
        let upper_factor = (upper_max - upper_new).exp();
        let lower_factor = (lower_max - lower_new).exp();
        upper_max = upper_new;
        lower_max = lower_new;
        upper_sum *= upper_factor;
        lower_sum *= lower_factor;
        #[unroll]
        for n in 0..comptime!(ROWS / 8) {
            let tile = scores.index_mut(n);
            let mut up = Vector::<f32, Pair>::new(0.0f32);
            let mut low = Vector::<f32, Pair>::new(0.0f32);
            #[unroll]
            for e in 0..2usize {
                let a = tile[0].extract(e);
                let b = tile[1].extract(e);
                let a = select(a > HIDDEN, (a - upper_max).exp(), 0.0f32);
                let b = select(b > HIDDEN, (b - lower_max).exp(), 0.0f32);
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
                multiply_columns(&product, &p, &v_tile, pair * SIDE, step, &mut out, comptime!(2 * step), vectors);
            }
        }
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

/// Units of a cube, and cubes, for so many queries or keys.
pub fn grid(rows: usize, heads: usize, batch: usize) -> (CubeCount, CubeDim) {
    let cubes = CubeCount::Static(rows.div_ceil(ROWS) as u32, heads as u32, batch as u32);
    (cubes, CubeDim::new_2d(LANES as u32, PLANES as u32))
}
