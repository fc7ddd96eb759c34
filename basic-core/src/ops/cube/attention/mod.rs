//! Attention on tensor cores: scores stay in registers, and nothing of the size `[T, T]` is written to memory.
//!
//! It follows FlashAttention 2 (Dao, 2023): one forward kernel; for the gradients, one kernel in which a block of
//! queries loops over the keys and one in which a block of keys loops over the queries, so that each gradient is
//! written by one cube and the result does not depend on the order of the cubes.

mod backward;
mod forward;
mod mass;
mod tiles;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};

use super::launch::{addresses, element, like, rows};
use crate::ops::attention::Sizes;

/// The widest head whose accumulators fit a lane's registers.
const WIDEST: usize = 128;
/// The most cubes that a grid has along its second and third dimension.
const GRID: usize = 65_535;

fn sizes(q: &CubeTensor, k: &CubeTensor) -> Sizes {
    let (q, k) = (q.meta.shape(), k.meta.shape());
    Sizes { batch: q[0], queries: q[1], keys: k[1], heads: q[2], kv_heads: k[2], width: q[3] }
}

/// Whether these kernels can compute heads of this size and type: 16 bits, and a width that is a multiple of 16.
pub fn fits(dtype: DType, sizes: &Sizes) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
        && sizes.width.is_multiple_of(tiles::SIDE)
        && sizes.width <= WIDEST
        && sizes.heads <= GRID
        && sizes.batch <= GRID
}

/// Bytes of shared memory that the largest kernel needs: the gradients of the keys take six tiles.
fn shared_memory(width: usize) -> usize {
    let tile = tiles::ROWS * tiles::pitch(width / tiles::VECTOR) * 16;
    let rows = 6 * tiles::ROWS * size_of::<f32>();
    // The barrier, the planes' maxima, and padding for alignment.
    6 * tile + rows + 256
}

/// Whether the device has the tensor cores and the shared memory that heads of this width need.
pub fn has_room(client: &cubecl::client::Client, dtype: DType, width: usize) -> bool {
    let own = element(dtype);
    let cores = client.features().matmul.mma.contains(&MmaConfig {
        a_type: own,
        b_type: own,
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    });
    cores && client.properties().hardware.max_shared_memory_size >= shared_memory(width)
}

/// The output and the log-sum-exp; `first` is in i32.
pub fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    first: CubeTensor,
    causal: bool,
) -> (CubeTensor, CubeTensor) {
    let (q, k, v, first) = (rows(q), rows(k), rows(v), rows(first));
    let sizes = sizes(&q, &k);
    let output = like(&q, q.meta.shape().to_vec(), q.dtype);
    let lse = like(&q, vec![sizes.batch, sizes.heads, sizes.queries], DType::F32);
    let (cubes, dim) = forward::grid(sizes.queries, sizes.heads, sizes.batch);
    let client = q.client.clone();
    let (address, dtype) = (addresses(&[&q, &k, &output, &lse]), element(q.dtype));
    forward::forward_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        tiles::VECTOR,
        2,
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        first.clone().into_tensor_arg(),
        output.clone().into_tensor_arg(),
        lse.clone().into_tensor_arg(),
        sizes.queries,
        sizes.keys,
        sizes.heads,
        sizes.kv_heads,
        first.meta.shape()[0],
        sizes.scale() as f32,
        sizes.width / tiles::VECTOR,
        causal,
        super::copies_ahead(),
        dtype,
    );
    (output, lse)
}

/// The gradients of q, k and v; `first` is in i32.
#[allow(clippy::too_many_arguments)] // the forward pass's inputs and results
pub fn backward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    first: CubeTensor,
    output: CubeTensor,
    lse: CubeTensor,
    grad: CubeTensor,
    causal: bool,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [q, k, v, first, output, lse, grad] = [q, k, v, first, output, lse, grad].map(rows);
    let sizes = sizes(&q, &k);
    let dots = like(&lse, lse.meta.shape().to_vec(), DType::F32);
    let [q_grad, k_grad, v_grad] = [&q, &k, &v].map(|x| like(x, x.meta.shape().to_vec(), x.dtype));
    let client = q.client.clone();
    let (address, dtype) = (addresses(&[&q, &k, &lse]), element(q.dtype));
    let vectors = sizes.width / tiles::VECTOR;
    let first_rows = first.meta.shape()[0];
    let (cubes, dim) = forward::grid(sizes.queries, sizes.heads, sizes.batch);
    backward::query_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        tiles::VECTOR,
        2,
        q.clone().into_tensor_arg(),
        k.clone().into_tensor_arg(),
        v.clone().into_tensor_arg(),
        first.clone().into_tensor_arg(),
        output.into_tensor_arg(),
        grad.clone().into_tensor_arg(),
        lse.clone().into_tensor_arg(),
        dots.clone().into_tensor_arg(),
        q_grad.clone().into_tensor_arg(),
        sizes.queries,
        sizes.keys,
        sizes.heads,
        sizes.kv_heads,
        first_rows,
        sizes.scale() as f32,
        vectors,
        causal,
        super::copies_ahead(),
        dtype,
    );
    let (cubes, dim) = forward::grid(sizes.keys, sizes.kv_heads, sizes.batch);
    backward::key_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        tiles::VECTOR,
        2,
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        first.into_tensor_arg(),
        grad.into_tensor_arg(),
        lse.into_tensor_arg(),
        dots.into_tensor_arg(),
        k_grad.clone().into_tensor_arg(),
        v_grad.clone().into_tensor_arg(),
        sizes.queries,
        sizes.keys,
        sizes.heads,
        sizes.kv_heads,
        first_rows,
        sizes.scale() as f32,
        vectors,
        causal,
        super::copies_ahead(),
        dtype,
    );
    (q_grad, k_grad, v_grad)
}

/// Whether one kernel can hold this number of read-outs.
pub fn reads(readouts: usize) -> bool {
    (1..=mass::READOUTS).contains(&readouts)
}

/// The number of sums over parts of the heads.
pub fn parts(heads: usize) -> usize {
    heads.div_ceil(mass::HEADS)
}

/// The attention that `readout` puts on each key, summed over parts of the heads, `[parts, B, S, keys]`; `first` and
/// `rows` are in i32.
pub fn masses(
    q: CubeTensor,
    k: CubeTensor,
    lse: CubeTensor,
    first: CubeTensor,
    rows_read: CubeTensor,
    readout: CubeTensor,
) -> CubeTensor {
    let [q, k, lse, first, rows_read, readout] = [q, k, lse, first, rows_read, readout].map(rows);
    let sizes = sizes(&q, &k);
    let [_, readouts, count] = [0, 1, 2].map(|dim| readout.meta.shape()[dim]);
    let sums = like(&lse, vec![parts(sizes.heads), sizes.batch, readouts, sizes.keys], DType::F32);
    let client = q.client.clone();
    let (address, dtype) = (addresses(&[&q, &k, &lse, &sums]), element(q.dtype));
    let (cubes, dim) = forward::grid(sizes.keys, parts(sizes.heads), sizes.batch);
    let first_rows = first.meta.shape()[0];
    mass::mass_kernel::launch(
        &client,
        cubes,
        dim,
        address,
        tiles::VECTOR,
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        lse.into_tensor_arg(),
        first.into_tensor_arg(),
        rows_read.into_tensor_arg(),
        readout.into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        sizes.queries,
        sizes.keys,
        sizes.heads,
        sizes.kv_heads,
        first_rows,
        count,
        sizes.batch,
        sizes.scale() as f32,
        sizes.width / tiles::VECTOR,
        readouts,
        dtype,
    );
    sums
}
