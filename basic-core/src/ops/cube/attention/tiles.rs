//! Tiles in shared memory, and the fragments that tensor cores multiply: `m16n8k16`, sums in f32.
//!
//! Of a 16x8 accumulator a lane holds rows `lane / 4` and that plus 8, of each the columns `2 (lane % 4)` and the next.
//! Two accumulators side by side, rounded, are the first operand of a product over their 16 columns.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::barrier::{Barrier, copy_async_checked};
use cubecl::prelude::*;

/// Queries, or keys, that a cube works on: 16 for each plane.
pub const ROWS: usize = 64;
/// Planes of a cube.
pub const PLANES: usize = 4;
/// Lanes of a plane.
pub const LANES: usize = 32;
/// Elements of one row that a matrix load takes: 16 bytes.
pub const VECTOR: usize = 8;
/// Rows and columns of a fragment.
pub const SIDE: usize = 16;

/// exp(x) is 2 to the x times this.
const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Two neighbours: what a register holds of a fragment.
pub type Pair = Const<2>;
/// The first operand's fragment of 16x16: four registers.
pub type Left<E> = Array<Vector<E, Pair>>;
/// An accumulator of 16x8: the upper row's pair and the lower row's.
pub type Sums = Array<Vector<f32, Pair>>;
/// Tensor cores' product.
pub type Product<E> = MmaDefinition<E, E, f32>;

/// A tile's rows lie a vector further apart than they are long, so that the eight rows of a matrix load meet different
/// banks.
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

/// Copies rows `first..first + ROWS` of one head into the tile's rows from `at` on; zeros behind the last of `rows`. With
/// `ahead` the copy goes on while the cube computes, until [`arrived`].
///
/// `base` is where the head's row 0 begins and `step` what lies between two of its rows, in vectors.
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

/// Waits until all that the cube has copied is there, and until all of the cube has come here.
#[cube]
pub fn arrived(barrier: &Shared<Barrier>, #[comptime] ahead: bool) {
    if ahead {
        barrier.commit_copy_async();
        barrier.arrive_and_wait();
    } else {
        sync_cube();
    }
}

/// The first operand's fragments of rows `row..row + 16`, one for each 16 columns.
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

/// Adds to two accumulators the product of `a` and 16 columns of the tile's rows `row..row + 16`, transposed: scores of
/// 16 rows against 16.
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

/// Adds to two accumulators the product of `a` and the tile's rows `row..row + 16`, of which they hold 16 columns.
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

/// A matrix load gives the second operands of two products.
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

/// Two accumulators as the first operand of a product over their 16 columns.
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

/// Whether a query with these bounds sees a key.
#[cube]
pub fn sees(key: usize, lowest: usize, highest: usize) -> bool {
    key >= lowest && key <= highest
}

/// exp by the device's approximate power of two. It is PTX: these kernels run where CUDA's matrix instructions are.
#[cube]
pub fn exponential(x: f32) -> f32 {
    let power = x * LOG2_E;
    let out: f32;
    gpu_asm!("ex2.approx.ftz.f32 {}, {};", out(_) out, in(_) power, options(nomem));
    out
}
