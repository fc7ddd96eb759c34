//! The supervision methods, one file each, and the objective that combines them.
//!
//! A method is a table in the recipe's `[objective]`. Through [`Method`] it says which decoder layers it needs, and
//! computes its terms. CONTRIBUTING.md lists what adding one takes. The trainer, the evaluation, metrics, reports and
//! studies name no method: they iterate over the terms.

pub mod basic;
mod error;
pub mod viral;

use std::collections::BTreeMap;
use std::fmt;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Losses, Seen, SupervisionLayout, Targets, Term};
use basic::Basic;
use viral::Viral;

pub use error::ObjectiveError;

/// The recipe's table `[objective]`. BASIC's keys are directly in it; every other method has a table below it, under
/// its name. The default is BASIC as in the paper, and nothing else.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Objective {
    /// BASIC.
    #[serde(flatten)]
    pub basic: Basic,
    /// VIRAL; `None` if the recipe has no table for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub viral: Option<Viral>,
}

/// The trainable heads of the methods. They are trained and saved with a run, but are not part of
/// the model's checkpoint.
#[derive(Module, Debug, Default)]
pub struct Heads {
    /// VIRAL's.
    pub viral: Option<viral::Head>,
}

impl Heads {
    /// The names of the methods that have a head here; each is the first part of its parameters' paths.
    pub fn methods(&self) -> Vec<&'static str> {
        self.viral.iter().map(|_| viral::NAME).collect()
    }
}

/// The names of the tables below `[objective]`.
const TABLES: [&str; 1] = [viral::NAME];

/// The terms of all methods, in the order of the methods.
pub const TERMS: &[TermInfo] = &[basic::DAS, basic::SDS, viral::TERM];

/// The names of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermInfo {
    /// Its name in metrics and recipes.
    pub name: &'static str,
    /// Its heading in reports.
    pub title: &'static str,
}

/// The sizes of the model that a method may need to check its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// The decoder's layers (L).
    pub layers: usize,
    /// Its width (d).
    pub width: usize,
    /// The number of visual embeddings of an image that is not cut into tiles (m).
    pub visual_tokens: usize,
    /// The number of an image's patch features and their width, as the projector receives them from the vision encoder.
    pub features: [usize; 2],
    /// Whether each position of an image is a patch, or a square of patches, and not a query that reads the whole image.
    pub patches: bool,
    /// Whether images are cut into tiles, so that the number of their visual embeddings varies.
    pub tiled: bool,
}

/// Where a method's patch features come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSource<'a> {
    /// The model's own vision encoder, which must be frozen.
    Own,
    /// Another vision encoder, by its directory or its name on the hub.
    Encoder(&'a str),
}

/// A supervision method, as its table in a recipe configures it.
pub trait Method: fmt::Debug {
    /// The method's name, which is also that of its table.
    fn name(&self) -> &'static str;

    /// Checks the settings without a model.
    ///
    /// # Errors
    ///
    /// Returns an [`ObjectiveError`] that names the key.
    fn bounds(&self) -> Result<(), ObjectiveError>;

    /// Checks the settings against the model.
    ///
    /// # Errors
    ///
    /// Returns an [`ObjectiveError`] that names the key.
    fn check(&self, model: &ModelShape) -> Result<(), ObjectiveError>;

    /// Whether it supervises anything with these settings.
    fn supervises(&self) -> bool;

    /// Returns an observer for one forward pass over a decoder of `layers` layers, if the method needs one. The
    /// observer works without a gradient.
    fn observer(&self, _layers: usize, _layout: &SupervisionLayout, _device: &Device) -> Option<Box<dyn Observer>> {
        None
    }

    /// The layers (0-based) through whose outputs at the image positions the terms have a gradient.
    fn taps(&self, _layers: usize) -> Vec<usize> {
        Vec::new()
    }

    /// The source of the patch features that the method compares with, if it uses any.
    fn features(&self) -> Option<FeatureSource<'_>> {
        None
    }

    /// Checks patch features of `positions` positions per image against the model.
    ///
    /// # Errors
    ///
    /// Returns an [`ObjectiveError`] that names the key.
    fn check_features(&self, _positions: usize, _model: &ModelShape) -> Result<(), ObjectiveError> {
        Ok(())
    }

    /// The method's terms: always the same ones in the same order. They are 0 if `evidence` is `None` because a batch
    /// has nothing to supervise. `device` is the device of the language model's loss.
    fn terms(&self, evidence: Option<&Evidence>, device: &Device) -> Vec<Term>;
}

