//! The gradients. With P the probabilities, O the output and G its gradient: `dV = P^T G`, `dS = P (G V^T - rowsum(G O))`,
//! `dQ = dS K / sqrt(w)`, `dK = dS^T Q / sqrt(w)`.

use cubecl::prelude::*;

use super::tiles::{
    LANES, Pair, Product, ROWS, SIDE, fill, left, multiply_columns, multiply_rows, pitch, rounded, sees, zeros,
};

/// Keys, or queries, whose scores are in registers at a time.
const PART: usize = 32;

/// dQ, and `rowsum(G O)`, `[B, heads, T]`. A cube takes 64 queries of one head and walks along the keys.
#[cube(launch, address_type = "dynamic")]
pub fn query_kernel<E: Float, N: Size, P: Size>(
    q: &Tensor<Vector<E, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    first: &Tensor<i32>,
    output: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    lse: &Tensor<f32>,
    dots: &mut Tensor<f32>,
    q_grad: &mut Tensor<Vector<E, P>>,
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
    let mut drops = Shared::<[f32]>::new_slice(ROWS);

    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let kv_head = head / (heads / kv_heads);
    let start = (queries.div_ceil(ROWS) - 1 - CUBE_POS_X as usize) * ROWS;
    let past = keys - queries;
    let q_step = heads * vectors;
    let q_base = (batch * queries * heads + head) * vectors;
    let row_base = (batch * heads + head) * queries;

    if unit < ROWS {
        let query = min(start + unit, queries - 1);
        let mut low = first[batch % first_rows * queries + query] as u32;
        if causal {
            low = min(low, (past + query) as u32);
        }
        lowest[unit] = low;
    }
    // Two units add up a row of G O.
    fill(&mut k_tile, output, q_base, q_step, start, queries, vectors);
    fill(&mut v_tile, grad, q_base, q_step, start, queries, vectors);
    sync_cube();
    let row = unit / 2;
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for i in range_stepped(unit % 2, vectors, 2) {
        let at = row * comptime!(pitch(vectors)) + i;
        sum += Vector::<f32, N>::cast_from(k_tile[at]) * Vector::<f32, N>::cast_from(v_tile[at]);
    }
    let mut dot = 0.0f32;
    #[unroll]
    for e in 0..N::value() {
        dot += sum.extract(e);
    }
    dot += plane_shuffle_xor(dot, 1u32);
    if unit.is_multiple_of(2) {
        drops[row] = dot;
        if start + row < queries {
            dots[row_base + start + row] = dot;
        }
    }
    let mut own_grad = Sequence::<Array<Vector<E, Pair>>>::new();
    #[unroll]
    for step in 0..steps {
        own_grad.push(left(&product, &v_tile, plane * SIDE, step, vectors));
    }
    sync_cube();
    fill(&mut k_tile, q, q_base, q_step, start, queries, vectors);
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
    let upper_drop = drops[plane * SIDE + lane / 4];
    let lower_drop = drops[plane * SIDE + lane / 4 + 8];
    let upper_lse = lse[row_base + min(upper, queries - 1)];
    let lower_lse = lse[row_base + min(lower, queries - 1)];
    let mut upper_high = keys - 1;
    let mut lower_high = keys - 1;
    let mut end = keys;
    if causal {
        upper_high = past + min(upper, queries - 1);
        lower_high = past + min(lower, queries - 1);
        end = past + min(start + ROWS, queries);
    }

    let mut sums = zeros(vectors);
    let kv_step = kv_heads * vectors;
    let kv_base = (batch * keys * kv_heads + kv_head) * vectors;
    for block in range_stepped(nearest / ROWS * ROWS, end, ROWS) {
        sync_cube();
        fill(&mut k_tile, k, kv_base, kv_step, block, keys, vectors);
        fill(&mut v_tile, v, kv_base, kv_step, block, keys, vectors);
        sync_cube();
        #[unroll]
        for part in 0..comptime!(ROWS / PART) {
            let mut scores = zeros(comptime!(PART / 8));
            let mut pulls = zeros(comptime!(PART / 8));
            #[unroll]
            for pair in 0..comptime!(PART / SIDE) {
                #[unroll]
                for step in 0..steps {
                    let row = comptime!(part * PART + pair * SIDE);
                    let at = comptime!(2 * pair);
                    multiply_rows(&product, own.index(step), &k_tile, row, step, &mut scores, at, vectors);
                    multiply_rows(&product, own_grad.index(step), &v_tile, row, step, &mut pulls, at, vectors);
                }
            }
            #[unroll]
            for n in 0..comptime!(PART / 8) {
                let tile = scores.index_mut(n);
                let pull = pulls.index(n);
                let key = block + comptime!(part * PART + n * 8) + lane % 4 * 2;
                let mut up = Vector::<f32, Pair>::new(0.0f32);
                let mut low = Vector::<f32, Pair>::new(0.0f32);
                #[unroll]
                for e in 0..2usize {
                    if sees(key + e, upper_low, upper_high) {
                        let p = (tile[0].extract(e) * scale - upper_lse).exp();
                        up.insert(e, p * (pull[0].extract(e) - upper_drop) * scale);
                    }
                    if sees(key + e, lower_low, lower_high) {
                        let p = (tile[1].extract(e) * scale - lower_lse).exp();
                        low.insert(e, p * (pull[1].extract(e) - lower_drop) * scale);
                    }
                }
                tile[0] = up;
                tile[1] = low;
            }
            #[unroll]
            for pair in 0..comptime!(PART / SIDE) {
                let s = rounded::<E>(&scores, comptime!(2 * pair));
                #[unroll]
                for step in 0..steps {
                    let row = comptime!(part * PART + pair * SIDE);
                    multiply_columns(&product, &s, &k_tile, row, step, &mut sums, comptime!(2 * step), vectors);
                }
            }
        }
    }

    let pairs = comptime!(vectors * 4);
    let base = (batch * queries * heads + head) * pairs + lane % 4;
    if upper < queries {
        #[unroll]
        for n in 0..vectors {
            q_grad[base + upper * heads * pairs + n * 4] = Vector::cast_from(sums.index(n)[0]);
        }
    }
    if lower < queries {
        #[unroll]
        for n in 0..vectors {
            q_grad[base + lower * heads * pairs + n * 4] = Vector::cast_from(sums.index(n)[1]);
        }
    }
}

