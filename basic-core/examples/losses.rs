//! Both losses of BASIC and their gradients, on tensors of your own: what a training loop in Burn adds to its own loss.
//!
//!     cargo run -p basic-core --example losses
//!
//! Here four visual embeddings `v` of width 8 are pulled towards targets `V^`. In training `v` is the projector's output and
//! `V^` what the decoder's shallow layers make of it, which [`basic_core::Supervision`] adds up; here both are random.

use basic_core::{DeviceSpec, directional_alignment, semantic_distribution};
use burn::tensor::{Distribution, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // "auto" takes the first device that the build and the machine have; "cpu", "wgpu:0" and "cuda:0" name one.
    let device = "auto".parse::<DeviceSpec>()?.open()?;
    // Gradients are recorded for tensors on the autodiff side of a device.
    let trained = device.clone().autodiff();
    let (patches, width, vocabulary) = (4, 8, 32);

    let mut v = Tensor::<2>::random([patches, width], Distribution::Normal(0.0, 1.0), &trained);
    let target = Tensor::<2>::random([patches, width], Distribution::Normal(0.0, 1.0), &device);
    // The patch weights a: the attention that the text pays to each patch. Here all are alike.
    let weights = Tensor::<1>::ones([patches], &device) / patches as f32;
    // E, the decoder's input embedding table.
    let table = Tensor::<2>::random([vocabulary, width], Distribution::Normal(0.0, 1.0), &device);

    // The paper's lambdas are 1 and 0.01, for models thousands of times wider.
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
