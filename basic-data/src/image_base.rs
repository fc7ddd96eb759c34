//! Resolves the image names in a file of questions, and refuses those that lead out of the allowed folders.

use std::path::{Path, PathBuf};

use basic_models::outside::excerpt;
use thiserror::Error;

use super::DataError;
use super::image_root::{ImageRoot, in_another_form};

/// The folder that the image names in a file of questions are relative to, and the folders that images must lie in:
/// that folder and those that the user added.
///
/// Unlike in a data set, a name may be absolute or contain `..`: only the real location of the file counts, after
/// following links.
#[derive(Debug, Clone)]
pub struct ImageBase {
    base: PathBuf,
    /// The allowed folders, with links resolved.
    roots: Vec<PathBuf>,
    hint: &'static str,
}

/// Tells users of the command line how to allow more folders.
const FLAG: &str = "--image-root DIR allows the files below another folder";

/// Why an image is not read.
#[derive(Debug, Error)]
pub enum ImageNameError {
    /// The file is missing or cannot be accessed.
    #[error("image {path}: {source}", path = excerpt(&path.display().to_string()))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file lies outside the allowed folders.
    #[error("image {name} leads outside the folder {root}, to {real}: {hint}", name = excerpt(name), root = root.display(), real = excerpt(&real.display().to_string()))]
    Outside {
        /// The name as it is written.
        name: String,
        /// Where the file really lies.
        real: PathBuf,
        /// The folder that it must lie in.
        root: PathBuf,
        /// How to allow another folder.
        hint: &'static str,
    },
    /// The name refers to a folder, a device or a pipe.
    #[error("image {name:?} is not a file", name = excerpt(name))]
    NotAFile {
        /// The name as it is written.
        name: String,
    },
}

impl ImageNameError {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

impl ImageBase {
    /// Names are relative to `base` and must lie below it or below `wider`.
    ///
    /// # Errors
    ///
    /// [`DataError`] if one of them is not a folder.
    pub fn new(base: &Path, wider: Option<&Path>) -> Result<Self, DataError> {
        let only = Self { base: base.into(), roots: vec![ImageRoot::new(base)?.real().into()], hint: FLAG };
        match wider {
            Some(folder) => only.widened(folder),
            None => Ok(only),
        }
    }

    /// Names are relative to `base` and must lie below one of `roots`; roots that are not folders are ignored.
    pub fn within(base: &Path, roots: &[PathBuf]) -> Self {
        let real = |root: &PathBuf| Some(ImageRoot::new(root).ok()?.real().into());
        Self { base: base.into(), roots: roots.iter().filter_map(real).collect(), hint: FLAG }
    }

    /// The base of a file of questions: the folder `images` that the user named, or the folder of the file.
    ///
    /// # Errors
    ///
    /// Those of [`ImageBase::new`].
    pub fn of(images: Option<&Path>, file: &Path, wider: Option<&Path>) -> Result<Self, DataError> {
        Self::new(images.or(file.parent()).unwrap_or(Path::new("")), wider)
    }

    /// Allows the files below another folder as well.
    ///
    /// # Errors
    ///
    /// [`DataError`] if it is not a folder.
    pub fn widened(mut self, folder: &Path) -> Result<Self, DataError> {
        self.roots.push(ImageRoot::new(folder)?.real().into());
        Ok(self)
    }

    /// Replaces the advice in the error for a name that leads outside.
    #[must_use]
    pub fn advising(self, hint: &'static str) -> Self {
        Self { hint, ..self }
    }

    /// The folder that names are relative to.
    pub fn path(&self) -> &Path {
        &self.base
    }

    /// The folders that images must lie in, with links resolved.
    pub fn roots(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().map(PathBuf::as_path)
    }

    /// The path of the image `name`, which must exist and lie below one of the folders after following links.
    ///
    /// # Errors
    ///
    /// [`ImageNameError`] that names the image.
    pub fn file(&self, name: &str) -> Result<PathBuf, ImageNameError> {
        let path = match self.path().join(name) {
            path if name.is_ascii() || path.symlink_metadata().is_ok() => path,
            path => in_another_form(self.path(), Path::new(name)).unwrap_or(path),
        };
        if name.is_empty() {
            return Err(ImageNameError::NotAFile { name: name.into() });
        }
        let real = path.canonicalize().map_err(|source| ImageNameError::Io { path: path.clone(), source })?;
        if !self.roots().any(|root| real.starts_with(root)) {
            let root = self.roots.first().unwrap_or(&self.base).clone();
            return Err(ImageNameError::Outside { name: name.into(), real, root, hint: self.hint });
        }
        match real.is_file() {
            true => Ok(path),
            false => Err(ImageNameError::NotAFile { name: name.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ImageBase;

    #[cfg(unix)]
    #[test]
    fn a_name_is_judged_by_where_its_file_lies() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::create_dir_all(base.join("in")).unwrap();
        std::fs::create_dir_all(dir.path().join("base-too")).unwrap();
        for file in ["base/in/x.png", "secret.png", "base-too/y.png"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        symlink("../secret.png", base.join("link.png")).unwrap();
        symlink("..", base.join("up")).unwrap();
        symlink("in/x.png", base.join("same.png")).unwrap();
        let images = ImageBase::new(&base, None).unwrap();
        let absolute = |file: &str| dir.path().join(file).display().to_string();
        let inside =
            ["in/x.png", "./in/x.png", "in/../in/x.png", "../base/in/x.png", "same.png", &absolute("base/in/x.png")];
        for name in inside {
            assert!(images.file(name).is_ok(), "{name}: {:?}", images.file(name));
        }
        // `base-too` begins with the folder's name but does not lie below it.
        let outside = ["../secret.png", "link.png", "up/secret.png", "../base-too/y.png", &absolute("secret.png")];
        for name in outside {
            let said = images.file(name).unwrap_err().to_string();
            assert!(said.contains("leads outside") && said.contains("--image-root"), "{name}: {said}");
        }
        let wider = ImageBase::new(&base, Some(dir.path())).unwrap();
        assert!(inside.iter().chain(&outside).all(|name| wider.file(name).is_ok()));
        for (name, mention) in
            [("in", "not a file"), ("", "not a file"), ("gone.png", "No such file"), ("a\0b", "image")]
        {
            let said = images.file(name).unwrap_err().to_string();
            assert!(said.contains(mention), "{name:?}: {said}");
        }
        std::fs::write(base.join("caf\u{e9}.png"), "").unwrap();
        assert!(images.file("cafe\u{301}.png").is_ok(), "another of Unicode's normal forms");
        assert!(images.file("gone.png").unwrap_err().is_missing());
        let elsewhere = ImageBase::within(&base, &[dir.path().join("base-too"), dir.path().join("gone")]);
        assert!(elsewhere.file("../base-too/y.png").is_ok() && elsewhere.file("in/x.png").is_err());
        assert!(ImageBase::within(&base, &[]).file("in/x.png").is_err());
        assert!(ImageBase::new(&base.join("gone"), None).is_err());
        assert!(ImageBase::new(&base, Some(&dir.path().join("gone"))).is_err());
    }
}
