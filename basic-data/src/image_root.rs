//! Looks up the image files of a data set and refuses paths outside the set's image folder.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use basic_models::outside::excerpt;
use unicode_normalization::UnicodeNormalization;

use super::DataError;

/// The folder below which the image files of a set are looked up.
#[derive(Debug, Clone)]
pub(super) struct ImageRoot {
    path: PathBuf,
    /// The folder with links resolved; no lookup may leave it.
    real: PathBuf,
}

impl ImageRoot {
    /// The folder `path`.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if there is no such folder.
    pub fn new(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.into(), source };
        let real = if path.as_os_str().is_empty() { Path::new(".") } else { path }.canonicalize().map_err(io)?;
        if !real.is_dir() {
            return Err(DataError::Set { path: path.into(), reason: "is not a folder that holds images".into() });
        }
        Ok(Self { path: path.into(), real })
    }

    /// The image root of a set: the folder that the user named, or that of the data file.
    pub fn of(images: Option<&Path>, file: &Path) -> Result<Self, DataError> {
        Self::new(images.or(file.parent()).unwrap_or(Path::new("")))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder with links resolved.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// The path of the image file `name`, which must exist and lie below the folder even after following links. The
    /// error says why it cannot be used.
    pub fn file(&self, name: &str) -> Result<PathBuf, String> {
        self.find("image", name)?.ok_or_else(|| {
            let path = self.path.join(name);
            let hint = "image files are looked up below the data file's folder, or below `data.images`";
            format!("image {} does not exist: {hint}", excerpt(&path.display().to_string()))
        })
    }

    /// The path of the file `name`, or `None` if it does not exist. The error says why it may not be read; `what` is
    /// how it calls the file.
    pub fn find(&self, what: &str, name: &str) -> Result<Option<PathBuf>, String> {
        let relative = Path::new(name);
        let called = excerpt(name);
        if name.is_empty() {
            return Err(format!("the name of an {what} is empty"));
        }
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            let hint = "write paths below the data file's folder, or below `data.images`";
            return Err(format!("{what} {called} leaves its folder {}: {hint}", self.shown()));
        }
        let path = match self.path.join(relative) {
            path if name.is_ascii() || path.symlink_metadata().is_ok() => path,
            path => in_another_form(&self.path, relative).unwrap_or(path),
        };
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{what} {}: {error}", excerpt(&path.display().to_string()))),
        };
        if !self.holds(&real) {
            let hint = "make that folder, or one above it, the set's `images`";
            return Err(format!(
                "{what} {} is a link that leads outside its folder {}, to {}: {hint}",
                path.display(),
                self.shown(),
                real.display()
            ));
        }
        if !real.is_file() {
            return Err(format!("{what} {} is not a file", path.display()));
        }
        Ok(Some(path))
    }

    /// Whether a path without links lies below the folder. In Hugging Face's cache the files are in `blobs` and the
    /// links to them in `snapshots`; such files count as below the folder.
    pub fn holds(&self, real: &Path) -> bool {
        let blobs = || {
            let snapshots = self.real.ancestors().find(|above| above.file_name().is_some_and(|n| n == "snapshots"))?;
            Some(snapshots.parent()?.join("blobs"))
        };
        real.starts_with(&self.real) || blobs().is_some_and(|blobs| real.starts_with(blobs))
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.real.display()
    }
}

/// Finds a path below `folder` whose parts are written in another Unicode normal form: JSON and the file system may
/// encode `é` differently.
pub(super) fn in_another_form(folder: &Path, relative: &Path) -> Option<PathBuf> {
    let mut path = folder.to_path_buf();
    for part in relative.components() {
        let part = part.as_os_str().to_str()?;
        let forms = [part.to_owned(), part.nfc().collect(), part.nfd().collect()];
        path = forms.into_iter().map(|form| path.join(form)).find(|path| path.symlink_metadata().is_ok())?;
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::ImageRoot;

    #[test]
    fn a_file_below_the_folder_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("images");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(root.join("a/x.png"), "").unwrap();
        std::fs::write(dir.path().join("outside.png"), "").unwrap();
        let images = ImageRoot::new(&root).unwrap();
        assert_eq!(images.file("a/x.png").unwrap(), root.join("a/x.png"));
        assert_eq!(images.file("./a/x.png").unwrap(), root.join("./a/x.png"));
        let absolute = dir.path().join("outside.png").display().to_string();
        for (name, mention) in [
            ("../outside.png", "leaves its folder"),
            ("a/../../outside.png", "leaves its folder"),
            (absolute.as_str(), "leaves its folder"),
            ("a/y.png", "does not exist"),
            ("a", "not a file"),
            ("", "empty"),
            ("a\0b", "image"),
        ] {
            let said = images.file(name).unwrap_err();
            assert!(said.contains(mention), "{name}: {said}");
        }
        assert!(ImageRoot::new(&root.join("gone")).is_err());
    }

    #[test]
    fn a_name_in_another_normal_form_is_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let (composed, apart) = ("caf\u{e9}", "cafe\u{301}");
        std::fs::create_dir(dir.path().join(apart)).unwrap();
        std::fs::write(dir.path().join(apart).join(format!("{composed}.png")), "").unwrap();
        let images = ImageRoot::new(dir.path()).unwrap();
        for (folder, file) in [(composed, composed), (apart, apart), (composed, apart), (apart, composed)] {
            let found = images.file(&format!("{folder}/{file}.png")).unwrap();
            assert!(found.is_file(), "{}", found.display());
        }
        assert!(images.file("caf\u{e8}/x.png").unwrap_err().contains("does not exist"));
    }

    #[cfg(unix)]
    #[test]
    fn links_into_the_blobs_of_hugging_faces_cache_are_at_home() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("snapshots/0123/data");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        std::fs::write(dir.path().join("blobs/abc"), "").unwrap();
        std::fs::write(dir.path().join("elsewhere"), "").unwrap();
        symlink("../../../blobs/abc", snapshot.join("a.png")).unwrap();
        symlink("../../../elsewhere", snapshot.join("b.png")).unwrap();
        let images = ImageRoot::new(&snapshot).unwrap();
        assert!(images.file("a.png").is_ok());
        assert!(images.file("b.png").unwrap_err().contains("leads outside"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_may_not_lead_outside_but_the_folder_itself_may_be_one() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (real, elsewhere) = (dir.path().join("real"), dir.path().join("elsewhere"));
        std::fs::create_dir_all(&real).unwrap();
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::fs::write(real.join("x.png"), "").unwrap();
        std::fs::write(elsewhere.join("y.png"), "").unwrap();
        symlink(&real, dir.path().join("link")).unwrap();
        symlink(&elsewhere, real.join("away")).unwrap();
        symlink(real.join("x.png"), real.join("same.png")).unwrap();
        let images = ImageRoot::new(&dir.path().join("link")).unwrap();
        assert!(images.file("x.png").is_ok());
        assert!(images.file("same.png").is_ok());
        assert!(images.file("away/y.png").unwrap_err().contains("leads outside"));
    }
}
