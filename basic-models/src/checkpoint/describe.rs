//! Describes a directory's content and whether it would load, from configuration files and headers alone. It is meant
//! for broken directories too, so it collects everything that it can find out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Serialize;
use serde_json::{Value, json};

use super::CheckpointError;
use super::config_file::{part, read_config};
use super::gguf::{GgufDecoder, is_gguf};
use super::hub::resolve;
use super::kind::{Kind, kind};
use super::names::{FUSED_TOWERS, Layout, PROJECTOR, vision_names_of};
use super::opened::{Checkpoint, layers};
use super::peft::AdapterFiles;
use super::read::TensorFiles;
use super::source::{Entry, SourceFile};
use super::tied::untie;
use crate::config::{ConfigError, LlavaConfig};
use crate::parameters::{Slot, slots};

/// The description of a directory.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    /// The directory.
    pub path: PathBuf,
    /// What the directory is, if its config.json says so.
    pub kind: Option<Kind>,
    /// The parts' types and sizes, if the configuration is usable.
    pub architecture: Value,
    /// The numbers of parameters on disk.
    pub parameters: Parameters,
    /// The same, by type.
    pub types: BTreeMap<String, TypeReport>,
    /// The files that contain tensors.
    pub files: Vec<FileReport>,
    /// Tensors that the model needs and the files lack.
    pub missing: Vec<String>,
    /// Tensors for which the model has no place.
    pub unexpected: Vec<String>,
    /// Tensors of the wrong shape, with both shapes.
    pub wrong_shapes: Vec<String>,
    /// Whether it would load: a LLaVA checkpoint as it is, adapters with the model that they name, any other model as a
    /// part of a LLaVA model.
    pub loads: bool,
    /// The reasons why it would not load.
    pub problems: Vec<String>,
}

/// The numbers of parameters on disk, by the part of the model to which they belong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// The vision encoder.
    pub vision: usize,
    /// The projector.
    pub projector: usize,
    /// The decoder without its head.
    pub decoder: usize,
    /// The output head; 0 if it is the embedding table.
    pub head: usize,
    /// Parameters that belong to no part.
    pub other: usize,
    /// All parameters.
    pub total: usize,
}

/// The tensors of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TypeReport {
    /// The number of tensors.
    pub tensors: usize,
    /// The number of their elements.
    pub parameters: usize,
    /// The number of their bytes.
    pub bytes: usize,
}

/// A file that contains tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The number of tensors in it; `None` if it could not be read.
    pub tensors: Option<usize>,
}

/// Describes a directory, a hub name in the local Hugging Face cache, or a decoder's GGUF file. No weight is read; `device`
/// is the device of the networks, but nothing is allocated there.
///
/// # Errors
///
/// Returns a [`CheckpointError`] if there is no such directory. Everything else becomes a problem in the description.
pub fn describe(dir: impl AsRef<Path>, device: &Device) -> Result<Description, CheckpointError> {
    let dir = resolve(dir)?;
    if is_gguf(&dir) {
        return describe_gguf(&dir, device);
    }
    std::fs::read_dir(&dir).map_err(CheckpointError::io(&dir))?;
    let mut this = Description::of(&dir);
    let adapters = AdapterFiles::is_at(&dir);
    match read_config(&dir) {
        _ if adapters => this.kind = Some(Kind::Adapters),
        Ok(config) => this.kind = Some(kind(&config)),
        Err(error) => this.problem(&error),
    }
    let layout = match this.kind {
        Some(Kind::Vision) => Layout::Vision,
        Some(Kind::Decoder) => Layout::Decoder,
        Some(Kind::Adapters) => Layout::Adapters,
        _ => Layout::Llava,
    };
    let found = if adapters { AdapterFiles::tensors(&dir) } else { TensorFiles::open(&dir, layout) };
    match found {
        Ok(files) => {
            this.count(files.list());
            for (number, path) in files.paths().enumerate() {
                let tensors = files.list().filter(|(_, entry)| entry.file == number).count();
                this.file(path, Some(tensors));
            }
            this.check(&files, &dir, device);
        }
        Err(error) => {
            this.problem(&error);
            this.salvage(&dir, layout);
        }
    }
    this.loads = this.problems.is_empty();
    Ok(this)
}

