//! Creates, reads and writes the trainable heads of supervision methods, which are stored beside the checkpoint.

use std::path::{Path, PathBuf};

use basic_models::checkpoint::ParamPath;
use basic_models::nn::{InitScheme, Llava, seeded_init};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Tensor};

use super::TrainError;
use super::state::{Fill, trained};
use super::tensor_file::{Tensors, write};
use crate::recipe::Recipe;

/// Makes the heads' seed differ from that of a fresh projector.
const SEED: u64 = 0x6865_6164;

/// The file of a method's head in a run's directory.
pub fn head_file(dir: &Path, method: &str) -> PathBuf {
    dir.join(format!("{method}_head.safetensors"))
}

/// Gives the model the heads that the recipe's objective trains: those stored beside the checkpoint that the recipe
/// starts from, or fresh ones drawn from the recipe's seed.
///
/// # Errors
///
/// [`TrainError::Head`] for a head that does not fit the recipe,
/// [`BatchError::Checkpoint`](crate::BatchError::Checkpoint) for an encoder that cannot be opened, and
/// [`TrainError::Io`] for a file that cannot be read.
pub fn with_heads(recipe: &Recipe, mut model: Llava) -> Result<Llava, TrainError> {
    let objective = &recipe.objective;
    if !objective.has_head() {
        return Ok(model);
    }
    let (device, dtype) = (model.device(), recipe.train.dtype.dtype());
    let width = recipe.compared_width(model.config())?;
    let heads = objective.heads(model.config().text_config.hidden_size, width, &device);
    let heads = seeded_init(heads, InitScheme::TorchLinear, recipe.seed ^ SEED, &device).map(&mut Cast(dtype));
    model.heads = heads;
    let Some(dir) = &recipe.model.checkpoint else { return Ok(model) };
    for method in model.heads.methods() {
        let path = head_file(dir, method);
        if path.is_file() {
            model = read(&path, method, model)?;
        }
    }
    Ok(model)
}

/// Writes the heads of a model into a directory, one file per method.
///
/// # Errors
///
/// [`TrainError::Io`] that names the file.
pub fn save_heads(model: &Llava, dir: &Path) -> Result<(), TrainError> {
    for method in model.heads.methods() {
        let path = head_file(dir, method);
        let tensors = trained(&model.heads).into_iter().filter(|tensor| belongs(tensor.name(), method)).collect();
        write(&path, tensors).map_err(|source| TrainError::Io { path, source })?;
    }
    Ok(())
}

fn belongs(name: &str, method: &str) -> bool {
    name.strip_prefix(method).is_some_and(|rest| rest.starts_with('.'))
}

/// Reads one method's head from its file.
fn read(path: &Path, method: &str, mut model: Llava) -> Result<Llava, TrainError> {
    let wrong = |reason: String| TrainError::Head { path: path.into(), reason };
    let file = Tensors::open(path).map_err(|source| TrainError::Io { path: path.into(), source })?;
    let left: Vec<String> = file.names().collect();
    let only = |name: &str| belongs(name, method);
    let mut fill = Fill { path: ParamPath::new(""), file, taken: Vec::new(), failed: None, only: &only };
    model.heads = model.heads.map(&mut fill);
    if let Some(reason) = fill.failed {
        return Err(wrong(reason));
    }
    match left.iter().find(|name| !fill.taken.contains(name)) {
        Some(name) => Err(wrong(format!("holds {name}, which this run's head does not have."))),
        None => Ok(model),
    }
}

/// Casts fresh weights to the type that a run computes in.
struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let tensor = param.val();
        if tensor.dtype() == self.0 {
            return param;
        }
        let data = tensor.without_autodiff().cast(self.0);
        Param::initialized(ParamId::new(), data.autodiff().require_grad())
    }
}
