//! Both losses of BASIC and their gradients on your own tensors, as a training loop in Burn would add them to its loss.
//!
//!     cargo run -p basic-core --example losses
//!
//! Four visual embeddings `v` of width 8 are pulled towards targets `V^`. In training, `v` is the projector's output
//! and `V^` the weighted sum of the decoder's shallow layers at its positions, which [`basic_core::Supervision`]
//! computes; here both are random.

use basic_core::{DeviceSpec, directional_alignment, semantic_distribution};
use burn::tensor::{Distribution, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // "auto" takes the best device of the build and the machine; "cpu", "wgpu:0" and "cuda:0" name one.
    let device = "auto".parse::<DeviceSpec>()?.open()?;
    // Gradients are recorded for tensors on a device with autodiff.
    let trained = device.clone().autodiff();
    let (patches, width, vocabulary) = (4, 8, 32);

    let mut v = Tensor::<2>::random([patches, width], Distribution::Normal(0.0, 1.0), &trained);
    let target = Tensor::<2>::random([patches, width], Distribution::Normal(0.0, 1.0), &device);
    // The patch weights a, in training the attention of the text to each patch. Here all are equal.
    let weights = Tensor::<1>::ones([patches], &device) / patches as f32;
    // E, the decoder's input embedding table.
    let table = Tensor::<2>::random([vocabulary, width], Distribution::Normal(0.0, 1.0), &device);

    // The paper's lambdas, 1 and 0.01, are for models thousands of times wider.
    let (lambda_das, lambda_sds, rate) = (1.0, 0.5, 0.5);
    for step in 0..=100 {
        v = v.detach().require_grad();
        let das = directional_alignment(v.clone(), target.clone(), weights.clone());
        let sds = semantic_distribution(v.clone(), target.clone(), table.clone(), weights.clone());
        if step % 25 == 0 {
            let (das, sds): (f32, f32) = (das.clone().into_scalar(), sds.clone().into_scalar());
            println!("step {step:3}  das {das:.4}  sds {sds:.4}");
        }
        // The gradients were computed together with the values; the backward pass only scales them.
        let gradients = (das * lambda_das + sds * lambda_sds).backward();
        let gradient = v.grad(&gradients).ok_or("v has a gradient")?;
        v = v.detach() - Tensor::from_inner(gradient) * rate;
    }
    Ok(())
}