/// Describes a decoder in a GGUF file.
fn describe_gguf(path: &Path, device: &Device) -> Result<Description, CheckpointError> {
    std::fs::metadata(path).map_err(CheckpointError::io(path))?;
    let mut this = Description::of(path);
    match GgufDecoder::open(path) {
        Ok(GgufDecoder { beside, files }) => {
            this.kind = Some(Kind::Decoder);
            this.count(files.list());
            this.file(path, Some(files.len()));
            this.check(&files, beside.path(), device);
        }
        Err(error) => {
            this.file(path, None);
            this.problem(&error);
        }
    }
    this.loads = this.problems.is_empty();
    Ok(this)
}

impl Description {
    /// A description that does not say anything yet.
    fn of(path: &Path) -> Self {
        Self {
            path: path.into(),
            kind: None,
            architecture: Value::Null,
            parameters: Parameters::default(),
            types: BTreeMap::new(),
            files: Vec::new(),
            missing: Vec::new(),
            unexpected: Vec::new(),
            wrong_shapes: Vec::new(),
            loads: false,
            problems: Vec::new(),
        }
    }

    fn problem(&mut self, error: &CheckpointError) {
        let text = error.to_string();
        if !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    fn count<'a>(&mut self, tensors: impl Iterator<Item = (&'a str, &'a Entry)>) {
        for (name, entry) in tensors {
            let count = entry.shape.iter().product::<usize>();
            let parts = &mut self.parameters;
            let part = match name {
                name if name.starts_with("vision_tower.") || name.starts_with(FUSED_TOWERS) => &mut parts.vision,
                name if name.starts_with(PROJECTOR) => &mut parts.projector,
                name if name.starts_with("language_model.") => &mut parts.decoder,
                name if name.starts_with("lm_head.") => &mut parts.head,
                _ => &mut parts.other,
            };
            *part += count;
            parts.total += count;
            let kind = self.types.entry(entry.dtype.name()).or_default();
            kind.tensors += 1;
            kind.parameters += count;
            kind.bytes += entry.bytes;
        }
    }

    fn file(&mut self, path: &Path, tensors: Option<usize>) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::metadata(path).map(|meta| meta.len()).unwrap_or_default();
        self.files.push(FileReport { name, bytes, tensors });
    }

    /// Reads the files of a directory that cannot be opened as a whole one by one.
    fn salvage(&mut self, dir: &Path, layout: Layout) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_weights(path)).collect();
        paths.sort();
        for path in paths {
            match SourceFile::open(path.clone(), 0) {
                Ok((_, entries)) => {
                    self.file(&path, Some(entries.len()));
                    let named = |entry| (layout.canonical(&Entry::clone(entry).disk), entry);
                    let named: Vec<(Option<String>, &Entry)> = entries.iter().map(named).collect();
                    self.count(named.iter().filter_map(|(name, entry)| Some((name.as_deref()?, *entry))));
                }
                Err(error) => {
                    self.file(&path, None);
                    self.problem(&error);
                }
            }
        }
    }

    fn check(&mut self, files: &TensorFiles, dir: &Path, device: &Device) {
        let vision = |slot: &Slot| slot.name.starts_with("vision_tower.");
        let decoder = |slot: &Slot| !vision(slot) && !slot.name.starts_with(PROJECTOR);
        match self.kind {
            Some(Kind::Llava | Kind::LlavaOriginal) => match Checkpoint::open(dir) {
                Ok(checkpoint) => self.compare(&checkpoint.config, &checkpoint.files, &|_| true, device),
                Err(error) => {
                    self.problem(&error);
                    // The error may be the tokenizer's; the tensors can be compared all the same.
                    let config = crate::outside::read_json_text(&dir.join("config.json")).ok();
                    if let Some(config) = config.and_then(|text| LlavaConfig::from_json(&text).ok()) {
                        self.compare(&config, files, &|_| true, device);
                    }
                }
            },
            Some(Kind::Vision) => match alone(dir, "vision_config") {
                Ok(config) => self.compare(&config, files, &vision, device),
                Err(error) => self.problem(&error),
            },
            Some(Kind::Decoder) => match alone(dir, "text_config") {
                Ok(mut config) => {
                    if let Err(error) = untie(&mut config, files, dir) {
                        self.problem(&error);
                    }
                    self.compare(&config, files, &decoder, device);
                }
                Err(error) => self.problem(&error),
            },
            Some(Kind::Adapters) => {
                let opened = Checkpoint::open(dir).and_then(|checkpoint| {
                    self.architecture = architecture(&checkpoint.config, Some(Kind::Llava));
                    checkpoint.check_adapters(&checkpoint.config.init(device))
                });
                if let Err(error) = opened {
                    self.problem(&error);
                }
            }
            None => {}
        }
    }

    /// Compares the tensors with those that the configuration requires.
    fn compare(&mut self, config: &LlavaConfig, files: &TensorFiles, mine: &dyn Fn(&Slot) -> bool, device: &Device) {
        self.architecture = architecture(config, self.kind);
        if layers(config) > MOST_LAYERS.max(files.len()) {
            let layers = layers(config);
            self.problems
                .push(format!("config.json: num_hidden_layers is {layers}, there are {} tensors", files.len()));
            return;
        }
        let model = config.init(device);
        let wanted: Vec<Slot> = slots(&model, "").into_iter().filter(|slot| mine(slot)).collect();
        let survey = files.survey(&wanted);
        let vision = vision_names_of(&wanted);
        self.missing = survey.missing.iter().map(|name| files.disk_name(name, vision)).collect();
        self.wrong_shapes = survey.shapes;
        self.unexpected = files.unexpected(&model, "");
        let counts = [("missing", self.missing.len()), ("of the wrong shape", self.wrong_shapes.len())];
        for (what, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            self.problems.push(format!("{}: {count} tensors are {what}", self.path.display()));
        }
        for (entry, dtype) in survey.dtypes {
            let name = entry.disk;
            self.problems.push(format!("tensor {name} is {dtype}: only F32, F16 and BF16 are read"));
        }
    }
}

