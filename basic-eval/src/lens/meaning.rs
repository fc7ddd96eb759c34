//! Rules that decide whether a visual embedding is meaningful. The paper does not state its rule; these are ours.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use basic_data::shapes::{SceneRecord, patch_truth, true_words};
use serde::{Deserialize, Serialize};

use super::token::{TokenText, fold};
use super::{Grid, LensError, Place};

/// Words that are not evidence about an image, such as articles and auxiliary verbs; one per line.
const STOP_WORDS: &str = include_str!("stop_words.txt");

/// The property that makes a nearest token meaningful.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// A content word of the image's caption or answer: see [`content_words`].
    #[default]
    Caption,
    /// A word that is true of the object that covers the patch (in Shapes data); patches without an object don't count.
    Labels,
    /// Any whole word: see [`TokenText::word`].
    Word,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "caption" => Ok(Self::Caption),
            "labels" => Ok(Self::Labels),
            "word" => Ok(Self::Word),
            _ => Err("use caption, labels or word".into()),
        }
    }
}

/// A rule and, optionally, a least similarity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Meaning {
    /// The property that the nearest token must have.
    pub rule: Rule,
    /// The least cosine of the nearest token; `None` for no limit.
    pub min_similarity: Option<f32>,
}

/// The words that are true of an image, in the form that a rule needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    /// For [`Rule::Caption`]: the words that count as true for every patch.
    Words(HashSet<String>),
    /// For [`Rule::Labels`]: the true words of each visual embedding; `None` for one that doesn't count.
    Patches(Vec<Option<[&'static str; 3]>>),
    /// For [`Rule::Word`], which needs no truth.
    Any,
}

impl Meaning {
    /// Whether embedding `index` is meaningful, given its nearest token and the cosine; `None` if it doesn't count.
    pub fn judge(&self, truth: &Truth, index: usize, token: &TokenText, similarity: f32) -> Option<bool> {
        let true_of_it = match truth {
            Truth::Words(words) => words.contains(&token.folded),
            Truth::Patches(patches) => patches.get(index)?.as_ref()?.contains(&token.folded.as_str()),
            Truth::Any => token.word,
        };
        Some(true_of_it && self.min_similarity.is_none_or(|least| similarity >= least))
    }
}

/// The content words of a text: its runs of three letters or more, in lower case, without the stop words in
/// `stop_words.txt`.
pub fn content_words(text: &str) -> HashSet<String> {
    let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| word.chars().count() >= 3).map(fold);
    words.filter(|word| !STOP_WORDS.lines().any(|stop| stop == word)).collect()
}

/// The scenes of a Shapes data set by the names of their images, which [`Rule::Labels`] needs.
#[derive(Debug)]
pub struct Scenes {
    path: PathBuf,
    scenes: HashMap<String, SceneRecord>,
}

