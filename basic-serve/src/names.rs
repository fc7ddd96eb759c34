//! The names of the models, after their directories.

use std::path::{Component, Path};

use crate::error::ServeError;

/// The most folders of a path that a name consists of.
const DEEPEST: usize = 16;

/// A name for each checkpoint: the last part of its path, or as many parts as distinguish them all.
///
/// # Errors
///
/// [`ServeError::SameName`] if one checkpoint is given twice.
pub fn model_names(checkpoints: &[impl AsRef<Path>]) -> Result<Vec<String>, ServeError> {
    let parts: Vec<Vec<String>> = checkpoints.iter().map(|path| parts(path.as_ref())).collect();
    let named = |depth: usize| -> Vec<String> {
        parts.iter().map(|parts| parts[parts.len().saturating_sub(depth)..].join("/")).collect()
    };
    let clash = |names: &[String]| {
        let mut pairs = names.iter().enumerate();
        pairs.find_map(|(index, name)| names[..index].contains(name).then(|| name.clone()))
    };
    (1..=DEEPEST)
        .map(named)
        .find(|names| clash(names).is_none())
        .ok_or_else(|| ServeError::SameName(clash(&named(DEEPEST)).unwrap_or_default()))
}

/// The names of the folders on the way to a directory, of the real one if it exists.
fn parts(path: &Path) -> Vec<String> {
    let real = path.canonicalize().unwrap_or_else(|_| path.into());
    let names = real.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    if names.is_empty() { vec!["model".into()] } else { names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_as_much_of_its_path_as_tells_it_from_the_others() {
        assert_eq!(model_names(&["runs/first"]).unwrap(), ["first"]);
        assert_eq!(model_names(&["/no/llava", "/no/basic"]).unwrap(), ["llava", "basic"]);
        assert_eq!(model_names(&["/no/llava/few", "/no/basic/few"]).unwrap(), ["llava/few", "basic/few"]);
        assert_eq!(model_names(&["/"]).unwrap(), ["model"]);
        let twice = model_names(&["/no/a", "/no/a"]).unwrap_err();
        assert!(matches!(twice, ServeError::SameName(name) if name == "no/a"));
    }
}
