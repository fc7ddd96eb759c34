//! Computes the losses and gradients of given samples (`basic losses`), in the form of the Python reference script.

use std::path::{Path, PathBuf};

use basic_core::{Losses, Objective, ObjectiveError};
use basic_data::{DataError, ImageBase, ImageNameError};
use basic_models::checkpoint::ParamPath;
use basic_models::config::Tiles;
use basic_models::nn::{Llava, Projector};
use basic_models::outside::read_text;
use basic_models::processor::{ProcessorError, tokenize_apart};
use basic_models::{Batch, Checkpoint, CheckpointError, ImageTokens};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor, TensorReadError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why the losses of a file could not be computed.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The file of samples could not be read, or the file of gradients could not be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
    },
    /// A line is not a sample.
    #[error("{path}:{line}: {source}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The underlying error.
        source: serde_json::Error,
    },
    /// A sample's text could not be tokenized, or its placeholders do not match its images.
    #[error("{path}:{line}: {source}", path = path.display())]
    Sample {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The underlying error.
        source: ProcessorError,
    },
    /// An image is missing, or it does not lie below its folder.
    #[error("{path}:{line}: {source}", path = path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Names the image and says what to do.
        source: ImageNameError,
    },
    /// A sample is longer than the model's context.
    #[error("{path}:{line}: the sample is {tokens} tokens long, the model's context is {context}: shorten it or leave it out", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The sample's length in tokens.
        tokens: usize,
        /// The model's context in tokens.
        context: usize,
    },
    /// The folder of images could not be opened.
    #[error(transparent)]
    Folder(#[from] DataError),
    /// The file holds no sample.
    #[error("{path}: holds no sample", path = .0.display())]
    Empty(PathBuf),
    /// The checkpoint or an image could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A setting of the supervision method is out of range.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// The device failed while a tensor was read.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// The gradients could not be serialized.
    #[error("{path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        source: safetensors::SafeTensorError,
    },
}

/// The result, with the keys of the reference script's JSON.
#[derive(Debug, Clone, Serialize)]
pub struct LossReport {
    /// The mean cross entropy over all target tokens, and every term of the supervision methods, unweighted.
    #[serde(flatten)]
    pub losses: Losses<f32>,
    /// The weighted sum of the losses.
    pub total: f32,
    /// The length of each sample in tokens.
    pub tokens: Vec<usize>,
    /// The patch weights of each sample, one image after the other.
    pub attention: Vec<Vec<f32>>,
    /// The norm of the projector's gradient, per loss.
    pub grad_norms: Losses<f32>,
}

/// One tensor of the `--grads` file: name, shape, values.
pub type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// A sample of the reference script: images, a prompt with one `<image>` for each of them, and an answer.
#[derive(Debug, Deserialize)]
struct Line {
    image: Option<OneOrMany>,
    prompt: String,
    answer: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Reads the samples of a JSONL file. Image names are relative to the file, and the images must lie below its folder.
/// Prompt and answer are tokenized separately.
///
/// # Errors
///
/// [`InspectError`] that names the file and the line.
pub fn read_samples(checkpoint: &Checkpoint, path: &Path) -> Result<Vec<ImageTokens>, InspectError> {
    read_samples_within(checkpoint, path, None)
}

/// Like [`read_samples`], but images may also lie below the folder `image_root`.
///
/// # Errors
///
/// [`InspectError`] that names the file and the line.
pub fn read_samples_within(
    checkpoint: &Checkpoint,
    path: &Path,
    image_root: Option<&Path>,
) -> Result<Vec<ImageTokens>, InspectError> {
    let text = read_text(path).map_err(|source| InspectError::Io { path: path.into(), source })?;
    let base = ImageBase::of(None, path, image_root)?;
    let context = checkpoint.config.text_config.context();
    let mut samples = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line_number = index + 1;
        let sample: Line = serde_json::from_str(line).map_err(|source| InspectError::Line {
            path: path.into(),
            line: line_number,
            source,
        })?;
        let files = match sample.image {
            None => Vec::new(),
            Some(OneOrMany::One(file)) => vec![file],
            Some(OneOrMany::Many(files)) => files,
        };
        let files = files.iter().map(|name| {
            let wrong = |source| InspectError::Image { path: path.into(), line: line_number, source };
            base.file(name).map_err(wrong)
        });
        let files: Vec<PathBuf> = files.collect::<Result<_, _>>()?;
        let tiles: Vec<Tiles> = files.iter().map(|file| checkpoint.tiles(file)).collect::<Result<_, _>>()?;
        let example = tokenize_apart(&checkpoint.tokenizer, &sample.prompt, &sample.answer, &tiles)
            .map_err(|source| InspectError::Sample { path: path.into(), line: line_number, source })?;
        if example.ids.len() > context {
            let tokens = example.ids.len();
            return Err(InspectError::TooLong { path: path.into(), line: line_number, tokens, context });
        }
        let pixels = files.iter().map(|file| Ok::<_, InspectError>(checkpoint.pixels(file)?.data));
        let pixels: Result<Vec<_>, _> = pixels.collect();
        samples.push(ImageTokens { pixels: pixels?, ..example.into() });
    }
    if samples.is_empty() {
        return Err(InspectError::Empty(path.into()));
    }
    Ok(samples)
}

