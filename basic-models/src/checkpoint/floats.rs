//! The element types of weights, and conversions between them.

use burn::tensor::{DType, Element};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// The number of elements that are converted at a time.
const BLOCK: usize = 64;

/// The side of the squares in which a matrix is transposed: one square fits the first-level cache.
const TILE: usize = 64;

/// The number of elements that a thread converts as one piece of work.
const PIECE: usize = 1 << 16;

/// An element type that weights are read from and written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of single precision.
    BF16,
}

impl FloatType {
    /// The number of bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The type in which parameters of `dtype` are stored: f16 and bf16 as they are, all others as f32.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
            _ => Self::F32,
        }
    }

    /// Burn's name for the type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }

    /// PyTorch's name for the type, as in config.json.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// safetensors' name for the type.
    pub fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }
}

/// The Rust type of a [`FloatType`].
pub(super) trait Float: Element + Copy + Default + Send + Sync + 'static {
    /// The corresponding type.
    const TYPE: FloatType;
    /// Returns `count` zeros in memory pages that the system clears only when they are first used.
    fn zeros(count: usize) -> Vec<Self>;
    /// Converts, rounding to nearest.
    fn take_f32(from: &[f32], to: &mut [Self]);
    /// Converts from f16.
    fn take_f16(from: &[f16], to: &mut [Self]);
    /// Converts from bf16.
    fn take_bf16(from: &[bf16], to: &mut [Self]);
    /// Converts to another type.
    fn give<T: Float>(from: &[Self], to: &mut [T]);
    /// Appends the bytes of the values, least significant byte first.
    fn put_bytes(values: &[Self], bytes: &mut Vec<u8>);
}

