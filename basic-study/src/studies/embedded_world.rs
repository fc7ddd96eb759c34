//! The embedded world below a study's output: backbones and data, made once.

use std::path::{Path, PathBuf};

use basic_data::shapes::write_dataset;
use basic_models::atomic_file::write_atomically;
use basic_models::checkpoint::Contents;
use xxhash_rust::xxh3::xxh3_64;

use super::AblateError;
use super::layout::Layout;
use super::study::WorldConfig;
use crate::backbones::{embedded, write_backbones};

/// The world of a study.
#[derive(Debug, Clone)]
pub(super) struct World {
    config: WorldConfig,
    /// What tells it from another: its sizes and seed, the embedded backbones, and basic's version.
    pub id: String,
    /// Its folder.
    pub dir: PathBuf,
    layout: Layout,
}

impl World {
    pub fn new(config: &WorldConfig, out: &Path, layout: Layout) -> Self {
        let WorldConfig { train, validation, eval, seed } = config;
        let mut text = format!("{} {train} {validation} {eval} {seed}", env!("CARGO_PKG_VERSION"));
        for (name, bytes) in embedded() {
            text += &format!(" {name} {:016x}", xxh3_64(bytes));
        }
        let id = format!("{:016x}", xxh3_64(text.as_bytes()));
        let dir = match layout {
            Layout::Hashed => out.join(format!("world-{id}")),
            Layout::Named => out.into(),
        };
        Self { config: config.clone(), dir, id, layout }
    }

    /// Writes it where it is not there yet.
    pub fn make(&self) -> Result<(), AblateError> {
        if self.layout == Layout::Named {
            return self.write(&self.dir);
        }
        let done = self.dir.join("world.json");
        if done.is_file() {
            return Ok(());
        }
        let partial = self.dir.with_extension("partial");
        for dir in [&partial, &self.dir] {
            if dir.symlink_metadata().is_ok() {
                Contents::World.remove_unmarked(dir)?;
            }
        }
        self.write(&partial)?;
        let text = serde_json::json!({"world": self.config, "version": env!("CARGO_PKG_VERSION")}).to_string();
        write_atomically(&partial.join("world.json"), text.as_bytes()).map_err(AblateError::io(&done))?;
        std::fs::rename(&partial, &self.dir).map_err(AblateError::io(&self.dir))
    }

    fn write(&self, dir: &Path) -> Result<(), AblateError> {
        let backbones = dir.join("backbones");
        write_backbones(&backbones).map_err(AblateError::io(&backbones))?;
        let WorldConfig { train, validation, eval, seed } = self.config;
        write_dataset(&dir.join("data"), train, validation, eval, seed)?;
        Ok(())
    }
}
