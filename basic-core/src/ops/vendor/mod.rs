//! Matrix products by NVIDIA's cuBLASLt on the memory of CubeCL's tensors.
//!
//! CubeCL's own matrix products must be tuned for every shape before they are fast. cuBLASLt chooses an algorithm by a
//! heuristic; on an H200 that was seven times as fast as CubeCL's untuned choice. cuBLASLt is used if the library is
//! found, unless the environment sets `BASIC_CUBLAS=0`; docs/gpu.md has the measurements.

mod ffi;
mod lt;

use std::env;
use std::sync::OnceLock;

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

/// The environment variable that switches cuBLASLt off (0), makes it mandatory (1), or lets nothing wait for the launch of
/// its products (ahead).
pub const SWITCH: &str = "BASIC_CUBLAS";

/// Whether cuBLASLt computes products in this process: it was found and is not switched off.
pub fn used() -> bool {
    static USED: OnceLock<bool> = OnceLock::new();
    *USED.get_or_init(|| !env::var(SWITCH).is_ok_and(|value| value == "0") && lt::is_here())
}

/// Whether products are launched while their callers go on. Not the default until it has been run on a GPU.
fn ahead() -> bool {
    static AHEAD: OnceLock<bool> = OnceLock::new();
    *AHEAD.get_or_init(|| env::var(SWITCH).is_ok_and(|value| value == "ahead"))
}

/// Checks the environment variable.
///
/// # Errors
///
/// Returns a sentence if it is none of 0, 1 and ahead, or if it is 1 or ahead and the library is missing or the driver too old.
pub fn check() -> Result<(), String> {
    match env::var(SWITCH).as_deref() {
        Err(_) | Ok("" | "0") => Ok(()),
        Ok("1" | "ahead") if used() => Ok(()),
        Ok(value @ ("1" | "ahead")) => Err(format!(
            "{SWITCH}={value} asks for cuBLASLt, and libcublasLt.so is neither in the loader's path nor in the CUDA toolkit of \
             CUDA_PATH, or the driver is older than CUDA 12.5: leave {SWITCH} out to multiply with CubeCL"
        )),
        Ok(other) => Err(format!(
            "{SWITCH} is '{other}': 1 multiplies with cuBLASLt, ahead too and waits for no launch, 0 with CubeCL"
        )),
    }
}

/// Whether cuBLASLt computes the products of a device.
pub fn is_on(device: &Device) -> bool {
    used() && format!("{device:?}").contains("Cuda")
}

/// The product as an operation of its own, which Burn's fusion does not touch.
#[backend_extension(Cube, Fusion)]
pub trait VendorOps: Backend {
    /// `a b`, `[.., m, k]` by `[.., k, n]`, summed in f32 and rounded to `dtype`.
    #[fusion(meta = spec)]
    fn vendor_product(a: FloatTensor<Self>, b: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self>;
}

fn spec(a: &TensorSpec, b: &TensorSpec, dtype: &DType) -> TensorSpec {
    TensorSpec::new(product_shape(&a.shape, &b.shape), *dtype)
}

/// The shape of a product; each leading dimension is the same in both or one.
fn product_shape(a: &Shape, b: &Shape) -> Shape {
    let (a, b) = (a.to_vec(), b.to_vec());
    let rank = a.len();
    let mut dims: Vec<usize> = a.iter().zip(&b).map(|(a, b)| *a.max(b)).collect();
    (dims[rank - 2], dims[rank - 1]) = (a[rank - 2], b[rank - 1]);
    Shape::from(dims)
}

impl VendorOps for CubeBackend {
    fn vendor_product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
        match lt::product(&a, &b, dtype) {
            Some(product) => product,
            None => {
                let product = Self::float_matmul(a, b);
                match product.dtype == dtype {
                    true => product,
                    false => Self::float_cast(product, dtype.into()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_has_the_larger_of_the_leading_dimensions() {
        let shape =
            |a: &[usize], b: &[usize]| product_shape(&Shape::from(a.to_vec()), &Shape::from(b.to_vec())).to_vec();
        assert_eq!(shape(&[5, 7], &[7, 3]), [5, 3]);
        assert_eq!(shape(&[2, 1, 5, 7], &[2, 4, 7, 3]), [2, 4, 5, 3]);
    }
}
