//! Applies the activation functions of the configurations.

use basic_core::ops::{gelu, gelu_tanh, quick_gelu, silu};
use burn::tensor::Tensor;

use crate::config::Activation;

/// Applies an activation to each element.
pub fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    match activation {
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::QuickGelu => quick_gelu(x),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tolerance};

    use super::*;

    #[test]
    fn activations_have_the_values_of_pytorch() {
        // torch.nn.functional.{silu, gelu, gelu(approximate="tanh")} and x * sigmoid(1.702 x) at these points.
        let x = [-3.0f32, -1.0, -0.1, 0.0, 0.5, 2.0, 10.0];
        let device: Device = basic_core::DeviceSpec::Cpu.open().unwrap();
        for (activation, expected) in [
            (Activation::Silu, [-0.14227762, -0.26894142, -0.047502081, 0.0, 0.31122967, 1.7615942, 9.999546]),
            (Activation::Gelu, [-0.0040496941, -0.15865525, -0.046017216, 0.0, 0.34573123, 1.9544997, 10.0]),
            (Activation::GeluTanh, [-0.0036373921, -0.15880801, -0.046017249, 0.0, 0.34571401, 1.9545977, 10.0]),
            (Activation::QuickGelu, [-0.01807131, -0.15420423, -0.045755242, 0.0, 0.35038844, 1.9356586, 9.9999996]),
        ] {
            let y = activate(activation, Tensor::<1>::from_floats(x, &device));
            y.into_data().assert_approx_eq::<f32>(&expected.into(), Tolerance::rel_abs(2e-5, 1e-6));
        }
    }
}