/// What a method collects from the decoder's layers while they run, without a gradient.
pub trait Observer: fmt::Debug {
    /// Whether it uses layer `index` (0-based).
    fn wants(&self, index: usize) -> bool;

    /// Takes a layer's output on the residual stream, `[B, T, d]`, and the inputs of its attention.
    fn observe(&mut self, index: usize, hidden: &Tensor<3>, seen: &Seen);

    /// Returns what was collected; `None` if the decoder did not report all of the layers.
    fn finish(self: Box<Self>) -> Option<Targets>;
}

/// What the terms of a method are computed from.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The visual embeddings of all images of the batch, in sample order, `[M, d]`.
    pub v: &'a Tensor<2>,
    /// The raw input embedding table E, `[V, d]`.
    pub table: &'a Tensor<2>,
    /// What the method's own [`Observer`] collected.
    pub targets: Option<&'a Targets>,
    /// The decoder's layers (L).
    pub layers: usize,
    /// The outputs of the tapped layers (0-based) at the image positions, `[M, d]`.
    pub taps: &'a BTreeMap<usize, Tensor<2>>,
    /// The patch features that the method compares with, without a gradient, `[images * positions, width]`, or `[M, width]`
    /// if images are cut into tiles.
    pub features: Option<&'a Tensor<2>>,
    /// The methods' trainable heads.
    pub heads: &'a Heads,
    /// The positions of images and text.
    pub layout: &'a SupervisionLayout,
    /// The number of samples of the whole batch that have an image with text after it, over which
    /// the terms are averaged.
    pub image_samples: usize,
}

impl Objective {
    /// LLaVA's objective: the language-model loss alone.
    pub fn llava() -> Self {
        Basic { das: false, sds: false, ..Basic::default() }.into()
    }

    /// The methods, in the order of their terms.
    pub fn methods(&self) -> Vec<&dyn Method> {
        let viral = self.viral.as_ref().map(|method| method as &dyn Method);
        [Some(&self.basic as &dyn Method), viral].into_iter().flatten().collect()
    }

    /// Whether any method supervises, so that the decoder must be watched.
    pub fn supervises(&self) -> bool {
        self.methods().into_iter().any(Method::supervises)
    }

    /// Checks every setting without a model.
    ///
    /// # Errors
    ///
    /// Returns an [`ObjectiveError`] that names the first key out of its range.
    pub fn bounds(&self) -> Result<(), ObjectiveError> {
        self.methods().into_iter().try_for_each(Method::bounds)
    }

    /// Checks every setting, by itself and against the model.
    ///
    /// # Errors
    ///
    /// Returns an [`ObjectiveError`] that names the first key out of its range.
    pub fn check(&self, model: &ModelShape) -> Result<(), ObjectiveError> {
        self.methods().into_iter().try_for_each(|method| method.check(model))?;
        self.bounds()
    }

    /// Whether a method trains a head of its own.
    pub fn has_head(&self) -> bool {
        self.viral.as_ref().is_some_and(Viral::has_head)
    }

    /// The methods' heads for a decoder of width `decoder` and patch features of width `features`. Their weights are
    /// initialized when they are first used.
    pub fn heads(&self, decoder: usize, features: usize, device: &Device) -> Heads {
        let viral = self.viral.as_ref().filter(|viral| viral.has_head());
        Heads { viral: viral.map(|viral| viral::Head::new(viral.head_widths(decoder, features), device)) }
    }

    /// The same objective with the defaults that depend on the decoder's `layers` written out, for the record of a run.
    ///
    /// # Errors
    ///
    /// Returns [`ObjectiveError`] if a number of layers is not within the decoder's.
    pub fn resolved(&self, layers: usize) -> Result<Self, ObjectiveError> {
        let mut this = self.clone();
        this.basic.k = Some(this.basic.resolve_k(layers)?);
        if let Some(viral) = &mut this.viral {
            viral.layer = Some(viral.resolve_layer(layers)?);
        }
        Ok(this)
    }

    /// The same objective with every setting that has no effect at its default, so that two objectives that
    /// train alike are equal.
    #[must_use]
    pub fn effective(&self) -> Self {
        if !self.supervises() {
            return Self::llava();
        }
        Self { basic: self.basic.effective(), ..self.clone() }
    }

    /// The other vision encoder that a method compares with, by directory or hub name.
    pub fn encoder(&self) -> Option<&str> {
        self.methods().into_iter().find_map(|method| match method.features() {
            Some(FeatureSource::Encoder(name)) => Some(name),
            _ => None,
        })
    }

