//! Where a file of questions looks for its images, and the folders that they may not leave.

use std::path::{Path, PathBuf};

use basic_models::outside::excerpt;
use thiserror::Error;

use super::DataError;
use super::image_root::{ImageRoot, in_another_form};

/// The folder that the images of a question file are relative to, and those that they may not leave: that one, and what a
/// user added.
///
/// Unlike in a data set an absolute name is no fault in itself, nor one with `..`: what counts is where the file really
/// lies, links followed.
#[derive(Debug, Clone)]
pub struct ImageBase {
    base: PathBuf,
    /// Without links.
    roots: Vec<PathBuf>,
    hint: &'static str,
}

/// How a user of the command line allows more.
const FLAG: &str = "--image-root DIR allows the files below another folder";

/// Why an image is not read.
#[derive(Debug, Error)]
pub enum ImageNameError {
    /// It is not there, or cannot be looked at.
    #[error("image {path}: {source}", path = excerpt(&path.display().to_string()))]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not below the folders.
    #[error("image {name} leads outside the folder {root}, to {real}: {hint}", name = excerpt(name), root = root.display(), real = excerpt(&real.display().to_string()))]
    Outside {
        /// As it is written.
        name: String,
        /// Where it lies.
        real: PathBuf,
        /// What it may not leave.
        root: PathBuf,
        /// How to allow it.
        hint: &'static str,
    },
    /// A folder, a device or a pipe.
    #[error("image {name:?} is not a file", name = excerpt(name))]
    NotAFile {
        /// As it is written.
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
    /// Names relative to `base`, which with `wider` is what they may not leave.
    ///
    /// # Errors
    ///
    /// [`DataError`] where one of them is no folder.
    pub fn new(base: &Path, wider: Option<&Path>) -> Result<Self, DataError> {
        let only = Self { base: base.into(), roots: vec![ImageRoot::new(base)?.real().into()], hint: FLAG };
        match wider {
            Some(folder) => only.widened(folder),
            None => Ok(only),
        }
    }

    /// Names relative to `base`, which may lead to `roots` alone; those that are no folders count for nothing.
    pub fn within(base: &Path, roots: &[PathBuf]) -> Self {
        let real = |root: &PathBuf| Some(ImageRoot::new(root).ok()?.real().into());
        Self { base: base.into(), roots: roots.iter().filter_map(real).collect(), hint: FLAG }
    }

    /// The base of a file of questions: the folder `images` that a user named, or the file's own.
    ///
    /// # Errors
    ///
    /// Those of [`ImageBase::new`].
    pub fn of(images: Option<&Path>, file: &Path, wider: Option<&Path>) -> Result<Self, DataError> {
        Self::new(images.or(file.parent()).unwrap_or(Path::new("")), wider)
    }

    /// With another folder that names may lead to.
    ///
    /// # Errors
    ///
    /// [`DataError`] where it is no folder.
    pub fn widened(mut self, folder: &Path) -> Result<Self, DataError> {
        self.roots.push(ImageRoot::new(folder)?.real().into());
        Ok(self)
    }

    /// With other advice for a name that leads outside.
    #[must_use]
    pub fn advising(self, hint: &'static str) -> Self {
        Self { hint, ..self }
    }

    /// The folder that names are relative to.
    pub fn path(&self) -> &Path {
        &self.base
    }

    /// The folders that no name may leave, without links.
    pub fn roots(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().map(PathBuf::as_path)
    }

    /// The file called `name`, which must be there and lie below one of the folders, links followed.
    ///
    /// # Errors
    ///
    /// [`ImageNameError`] that names it.
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
        // `base-too` begins with the name of the folder and is none below it.
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