/// dK and dV. A cube takes 64 keys of one key head and walks along the queries of all heads that read it; what a lane
/// holds are scores with keys as rows.
#[cube(launch, address_type = "dynamic")]
pub fn key_kernel<E: Float, N: Size, P: Size>(
    q: &Tensor<Vector<E, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    first: &Tensor<i32>,
    grad: &Tensor<Vector<E, N>>,
    lse: &Tensor<f32>,
    dots: &Tensor<f32>,
    k_grad: &mut Tensor<Vector<E, P>>,
    v_grad: &mut Tensor<Vector<E, P>>,
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
    let mut q_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    let mut g_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    let mut lowest = Shared::<[u32]>::new_slice(ROWS);
    let mut norms = Shared::<[f32]>::new_slice(ROWS);
    let mut drops = Shared::<[f32]>::new_slice(ROWS);

    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let kv_head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let group = heads / kv_heads;
    let start = CUBE_POS_X as usize * ROWS;
    let past = keys - queries;
    let q_step = heads * vectors;
    let kv_step = kv_heads * vectors;
    let kv_base = (batch * keys * kv_heads + kv_head) * vectors;
    fill(&mut k_tile, k, kv_base, kv_step, start, keys, vectors);
    fill(&mut v_tile, v, kv_base, kv_step, start, keys, vectors);

    // The first query that sees one of these keys.
    let mut begin = 0usize;
    if causal && start > past {
        begin = start - past;
    }
    let upper = start + plane * SIDE + lane / 4;
    let lower = upper + 8;
    let mut k_sums = zeros(vectors);
    let mut v_sums = zeros(vectors);
    for member in 0..group {
        let head = kv_head * group + member;
        let q_base = (batch * queries * heads + head) * vectors;
        let row_base = (batch * heads + head) * queries;
        for block in range_stepped(begin / ROWS * ROWS, queries, ROWS) {
            sync_cube();
            if unit < ROWS {
                let query = block + unit;
                let mut low = keys as u32;
                let mut norm = 0.0f32;
                let mut drop = 0.0f32;
                if query < queries {
                    low = first[batch % first_rows * queries + query] as u32;
                    if causal {
                        low = min(low, (past + query) as u32);
                    }
                    norm = lse[row_base + query];
                    drop = dots[row_base + query];
                }
                lowest[unit] = low;
                norms[unit] = norm;
                drops[unit] = drop;
            }
            sync_cube();
            let here = min(lowest[lane], lowest[lane + LANES]);
            // A block whose queries all begin behind these keys has nothing for them.
            if (plane_min(here) as usize) < start + ROWS {
                fill(&mut q_tile, q, q_base, q_step, block, queries, vectors);
                fill(&mut g_tile, grad, q_base, q_step, block, queries, vectors);
                sync_cube();
                #[unroll]
                for part in 0..comptime!(ROWS / PART) {
                    let mut scores = zeros(comptime!(PART / 8));
                    let mut pulls = zeros(comptime!(PART / 8));
                    #[unroll]
                    for step in 0..steps {
                        let own = left(&product, &k_tile, plane * SIDE, step, vectors);
                        let values = left(&product, &v_tile, plane * SIDE, step, vectors);
                        #[unroll]
                        for pair in 0..comptime!(PART / SIDE) {
                            let row = comptime!(part * PART + pair * SIDE);
                            let at = comptime!(2 * pair);
                            multiply_rows(&product, &own, &q_tile, row, step, &mut scores, at, vectors);
                            multiply_rows(&product, &values, &g_tile, row, step, &mut pulls, at, vectors);
                        }
                    }
                    #[unroll]
                    for n in 0..comptime!(PART / 8) {
                        let tile = scores.index_mut(n);
                        let pull = pulls.index_mut(n);
                        let column = comptime!(part * PART + n * 8) + lane % 4 * 2;
                        let mut up = Vector::<f32, Pair>::new(0.0f32);
                        let mut low = Vector::<f32, Pair>::new(0.0f32);
                        let mut up_slope = Vector::<f32, Pair>::new(0.0f32);
                        let mut low_slope = Vector::<f32, Pair>::new(0.0f32);
                        #[unroll]
                        for e in 0..2usize {
                            let lowest = lowest[column + e] as usize;
                            let norm = norms[column + e];
                            let drop = drops[column + e];
                            let mut highest = keys - 1;
                            if causal {
                                highest = past + block + column + e;
                            }
                            if sees(upper, lowest, highest) {
                                let p = (tile[0].extract(e) * scale - norm).exp();
                                up.insert(e, p);
                                up_slope.insert(e, p * (pull[0].extract(e) - drop) * scale);
                            }
                            if sees(lower, lowest, highest) {
                                let p = (tile[1].extract(e) * scale - norm).exp();
                                low.insert(e, p);
                                low_slope.insert(e, p * (pull[1].extract(e) - drop) * scale);
                            }
                        }
                        tile[0] = up;
                        tile[1] = low;
                        pull[0] = up_slope;
                        pull[1] = low_slope;
                    }
                    #[unroll]
                    for pair in 0..comptime!(PART / SIDE) {
                        let p = rounded::<E>(&scores, comptime!(2 * pair));
                        let s = rounded::<E>(&pulls, comptime!(2 * pair));
                        #[unroll]
                        for step in 0..steps {
                            let row = comptime!(part * PART + pair * SIDE);
                            let at = comptime!(2 * step);
                            multiply_columns(&product, &p, &g_tile, row, step, &mut v_sums, at, vectors);
                            multiply_columns(&product, &s, &q_tile, row, step, &mut k_sums, at, vectors);
                        }
                    }
                }
            }
        }
    }

    let pairs = comptime!(vectors * 4);
    let base = (batch * keys * kv_heads + kv_head) * pairs + lane % 4;
    if upper < keys {
        #[unroll]
        for n in 0..vectors {
            let at = base + upper * kv_heads * pairs + n * 4;
            k_grad[at] = Vector::cast_from(k_sums.index(n)[0]);
            v_grad[at] = Vector::cast_from(v_sums.index(n)[0]);
        }
    }
    if lower < keys {
        #[unroll]
        for n in 0..vectors {
            let at = base + lower * kv_heads * pairs + n * 4;
            k_grad[at] = Vector::cast_from(k_sums.index(n)[1]);
            v_grad[at] = Vector::cast_from(v_sums.index(n)[1]);
        }
    }
}