    /// The key through which a method compares with the model's own vision encoder, which then must be frozen.
    pub fn compares_with_own(&self) -> Option<String> {
        let own = |method: &&dyn Method| method.features() == Some(FeatureSource::Own);
        self.methods().into_iter().find(own).map(|method| format!("{}.target", method.name()))
    }

    /// Checks another encoder, of `positions` patches per image, against the model.
    ///
    /// # Errors
    ///
    /// Returns an [`ObjectiveError`] that names the key.
    pub fn check_encoder(&self, positions: usize, model: &ModelShape) -> Result<(), ObjectiveError> {
        self.methods().into_iter().try_for_each(|method| match method.features() {
            Some(FeatureSource::Encoder(_)) => method.check_features(positions, model),
            _ => Ok(()),
        })
    }

    /// The losses of an empty batch: all 0, with the terms' names and weights.
    pub fn zeros(&self, device: &Device) -> Losses {
        self.losses(Losses::zero(device), None, None)
    }
}

impl From<Basic> for Objective {
    fn from(basic: Basic) -> Self {
        Self { basic, ..Self::default() }
    }
}

/// All keys of the table.
const KEYS: [&str; basic::KEYS.len() + TABLES.len()] = {
    let mut keys = [""; basic::KEYS.len() + TABLES.len()];
    let mut at = 0;
    while at < keys.len() {
        keys[at] = if at < basic::KEYS.len() { basic::KEYS[at] } else { TABLES[at - basic::KEYS.len()] };
        at += 1;
    }
    keys
};

/// A key of the table. It is checked while it is read, so that an error points at its place.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        if KEYS.contains(&key.as_str()) { Ok(Self(key)) } else { Err(D::Error::unknown_field(&key, &KEYS)) }
    }
}

// Serde's `flatten` cannot refuse unknown keys, and loses the place of a wrong value.
impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = Objective;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Objective, A::Error> {
                let mut objective = Objective::default();
                while let Some(Key(key)) = map.next_key()? {
                    match key.as_str() {
                        viral::NAME => objective.viral = map.next_value()?,
                        key => objective.basic.read(key, &mut map)?,
                    }
                }
                Ok(objective)
            }
        }
        deserializer.deserialize_struct("Objective", &KEYS, Table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_written_as_it_is_read() {
        let text = r#"{"das":false,"sds":true,"lambda_das":2.0,"lambda_sds":0.5,"k":3,"layer_weights":"constant","patch_weights":"uniform","target":"refinement","viral":{"weight":0.25,"layer":2,"target":"vision","similarity":"cosine","head_width":64}}"#;
        let read: Objective = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let keys: serde_json::Value = serde_json::from_str(text).unwrap();
        let mut known = KEYS;
        known.sort_unstable();
        assert_eq!(
            keys.as_object().unwrap().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
            known.into()
        );
    }

    #[test]
    fn an_empty_table_is_the_papers_and_an_unknown_key_is_refused() {
        assert_eq!(serde_json::from_str::<Objective>("{}").unwrap(), Objective::default());
        let wrong = serde_json::from_str::<Objective>(r#"{"sdss":false}"#).unwrap_err().to_string();
        assert!(wrong.contains("unknown field `sdss`") && wrong.contains("viral"), "{wrong}");
        let wrong = serde_json::from_str::<Objective>(r#"{"viral":{"weigth":1.0}}"#).unwrap_err().to_string();
        assert!(wrong.contains("unknown field `weigth`"), "{wrong}");
    }

    #[test]
    fn every_term_has_one_name_and_is_known() {
        let objective = Objective { viral: Some(Viral::default()), ..Objective::default() };
        let names: Vec<&str> = objective.zeros(&Device::default()).terms.iter().map(|term| term.name).collect();
        assert_eq!(names, TERMS.iter().map(|term| term.name).collect::<Vec<_>>());
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn objectives_that_train_alike_are_equal_once_they_are_effective() {
        let off = Objective::from(Basic { das: false, sds: false, lambda_das: 7.0, k: Some(1), ..Basic::default() });
        assert_eq!(off.effective(), Objective::llava());
        let one = Objective::from(Basic { sds: false, lambda_sds: 7.0, ..Basic::default() });
        assert_eq!(one.effective(), Basic { sds: false, ..Basic::default() }.into());
        let other = Objective::from(Basic { lambda_das: 7.0, ..Basic::default() });
        assert_ne!(other.effective(), Objective::default());
    }
}
