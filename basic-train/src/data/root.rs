//! The folder that a set's image files lie in, and nothing outside it.

use std::path::{Component, Path, PathBuf};

use super::DataError;

/// A folder below which image files are looked up.
#[derive(Debug, Clone)]
pub(super) struct ImageRoot {
    path: PathBuf,
    /// Without links; what no lookup may leave.
    real: PathBuf,
}

impl ImageRoot {
    /// The folder `path`.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] where there is no such folder.
    pub fn new(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.into(), source };
        let real = if path.as_os_str().is_empty() { Path::new(".") } else { path }.canonicalize().map_err(io)?;
        if !real.is_dir() {
            return Err(DataError::Set { path: path.into(), reason: "is not a folder that holds images".into() });
        }
        Ok(Self { path: path.into(), real })
    }

    /// The root of a set: the folder that the user named, or that of the data file.
    pub fn of(images: Option<&Path>, file: &Path) -> Result<Self, DataError> {
        Self::new(images.or(file.parent()).unwrap_or(Path::new("")))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder without links.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// The file `name`, which must be there and below the folder, even after following links; or why not.
    pub fn file(&self, name: &str) -> Result<PathBuf, String> {
        let relative = Path::new(name);
        if name.is_empty() {
            return Err("the name of an image is empty".into());
        }
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            let hint = "write paths below the data file's folder, or below `data.images`";
            return Err(format!("image {name} leaves its folder {}: {hint}", self.shown()));
        }
        let path = self.path.join(relative);
        let real = path.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let hint = "image files are looked up below the data file's folder, or below `data.images`";
                format!("image {} does not exist: {hint}", path.display())
            }
            _ => format!("image {}: {error}", path.display()),
        })?;
        if !real.starts_with(&self.real) {
            let hint = "make that folder, or one above it, the set's `images`";
            return Err(format!(
                "image {} is a link that leads outside its folder {}, to {}: {hint}",
                path.display(),
                self.shown(),
                real.display()
            ));
        }
        if !real.is_file() {
            return Err(format!("image {} is not a file", path.display()));
        }
        Ok(path)
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.real.display()
    }
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
