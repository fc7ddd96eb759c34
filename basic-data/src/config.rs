//! The data of a run: one set or a weighted mixture of several, and what happens to samples that cannot be used.

use std::path::PathBuf;

use basic_models::outside::excerpt;
use serde::{Deserialize, Serialize};

mod conversation;
mod loader;
mod skip_limit;

pub use conversation::StyleChoice;
pub use loader::{DrawOrder, LoaderConfig, MAX_BATCH, TooLong};
pub use skip_limit::SkipLimit;

use crate::formats::Format;
use crate::mixture::MAX_WEIGHT;

/// What happens to a sample that cannot be trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The run ends with an error that names it.
    #[default]
    Error,
    /// It is left out, logged and counted, up to [`DataConfig::max_skipped`].
    Skip,
}

/// The data of a run: `path`, or `sets`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The only set: a file, a folder, or a pattern such as `shards-{000..003}.tar`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What image paths are relative to; by default the file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// The set's format, if its name and content don't determine it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The split of a file that holds several (Karpathy's), or several joined by `+`; `train` if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// How conversations are rendered as text.
    #[serde(default)]
    pub conversation: StyleChoice,
    /// Uses only the first `limit` samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// What happens to a sample that cannot be trained on.
    #[serde(default)]
    pub on_error: OnError,
    /// With `on_error = "skip"`: the largest number of different samples that may be left out, as a count or as a share
    /// such as `"1%"`; see [`DataConfig::skip_limit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_skipped: Option<SkipLimit>,
    /// Several sets, instead of `path`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<SetConfig>,
}

/// One of several data sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetConfig {
    /// A file, a folder, or a pattern such as `shards-{000..003}.tar`.
    pub path: PathBuf,
    /// What image paths are relative to; by default the file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// The set's format, if its name and content don't determine it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The split of a file that holds several (Karpathy's), or several joined by `+`; `train` if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Uses only the first `limit` samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// How often an epoch uses the set: 2 uses every sample twice, 0.5 uses half of the samples.
    #[serde(default = "once")]
    pub weight: f64,
}

fn once() -> f64 {
    1.0
}

impl SetConfig {
    /// A whole set, used once per epoch.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), images: None, format: None, split: None, limit: None, weight: 1.0 }
    }
}

impl DataConfig {
    /// One set, with the format detected and every other setting at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }

    /// The sets, from `path` or from `sets`; empty if neither is given, which [`DataConfig::contradiction`] reports.
    pub fn all_sets(&self) -> Vec<SetConfig> {
        match &self.path {
            Some(path) => vec![SetConfig {
                path: path.clone(),
                images: self.images.clone(),
                format: self.format,
                split: self.split.clone(),
                limit: self.limit,
                weight: 1.0,
            }],
            None => self.sets.clone(),
        }
    }

    /// Explains which settings contradict each other and what to write instead; `None` if there is no contradiction.
    pub fn contradiction(&self) -> Option<String> {
        match (&self.path, self.sets.is_empty()) {
            (None, true) => return Some("[data] needs a `path`, or `sets = [{ path = .. }, ..]`".into()),
            (Some(_), false) => return Some("[data] has `path` and `sets`: move the path into `sets`".into()),
            (None, false)
                if self.images.is_some() || self.format.is_some() || self.split.is_some() || self.limit.is_some() =>
            {
                let reason = "data.images, format, split and limit go with `path`: with `sets`, each set has its own";
                return Some(reason.into());
            }
            _ => {}
        }
        let heavy = self.sets.iter().find(|set| !(set.weight > 0.0 && set.weight <= MAX_WEIGHT));
        if let Some(set) = heavy {
            return Some(format!(
                "data.sets: the weight of {} is {:e}: it must be a number above 0 and at most {MAX_WEIGHT}",
                excerpt(&set.path.display().to_string()),
                set.weight
            ));
        }
        if self.limit == Some(0) || self.sets.iter().any(|set| set.limit == Some(0)) {
            return Some("data.limit is 0: a set needs at least one sample".into());
        }
        if self.max_skipped.is_some() && self.on_error == OnError::Error {
            return Some("data.max_skipped goes with `on_error = \"skip\"`".into());
        }
        None
    }

    /// How many of `samples` different samples may be left out: 0 unless `on_error` is [`OnError::Skip`], else
    /// `max_skipped`, whose default is 1% but at least one sample.
    pub fn skip_limit(&self, samples: usize) -> usize {
        match self.on_error {
            OnError::Error => 0,
            OnError::Skip => self.max_skipped.unwrap_or_default().of(samples),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DataConfig, OnError, SkipLimit};

    fn read(text: &str) -> DataConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn one_path_and_several_sets_are_both_lists_of_sets() {
        let one = read("path = \"a.json\"\nimages = \"i\"\nlimit = 3\nformat = \"jsonl\"");
        assert_eq!(one.contradiction(), None);
        let sets = one.all_sets();
        assert_eq!(
            (sets.len(), sets[0].limit, sets[0].weight, sets[0].format),
            (1, Some(3), 1.0, Some("jsonl".parse().unwrap()))
        );
        let two = read("sets = [{ path = \"a.json\", weight = 0.5 }, { path = \"b-{0..3}.tar\", images = \"i\" }]");
        assert_eq!(two.contradiction(), None);
        assert_eq!(two.all_sets().iter().map(|set| set.weight).collect::<Vec<_>>(), [0.5, 1.0]);
    }

    #[test]
    fn what_is_written_reads_as_it_was() {
        let text = "on_error = \"skip\"\nmax_skipped = 7\nsets = [{ path = \"a\" }, { path = \"b\", weight = 2.0 }]";
        let config = read(text);
        assert_eq!(read(&toml::to_string(&config).unwrap()), config);
    }

    #[test]
    fn contradictions_say_what_to_write() {
        for (text, mention) in [
            ("", "`path`"),
            ("path = \"a\"\nsets = [{ path = \"b\" }]", "move the path"),
            ("limit = 3\nsets = [{ path = \"b\" }]", "each set"),
            ("split = \"val\"\nsets = [{ path = \"b\" }]", "each set"),
            ("sets = [{ path = \"b\", weight = 0.0 }]", "above 0"),
            ("sets = [{ path = \"b\", weight = nan }]", "above 0"),
            ("sets = [{ path = \"b\", weight = inf }]", "at most 1000"),
            ("sets = [{ path = \"a\" }, { path = \"b\", weight = 1e300 }]", "of b is 1"),
            ("path = \"a\"\nlimit = 0", "data.limit"),
            ("sets = [{ path = \"b\", limit = 0 }]", "data.limit"),
            ("path = \"a\"\nmax_skipped = 3", "on_error"),
        ] {
            let said = read(text).contradiction().unwrap_or_default();
            assert!(said.contains(mention), "{text}: {said}");
        }
        assert!(toml::from_str::<DataConfig>("path = \"a\"\nformat = \"csv\"").is_err());
    }

    #[test]
    fn nothing_is_skipped_unless_the_policy_says_so() {
        let mut config = DataConfig::new("a.json");
        assert_eq!(config.skip_limit(1000), 0);
        config.on_error = OnError::Skip;
        assert_eq!((config.skip_limit(1000), config.skip_limit(3)), (10, 1));
        config.max_skipped = Some(SkipLimit::Samples(0));
        assert_eq!(config.skip_limit(1000), 0);
        let share = read("path = \"a\"\non_error = \"skip\"\nmax_skipped = \"2.5%\"");
        assert_eq!(share.skip_limit(1000), 25);
        assert_eq!(read(&toml::to_string(&share).unwrap()), share);
    }
}
