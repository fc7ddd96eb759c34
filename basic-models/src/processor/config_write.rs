//! Writes the settings of image processors; config.rs reads them.

use std::path::Path;

use serde_json::{Value, json};

use super::config::{IMAGE_FILE, OTHERS, shortest, write_json};
use super::{ImageKind, ImageProcessorConfig, Patches, Resample, Result, Size};

impl ImageProcessorConfig {
    /// Writes preprocessor_config.json so that transformers 4 and 5 read the same settings back. Settings with padding
    /// are written for `LlavaImageProcessor`, the class that supports it.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Write`](super::ProcessorError::Write).
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_with(&[], dir)
    }

    /// [`ImageProcessorConfig::save`] with the settings for the other vision encoders of a model with several.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Write`](super::ProcessorError::Write).
    pub fn save_with(&self, others: &[&Self], dir: &Path) -> Result<()> {
        let mut out = self.to_json();
        if !others.is_empty() {
            out[OTHERS] = others.iter().map(|other| other.to_json()).collect();
        }
        write_json(&dir.join(IMAGE_FILE), &out)
    }

    fn to_json(&self) -> Value {
        let class = match self.kind {
            _ if self.pad.is_some() => "LlavaImageProcessor",
            ImageKind::Clip => "CLIPImageProcessor",
            ImageKind::Siglip => "SiglipImageProcessor",
            ImageKind::Siglip2 => "Siglip2ImageProcessor",
            ImageKind::Llava => "LlavaImageProcessor",
            ImageKind::LlavaNext => "LlavaNextImageProcessor",
        };
        let mut out = json!({
            "image_processor_type": class,
            "do_resize": self.size.is_some() || self.patches.is_some(),
            "resample": match self.resample { Resample::Bilinear => 2, Resample::Bicubic => 3 },
            "do_center_crop": self.crop.is_some(),
            "do_rescale": self.rescale_factor.is_some(),
            "do_normalize": self.normalize.is_some(),
            "do_convert_rgb": true,
        });
        if self.pad.is_some() || self.kind == ImageKind::Llava {
            out["do_pad"] = json!(self.pad.is_some());
        }
        if self.kind == ImageKind::LlavaNext {
            out["image_grid_pinpoints"] = json!(self.pinpoints);
        }
        if let Some(Patches { size, most, .. }) = self.patches {
            out["patch_size"] = json!(size);
            out["max_num_patches"] = json!(most);
        }
        if let Some(size) = self.size {
            out["size"] = match size {
                Size::ShortestEdge(edge) => json!({ "shortest_edge": edge }),
                Size::Exact { height, width } => json!({ "height": height, "width": width }),
            };
        }
        if let Some((height, width)) = self.crop {
            out["crop_size"] = json!({ "height": height, "width": width });
        }
        if let Some(factor) = self.rescale_factor {
            out["rescale_factor"] = json!(factor);
        }
        if let Some((mean, std)) = self.normalize {
            out["image_mean"] = json!(mean.map(shortest));
            out["image_std"] = json!(std.map(shortest));
        }
        if let Some(color) = self.pad
            && self.normalize.is_none()
        {
            // transformers computes the colour from the mean even if it does not normalize.
            out["image_mean"] = json!(color.map(|value| (f64::from(value) + 0.5) / 255.0));
        }
        out
    }
}
