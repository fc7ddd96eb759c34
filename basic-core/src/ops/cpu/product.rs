//! Matrix products on slices: a safe interface to the `gemm` crate.

#![allow(unsafe_code)]

/// A matrix in a slice, given by its strides.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix of `rows` rows of `columns` elements; the starts of two rows are `stride` elements apart.
    pub fn rows(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The index after that of the last element.
    fn end(&self) -> usize {
        match self.rows * self.columns {
            0 => 0,
            _ => (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1,
        }
    }
}

/// Whether a product uses rayon's threads. It must not inside a parallel loop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// This thread only.
    One,
    /// Rayon's pool, for products that are large enough.
    Pool,
}

/// `out = a b`, or `out += a b` if `add`. The rows of `out` are as long as those of `b` and `stride` apart.
///
/// # Panics
///
/// Panics if the shapes do not fit each other or a matrix reaches past its slice.
pub fn product(out: &mut [f32], stride: usize, a: Matrix, b: Matrix, add: bool, threads: Threads) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "product: [{m}, {k}] x [{}, {n}]", b.rows);
    assert!(a.end() <= a.data.len() && b.end() <= b.data.len(), "product: a factor reaches past its slice");
    if m * n == 0 {
        return;
    }
    assert!(stride >= n && (m - 1) * stride + n <= out.len(), "product: the result reaches past its slice");
    // SAFETY: both factors and the result lie inside their slices, by the assertions above; `out` is borrowed
    // exclusively, and its rows do not overlap since their stride is at least their length.
    unsafe { multiply(out.as_mut_ptr(), stride, a, b, add, threads) }
}

/// Writes `a b` to a new or used buffer, which is not cleared first.
///
/// # Panics
///
/// Panics if the shapes do not fit each other or a matrix reaches past its slice.
pub fn fill_product(out: &mut Vec<f32>, a: Matrix, b: Matrix, threads: Threads) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "product: [{m}, {k}] x [{}, {n}]", b.rows);
    assert!(a.end() <= a.data.len() && b.end() <= b.data.len(), "product: a factor reaches past its slice");
    out.clear();
    if m * n * k == 0 {
        out.resize(m * n, 0.0);
        return;
    }
    out.reserve_exact(m * n);
    // SAFETY: both factors lie inside their slices; the buffer has room for m n elements, which the product writes
    // without reading them, so that they are initialized when the length is set.
    unsafe {
        multiply(out.as_mut_ptr(), n, a, b, false, threads);
        out.set_len(m * n);
    }
}

/// `out = a b`, or `out += a b`.
///
/// # Safety
///
/// `a` and `b` must fit each other and lie inside their slices; `out` must point to room for `a.rows` rows of
/// `b.columns` elements, `stride` apart, which is at least `b.columns`; with `add` they must be initialized.
unsafe fn multiply(out: *mut f32, stride: usize, a: Matrix, b: Matrix, add: bool, threads: Threads) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let parallelism = match threads == Threads::Pool && m * n * k >= 1 << 21 {
        true => gemm::Parallelism::Rayon(0),
        false => gemm::Parallelism::None,
    };
    // SAFETY: guaranteed by the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_views_are_right() {
        let a: Vec<f32> = (0..3 * 7).map(|x| x as f32 - 4.0).collect(); // 3 rows of 5 elements, 7 apart
        let b: Vec<f32> = (0..4 * 5).map(|x| (x % 6) as f32).collect(); // 4 rows of 5 elements
        let mut out = vec![1.0; 3 * 6];
        let (x, y) = (Matrix::rows(&a, 3, 5, 7), Matrix::rows(&b, 4, 5, 5).t());
        product(&mut out, 6, x, y, true, Threads::One);
        for i in 0..3 {
            for j in 0..4 {
                let expected: f32 = (0..5).map(|l| a[i * 7 + l] * b[j * 5 + l]).sum();
                assert_eq!(out[i * 6 + j], 1.0 + expected);
            }
            assert_eq!(out[i * 6 + 4..(i + 1) * 6], [1.0, 1.0]);
        }
    }

    #[test]
    fn a_used_buffer_holds_the_product_alone() {
        let mut out = vec![7.0; 9];
        let (a, b) = (Matrix::rows(&[1.0, 2.0, 3.0, 4.0], 2, 2, 2), Matrix::rows(&[1.0, 0.0, 1.0, 1.0], 2, 2, 2));
        fill_product(&mut out, a, b, Threads::One);
        assert_eq!(out, [3.0, 2.0, 7.0, 4.0]);
        fill_product(&mut out, Matrix::rows(&[], 2, 0, 0), Matrix::rows(&[], 0, 3, 3), Threads::One);
        assert_eq!(out, [0.0; 6]);
    }

    #[test]
    #[should_panic(expected = "reaches past its slice")]
    fn a_view_that_is_too_large_panics() {
        product(
            &mut [0.0; 4],
            2,
            Matrix::rows(&[0.0; 3], 2, 2, 2),
            Matrix::rows(&[0.0; 4], 2, 2, 2),
            false,
            Threads::One,
        );
    }
}
