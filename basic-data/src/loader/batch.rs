//! From samples that are ready to the tensors of a forward pass.

use basic_models::checkpoint::FrozenEncoder;
use basic_models::nn::Llava;
use basic_models::processor::{ImageProcessor, PixelValues};
use basic_models::{Batch, ImageTokens};
use burn::tensor::{Device, Tensor, TensorData};

use super::{Loaded, LoadedImage, LoaderError, MicroBatch, Preparer};
use crate::{ImageSource, VisionCache, Wanted};

impl MicroBatch {
    /// The batch on the device, with its images' pixel values: for a vision encoder that is trained.
    ///
    /// # Errors
    ///
    /// [`LoaderError::Data`] for an image that had not been decoded and cannot be.
    pub fn batch(&self, preparer: &Preparer, device: &Device) -> Result<Batch, LoaderError> {
        let mut batch = self.text(preparer, device);
        let images = self.images();
        if !images.is_empty() {
            let mut values = Vec::with_capacity(images.len() * preparer.image_shape().iter().product::<usize>());
            for (sample, image) in &images {
                match &image.pixels {
                    Some(pixels) => values.extend_from_slice(&pixels.data),
                    None => values.extend(ready(sample, None, &image.source, None, preparer.images())?.data),
                }
            }
            let [c, h, w] = preparer.image_shape();
            let tiles = values.len() / (c * h * w).max(1);
            let data = TensorData::new(values, [tiles, c, h, w]);
            batch.pixels = Some(Tensor::from_data(data, &device.clone().without_autodiff()));
        }
        Ok(batch)
    }

    /// The batch on the model's device with its images' features: for a vision encoder that is frozen.
    ///
    /// # Errors
    ///
    /// [`LoaderError::Data`] for an image that had not been decoded and cannot be.
    pub fn encoded(&self, preparer: &Preparer, model: &Llava, cache: &mut VisionCache) -> Result<Batch, LoaderError> {
        let mut batch = self.text(preparer, &model.device());
        let images = self.images();
        let wanted: Vec<Wanted> =
            images.iter().map(|(_, image)| Wanted { source: &image.source, known: image.known.as_ref() }).collect();
        let (processor, shape) = (preparer.images(), preparer.image_shape());
        batch.features = cache.features_of(model, processor, shape, &wanted, |index, read| {
            let (sample, image) = images[index];
            ready(sample, read, &image.source, image.pixels.as_ref(), processor)
        })?;
        Ok(batch)
    }

    /// The features of the batch's images by another encoder, which a supervision method compares with; `None` for no
    /// images.
    ///
    /// # Errors
    ///
    /// [`LoaderError::Data`] for an image that cannot be decoded.
    pub fn other_features(
        &self,
        encoder: &FrozenEncoder,
        cache: &mut VisionCache,
    ) -> Result<Option<Tensor<2>>, LoaderError> {
        let images = self.images();
        let wanted: Vec<Wanted> = images
            .iter()
            .map(|(_, image)| Wanted { source: &image.source, known: image.other_known.as_ref() })
            .collect();
        cache.features_of(encoder, encoder.images(), encoder.image_shape(), &wanted, |index, read| {
            let (sample, image) = images[index];
            ready(sample, read, &image.source, image.other_pixels.as_ref(), encoder.images())
        })
    }

    fn text(&self, preparer: &Preparer, device: &Device) -> Batch {
        fn row(samples: &[Loaded]) -> Vec<&ImageTokens> {
            samples.iter().map(|sample| &sample.tokens).collect()
        }
        let rows: Vec<Vec<&ImageTokens>> = self.rows.iter().map(|samples| row(samples)).collect();
        Batch::pack(&rows, preparer.pad(), preparer.image_shape(), device)
    }

    fn images(&self) -> Vec<(&Loaded, &LoadedImage)> {
        let samples = self.rows.iter().flatten();
        samples.flat_map(|sample| sample.images.iter().map(move |image| (sample, image))).collect()
    }
}

/// The pixel values that a worker made, unless the image was read again since or the worker made none.
fn ready(
    sample: &Loaded,
    read: Option<&ImageSource>,
    source: &ImageSource,
    made: Option<&PixelValues>,
    images: &ImageProcessor,
) -> Result<PixelValues, LoaderError> {
    match (read, made) {
        (None, Some(pixels)) => Ok(pixels.clone()),
        (read, _) => {
            let decoded = read.unwrap_or(source).process(images);
            decoded.map_err(|error| LoaderError::image(&sample.file, &sample.place, error.into()))
        }
    }
}
