//! The list of data set formats, and the detection of a path's format.

use std::fmt;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;

use serde::de::{self, EnumAccess, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::DataError;
use super::captions::{CocoCaptions, KarpathySplits};
use super::class_folder::ClassFolder;
use super::folder::ImageFolder;
use super::format::DataFormat;
use super::llava::{Layout, LlavaJson};
use super::locate::{expand, unpacked, walk};
use super::parquet::Parquet;
use super::webdataset::Archives;

/// Every format. To add one, write a file that implements [`DataFormat`] and add a line here.
static FORMATS: [&dyn DataFormat; 8] = [
    &LlavaJson(Layout::Array),
    &LlavaJson(Layout::Lines),
    &Parquet,
    &Archives,
    &ImageFolder,
    &ClassFolder,
    &CocoCaptions,
    &KarpathySplits,
];

/// A data set format, identified by its name.
#[derive(Clone, Copy)]
pub struct Format(&'static dyn DataFormat);

impl Format {
    /// All formats.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.into_iter().map(Self)
    }

    /// Its name in recipes and on the command line.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Whether a written set is one file, however many samples it holds.
    pub fn is_one_file(self) -> bool {
        self.0.is_one_file()
    }

    /// The implementation of the format.
    pub(super) fn spec(self) -> &'static dyn DataFormat {
        self.0
    }

    /// Detects the format of `path` by its name and then by its content.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the path if nothing is there, or if a folder holds several formats.
    pub(super) fn of(path: &Path) -> Result<Self, DataError> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        let files = expand(path)?;
        let first = files.first().map_or(path, PathBuf::as_path);
        if let Some(named) = Self::all().find(|format| format.0.is_named(first)) {
            return Ok(named);
        }
        let mut head = Vec::new();
        let read = File::open(first).and_then(|file| file.take(512).read_to_end(&mut head));
        read.map_err(|source| DataError::Io { path: first.into(), source })?;
        unpacked(first, &head)?;
        if let Some(known) = Self::all().find(|format| format.0.begins(&head)) {
            return Ok(known);
        }
        for format in Self::all() {
            if format.0.reads_text(first)? {
                return Ok(format);
            }
        }
        let reason = "is of no format that is known: name it with `format`".into();
        Err(DataError::Set { path: path.into(), reason })
    }

    fn of_folder(dir: &Path) -> Result<Self, DataError> {
        if let Some(owner) = Self::all().find(|format| format.0.owns(dir)) {
            return Ok(owner);
        }
        let files = walk(dir)?;
        let formats: Vec<Self> = Self::all().filter(|format| format.0.lies_in(dir, &files)).collect();
        let set = |reason: String| DataError::Set { path: dir.into(), reason };
        match formats[..] {
            [format] => Ok(format),
            [] => Err(set("holds no .parquet, no .tar and no image: name the data file itself".into())),
            _ => {
                let names: Vec<&str> = formats.iter().map(|format| format.name()).collect();
                Err(set(format!("holds files of several formats ({}): name one with `format`", names.join(", "))))
            }
        }
    }

    /// The files that `path` stands for: the file itself, those of the format in a folder, or those that a pattern
    /// names, in order.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the path, folder or pattern without a file.
    pub(super) fn files(self, path: &Path) -> Result<Vec<PathBuf>, DataError> {
        if path.is_dir() { self.0.files_of(path) } else { expand(path) }
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Format {
    /// Names are unique.
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

impl Hash for Format {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::all().find(|format| format.name() == name);
        found.ok_or_else(|| format!("unknown format '{name}': use {}", NAMES.join(", ")))
    }
}

static NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| Format::all().map(Format::name).collect());

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Format {
    /// Deserializes like an enum of the names, with the same errors.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Named(Format);

        impl<'de> Deserialize<'de> for Named {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Name;

                impl Visitor<'_> for Name {
                    type Value = Named;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("variant identifier")
                    }

                    fn visit_str<E: de::Error>(self, name: &str) -> Result<Named, E> {
                        name.parse().map(Named).map_err(|_| E::unknown_variant(name, &NAMES))
                    }
                }
                deserializer.deserialize_identifier(Name)
            }
        }

        struct OneOf;

        impl<'de> Visitor<'de> for OneOf {
            type Value = Format;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("enum Format")
            }

            fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Format, A::Error> {
                let (Named(format), variant) = data.variant()?;
                variant.unit_variant()?;
                Ok(format)
            }
        }
        deserializer.deserialize_enum("Format", &NAMES, OneOf)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::{Path, PathBuf};

    use super::Format;
    use crate::DataError;

    /// The format with this name.
    pub(crate) fn format(name: &str) -> Format {
        name.parse().unwrap()
    }

    fn format_of(path: &Path) -> Result<Format, DataError> {
        Format::of(path)
    }

    fn files(path: &Path, of: Format) -> Result<Vec<PathBuf>, DataError> {
        of.files(path)
    }

    #[test]
    fn a_name_is_one_formats_and_reads_back() {
        let names: Vec<&str> = Format::all().map(Format::name).collect();
        assert_eq!(names, ["json", "jsonl", "parquet", "webdataset", "folder", "classes", "coco", "karpathy"]);
        for name in names {
            assert_eq!(serde_json::to_value(format(name)).unwrap(), name);
            assert_eq!(serde_json::from_value::<Format>(name.into()).unwrap(), format(name));
        }
        let said = serde_json::from_value::<Format>("csv".into()).unwrap_err().to_string();
        assert!(said.contains("unknown variant `csv`, expected one of `json`, `jsonl`"), "{said}");
        assert_eq!(
            "csv".parse::<Format>().unwrap_err(),
            "unknown format 'csv': use json, jsonl, parquet, webdataset, folder, classes, coco, karpathy"
        );
    }

    fn touch(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn a_format_is_told_by_name_then_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, content: &[u8]| format_of(&touch(dir.path(), name, content)).unwrap();
        assert_eq!(of("a.parquet", b""), format("parquet"));
        assert_eq!(of("a.TAR", b""), format("webdataset"));
        assert_eq!(of("a.tgz", b""), format("webdataset"));
        assert_eq!(of("a.jsonl", b" \n[{}]"), format("json"));
        assert_eq!(of("a.json", b"\xef\xbb\xbf{}\n{}"), format("jsonl"));
        assert_eq!(of("b", b"PAR1..."), format("parquet"));
        assert_eq!(of("c", &[0x1f, 0x8b, 8]), format("webdataset"));
        assert!(format_of(&dir.path().join("gone.json")).unwrap_err().to_string().contains("gone.json"));
        for (name, head, by) in [
            ("d.tar.zst", &b"\x28\xb5\x2f\xfd\n{}"[..], "zstd"),
            ("e.zip", b"PK\x03\x04", "zip"),
            ("f.tar.bz2", b"BZh9", "bzip2"),
        ] {
            let said = format_of(&touch(dir.path(), name, head)).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains(by), "{said}");
        }
    }

    #[test]
    fn a_folder_of_an_exported_file_is_that_file() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), "images/00000/a.png", b"");
        assert_eq!(format_of(dir.path()).unwrap(), format("folder"));
        let file = touch(dir.path(), "data.jsonl", b"{}");
        assert_eq!(format_of(dir.path()).unwrap(), format("jsonl"));
        assert_eq!(files(dir.path(), format("jsonl")).unwrap(), [file]);
        assert!(files(dir.path(), format("json")).unwrap_err().to_string().contains("is a folder"));
        touch(dir.path(), "images/00000/a.txt", b"");
        assert!(format_of(dir.path()).unwrap_err().to_string().contains("jsonl, folder"));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_found_in_a_folder_does_not_lead_out_of_it() {
        use std::os::unix::fs::symlink;
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let there = touch(elsewhere.path(), "a.tar", b"");
        touch(dir.path(), "b.tar", b"");
        symlink(dir.path().join("b.tar"), dir.path().join("c.tar")).unwrap();
        assert_eq!(files(dir.path(), format("webdataset")).unwrap().len(), 2);
        symlink(&there, dir.path().join("d.tar")).unwrap();
        let said = files(dir.path(), format("webdataset")).unwrap_err().to_string();
        assert!(said.contains("d.tar") && said.contains("leads outside"), "{said}");
        assert_eq!(files(&dir.path().join("*.tar"), format("webdataset")).unwrap().len(), 3, "they were named");
        assert!(files(Path::new("/dev/zero"), format("json")).unwrap_err().to_string().contains("no file"));
    }

    #[test]
    fn a_folder_or_pattern_means_its_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["data/t-1.parquet", "data/t-0.parquet", "data/v-0.parquet", ".cache/x.parquet", "README.md"] {
            touch(dir.path(), name, b"");
        }
        let found = |pattern: &str| {
            let found = files(&dir.path().join(pattern), format("parquet"));
            let names =
                |f: Vec<PathBuf>| f.iter().map(|p| p.file_name().unwrap().display().to_string()).collect::<Vec<_>>();
            found.map(names).map_err(|error| error.to_string())
        };
        assert_eq!(found("").unwrap(), ["t-0.parquet", "t-1.parquet", "v-0.parquet"]);
        assert_eq!(found("data/t-*.parquet").unwrap(), ["t-0.parquet", "t-1.parquet"]);
        assert_eq!(found("data/t-{1..1}.parquet").unwrap(), ["t-1.parquet"]);
        assert!(found("data/t-{0..2}.parquet").unwrap_err().contains("t-2.parquet"));
        assert!(found("data/w-*.parquet").unwrap_err().contains("no file matches"));
        assert_eq!(format_of(dir.path()).unwrap(), format("parquet"));
        touch(dir.path(), "data/x.tar", b"");
        assert!(format_of(dir.path()).unwrap_err().to_string().contains("parquet, webdataset"));
    }
}
