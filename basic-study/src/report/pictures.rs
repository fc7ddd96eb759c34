//! Finds the images of answered questions and embeds them in the page.
//!
//! Neither the file of answers, which names the images, nor the record beside it is trusted, and pages are passed on to
//! other people. So an image is embedded only if it lies below a folder that belongs to the evaluation; of any other
//! image the page shows only the name.

use std::path::{Path, PathBuf};

use basic_models::outside::excerpt;

use super::runs::Run;
use crate::pages::picture::Picture;
use basic_data::{ImageBase, ImageNameError};
use basic_eval::benchmarks::Judged;
use basic_eval::compare::Set;

/// Finds the images of one set's answers.
pub(super) struct Pictures {
    /// The places where names are looked up. All have the same permitted folders.
    bases: Vec<ImageBase>,
    /// The folder that is put before a name when it is shown.
    shown: Option<PathBuf>,
}

impl Pictures {
    /// The images of `set`, which belongs to `run`. Images may lie below the folder of the answers, below the folders
    /// that the evaluation recorded, and below `image_root`.
    pub fn of(run: &Run, set: &Set, image_root: Option<&Path>) -> Self {
        let own = set.file.parent().map(Path::to_path_buf).unwrap_or_default();
        let images = set.record.as_ref().and_then(|record| record.images.clone());
        let recorded = match &set.record {
            Some(record) => record.image_roots.clone(),
            None => held_out_root(run).into_iter().collect(),
        };
        let allowed: Vec<PathBuf> = std::iter::once(own.clone())
            .chain(recorded.into_iter().filter(|root| is_a_folder_of_data(root)))
            .chain(image_root.map(Path::to_path_buf))
            .collect();
        // Without a record, names may be relative to the answers' folder, to the user's `--image-root`, or to the
        // working directory, which is how a training run writes them.
        let places = images.clone().into_iter().chain([own]).chain(image_root.map(Path::to_path_buf));
        let bases = places.chain([PathBuf::new()]).map(|place| ImageBase::within(&place, &allowed)).collect();
        Self { bases, shown: images }
    }

    /// The question's image, or the reason why there is none.
    pub fn of_question(&self, judged: &Judged) -> (Option<Picture>, Option<String>) {
        let Some(name) = &judged.image else { return (None, None) };
        let shown = self.shown.as_ref().map_or_else(|| name.clone(), |folder| folder.join(name));
        let shown = excerpt(&shown.display().to_string());
        let found = match name.to_str() {
            Some(name) => self.file(name),
            None => None,
        };
        match found {
            Some(Ok(path)) => match Picture::read(&path) {
                Ok(picture) => (Some(picture), None),
                Err(_) => (None, Some(format!("{shown} cannot be read"))),
            },
            Some(Err(ImageNameError::Outside { .. })) => {
                let way = "it is not below the folders of this evaluation (--image-root DIR allows another)";
                (None, Some(format!("{shown} is not embedded: {way}")))
            }
            _ => (None, Some(format!("{shown} cannot be read"))),
        }
    }

    /// The first file of that name. If there is none, the most informative of the errors.
    fn file(&self, name: &str) -> Option<Result<PathBuf, ImageNameError>> {
        let mut error = None;
        for base in &self.bases {
            match base.file(name) {
                Ok(path) => return Some(Ok(path)),
                Err(ImageNameError::Io { .. }) if error.is_some() => {}
                Err(other) => error = Some(other),
            }
        }
        error.map(Err)
    }
}

/// Whether a folder that a record names may be trusted as a folder of data: a record could name the root of the file
/// system or the user's home directory.
fn is_a_folder_of_data(root: &Path) -> bool {
    let Ok(real) = root.canonicalize() else { return false };
    let home = std::env::home_dir().and_then(|home| home.canonicalize().ok());
    root.is_absolute() && real.parent().is_some() && home.is_none_or(|home| !home.starts_with(&real))
}

/// The folder of the held-out set's images, by the run's recipe.
fn held_out_root(run: &Run) -> Option<PathBuf> {
    let eval = run.recipe()?.get("eval")?;
    let path = |key: &str| eval.get(key)?.as_str().map(PathBuf::from);
    let folder = match (path("images"), path("path")?) {
        (Some(images), _) => images,
        (None, set) if set.is_dir() => set,
        (None, set) => set.parent()?.into(),
    };
    std::path::absolute(folder).ok()
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use serde_json::{Value, json};

    use super::*;
    use basic_eval::benchmarks::ScoreRecord;

    /// Whether an image called `name` is in the page, for answers in `folder` with this record.
    fn embedded(folder: &Path, record: Option<Value>, root: Option<&Path>, name: &str) -> (bool, String) {
        let record: Option<ScoreRecord> = record.map(|mut record| {
            let rest = json!({"name": "x", "checkpoint": "c", "conversation": "template", "measure": null, "questions": 1, "metrics": []});
            record.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            serde_json::from_value(record).unwrap()
        });
        let judged: Judged =
            serde_json::from_value(json!({"question_id": 1, "prompt": "p", "image": name, "answer": "a"})).unwrap();
        let set = Set { name: "x".into(), file: folder.join("x.jsonl"), record, measure: None, judged: vec![] };
        let run =
            Run { name: "x".into(), info: None, steps: vec![], held_out: vec![], sets: vec![], unfinished: vec![] };
        let (picture, missing) = Pictures::of(&run, &set, root).of_question(&judged);
        (picture.is_some(), missing.unwrap_or_default())
    }

    #[test]
    fn an_image_is_embedded_from_the_folders_of_its_evaluation_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["out", "data", "other"] {
            std::fs::create_dir(at(folder)).unwrap();
            RgbImage::new(4, 4).save(at(folder).join("a.png")).unwrap();
        }
        let absolute = |name: &str| at(name).display().to_string();
        let out = at("out");
        let recorded = || Some(json!({"images": at("data"), "image_roots": [at("data")]}));
        assert!(embedded(&out, None, None, "a.png").0, "beside the answers");
        assert!(embedded(&out, recorded(), None, &absolute("data/a.png")).0);
        assert!(embedded(&out, recorded(), None, "a.png").0);
        for (record, name) in [
            (None, "../other/a.png"),
            (None, absolute("other/a.png").as_str()),
            (recorded(), "../other/a.png"),
            (recorded(), absolute("other/a.png").as_str()),
            // The folder that names are relative to is not thereby a permitted folder.
            (Some(json!({"images": at("data")})), "../data/a.png"),
            (Some(json!({"images": "/", "image_roots": ["/"]})), absolute("other/a.png").trim_start_matches('/')),
        ] {
            let (there, said) = embedded(&out, record.clone(), None, name);
            assert!(!there && !said.is_empty(), "{record:?} {name}");
            assert!(embedded(&out, record.clone(), Some(dir.path()), name).0, "{record:?} {name}");
        }
        let (_, said) = embedded(&out, None, None, "../other/a.png");
        assert!(said.contains("not embedded") && said.contains("--image-root"), "{said}");
        assert!(embedded(&out, None, None, "gone.png").1.contains("gone.png cannot be read"));
    }
}
