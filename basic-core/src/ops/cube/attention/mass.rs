//! The attention that weighted rows put on every key: a cube takes 64 keys and loops over the rows of some heads.

use cubecl::prelude::*;

use super::forward::row_sum;
use super::tiles::{LANES, PLANES, Product, ROWS, SIDE, exponential, fill, left, multiply_rows, pitch, sees, zeros};

/// The number of heads that one sum covers; few, so that there are enough cubes.
pub const HEADS: usize = 4;
/// The number of read-outs whose sums a lane holds.
pub const READOUTS: usize = 8;

/// Sums over [`HEADS`] heads each, `[parts, B, S, keys]`.
///
/// q `[B, T, heads, width]`, k `[B, keys, kv_heads, width]`, lse `[B, heads, T]`, first `[B or 1, T]`, rows `[B, n]`,
/// readout `[B, S, n]`.
#[cube(launch, address_type = "dynamic")]
pub fn mass_kernel<E: Float, N: Size>(
    q: &Tensor<Vector<E, N>>,
    k: &Tensor<Vector<E, N>>,
    lse: &Tensor<f32>,
    first: &Tensor<i32>,
    rows: &Tensor<i32>,
    readout: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    first_rows: usize,
    count: usize,
    batches: usize,
    scale: f32,
    #[comptime] vectors: usize,
    #[comptime] readouts: usize,
    #[define(E)] _dtype: ElemType,
) {
    let product = Product::<E>::new(16usize, 8usize, 16usize);
    let steps = comptime!(vectors / 2);
    let mut k_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    let mut q_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    let mut lowest = Shared::<[u32]>::new_slice(ROWS);
    let mut highest = Shared::<[u32]>::new_slice(ROWS);
    let mut norms = Shared::<[f32]>::new_slice(ROWS);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(ROWS * readouts));

    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let part = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let start = CUBE_POS_X as usize * ROWS;
    let past = keys - queries;
    let upper = start + plane * SIDE + lane / 4;
    let lower = upper + 8;
    let mut upper_sums = Array::<f32>::new(readouts);
    let mut lower_sums = Array::<f32>::new(readouts);
    #[unroll]
    for s in 0..readouts {
        upper_sums[s] = 0.0f32;
        lower_sums[s] = 0.0f32;
    }
    for head in part * HEADS..min(part * HEADS + HEADS, heads) {
        let kv_head = head / (heads / kv_heads);
        sync_cube();
        let kv_base = (batch * keys * kv_heads + kv_head) * vectors;
        fill(&mut k_tile, 0usize, k, kv_base, kv_heads * vectors, start, keys, vectors, false);
        for block in range_stepped(0, count, ROWS) {
            sync_cube();
            if unit < ROWS {
                let mut low = keys as u32;
                let mut high = 0u32;
                let mut norm = 0.0f32;
                if block + unit < count {
                    let query = rows[batch * count + block + unit] as usize;
                    high = (past + query) as u32;
                    low = min(first[batch % first_rows * queries + query] as u32, high);
                    norm = lse[(batch * heads + head) * queries + query];
                }
                lowest[unit] = low;
                highest[unit] = high;
                norms[unit] = norm;
                #[unroll]
                for s in 0..readouts {
                    let mut weight = 0.0f32;
                    if block + unit < count {
                        weight = readout[(batch * readouts + s) * count + block + unit];
                    }
                    weights[unit * readouts + s] = weight;
                }
            }
            for i in range_stepped(unit, comptime!(ROWS * vectors), comptime!(PLANES * LANES)) {
                let row = i / vectors;
                let column = i % vectors;
                let mut value = Vector::<E, N>::new(E::from_int(0));
                if block + row < count {
                    let query = rows[batch * count + block + row] as usize;
                    value = q[((batch * queries + query) * heads + head) * vectors + column];
                }
                q_tile[row * comptime!(pitch(vectors)) + column] = value;
            }
            sync_cube();
            let mut scores = zeros(comptime!(ROWS / 8));
            #[unroll]
            for step in 0..steps {
                let own = left(&product, &k_tile, plane * SIDE, step, vectors);
                #[unroll]
                for pair in 0..comptime!(ROWS / SIDE) {
                    let row = comptime!(pair * SIDE);
                    multiply_rows(&product, &own, &q_tile, row, step, &mut scores, comptime!(2 * pair), vectors);
                }
            }
            #[unroll]
            for n in 0..comptime!(ROWS / 8) {
                #[unroll]
                for e in 0..2usize {
                    let column = n * 8 + lane % 4 * 2 + e;
                    let low = lowest[column] as usize;
                    let high = highest[column] as usize;
                    let norm = norms[column];
                    let mut up = 0.0f32;
                    let mut down = 0.0f32;
                    if sees(upper, low, high) {
                        up = exponential(scores.index(n)[0].extract(e) * scale - norm);
                    }
                    if sees(lower, low, high) {
                        down = exponential(scores.index(n)[1].extract(e) * scale - norm);
                    }
                    #[unroll]
                    for s in 0..readouts {
                        let weight = weights[column * readouts + s];
                        upper_sums[s] += up * weight;
                        lower_sums[s] += down * weight;
                    }
                }
            }
        }
    }
    #[unroll]
    for s in 0..readouts {
        let up = row_sum(upper_sums[s]);
        let down = row_sum(lower_sums[s]);
        let at = ((part * batches + batch) * readouts + s) * keys;
        if lane.is_multiple_of(4) {
            if upper < keys {
                sums[at + upper] = up;
            }
            if lower < keys {
                sums[at + lower] = down;
            }
        }
    }
}
