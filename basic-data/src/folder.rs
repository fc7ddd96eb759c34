//! A folder of images, each with its caption in a `.txt` file of the same name; subfolders are included.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::outside;
use serde_json::json;

use super::export::{ExportError, Named, Sharding, Writer};
use super::format::{DataFormat, Opening, Reader};
use super::image_root::ImageRoot;
use super::llava::{Layout, LlavaData};
use super::locate::{at_home, is_image, walk};
use super::sample_record::{self as record, Fault};
use super::stamps::Stamps;
use super::{DataError, ImageSource, Sample, Samples, fingerprint};

/// The metadata file of Hugging Face's imagefolder format.
const METADATA: &str = "metadata.jsonl";

/// The format for a folder of images with captions.
pub(super) struct ImageFolder;

impl DataFormat for ImageFolder {
    fn name(&self) -> &'static str {
        "folder"
    }

    fn owns(&self, dir: &Path) -> bool {
        dir.join(METADATA).is_file()
    }

    fn lies_in(&self, dir: &Path, files: &[PathBuf]) -> bool {
        // The images beside an exported JSON file have no captions.
        let exported = [Layout::Array, Layout::Lines].iter().any(|layout| dir.join(layout.file_name()).is_file());
        let captioned = |file: &PathBuf| files.binary_search(&file.with_extension("txt")).is_ok();
        files.iter().any(|file| is_image(file) && (!exported || captioned(file)))
    }

    fn files_of(&self, dir: &Path) -> Result<Vec<PathBuf>, DataError> {
        Ok(vec![dir.into()])
    }

    fn holds_images(&self, path: &Path) -> bool {
        !path.join(METADATA).is_file()
    }

    fn open(&self, set: &Opening<'_>, stamps: &mut Stamps) -> Result<Box<dyn Reader>, DataError> {
        let folder = set.single()?;
        let metadata = folder.join(METADATA);
        stamps.extend(Stamps::of(std::slice::from_ref(&metadata)));
        if !metadata.is_file() {
            return Ok(Box::new(FolderData::open(folder, set.limit)?));
        }
        at_home(folder, &metadata)?;
        Ok(Box::new(LlavaData::open_as(&metadata, Layout::Lines, set.images, set.limit)?))
    }

    fn writer(&self, _: Named, _: Sharding) -> Result<Box<dyn Writer>, ExportError> {
        let reason = "a folder of images has no place for conversations: use another format";
        Err(ExportError::Impossible(reason.into()))
    }
}

impl Reader for FolderData {
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

/// The images below `dir` as sorted paths relative to it; `limit` keeps only the first ones.
pub(crate) fn images_below(dir: &Path, limit: Option<usize>) -> Result<Vec<Box<str>>, DataError> {
    let files = walk(dir)?;
    let relative = |file: &PathBuf| {
        let inside = file.strip_prefix(dir).ok()?;
        let reason = || format!("{}: the name is not UTF-8: rename the file", inside.display());
        let unnamed = || DataError::Set { path: dir.into(), reason: reason() };
        is_image(file).then(|| inside.to_str().map(Into::into).ok_or_else(unnamed))
    };
    let images = files.iter().filter_map(relative).take(limit.unwrap_or(usize::MAX));
    let images = images.collect::<Result<Vec<Box<str>>, _>>()?;
    match images.is_empty() {
        true => Err(DataError::Empty(dir.into())),
        false => Ok(images),
    }
}

/// A data set of image files and their captions.
#[derive(Debug)]
pub struct FolderData {
    dir: Arc<Path>,
    root: ImageRoot,
    /// Paths relative to the folder, sorted.
    images: Vec<Box<str>>,
}

impl FolderData {
    /// Lists the images below `dir`; `limit` keeps only the first ones.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the folder if it does not exist or holds no image.
    pub fn open(dir: &Path, limit: Option<usize>) -> Result<Self, DataError> {
        let root = ImageRoot::new(dir)?;
        Ok(Self { dir: dir.into(), root, images: images_below(dir, limit)? })
    }