/// The most layers that are compared although the files may have fewer tensors: many may be missing from a directory.
const MOST_LAYERS: usize = 1000;

fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let weights = name.ends_with(".safetensors") || (name.starts_with("pytorch_model") && name.ends_with(".bin"));
    weights && path.is_file()
}

/// The configuration of a model that has one part from the directory, and LLaVA's defaults for the rest.
fn alone(dir: &Path, section: &str) -> Result<LlavaConfig, CheckpointError> {
    let config = |source: ConfigError| CheckpointError::Config { path: dir.into(), source };
    // The default decoder has no row for the default image token.
    let mut whole = json!({ "model_type": "llava", "image_token_index": 0, "text_config": { "vocab_size": 32000 } });
    whole[section] = part(dir, section)?;
    let mut parsed = LlavaConfig::from_json(&whole.to_string()).map_err(config)?;
    parsed.tie_word_embeddings = parsed.text_config.tie_word_embeddings;
    Ok(parsed)
}

/// The sizes that are worth comparing between models.
fn architecture(config: &LlavaConfig, kind: Option<Kind>) -> Value {
    let pick = |value: Value, keys: &[&str]| -> Value {
        let picked = keys.iter().filter_map(|key| Some((key.to_string(), value.get(*key)?.clone())));
        Value::Object(picked.filter(|(_, value)| !value.is_null()).collect())
    };
    let sizes = ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
    let vision = [&sizes[..], &["image_size", "patch_size"]].concat();
    let decoder = [&sizes[..], &["num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"]].concat();
    let mut out = json!({});
    if kind != Some(Kind::Decoder) {
        out["vision"] = pick(config.vision_config.to_value(), &vision);
    }
    if config.is_fused() {
        let each = config.fused_vision_configs.iter().map(|encoder| pick(encoder.to_value(), &vision));
        out["fused_vision"] = each.collect();
    }
    if matches!(kind, Some(Kind::Llava | Kind::LlavaOriginal)) {
        out["visual_tokens"] = config.visual_tokens().into();
        if config.tiling().cuts() {
            out["image_grid_pinpoints"] = json!(config.image_grid_pinpoints);
            out["most_visual_tokens"] = config.tiling().most_tokens().into();
        }
        if config.vision_config.is_flexible() {
            out["most_visual_tokens"] = config.tiling().most_tokens().into();
        }
        out["vision_feature_layer"] = json!(config.vision_feature_layer);
        out["image_token_index"] = config.image_token_index.into();
    }
    if kind != Some(Kind::Vision) {
        out["decoder"] = pick(config.text_config.to_value(), &decoder);
        out["tied_head"] = config.tied().into();
    }
    out
}
