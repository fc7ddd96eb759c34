//! Quantizes the weights below adapters, in blocks of integers that share a scale.

use burn::module::{ModuleMapper, Param, Quantizer};
use burn::tensor::quantization::{Calibration, QuantValue, ScaleDtype};
use burn::tensor::{Device, Tensor};

use super::{AdapterError, Quantization};

/// Quantizes weights in blocks along their last axis, in the form that the device stores.
pub(crate) struct Blocks(Quantizer);

impl Blocks {
    /// Makes a quantizer for a device.
    ///
    /// # Errors
    ///
    /// Returns [`AdapterError::Invalid`] if the device does not support the type.
    pub fn new(quantize: Quantization, device: &Device) -> Result<Self, AdapterError> {
        if !basic_core::quantizes(device, quantize.bits) {
            return Err(AdapterError::Invalid {
                key: "quantize.bits",
                value: quantize.bits.to_string(),
                reason: "this device does not hold weights in that type: take 8, or another device".into(),
            });
        }
        let value = if quantize.bits == 8 { QuantValue::Q8S } else { QuantValue::Q4S };
        let stored = device.settings().quantization.scheme;
        let scheme = stored.with_value(value).per_block([quantize.block], ScaleDtype::F32);
        Ok(Self(Quantizer::new(Calibration::MinMax, scheme)))
    }

    /// The parameter with its values quantized.
    pub fn quantize<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0.map_float(param)
    }
}
