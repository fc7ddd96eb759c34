//! A column of a study's tables: which quantity it holds and how that is written.

use serde::{Deserialize, Serialize};

/// One quantity behind one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// The stage.
    pub stage: String,
    /// Its key among a run's values.
    pub metric: String,
    /// As tables call it.
    pub label: String,
    /// How it is written.
    pub unit: Unit,
    /// Which way it should go.
    pub better: Better,
    /// Whether it stands in the first table or in the one with the details.
    pub main: bool,
    /// The layer, where it is one of several: they have a table of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerOf>,
}

/// A quantity at one of the decoder's layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerOf {
    /// The quantity, as tables call it.
    pub quantity: String,
    /// 0 for the projector's output, h for decoder layer h.
    pub layer: usize,
}

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share as percent; differences in points.
    Percent,
    /// Three decimals.
    Loss,
    /// Three significant digits.
    Plain,
}

/// Which way a quantity should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Up.
    Higher,
    /// Down.
    Lower,
    /// Neither is better in itself.
    Neither,
}
