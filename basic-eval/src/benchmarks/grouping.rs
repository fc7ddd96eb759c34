//! How questions are combined into scores that are not a plain mean over questions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The groups that a question belongs to, for scores that are not a plain mean over questions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grouping {
    /// For each further measure by its name, the group of questions that counts as one: it is right if all of its
    /// questions are. MMVP's pairs, and HallusionBench's figures and question pairs, are such groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub together: BTreeMap<String, String>,
    /// The parts of the benchmark that the question belongs to, the widest first. The score of a part is the mean of the
    /// scores of its parts, whatever the number of their questions, as for CV-Bench.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// MME's pair of questions about one image. A pair scores the mean of its answers and of whether both are right, and
    /// each of the narrowest parts counts 200 points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
}

impl Grouping {
    /// Whether the question counts by itself alone.
    pub fn is_plain(&self) -> bool {
        self.together.is_empty() && self.parts.is_empty() && self.pair.is_none()
    }

    /// The groups of further measures, by name.
    pub(super) fn together<const N: usize>(groups: [(&str, String); N]) -> Self {
        let together = groups.into_iter().map(|(name, group)| (name.to_string(), group)).collect();
        Self { together, ..Self::default() }
    }
}
