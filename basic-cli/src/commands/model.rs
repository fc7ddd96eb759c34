//! Runs `basic losses` and `basic preprocess`, and opens checkpoints and devices for the other commands.

use anyhow::{Result, bail};
use basic_core::TOTAL;
use basic_eval::losses::{inspect, read_samples_within, write_named};
use basic_models::checkpoint::resolve;
use basic_models::processor::{ImageProcessor, open_image_within};
use basic_models::{Batch, Checkpoint};
use burn::tensor::{DType, Device};

use crate::args::{DeviceArg, Dtype, Losses, Preprocess};
use crate::output::{print_json, say, tell};

/// Opens a checkpoint, and warns about tensors on disk that the model does not use.
pub(super) fn open(dir: &std::path::Path, device: &Device) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(dir)?;
    let unexpected = checkpoint.unexpected(device);
    if !unexpected.is_empty() {
        tell!("warning: {}: tensors that the model has no place for: {}", dir.display(), unexpected.join(", "));
    }
    warn(&checkpoint);
    Ok(checkpoint)
}

/// Prints the checkpoint's warnings, where its files contradict its configuration.
pub(super) fn warn(checkpoint: &Checkpoint) {
    for warning in checkpoint.warnings() {
        tell!("warning: {warning}");
    }
}

/// Opens a device and checks that it supports `dtype`, because otherwise the first tensor would panic.
pub(super) fn open_device(arg: &DeviceArg, dtype: Dtype) -> Result<Device> {
    let device = arg.device.open()?;
    let dtype = DType::from(dtype);
    if !device.supports_dtype(dtype) {
        bail!("device '{}' does not compute in {}: choose another --dtype or --device", arg.device, dtype.name());
    }
    Ok(device)
}

/// Runs `basic losses`.
pub fn losses(args: Losses) -> Result<()> {
    let device = open_device(&args.device, args.dtype)?.autodiff();
    let mut checkpoint = open(&args.checkpoint, &device)?;
    checkpoint.images = checkpoint.images.with_max_pixels(args.max_pixels);
    let objective = args.knobs.objective();
    objective.check(&checkpoint.config.shape())?;
    let samples = read_samples_within(&checkpoint, &args.samples, args.image_root.as_deref())?;
    let model = checkpoint.load(args.dtype.into(), &device)?;
    let batch = Batch::collate(&samples, checkpoint.pad_id(), checkpoint.image_shape(), &device);
    let (report, grads) = inspect(model, &batch, &objective)?;
    if let Some(path) = &args.grads {
        write_named(path, &grads)?;
    }
    if args.json {
        return print_json(&report);
    }
    for (name, value) in report.losses.named().chain([(TOTAL, &report.total)]) {
        say!("{name:<5} {value:.6}");
    }
    let norms: Vec<String> = report.grad_norms.named().map(|(name, norm)| format!("{name} {norm:.6}")).collect();
    say!("projector gradient norms: {}", norms.join(", "));
    Ok(())
}

/// Runs `basic preprocess`.
pub fn preprocess(args: Preprocess) -> Result<()> {
    let processor = ImageProcessor::load(&resolve(&args.checkpoint)?)?.with_max_pixels(args.max_pixels);
    let image = open_image_within(&args.image, args.max_pixels)?;
    let each = processor.each().enumerate().map(|(encoder, processor)| {
        let pixels = processor.process_alone(&image)?;
        if let Some((values, [rows, columns])) = processor.padded_behind(&pixels) {
            let most = processor.config().patches.map_or(1, |patches| patches.most);
            let shape = ("spatial_shapes".to_string(), vec![2], vec![rows as f32, columns as f32]);
            return Ok(vec![("pixel_values".to_string(), vec![most, values.len() / most], values), shape]);
        }
        // As transformers' processor of the model gives it: an image that is cut has tiles.
        let tiles = (!processor.config().pinpoints.is_empty()).then_some(pixels.tiles);
        let shape = tiles.into_iter().chain([3, pixels.height, pixels.width]).collect();
        let name = match encoder {
            0 => "pixel_values".to_string(),
            _ => format!("fused_pixel_values.{}", encoder - 1),
        };
        Ok(vec![(name, shape, pixels.data)])
    });
    write_named(&args.out, &each.collect::<Result<Vec<_>>>()?.concat())?;
    Ok(())
}
