//! The gradients of attention. With P the probabilities, O the output and G its gradient: `dV = P^T G`,
//! `dS = P (G V^T - rowsum(G O))`, `dQ = dS K / sqrt(w)`, `dK = dS^T Q / sqrt(w)`.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::tiles::{
    LANES, PLANES, Pair, Product, ROWS, SIDE, arrived, exponential, fill, left, multiply_columns, multiply_rows, pitch,
    rounded, sees, zeros,
};

/// The number of keys, or queries, whose scores are in registers at a time.
const PART: usize = 32;

/// Computes dQ and `rowsum(G O)`, `[B, heads, T]`. A cube takes 64 queries of one head and loops over the keys.
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
    #[comptime] ahead: bool,
    #[define(E)] _dtype: ElemType,
) {
    let product = Product::<E>::new(16usize, 8usize, 16usize);
    let steps = comptime!(vectors / 2);
    let mut k_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(2 * ROWS * pitch(vectors)), 16usize);
    let mut v_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(2 * ROWS * pitch(vectors)), 16usize);
    let barrier = Barrier::shared(CUBE_DIM, UNIT_POS == 0);
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
    // Two units share the sum over a row of G O.
    fill(&mut k_tile, 0usize, output, q_base, q_step, start, queries, vectors, false);
    fill(&mut v_tile, 0usize, grad, q_base, q_step, start, queries, vectors, false);
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
    let upper_drop = drops[plane * SIDE + lane / 4];
    let lower_drop = drops[plane * SIDE + lane / 4 + 8];
    let upper_lse = lse[row_base + min(upper, queries - 1)];
    let lower_lse = lse[row_base + min(lower, queries - 1)];
    let mut upper_high = keys - 1;
    let mut lower_high = keys - 1;
    let mut end = keys;
    let mut common = keys;
    if causal {
        common = past + start + 1;
        upper_high = past + min(upper, queries - 1);
        lower_high = past + min(lower, queries - 1);
        end = past + min(start + ROWS, queries);
    }

    let mut sums = zeros(vectors);
    let kv_step = kv_heads * vectors;
    let kv_base = (batch * keys * kv_heads + kv_head) * vectors;
    let begin = nearest / ROWS * ROWS;
    sync_cube();
    fill(&mut k_tile, 0usize, k, kv_base, kv_step, begin, keys, vectors, ahead);
    fill(&mut v_tile, 0usize, v, kv_base, kv_step, begin, keys, vectors, ahead);
    let mut half = 0usize.runtime();
    for block in range_stepped(begin, end, ROWS) {
        arrived(&barrier, ahead);
        let other = ROWS - half;
        if block + ROWS < end {
            fill(&mut k_tile, other, k, kv_base, kv_step, block + ROWS, keys, vectors, ahead);
            fill(&mut v_tile, other, v, kv_base, kv_step, block + ROWS, keys, vectors, ahead);
        }
        let whole = block >= furthest && block + ROWS <= common;
        #[unroll]
        for part in 0..comptime!(ROWS / PART) {
            let mut scores = zeros(comptime!(PART / 8));
            let mut pulls = zeros(comptime!(PART / 8));
            #[unroll]
            for pair in 0..comptime!(PART / SIDE) {
                #[unroll]
                for step in 0..steps {
                    let row = half + comptime!(part * PART + pair * SIDE);
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
                    let mut a = exponential(tile[0].extract(e) * scale - upper_lse);
                    let mut b = exponential(tile[1].extract(e) * scale - lower_lse);
                    if !whole {
                        a = select(sees(key + e, upper_low, upper_high), a, 0.0f32);
                        b = select(sees(key + e, lower_low, lower_high), b, 0.0f32);
                    }
                    up.insert(e, a * (pull[0].extract(e) - upper_drop) * scale);
                    low.insert(e, b * (pull[1].extract(e) - lower_drop) * scale);
                }
                tile[0] = up;
                tile[1] = low;
            }
            #[unroll]
            for pair in 0..comptime!(PART / SIDE) {
                let s = rounded::<E>(&scores, comptime!(2 * pair));
                #[unroll]
                for step in 0..steps {
                    let row = half + comptime!(part * PART + pair * SIDE);
                    multiply_columns(&product, &s, &k_tile, row, step, &mut sums, comptime!(2 * step), vectors);
                }
            }
        }
        half = other;
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

/// Computes dK and dV. A cube takes 64 keys of one key head and loops over the queries of all heads that read it. A
/// lane holds scores transposed, with keys as rows.
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
    #[comptime] ahead: bool,
    #[define(E)] _dtype: ElemType,
) {
    let product = Product::<E>::new(16usize, 8usize, 16usize);
    let steps = comptime!(vectors / 2);
    let mut k_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    let mut v_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(ROWS * pitch(vectors)), 16usize);
    // Two blocks of queries: one is computed with while the next is loaded.
    let mut q_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(2 * ROWS * pitch(vectors)), 16usize);
    let mut g_tile = Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(2 * ROWS * pitch(vectors)), 16usize);
    let mut lowest = Shared::<[u32]>::new_slice(comptime!(2 * ROWS));
    let mut norms = Shared::<[f32]>::new_slice(comptime!(2 * ROWS));
    let mut drops = Shared::<[f32]>::new_slice(comptime!(2 * ROWS));
    let mut lasts = Shared::<[u32]>::new_slice(PLANES);
    let barrier = Barrier::shared(CUBE_DIM, UNIT_POS == 0);

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
    fill(&mut k_tile, 0usize, k, kv_base, kv_step, start, keys, vectors, ahead);
    fill(&mut v_tile, 0usize, v, kv_base, kv_step, start, keys, vectors, ahead);

    // The queries that see one of these keys lie between `begin` and `end`.
    let mut begin = 0usize;
    if causal && start > past {
        begin = (start - past) / ROWS * ROWS;
    }
    let first_base = batch % first_rows * queries;
    let mut last = 0u32.runtime();
    for query in range_stepped(unit, queries, comptime!(PLANES * LANES)) {
        let mut low = first[first_base + query] as usize;
        if causal {
            low = min(low, past + query);
        }
        if low < start + ROWS {
            last = max(last, query as u32 + 1);
        }
    }
    let last = plane_max(last);
    if lane == 0 {
        lasts[plane] = last;
    }
    sync_cube();
    let end = max(max(lasts[0], lasts[1]), max(lasts[2], lasts[3])) as usize;
    let mut blocks = 0usize;
    if end > begin {
        blocks = (end - begin).div_ceil(ROWS);
    }

    let upper = start + plane * SIDE + lane / 4;
    let lower = upper + 8;
    let mut k_sums = zeros(vectors);
    let mut v_sums = zeros(vectors);
    let mut half = 0usize.runtime();
    // All blocks of queries of all heads that read these keys; the first turn only loads.
    for turn in 0..group * blocks + 1 {
        if turn > 0 {
            arrived(&barrier, ahead);
        }
        let other = ROWS - half;
        if turn < group * blocks {
            let head = kv_head * group + turn / blocks;
            let block = begin + turn % blocks * ROWS;
            let q_base = (batch * queries * heads + head) * vectors;
            fill(&mut q_tile, other, q, q_base, q_step, block, queries, vectors, ahead);
            fill(&mut g_tile, other, grad, q_base, q_step, block, queries, vectors, ahead);
            if unit < ROWS {
                let query = block + unit;
                let mut low = keys as u32;
                let mut norm = 0.0f32;
                let mut drop = 0.0f32;
                if query < queries {
                    low = first[first_base + query] as u32;
                    if causal {
                        low = min(low, (past + query) as u32);
                    }
                    norm = lse[(batch * heads + head) * queries + query];
                    drop = dots[(batch * heads + head) * queries + query];
                }
                lowest[other + unit] = low;
                norms[other + unit] = norm;
                drops[other + unit] = drop;
            }
        }
        if turn > 0 {
            let block = begin + (turn - 1) % blocks * ROWS;
            let furthest = plane_max(max(lowest[half + lane], lowest[half + lane + LANES])) as usize;
            let mut common = keys;
            if causal {
                common = past + block + 1;
            }
            let whole = furthest <= start && start + ROWS <= common && block + ROWS <= queries;
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
                        let row = half + comptime!(part * PART + pair * SIDE);
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
                        let norm = norms[half + column + e];
                        let drop = drops[half + column + e];
                        let mut a = exponential(tile[0].extract(e) * scale - norm);
                        let mut b = exponential(tile[1].extract(e) * scale - norm);
                        if !whole {
                            let low = lowest[half + column + e] as usize;
                            let mut high = keys - 1;
                            if causal {
                                high = past + block + column + e;
                            }
                            a = select(sees(upper, low, high), a, 0.0f32);
                            b = select(sees(lower, low, high), b, 0.0f32);
                        }
                        up.insert(e, a);
                        low.insert(e, b);
                        up_slope.insert(e, a * (pull[0].extract(e) - drop) * scale);
                        low_slope.insert(e, b * (pull[1].extract(e) - drop) * scale);
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
                        let row = half + comptime!(part * PART + pair * SIDE);
                        let at = comptime!(2 * step);
                        multiply_columns(&product, &p, &g_tile, row, step, &mut v_sums, at, vectors);
                        multiply_columns(&product, &s, &q_tile, row, step, &mut k_sums, at, vectors);
                    }
                }
            }
        }
        half = other;
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
