//! A folder with a folder of images for each class, as ImageNet and torchvision's `ImageFolder` have it. The class, which is
//! the name of an image's own folder, is its caption.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::export::{ExportError, Named, Sharding, Writer};
use super::folder::images_below;
use super::format::{DataFormat, Opening, Reader};
use super::image_root::ImageRoot;
use super::sample_record::{self as record, Fault};
use super::stamps::Stamps;
use super::{DataError, ImageSource, Sample, Samples, fingerprint};

/// The format for a folder of classes. It must be named, because a folder of images without captions may as well lack
/// them by mistake.
pub(super) struct ClassFolder;

impl DataFormat for ClassFolder {
    fn name(&self) -> &'static str {
        "classes"
    }

    fn lies_in(&self, _: &Path, _: &[PathBuf]) -> bool {
        false
    }

    fn files_of(&self, dir: &Path) -> Result<Vec<PathBuf>, DataError> {
        Ok(vec![dir.into()])
    }

    fn holds_images(&self, _: &Path) -> bool {
        true
    }

    fn open(&self, set: &Opening<'_>, _: &mut Stamps) -> Result<Box<dyn Reader>, DataError> {
        Ok(Box::new(ClassData::open(set.single()?, set.limit)?))
    }

    fn writer(&self, _: Named, _: Sharding) -> Result<Box<dyn Writer>, ExportError> {
        let reason = "a folder of classes has no place for conversations: use another format";
        Err(ExportError::Impossible(reason.into()))
    }
}

/// A data set of image files in folders of classes, which may nest.
#[derive(Debug)]
pub struct ClassData {
    dir: Arc<Path>,
    root: ImageRoot,
    /// Paths relative to the folder, sorted.
    images: Vec<Box<str>>,
}

impl ClassData {
    /// Lists the images below `dir`; `limit` keeps only the first ones.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the folder if it does not exist or holds no image, or the image that lies in no folder of
    /// a class.
    pub fn open(dir: &Path, limit: Option<usize>) -> Result<Self, DataError> {
        let root = ImageRoot::new(dir)?;
        let images = images_below(dir, limit)?;
        if let Some(loose) = images.iter().find(|name| class(name).is_none()) {
            let reason = format!("its image {loose} lies in no folder, whose name would be its class");
            return Err(DataError::Set { path: dir.into(), reason });
        }
        Ok(Self { dir: dir.into(), root, images })
    }

    fn files(&self) -> Vec<PathBuf> {
        self.images.iter().map(|name| self.dir.join(&**name)).collect()
    }
}

/// The name of the folder that an image lies in.
fn class(name: &str) -> Option<&str> {
    Path::new(name).parent()?.file_name()?.to_str()
}

impl Reader for ClassData {
    fn root(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn hash(&self) -> Result<u64, DataError> {
        Ok(fingerprint::of_names(&self.dir, &self.files()))
    }

    fn many(&self) -> Vec<PathBuf> {
        self.files()
    }
}

impl Samples for ClassData {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let name = &self.images[index];
        let place = record::place(index, &json!(name));
        let image = self.root.file(name).map_err(|reason| Fault::Image(reason).at(&self.dir, &place))?;
        let record = json!({"caption": class(name).unwrap_or_default()});
        record::sample(&self.dir, place.clone(), &record, vec![ImageSource::File(image)])
    }
}

#[cfg(test)]
mod tests {
    use super::ClassData;
    use crate::Samples;

    #[test]
    fn an_images_class_is_the_folder_that_it_lies_in() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["animal/dog/1.jpg", "animal/red fox/2.png", "tree/3.webp", "tree/notes.md"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let data = ClassData::open(dir.path(), None).unwrap();
        let told: Vec<String> = (0..data.len()).map(|i| data.sample(i).unwrap().messages[1].content.clone()).collect();
        assert_eq!(told, ["dog", "red fox", "tree"]);
        assert_eq!(ClassData::open(dir.path(), Some(2)).unwrap().len(), 2);
        std::fs::write(dir.path().join("loose.png"), "").unwrap();
        let error = ClassData::open(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("loose.png lies in no folder"), "{error}");
        assert!(ClassData::open(&dir.path().join("tree/none"), None).is_err());
    }
}