impl Scenes {
    /// Reads a `scenes.jsonl` file.
    ///
    /// # Errors
    ///
    /// [`LensError::Labels`] that names the file and the line.
    pub fn read(path: &Path) -> Result<Self, LensError> {
        let wrong = |reason: String| LensError::Labels { labels: path.into(), reason };
        let text = basic_models::outside::read_text(path)
            .map_err(|e| wrong(format!("{e}: the rule labels needs the scenes.jsonl of a Shapes data set")))?;
        let mut scenes = HashMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let scene: SceneRecord = serde_json::from_str(line)
                .map_err(|e| wrong(format!("line {}: {e}: not a scene of a Shapes data set", index + 1)))?;
            scenes.insert(scene.image.clone(), scene);
        }
        Ok(Self { path: path.into(), scenes })
    }

    /// The true words of each visual embedding of an image, whose scene is found by the end of the image's path.
    ///
    /// # Errors
    ///
    /// [`LensError::Labels`] if there is no scene of this image.
    pub fn truth(&self, image: &Path, grid: &Grid) -> Result<Truth, LensError> {
        let names = image.ancestors().filter_map(|above| image.strip_prefix(above).ok());
        let scene =
            names.filter_map(|name| self.scenes.get(name.to_str()?)).last().ok_or_else(|| LensError::Labels {
                labels: self.path.clone(),
                reason: format!(
                    "has no scene of {}: give the scenes.jsonl that lies beside the images",
                    image.display()
                ),
            })?;
        let objects = patch_truth(&scene.scene, scene.render_seed, grid.side);
        let words = |place: &Place| match place {
            Place::Patch { row, column } => {
                let object = objects.get(row * grid.side + column).copied().flatten()?;
                scene.scene.objects().get(object).map(true_words)
            }
            Place::Cls | Place::Register(_) | Place::Query(_) => None,
        };
        Ok(Truth::Patches(grid.places.iter().map(words).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, word: bool) -> TokenText {
        TokenText { token: Some(text.into()), text: text.into(), folded: fold(text), word }
    }

    fn caption(text: &str, min_similarity: Option<f32>) -> impl Fn(&str, f32) -> Option<bool> {
        let (truth, meaning) = (Truth::Words(content_words(text)), Meaning { rule: Rule::Caption, min_similarity });
        move |word, similarity| meaning.judge(&truth, 0, &token(word, true), similarity)
    }

    #[test]
    fn content_words_are_lower_case_runs_of_three_letters_without_stop_words() {
        let mut words: Vec<String> =
            content_words("There is a Dog-house, and it's by the Père's red car (an SUV): 1234 go!")
                .into_iter()
                .collect();
        words.sort();
        assert_eq!(words, ["car", "dog", "house", "père", "red", "suv"]);
        assert!(content_words("").is_empty());
    }

    #[test]
    fn a_caption_makes_its_own_content_words_meaningful_and_no_parts_of_them() {
        let judge = caption("a Dog on the grass", None);
        for (token, expected) in
            [(" dog", true), ("Dog", true), ("grass", true), ("gras", false), ("the", false), ("cat", false)]
        {
            assert_eq!(judge(token, 0.01), Some(expected), "{token}");
        }
    }

    #[test]
    fn a_least_similarity_is_asked_for_besides() {
        let judge = caption("a dog", Some(0.25));
        assert_eq!(
            (judge("dog", 0.25), judge("dog", 0.2499), judge("cat", 0.9)),
            (Some(true), Some(false), Some(false))
        );
    }

    #[test]
    fn labels_count_patches_with_an_object_alone() {
        let meaning = Meaning { rule: Rule::Labels, min_similarity: None };
        let truth = Truth::Patches(vec![None, Some(["red", "circle", "small"])]);
        assert_eq!(meaning.judge(&truth, 0, &token("red", true), 1.0), None);
        assert_eq!(meaning.judge(&truth, 1, &token(" Red", true), 1.0), Some(true));
        assert_eq!(meaning.judge(&truth, 1, &token("blue", true), 1.0), Some(false));
        assert_eq!(meaning.judge(&truth, 2, &token("red", true), 1.0), None);
    }

    #[test]
    fn any_whole_word_will_do_for_the_loosest_rule() {
        let meaning = Meaning { rule: Rule::Word, min_similarity: Some(0.1) };
        assert_eq!(meaning.judge(&Truth::Any, 0, &token("dog", true), 0.2), Some(true));
        assert_eq!(meaning.judge(&Truth::Any, 0, &token("dog", true), 0.0), Some(false));
        assert_eq!(meaning.judge(&Truth::Any, 0, &token("gs!", false), 0.2), Some(false));
    }

    #[test]
    fn the_stop_words_are_what_content_words_compares_with() {
        for word in STOP_WORDS.lines() {
            assert!(word.chars().count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase()), "{word:?}");
        }
        assert!(
            ["red", "small", "left", "two", "dog"].iter().all(|word| !STOP_WORDS.lines().any(|stop| stop == *word))
        );
    }
}
