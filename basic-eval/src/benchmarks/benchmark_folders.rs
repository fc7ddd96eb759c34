//! Finds the files of benchmarks, and confines their images to permitted folders.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use basic_data::{ImageBase, ImageNameError};

use super::BenchmarkError;

/// LLaVA's folder playground/data/eval, and the further folder that images may lie below.
pub(super) struct Root {
    dir: PathBuf,
    wider: Option<PathBuf>,
    roots: RefCell<Vec<PathBuf>>,
}

/// A benchmark's folder of images.
pub(super) struct Images {
    folder: PathBuf,
    /// `None` if the folder does not exist.
    base: Option<ImageBase>,
}

impl Root {
    pub fn new(dir: &Path, wider: Option<&Path>) -> Self {
        Self { dir: dir.into(), wider: wider.map(Path::to_path_buf), roots: RefCell::default() }
    }

    /// The path of a folder or file below the root.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens `folder` as a folder of images.
    pub fn images(&self, folder: PathBuf) -> Result<Images, BenchmarkError> {
        // The folder may be a symbolic link: people keep one copy of COCO for several benchmarks.
        let base = match folder.is_dir() {
            true => Some(ImageBase::new(&folder, self.wider.as_deref())?.widened(&self.dir)?),
            false => None,
        };
        let found = base.iter().flat_map(ImageBase::roots).map(Path::to_path_buf);
        let mut roots = self.roots.borrow_mut();
        for root in found {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        Ok(Images { folder, base })
    }

    /// The folders that images may lie below.
    pub fn image_roots(self) -> Vec<PathBuf> {
        self.roots.into_inner()
    }
}

impl Images {
    /// The path of an image, which must exist and lie below the permitted folders; `asked` names its question.
    pub fn file(&self, name: &str, asked: &str) -> Result<PathBuf, BenchmarkError> {
        match self.base.as_ref().map(|base| base.file(name)) {
            Some(Ok(path)) => Ok(path),
            Some(Err(source @ ImageNameError::Outside { .. })) => {
                Err(BenchmarkError::Image { asked: asked.into(), source })
            }
            _ => {
                let need = format!("the image of {asked}");
                Err(BenchmarkError::Missing { path: self.folder.join(name), need })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Root;

    #[cfg(unix)]
    #[test]
    fn a_folder_of_images_may_be_a_link_and_an_image_may_not_lead_outside() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["eval/pope/own", "eval/vqav2/val2014", "coco"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["eval/pope/own/a.jpg", "eval/vqav2/val2014/b.jpg", "coco/c.jpg", "secret.jpg"] {
            std::fs::write(at(file), "").unwrap();
        }
        symlink(at("coco"), at("eval/pope/val2014")).unwrap();
        symlink(at("secret.jpg"), at("coco/link.jpg")).unwrap();
        symlink("../../vqav2/val2014/b.jpg", at("eval/pope/own/b.jpg")).unwrap();
        let root = Root::new(&at("eval"), None);
        let linked = root.images(root.join("pope/val2014")).unwrap();
        let own = root.images(root.join("pope/own")).unwrap();
        assert!(linked.file("c.jpg", "x").is_ok() && own.file("a.jpg", "x").is_ok());
        assert!(own.file("b.jpg", "x").is_ok(), "a link to another benchmark's image");
        let secret = at("secret.jpg").display().to_string();
        for (images, name) in [(&linked, "link.jpg"), (&own, "../../../secret.jpg"), (&own, secret.as_str())] {
            let said = images.file(name, "question 3 of q.jsonl").unwrap_err().to_string();
            assert!(said.contains("question 3 of q.jsonl") && said.contains("--image-root"), "{said}");
        }
        assert!(own.file("gone.jpg", "question 3").unwrap_err().to_string().contains("not there"));
        let none = root.images(root.join("pope/none")).unwrap();
        assert!(none.file("a.jpg", "question 3").unwrap_err().to_string().contains("not there"));
        let roots = root.image_roots();
        assert!(roots.contains(&at("coco").canonicalize().unwrap()), "{roots:?}");
        let wider = Root::new(&at("eval"), Some(dir.path()));
        assert!(wider.images(at("coco")).unwrap().file("link.jpg", "x").is_ok());
        assert!(Root::new(&at("eval"), Some(&at("none"))).images(at("coco")).is_err());
    }
}
