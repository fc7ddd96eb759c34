//! Tiles in shared memory, and the fragments that tensor cores multiply: `m16n8k16`, sums in f32.
//!
//! Of a 16x8 accumulator, a lane holds rows `lane / 4` and `lane / 4 + 8`, and of each the columns `2 (lane % 4)` and
//! the next. Two accumulators side by side, rounded, form the first operand of a product over their 16 columns.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::barrier::{Barrier, copy_async_checked};
use cubecl::prelude::*;

/// The number of queries, or keys, that a cube works on: 16 for each plane.
pub const ROWS: usize = 64;
/// The number of planes in a cube.
pub const PLANES: usize = 4;
/// The number of lanes in a plane.
pub const LANES: usize = 32;
/// The number of elements of a row that one matrix load takes: 16 bytes.
pub const VECTOR: usize = 8;
/// The number of rows and of columns of a fragment.
pub const SIDE: usize = 16;

/// exp(x) is 2 to the power of x times this.
const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Two neighbouring elements, which one register of a fragment holds.
pub type Pair = Const<2>;
/// The 16x16 fragment of the first operand: four registers.
pub type Left<E> = Array<Vector<E, Pair>>;
/// A 16x8 accumulator: the pair of the upper row and that of the lower row.
pub type Sums = Array<Vector<f32, Pair>>;
/// The product that tensor cores compute.
pub type Product<E> = MmaDefinition<E, E, f32>;

/// The distance of a tile's rows, in vectors: one more than their length, so that the eight rows of a matrix load lie
/// in different banks.
pub const fn pitch(vectors: usize) -> usize {
    vectors + 1
}

/// `count` accumulators of zeros.
#[cube]
pub fn zeros(#[comptime] count: usize) -> Sequence<Sums> {
    let mut all = Sequence::<Sums>::new();
    #[unroll]
    for _ in 0..count {
        let mut sums = Sums::new(2usize);
        sums[0] = Vector::new(0.0f32);
        sums[1] = Vector::new(0.0f32);
        all.push(sums);
    }
    all
}

/// Copies rows `first..first + ROWS` of one head to the tile's rows from `at` on, and writes zeros for rows from `rows`
/// on. With `ahead` the copy continues while the cube computes, until [`arrived`].
///
/// `base` is the position of the head's row 0 and `step` the distance between two of its rows, both in vectors.
#[cube]
pub fn fill<E: Float, N: Size>(
    tile: &mut Shared<[Vector<E, N>]>,
    at: usize,
    from: &Tensor<Vector<E, N>>,
    base: usize,
    step: usize,
    first: usize,
    rows: usize,
    #[comptime] vectors: usize,
    #[comptime] ahead: bool,
) {
    for i in range_stepped(UNIT_POS as usize, ROWS * vectors, PLANES * LANES) {
        let row = i / vectors;
        let column = i % vectors;
        let place = (at + row) * comptime!(pitch(vectors)) + column;
        if ahead {
            let source = base + min(first + row, rows - 1) * step + column;
            let length = select(first + row < rows, 1usize, 0usize);
            copy_async_checked(&from[source..source + length], &mut tile[place..place + 1], 8u32);
        } else {
            let mut value = Vector::<E, N>::new(E::from_int(0));
            if first + row < rows {
                value = from[base + (first + row) * step + column];
            }
            tile[place] = value;
        }
    }
}

/// Waits until everything that the cube copies has arrived and all of its units have come here.
#[cube]
pub fn arrived(barrier: &Shared<Barrier>, #[comptime] ahead: bool) {
    if ahead {
        barrier.commit_copy_async();
        barrier.arrive_and_wait();
    } else {
        sync_cube();
    }
}

/// The first operand's fragments of rows `row..row + 16`, one for every 16 columns.
#[cube]
pub fn left<E: Float, N: Size>(
    product: &Product<E>,
    tile: &Shared<[Vector<E, N>]>,
    row: usize,
    #[comptime] column: usize,
    #[comptime] vectors: usize,
) -> Left<E> {
    let lane = UNIT_POS_X as usize;
    let at = (row + lane % 16) * comptime!(pitch(vectors)) + 2 * column + lane / 16;
    product.load_matrix::<Vector<E, N>, Pair>(&tile[at..at + 1], MatrixIdent::A, 4usize, false)
}

/// Adds the product of `a` and the transpose of 16 columns of the tile's rows `row..row + 16` to two accumulators: the
/// scores of 16 rows against 16.
#[cube]
pub fn multiply_rows<E: Float, N: Size>(
    product: &Product<E>,
    a: &Left<E>,
    tile: &Shared<[Vector<E, N>]>,
    row: usize,
    #[comptime] column: usize,
    sums: &mut Sequence<Sums>,
    #[comptime] at: usize,
    #[comptime] vectors: usize,
) {
    let lane = UNIT_POS_X as usize;
    let place = (row + lane / 16 * 8 + lane % 8) * comptime!(pitch(vectors)) + 2 * column + lane / 8 % 2;
    let four = product.load_matrix::<Vector<E, N>, Pair>(&tile[place..place + 1], MatrixIdent::B, 4usize, false);
    both(product, a, &four, sums, at);
}

/// Adds the product of `a` and the tile's rows `row..row + 16`, for 16 of its columns, to two accumulators.
#[cube]
pub fn multiply_columns<E: Float, N: Size>(
    product: &Product<E>,
    a: &Left<E>,
    tile: &Shared<[Vector<E, N>]>,
    row: usize,
    #[comptime] column: usize,
    sums: &mut Sequence<Sums>,
    #[comptime] at: usize,
    #[comptime] vectors: usize,
) {
    let lane = UNIT_POS_X as usize;
    let place = (row + lane % 16) * comptime!(pitch(vectors)) + 2 * column + lane / 16;
    let four = product.load_matrix::<Vector<E, N>, Pair>(&tile[place..place + 1], MatrixIdent::B, 4usize, true);
    both(product, a, &four, sums, at);
}

/// Computes two products: one matrix load provides the second operands of both.
#[cube]
fn both<E: Float>(product: &Product<E>, a: &Left<E>, four: &Left<E>, sums: &mut Sequence<Sums>, #[comptime] at: usize) {
    let mut b = Array::<Vector<E, Pair>>::new(2usize);
    b[0] = four[0];
    b[1] = four[1];
    product.execute_inplace(a, &b, sums.index_mut(at));
    let mut b = Array::<Vector<E, Pair>>::new(2usize);
    b[0] = four[2];
    b[1] = four[3];
    product.execute_inplace(a, &b, sums.index_mut(at + 1));
}

/// Two accumulators, rounded, as the first operand of a product over their 16 columns.
#[cube]
pub fn rounded<E: Float>(sums: &Sequence<Sums>, #[comptime] at: usize) -> Left<E> {
    let mut a = Left::<E>::new(4usize);
    let one = sums.index(at);
    let two = sums.index(at + 1);
    a[0] = Vector::cast_from(one[0]);
    a[1] = Vector::cast_from(one[1]);
    a[2] = Vector::cast_from(two[0]);
    a[3] = Vector::cast_from(two[1]);
    a
}

/// Whether a query with these bounds sees the key.
#[cube]
pub fn sees(key: usize, lowest: usize, highest: usize) -> bool {
    key >= lowest && key <= highest
}

/// exp by the device's approximate power of two, in PTX: these kernels run only where CUDA's matrix instructions exist.
#[cube]
pub fn exponential(x: f32) -> f32 {
    let power = x * LOG2_E;
    let out: f32;
    gpu_asm!("ex2.approx.ftz.f32 {}, {};", out(_) out, in(_) power, options(nomem));
    out
}