    /// The image files and caption files of the folder.
    pub fn files(&self) -> Vec<PathBuf> {
        self.images
            .iter()
            .map(|name| self.dir.join(&**name))
            .flat_map(|image| [image.with_extension("txt"), image])
            .collect()
    }
}

impl Samples for FolderData {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let name = &self.images[index];
        let place = record::place(index, &json!(name));
        let wrong = |reason: String| Fault::Reason(reason).at(&self.dir, &place);
        let image = self.root.file(name).map_err(|reason| Fault::Image(reason).at(&self.dir, &place))?;
        let beside = Path::new(&**name).with_extension("txt");
        let shown = self.dir.join(&beside);
        let shown = shown.display();
        let text = match self.root.find("caption", beside.to_str().unwrap_or_default()).map_err(&wrong)? {
            Some(text) => text,
            None => {
                let hint = "with format = \"classes\", the name of its folder is its caption";
                return Err(wrong(format!(
                    "has no caption: write it into {shown}, or all into a metadata.jsonl; {hint}"
                )));
            }
        };
        let bytes = outside::read(&text).map_err(|error| wrong(format!("{shown}: {error}")))?;
        let caption = record::caption(&bytes).map_err(|_| wrong(format!("the caption {shown} is not UTF-8")))?;
        if caption.is_empty() {
            return Err(wrong(format!("the caption {shown} is empty ({} bytes)", bytes.len())));
        }
        let record = json!({"caption": caption});
        record::sample(&self.dir, place.clone(), &record, vec![ImageSource::File(image)])
    }
}

#[cfg(test)]
mod tests {
    use super::FolderData;
    use crate::Samples;

    #[test]
    fn every_image_needs_its_caption() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, text) in [("b.PNG", ""), ("b.txt", "two\n"), ("sub/a.jpg", ""), ("sub/a.txt", "one"), ("c.webp", "")]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let data = FolderData::open(dir.path(), None).unwrap();
        assert_eq!(data.len(), 3);
        let sample = data.sample(0).unwrap();
        assert_eq!((sample.place.as_str(), sample.messages[1].content.as_str()), ("0 (id b.PNG)", "two"));
        assert_eq!(data.sample(2).unwrap().messages[1].content, "one");
        let error = data.sample(1).unwrap_err();
        assert!(error.is_sample() && error.to_string().contains("c.txt"), "{error}");
        assert_eq!(FolderData::open(dir.path(), Some(1)).unwrap().len(), 1);
        assert!(FolderData::open(&dir.path().join("gone"), None).is_err());
    }

    #[test]
    fn a_caption_loses_its_mark_and_must_hold_text() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("a", &b"\xef\xbb\xbfa cat\r\n"[..]), ("b", b"\xef\xbb\xbf\n"), ("c", b"\xff\xfea")] {
            std::fs::write(dir.path().join(format!("{name}.png")), "").unwrap();
            std::fs::write(dir.path().join(format!("{name}.txt")), text).unwrap();
        }
        let data = FolderData::open(dir.path(), None).unwrap();
        assert_eq!(data.sample(0).unwrap().messages[1].content, "a cat");
        for (index, mention) in [(1, "b.txt is empty"), (2, "c.txt is not UTF-8")] {
            let error = data.sample(index).unwrap_err();
            assert!(error.is_sample() && error.to_string().contains(mention), "{error}");
        }
    }

    // Other systems refuse such names.
    #[cfg(target_os = "linux")]
    #[test]
    fn an_image_whose_name_is_not_utf_8_is_named() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        for name in [&b"a.png"[..], b"caf\xe9.png", b"caf\xe9.notes"] {
            std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
        }
        let error = FolderData::open(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("caf") && error.contains("rename the file"), "{error}");
        assert_eq!(FolderData::open(dir.path(), Some(1)).unwrap().len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_caption_that_is_a_link_stays_in_its_folder() {
        use std::os::unix::fs::symlink;
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::fs::write(dir.path().join("all.caption"), "both").unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        symlink(outside.path().join("secret"), dir.path().join("a.txt")).unwrap();
        symlink("all.caption", dir.path().join("b.txt")).unwrap();
        symlink("/dev/zero", dir.path().join("c.txt")).unwrap();
        let data = FolderData::open(dir.path(), None).unwrap();
        let error = data.sample(0).unwrap_err();
        assert!(error.is_sample() && error.to_string().contains("leads outside"), "{error}");
        assert_eq!(data.sample(1).unwrap().messages[1].content, "both");
        assert!(data.sample(2).unwrap_err().to_string().contains("c.txt"));
    }
}