/// Computes the losses of one batch and the gradient of each loss with respect to v and to the projector's weights.
/// `model` must be on an autodiff device.
///
/// # Errors
///
/// [`InspectError`] if a setting is out of range or the device fails.
pub fn inspect(
    model: Llava,
    batch: &Batch,
    objective: &Objective,
) -> Result<(LossReport, Vec<NamedTensor>), InspectError> {
    // Terms of other methods need heads and encoders that only a training run with those methods has.
    let objective = Objective::from(objective.basic.whole());
    // v is detached into a leaf of its own. das and sds depend on the projector only through v, and a graph can be
    // walked backwards once, so one forward pass gives each loss's gradient with respect to v.
    let mut model = model.freeze();
    let projector = model.multi_modal_projector.clone().unfreeze();
    // It is no visual embedding, so its gradient is that of the leaf itself.
    let newline = projector.image_newline.clone();
    model.multi_modal_projector.image_newline = newline.clone();
    let features = model.features(batch).map(Tensor::without_autodiff);
    let leaf =
        features.clone().map(|f| model.multi_modal_projector.forward(f).without_autodiff().autodiff().require_grad());
    let forward = model.forward_from(batch, &objective, features.clone(), leaf.clone())?;
    let attention = match forward.targets() {
        Some(targets) => targets.weights.clone().try_into_vec_as::<f32>()?,
        None => Vec::new(),
    };
    let losses = model.losses(batch, forward, &objective);
    let values = losses.clone().try_map(|_, value| value.try_into_scalar::<f32>())?;

    let mut grads = Vec::new();
    let grad_norms = losses.try_map(|name, loss| {
        let (mut grad_v, mut grad_newline) = (None, None);
        if let Some(leaf) = &leaf
            && loss.is_tracked()
        {
            let grads = loss.backward();
            grad_v = leaf.grad(&grads);
            grad_newline = newline.as_ref().and_then(|newline| newline.val().grad(&grads));
        }
        let mut named = projector_gradients(&projector, features.clone(), grad_v.clone(), name)?;
        if let Some(grad) = grad_newline
            && let Some((.., values)) = named.iter_mut().find(|(own, ..)| own.ends_with(".image_newline"))
        {
            *values = grad.cast(DType::F32).try_into_vec_as::<f32>()?;
        }
        let squares: f64 = named.iter().flat_map(|(_, _, v)| v).map(|x| f64::from(*x).powi(2)).sum();
        let norm = squares.sqrt() as f32;
        grads.extend(named);
        if let Some(leaf) = &leaf {
            let shape = leaf.dims().to_vec();
            let values = match grad_v {
                Some(grad) => grad.cast(DType::F32).try_into_vec_as::<f32>()?,
                None => vec![0.0; shape.iter().product()],
            };
            grads.push((format!("{name}.v"), shape, values));
        }
        Ok::<f32, TensorReadError>(norm)
    })?;
    let report = LossReport {
        total: values.total(),
        losses: values,
        tokens: batch.lengths.clone(),
        attention: per_sample(batch, &attention),
        grad_norms,
    };
    Ok((report, grads))
}

fn per_sample(batch: &Batch, attention: &[f32]) -> Vec<Vec<f32>> {
    let mut rows = vec![Vec::new(); batch.layout.batch];
    let mut next = 0;
    for image in &batch.layout.images {
        let end = (next + image.positions.len()).min(attention.len());
        // The reference script prints eight decimals.
        rows[image.sample].extend(attention[next..end].iter().map(|a| (a * 1e8).round() / 1e8));
        next = end;
    }
    rows
}

/// Applies the chain rule through the projector: the gradients of `sum(grad_v * v)`, zero if the loss does not reach v.
fn projector_gradients(
    projector: &Projector,
    features: Option<Tensor<2>>,
    grad_v: Option<Tensor<2>>,
    prefix: &str,
) -> Result<Vec<NamedTensor>, TensorReadError> {
    let grads = match (features, grad_v) {
        (Some(features), Some(grad)) => {
            let v = projector.forward(features);
            GradientsParams::from_grads((v * grad).sum().backward(), projector)
        }
        _ => GradientsParams::new(),
    };
    let mut read = Read { grads, prefix, path: ParamPath::default(), named: Vec::new(), failed: None };
    projector.visit(&mut read);
    match read.failed {
        Some(error) => Err(error),
        None => Ok(read.named),
    }
}

struct Read<'a> {
    grads: GradientsParams,
    prefix: &'a str,
    path: ParamPath,
    named: Vec<NamedTensor>,
    failed: Option<TensorReadError>,
}

impl ModuleVisitor for Read<'_> {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let slot = self.path.slot(&param.dims());
        let values = match self.grads.remove::<D>(param.id) {
            None => Ok(vec![0.0; slot.shape.iter().product()]),
            Some(grad) => {
                let grad = if slot.transposed { grad.transpose() } else { grad };
                grad.cast(DType::F32).try_into_vec_as::<f32>()
            }
        };
        match values {
            Ok(values) => self.named.push((format!("{}.{}", self.prefix, slot.name), slot.shape, values)),
            Err(error) => self.failed = Some(error),
        }
    }
}

/// Writes named f32 tensors to a safetensors file, atomically: to a temporary file that is then renamed.
///
/// # Errors
///
/// [`InspectError`] that names the file.
pub fn write_named(path: &Path, tensors: &[NamedTensor]) -> Result<(), InspectError> {
    let failed = |source| InspectError::Write { path: path.into(), source };
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, shape, _), data) in tensors.iter().zip(&bytes) {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        views.push((name.as_str(), view.map_err(failed)?));
    }
    let data = safetensors::serialize(views, None).map_err(failed)?;
    basic_models::atomic_file::write_atomically(path, &data)
        .map_err(|source| InspectError::Io { path: path.into(), source })
}
