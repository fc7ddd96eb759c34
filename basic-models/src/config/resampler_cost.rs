//! What a resampler costs: the FLOPs of its products and the memory that its backward pass needs, for plans.

use super::{LlavaConfig, ProjectorKind};

/// The cost of a resampler for one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResamplerCost {
    /// The FLOPs of the products of the forward pass.
    pub flops: f64,
    /// The number of values that the forward pass keeps for the backward pass.
    pub kept: f64,
}

/// The inner width of the Perceiver's attention, 8 heads of 64.
const INNER: f64 = 512.0;
/// The values that a layer norm keeps for each of its inputs.
const NORM: f64 = 4.0;

impl LlavaConfig {
    /// The cost of the projector, if it is a resampler.
    pub fn resampler_cost(&self) -> Option<ResamplerCost> {
        let [p, v, d] = [self.features(), self.feature_width(), self.text_config.hidden_size].map(|x| x as f64);
        let q = self.projector.queries()? as f64;
        let (products, kept) = match self.projector {
            ProjectorKind::Perceiver { layers, .. } => {
                let l = layers as f64;
                // Queries, keys and values, scores and their use, the output, and the feed-forward block.
                let layer =
                    q * d * INNER + (p + q) * (2.0 * d * INNER + 2.0 * q * INNER) + q * INNER * d + 8.0 * q * d * d;
                let kept = (p + q) * ((NORM + 1.0) * d + 2.0 * INNER) + q * (2.0 * INNER + (NORM + 11.0) * d);
                (p * v * d + l * layer, p * (v + d) + l * kept)
            }
            ProjectorKind::QFormer { layers, width, .. } => {
                let (l, w) = (layers as f64, width as f64);
                let crossed = layers.div_ceil(2) as f64;
                let layer = 12.0 * q * w * w + 2.0 * q * q * w;
                let cross = 2.0 * q * w * w + 2.0 * p * v * w + 2.0 * q * p * w;
                // The projections, the output and the norm of an attention; both halves of the feed-forward block.
                let (own, read) = (q * w * (NORM + 6.0), p * 2.0 * w + q * w * (NORM + 4.0));
                let kept = own + q * w * (8.0 + NORM + 1.0);
                (l * layer + crossed * cross + q * w * d, p * v + l * kept + crossed * read + q * w)
            }
            ProjectorKind::CAbstractor { layers, width, .. } => {
                let (l, w) = (layers as f64, width as f64);
                let block = |n: f64, input: f64| {
                    let shortcut = if input == w { 0.0 } else { n * input * w };
                    n * (input * w + 9.0 * w + w * w) + shortcut
                };
                let before = block(p, v) + (l - 1.0) * block(p, w);
                let products = before + q * p * w + l * block(q, w) + q * (w * d + d * d);
                // Three norms, two activations, the convolution, the scaled channels and the sum.
                (products, p * v + l * (p + q) * w * (3.0 * NORM + 7.0) + q * (w + 2.0 * d))
            }
            ProjectorKind::Ldp { .. } => {
                (p * (v * d + d * d) + q * p * d + 9.0 * q * d, p * (v + 3.0 * d) + 2.0 * q * d)
            }
            _ => return None,
        };
        Some(ResamplerCost { flops: 2.0 * products, kept })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flops_are_those_of_the_products() {
        // CLIP ViT-L/14-336 and Vicuna-7B: 576 features of 1024 numbers become embeddings of 4096.
        let config = |name: &str| {
            let value =
                json!({ "model_type": "basic_llava", "projector_type": name, "text_config": { "vocab_size": 32064 } });
            LlavaConfig::from_value(&value).unwrap()
        };
        // Two layers of an MLP over all patches, the pooling to 144, and nine products for each of its numbers.
        let ldp = 576.0 * (1024.0 * 4096.0 + 4096.0 * 4096.0) + 144.0 * 576.0 * 4096.0 + 9.0 * 144.0 * 4096.0;
        assert_eq!(config("ldpv2").resampler_cost().unwrap().flops, 2.0 * ldp);
        for name in ["perceiver", "qformer", "c_abstractor"] {
            let cost = config(name).resampler_cost().unwrap();
            assert!(cost.flops > 1e9 && cost.flops < 1e12 && cost.kept > 0.0, "{name}: {cost:?}");
        }
        assert_eq!(LlavaConfig::default().resampler_cost(), None);
    }
}