impl Float for f32 {
    const TYPE: FloatType = FloatType::F32;
    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
    fn take_f32(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
    fn take_f16(from: &[f16], to: &mut [Self]) {
        from.convert_to_f32_slice(to);
    }
    fn take_bf16(from: &[bf16], to: &mut [Self]) {
        from.convert_to_f32_slice(to);
    }
    fn give<T: Float>(from: &[Self], to: &mut [T]) {
        T::take_f32(from, to);
    }
    fn put_bytes(values: &[Self], bytes: &mut Vec<u8>) {
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }
}

impl Float for f16 {
    const TYPE: FloatType = FloatType::F16;
    fn zeros(count: usize) -> Vec<Self> {
        // `vec!` with f16 itself would write every zero.
        vec![0u16; count].reinterpret_into()
    }
    fn take_f32(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
    fn take_f16(from: &[f16], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
    fn take_bf16(from: &[bf16], to: &mut [Self]) {
        through_f32(from, to);
    }
    fn give<T: Float>(from: &[Self], to: &mut [T]) {
        T::take_f16(from, to);
    }
    fn put_bytes(values: &[Self], bytes: &mut Vec<u8>) {
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }
}

impl Float for bf16 {
    const TYPE: FloatType = FloatType::BF16;
    fn zeros(count: usize) -> Vec<Self> {
        // `vec!` with bf16 itself would write every zero.
        vec![0u16; count].reinterpret_into()
    }
    fn take_f32(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
    fn take_f16(from: &[f16], to: &mut [Self]) {
        through_f32(from, to);
    }
    fn take_bf16(from: &[bf16], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
    fn give<T: Float>(from: &[Self], to: &mut [T]) {
        T::take_bf16(from, to);
    }
    fn put_bytes(values: &[Self], bytes: &mut Vec<u8>) {
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }
}

fn through_f32<S: Float, T: Float>(from: &[S], to: &mut [T]) {
    let mut block = [0.0f32; BLOCK];
    for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        S::give(from, &mut block[..from.len()]);
        T::take_f32(&block[..from.len()], to);
    }
}

/// Converts elements of type `from`, least significant byte first, to `T`. `out` must have the same number of elements.
pub(super) fn decode<T: Float>(bytes: &[u8], from: FloatType, out: &mut [T]) {
    let pieces = bytes.par_chunks(PIECE * from.size());
    out.par_chunks_mut(PIECE).zip(pieces).for_each(|(out, bytes)| decode_piece(bytes, from, out));
}

fn decode_piece<T: Float>(bytes: &[u8], from: FloatType, out: &mut [T]) {
    match from {
        FloatType::F32 => decode_as(bytes, out, f32::from_le_bytes),
        FloatType::F16 => decode_as(bytes, out, f16::from_le_bytes),
        FloatType::BF16 => decode_as(bytes, out, bf16::from_le_bytes),
    }
}

/// In blocks, because a mapped file has no guaranteed alignment and the conversions take slices.
fn decode_as<S: Float, T: Float, const N: usize>(bytes: &[u8], out: &mut [T], element: impl Fn([u8; N]) -> S) {
    let mut block = [S::default(); BLOCK];
    for (bytes, out) in bytes.chunks(BLOCK * N).zip(out.chunks_mut(BLOCK)) {
        let (elements, _) = bytes.as_chunks::<N>();
        for (value, bytes) in block.iter_mut().zip(elements) {
            *value = element(*bytes);
        }
        S::give(&block[..out.len()], out);
    }
}

/// Fills columns of `out`, `[columns, rows]`, from `first` on, with whole rows `[n, columns]` of the
/// matrix to transpose.
pub(super) fn decode_transposed<T: Float>(
    bytes: &[u8],
    from: FloatType,
    columns: usize,
    rows: usize,
    first: usize,
    out: &mut [T],
) {
    let stride = columns * from.size();
    // A piece has TILE columns, which are whole rows of `out` that no other piece writes to.
    out.par_chunks_mut(TILE * rows).enumerate().for_each(|(piece, out)| {
        let mut tile = [T::default(); TILE * TILE];
        let width = out.len() / rows * from.size();
        for (index, bytes) in bytes.chunks(TILE * stride).enumerate() {
            for (row, bytes) in tile.chunks_exact_mut(TILE).zip(bytes.chunks_exact(stride)) {
                let bytes = &bytes[piece * TILE * from.size()..][..width];
                decode_piece(bytes, from, &mut row[..out.len() / rows]);
            }
            let (first, height) = (first + index * TILE, bytes.len() / stride);
            for (column, out) in out.chunks_exact_mut(rows).enumerate() {
                for (row, value) in out[first..][..height].iter_mut().enumerate() {
                    *value = tile[row * TILE + column];
                }
            }
        }
    });
}

/// Returns rows `first..first + height` of the transpose of `values`, `[columns, rows]`.
pub(super) fn rows_of_transpose<T: Float>(
    values: &[T],
    rows: usize,
    columns: usize,
    first: usize,
    height: usize,
) -> Vec<T> {
    let mut out = vec![T::default(); height * columns];
    for r0 in (0..height).step_by(TILE) {
        for c0 in (0..columns).step_by(TILE) {
            for r in r0..(r0 + TILE).min(height) {
                for c in c0..(c0 + TILE).min(columns) {
                    out[r * columns + c] = values[c * rows + first + r];
                }
            }
        }
    }
    out
}

/// Appends `values` as elements of type `to`.
pub(super) fn encode<S: Float>(values: &[S], to: FloatType, bytes: &mut Vec<u8>) {
    match to {
        FloatType::F32 => encode_as::<S, f32>(values, bytes),
        FloatType::F16 => encode_as::<S, f16>(values, bytes),
        FloatType::BF16 => encode_as::<S, bf16>(values, bytes),
    }
}

fn encode_as<S: Float, T: Float>(values: &[S], bytes: &mut Vec<u8>) {
    bytes.reserve(values.len() * T::TYPE.size());
    let mut block = [T::default(); BLOCK];
    for values in values.chunks(BLOCK) {
        S::give(values, &mut block[..values.len()]);
        T::put_bytes(&block[..values.len()], bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::BF16];

    /// More than two blocks and a piece, and not a multiple of either; every type represents these numbers exactly.
    fn values() -> Vec<f32> {
        (0..PIECE + 3000).map(|i| ((i * 7 % 255) as f32 - 127.0) / 8.0).collect()
    }

    #[test]
    fn every_type_converts_into_every_other() {
        let values = values();
        for from in TYPES {
            let mut bytes = Vec::new();
            encode(&values, from, &mut bytes);
            assert_eq!(bytes.len(), values.len() * from.size());
            let mut halves = vec![f16::ZERO; values.len()];
            decode(&bytes, from, &mut halves);
            assert!(halves.iter().zip(&values).all(|(a, b)| a.to_f32() == *b), "{from:?}");
            let mut brains = vec![bf16::ZERO; values.len()];
            decode(&bytes, from, &mut brains);
            assert!(brains.iter().zip(&values).all(|(a, b)| a.to_f32() == *b), "{from:?}");
            for to in TYPES {
                let (mut a, mut b) = (Vec::new(), Vec::new());
                encode(&halves, to, &mut a);
                encode(&brains, to, &mut b);
                assert_eq!(a, b, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn rounding_is_to_nearest_and_overflow_to_infinity() {
        let mut out = [f16::ZERO; 3];
        decode(
            &[1.0f32 + 1.0 / 4096.0, 1.0 + 3.0 / 4096.0, 1e30].map(f32::to_le_bytes).concat(),
            FloatType::F32,
            &mut out,
        );
        // f16 has 10 fraction bits: steps of 1/1024 above 1.
        assert_eq!(out.map(f16::to_f32), [1.0, 1.0 + 1.0 / 1024.0, f32::INFINITY]);
    }

    #[test]
    fn transposing_goes_there_and_back() {
        for (rows, columns) in [(37, 41), (64, 64), (1, 130), (200, 1), (129, 67)] {
            let values: Vec<f32> = (0..rows * columns).map(|i| (i % 251) as f32).collect();
            for from in TYPES {
                let mut bytes = Vec::new();
                encode(&values, from, &mut bytes);
                let mut out = f32::zeros(values.len());
                let mut halves = bf16::zeros(values.len());
                // In two steps, as for two windows of a file.
                let cut = rows / 3 * columns * from.size();
                for (first, bytes) in [(0, &bytes[..cut]), (rows / 3, &bytes[cut..])] {
                    decode_transposed(bytes, from, columns, rows, first, &mut out);
                    decode_transposed(bytes, from, columns, rows, first, &mut halves);
                }
                let at = |r: usize, c: usize| values[r * columns + c];
                assert!((0..rows).all(|r| (0..columns).all(|c| out[c * rows + r] == at(r, c))), "{rows} x {columns}");
                assert!(halves.iter().zip(&out).all(|(a, b)| a.to_f32() == *b), "{rows} x {columns} of {from:?}");
                let back: Vec<f32> = [(0, rows / 2), (rows / 2, rows - rows / 2)]
                    .iter()
                    .flat_map(|(first, height)| rows_of_transpose(&out, rows, columns, *first, *height))
                    .collect();
                assert_eq!(back, values);
            }
        }
    }
}
