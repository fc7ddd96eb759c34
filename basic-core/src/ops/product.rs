//! Matrix products and the linear layer, with a backward pass of their own for devices on which a vendor's library
//! computes the products.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Tensor, module};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::Array;
use super::{FusedOps, Kernels};

/// `x W + b`.
///
/// # Shapes
/// - x: `[.., in]`
/// - weight: `[in, out]`
/// - bias: `[out]`
/// - output: `[.., out]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    #[cfg(feature = "cuda")]
    if super::vendor::is_on(&x.device()) && x.shape().num_elements() > 0 {
        let mut dims = x.dims();
        let [inputs, outputs] = weight.dims();
        assert_eq!(dims[D - 1], inputs, "linear: x is {dims:?}, the weight {:?}", weight.dims());
        let rows = x.shape().num_elements() / inputs;
        let y: Tensor<2> = product(x.reshape([rows, inputs]), weight);
        dims[D - 1] = outputs;
        let y = y.reshape(dims);
        return match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        };
    }
    module::linear(x, weight, bias)
}

/// A convolution whose stride is the size of its window, as a vision encoder cuts an image into patches: rows and
/// columns after the last whole patch are left out.
///
/// # Shapes
/// - pixels: `[N, channels, H, W]`
/// - weight: `[out, channels, side, side]`
/// - bias: `[out]`
/// - output: `[N, H / side * W / side, out]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn patches(pixels: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let side = weight.dims()[2];
    // As a product if the vendor's library computes products: the backend's convolution uses tensor cores in TF32.
    #[cfg(feature = "cuda")]
    if super::vendor::is_on(&pixels.device()) && pixels.shape().num_elements() > 0 {
        let ([n, _, height, width], [out, channels, ..]) = (pixels.dims(), weight.dims());
        let (down, across) = (height / side, width / side);
        let whole = pixels.narrow(2, 0, down * side).narrow(3, 0, across * side);
        let cut = whole.reshape([n, channels, down, side, across, side]).permute([0, 2, 4, 1, 3, 5]);
        let inputs = channels * side * side;
        let rows = cut.reshape([n, down * across, inputs]);
        return linear(rows, weight.reshape([out, inputs]).transpose(), bias);
    }
    let options = ConvOptions::new([side; 2], [0; 2], [1; 2], 1);
    let y = module::conv2d(pixels, weight, bias, options); // [N, out, H / side, W / side]
    y.flatten::<3>(2, 3).swap_dims(1, 2)
}

/// `x w`, rounded to the type of the inputs.
///
/// # Shapes
/// - x: `[.., n, k]`
/// - w: `[.., k, m]`, with the same leading dimensions
/// - output: `[.., n, m]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn product<const D: usize>(x: Tensor<D>, w: Tensor<D>) -> Tensor<D> {
    let fits = x.dims()[..D - 2] == w.dims()[..D - 2] && x.dims()[D - 1] == w.dims()[D - 2];
    assert!(fits, "product: x is {:?}, w {:?}", x.dims(), w.dims());
    if x.shape().num_elements() * w.shape().num_elements() == 0 {
        return x.matmul(w);
    }
    Tensor::from_dispatch(Dispatch::product(x.into_dispatch(), w.into_dispatch()))
}

/// `a b`, computed by the backend's own product, in type `dtype`.
pub fn portable<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    Array::<B>(a).matmul(Array(b)).cast(dtype).0
}

fn turned<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_transpose(x)
}

/// `x w`. With G the gradient of the output, the gradients are `G W^T` and `X^T G`. Only operands
/// that these need are kept.
pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    w: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Product;

    impl<B: Kernels> Backward<B, 2> for Product {
        type State = [Option<FloatTensor<B>>; 2];

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let dtype = grad.dtype();
            let ([x, w], [of_x, of_w]) = (ops.state, ops.parents);
            if let (Some(parent), Some(w)) = (of_x, w) {
                grads.register::<B>(parent.id, B::product_kernel(grad.clone(), turned::<B>(w), dtype));
            }
            if let (Some(parent), Some(x)) = (of_w, x) {
                grads.register::<B>(parent.id, B::product_kernel(turned::<B>(x), grad, dtype));
            }
        }
    }

    let (of_x, of_w) = (x.is_tracked(), w.is_tracked());
    let ((x, a), (w, b)) = (x.into_parts(), w.into_parts());
    let y = B::product_kernel(x.clone(), w.clone(), x.dtype());
    match Product.prepare::<C>([a, b]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish([of_w.then_some(x), of_x.then_some(w)], y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}
