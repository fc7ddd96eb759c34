//! What a result depends on, and its hash: the name under which it is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use basic_data::{DataSet, content_hash};
use basic_train::recipe::{ModelConfig, Part, Recipe};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::AblateError;
use super::held_out::HeldOutConfig;
use super::lens::LensConfig;
use super::places::{Places, within};
use super::resolve::Resolved;
use super::study::{Measure, StopBy, Study};

/// Changes with what results hold or how they are measured.
const FORMAT: u32 = 1;

/// Makes keys. Files are read once, however many cells use them.
pub(super) struct Keys<'a> {
    study: &'a Study,
    places: Places<'a>,
    seen: HashMap<String, Value>,
}

impl<'a> Keys<'a> {
    pub fn new(study: &'a Study, places: Places<'a>) -> Self {
        Self { study, places, seen: HashMap::new() }
    }

    /// The keys of a chain's stages, first stage first.
    pub fn of(&mut self, chain: &[Resolved]) -> Result<Vec<(String, Value)>, AblateError> {
        let layers = self.layers(&chain[0].placed.model);
        let mut trained = Vec::new();
        let mut keys = Vec::new();
        for (stage, resolved) in chain.iter().enumerate() {
            trained.push(self.training(resolved, layers)?);
            let config = &self.study.stages[stage];
            let key = json!({
                "format": FORMAT,
                "world": self.places.world.map(|world| &world.id),
                "stages": trained,
                "measure": self.study.measures(config),
                "evaluation": self.evaluation(&self.study.measures(config)),
                "early_stopping": self.early_stopping(stage, &resolved.named),
            });
            let hash = format!("{:032x}", xxh3_128(key.to_string().as_bytes()));
            keys.push((hash[..16].to_string(), key));
        }
        Ok(keys)
    }

    /// What a stage's weights depend on beside the stage before.
    fn training(&mut self, resolved: &Resolved, layers: Option<usize>) -> Result<Value, AblateError> {
        let recipe = canonical(&resolved.named, layers)?;
        let data = self.data(resolved);
        let model = &resolved.placed.model;
        let named = &resolved.named.model;
        let of = |model: &ModelConfig| -> Vec<PathBuf> {
            let vision = model.vision.iter().flat_map(|vision| vision.all());
            model.checkpoint.iter().chain(vision).chain(&model.llm).cloned().collect()
        };
        let mut files: Vec<Value> = Vec::new();
        for (named, placed) in of(named).iter().zip(&of(model)) {
            files.push(self.directory(named, placed));
        }
        for part in Part::ALL.into_iter().filter(|part| resolved.named.parts.is_apart(*part)) {
            if let (Some(named), Some(placed)) =
                (&resolved.named.parts.of(part).adapters, &resolved.placed.parts.of(part).adapters)
            {
                files.push(self.directory(named, placed));
            }
        }
        if let Some(encoder) = resolved.placed.objective.encoder() {
            files.push(self.directory(Path::new(encoder), Path::new(encoder)));
        }
        Ok(json!({"recipe": recipe, "data": data, "files": files}))
    }

    /// The data's fingerprint; none where it is made with the world or is not here.
    fn data(&mut self, resolved: &Resolved) -> Value {
        if resolved.named.data.all_sets().iter().all(|set| within(&set.path)) {
            return Value::Null;
        }
        let (config, seed) = (resolved.placed.data.clone(), resolved.placed.seed);
        let name = format!("{seed} {}", json!(config));
        let open = || DataSet::open(&config, seed).and_then(|data| data.fingerprint()).ok();
        self.seen.entry(name).or_insert_with(|| json!(open())).clone()
    }

    /// The contents of a model's or questions' folder or file; none where it is not here (a hub's name) or made with
    /// the world.
    fn directory(&mut self, named: &Path, placed: &Path) -> Value {
        if within(named) {
            return Value::Null;
        }
        let name = placed.display().to_string();
        self.seen.entry(name).or_insert_with(|| json!(contents(placed))).clone()
    }

    /// What these measures depend on.
    fn evaluation(&mut self, measures: &[Measure]) -> Value {
        let config = &self.study.evaluation.used_by(measures);
        let mut files = Vec::new();
        let held_out = [&config.captions, &config.choices].into_iter().flatten().map(HeldOutConfig::file);
        let lens = config.lens.iter().flat_map(LensConfig::files);
        let own = config.questions.iter().chain(&config.shapes).chain(lens).map(PathBuf::as_path);
        for path in own.chain(held_out) {
            if let Ok(placed) = self.places.place(path) {
                files.push(self.directory(path, &placed));
            }
        }
        json!({"config": config, "files": files})
    }

    fn early_stopping(&mut self, stage: usize, recipe: &Recipe) -> Value {
        let Some(config) = &self.study.stages[stage].early_stopping else { return Value::Null };
        let questions = config.questions.as_ref().and_then(|path| Some((path, self.places.place(path).ok()?)));
        let questions = questions.map(|(path, placed)| self.directory(path, &placed));
        let held_out = (config.by == StopBy::Loss).then_some(&recipe.eval);
        json!({"config": config, "questions": questions, "eval": held_out})
    }

    /// The decoder's layers, where its configuration is here.
    fn layers(&self, model: &ModelConfig) -> Option<usize> {
        let dir = model.llm.as_ref().or(model.checkpoint.as_ref())?;
        let embedded = self.places.world.is_some_and(|world| dir.starts_with(&world.dir) && !dir.is_dir());
        let text = match embedded {
            true => crate::backbones::embedded().find(|(name, _)| *name == "llm/config.json")?.1.to_vec(),
            false => basic_models::outside::read(&dir.join("config.json")).ok()?,
        };
        let config: Value = serde_json::from_slice(&text).ok()?;
        let own = config.get("text_config").unwrap_or(&config);
        own.get("num_hidden_layers")?.as_u64().map(|layers| layers as usize)
    }
}

/// A recipe without what its result does not depend on, and with defaults written out.
fn canonical(recipe: &Recipe, layers: Option<usize>) -> Result<Value, AblateError> {
    let mut recipe = recipe.clone();
    recipe.optimizer.lr = Some(recipe.lr());
    recipe.resolve_parts();
    if let Some(layers) = layers {
        recipe.objective = recipe.objective.resolved(layers).map_err(basic_train::train::TrainError::from)?;
    }
    // What is off has no weight.
    recipe.objective = recipe.objective.effective();
    let mut value = json!(recipe);
    if let Value::Object(keys) = &mut value {
        ["device", "output", "checkpoint", "watch", "eval"].iter().for_each(|key| drop(keys.shift_remove(*key)));
        if let Some(Value::Object(train)) = keys.get_mut("train") {
            ["vision_store", "vision_store_mib"].iter().for_each(|key| drop(train.shift_remove(*key)));
        }
    }
    Ok(value)
}

/// A hash of a file, or of a folder's files and names.
fn contents(path: &Path) -> Option<String> {
    let mut files: Vec<PathBuf> = if path.is_dir() {
        std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect()
    } else {
        vec![path.into()]
    };
    files.sort();
    let names: Vec<String> =
        files.iter().map(|file| file.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
    let hash = content_hash(&files).ok()?;
    Some(format!("{hash:016x} {:016x}", xxhash_rust::xxh3::xxh3_64(names.join("/").as_bytes())))
}
