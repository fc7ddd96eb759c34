//! Which files a path, a folder or a pattern means, and which format they are of.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::llava::Layout;
use super::{DataError, Format};

/// The extensions of images.
pub(super) const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
/// What a pattern in braces may expand to.
const MOST: usize = 1_000_000;

/// A file's name in lower case.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn is_parquet(path: &Path) -> bool {
    name(path).ends_with(".parquet")
}

fn is_tar(path: &Path) -> bool {
    [".tar", ".tar.gz", ".tgz"].iter().any(|end| name(path).ends_with(end))
}

/// Whether a file's name is that of an image.
pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    IMAGES.contains(&extension.as_str())
}

/// The file that a folder of images may have: HuggingFace's imagefolder.
pub(super) const METADATA: &str = "metadata.jsonl";

/// The files that `path` means: itself, those of the format in a folder, or those that a pattern names, in order.
///
/// # Errors
///
/// Names the path, folder or pattern without a file.
pub(super) fn files(path: &Path, format: Format) -> Result<Vec<PathBuf>, DataError> {
    let set = |reason: String| DataError::Set { path: path.into(), reason };
    if path.is_dir() {
        let wanted: fn(&Path) -> bool = match format {
            Format::Parquet => is_parquet,
            Format::WebDataset => is_tar,
            Format::Json | Format::Jsonl => return Err(set(format!("is a folder, {format} is one file"))),
            Format::Folder => return Ok(vec![path.into()]),
        };
        let mut files = walk(path)?;
        files.retain(|file| wanted(file));
        if files.is_empty() {
            return Err(set(format!("holds no file of the format {format}")));
        }
        return Ok(files);
    }
    expand(path)
}

/// The files that a path or a pattern names.
fn expand(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let set = |reason: String| DataError::Set { path: path.into(), reason };
    if path.exists() {
        return Ok(vec![path.into()]);
    }
    let text = path.to_str().ok_or_else(|| set("is not UTF-8, which a pattern must be".into()))?;
    let mut files = Vec::new();
    for text in braces(text).map_err(set)? {
        if text.contains(['*', '?', '[']) && !Path::new(&text).exists() {
            let found = glob::glob(&text).map_err(|error| set(format!("is no pattern: {error}")))?;
            let mut found: Vec<PathBuf> = found
                .collect::<Result<_, _>>()
                .map_err(|error| DataError::Io { path: error.path().into(), source: error.into() })?;
            found.sort();
            if found.is_empty() {
                return Err(set(format!("no file matches {text}")));
            }
            files.append(&mut found);
        } else {
            let file = PathBuf::from(text);
            // The system says why: absent, or not readable.
            file.metadata().map_err(|source| DataError::Io { path: file.clone(), source })?;
            files.push(file);
        }
    }
    Ok(files)
}

/// `a{00..02}b` as a00b, a01b, a02b and `{x,y}` as x, y, wherever they stand.
fn braces(text: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(vec![text.into()]) };
    let (inside, after) = rest.split_once('}').ok_or("has a { without its }")?;
    let choices: Vec<String> = match inside.split_once("..") {
        Some((first, last)) => {
            let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{{{inside}}} is no range of numbers"));
            let (from, to) = (number(first)?, number(last)?);
            if from > to || to - from >= MOST as u64 {
                return Err(format!("{{{inside}}} must count up, over at most {MOST} files"));
            }
            (from..=to).map(|n| format!("{n:0width$}", width = first.len())).collect()
        }
        None => inside.split(',').map(String::from).collect(),
    };
    let tails = braces(after)?;
    if choices.len().saturating_mul(tails.len()) > MOST {
        return Err(format!("means more than {MOST} files"));
    }
    Ok(choices.iter().flat_map(|choice| tails.iter().map(move |tail| format!("{before}{choice}{tail}"))).collect())
}

/// Every file below a folder, in order, but for hidden ones; links to folders are not followed.
pub(super) fn walk(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let io = |source| DataError::Io { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            match entry.file_type().map_err(io)?.is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The format of `path`, by its name and then by its content.
///
/// # Errors
///
/// Names the path: nothing there, or a folder of several formats.
pub(super) fn format_of(path: &Path) -> Result<Format, DataError> {
    if path.is_dir() {
        return format_of_folder(path);
    }
    let files = expand(path)?;
    let first = files.first().map_or(path, PathBuf::as_path);
    if is_parquet(first) {
        return Ok(Format::Parquet);
    }
    if is_tar(first) {
        return Ok(Format::WebDataset);
    }
    let mut head = Vec::new();
    let read = File::open(first).and_then(|file| file.take(512).read_to_end(&mut head));
    read.map_err(|source| DataError::Io { path: first.into(), source })?;
    if head.starts_with(b"PAR1") {
        Ok(Format::Parquet)
    } else if head.starts_with(&[0x1f, 0x8b]) || head.get(257..262) == Some(b"ustar") {
        Ok(Format::WebDataset)
    } else {
        Ok(match Layout::of(first)? {
            Layout::Array => Format::Json,
            Layout::Lines => Format::Jsonl,
        })
    }
}

fn format_of_folder(dir: &Path) -> Result<Format, DataError> {
    if dir.join(METADATA).is_file() {
        return Ok(Format::Folder);
    }
    let files = walk(dir)?;
    let holds = |wanted: fn(&Path) -> bool| files.iter().any(|file| wanted(file));
    let found =
        [(Format::Parquet, holds(is_parquet)), (Format::WebDataset, holds(is_tar)), (Format::Folder, holds(is_image))];
    let formats: Vec<Format> = found.into_iter().filter_map(|(format, there)| there.then_some(format)).collect();
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{braces, files, format_of};
    use crate::data::Format;

    #[test]
    fn braces_count_with_leading_zeros_and_multiply() {
        assert_eq!(braces("a-{08..11}.tar").unwrap(), ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
        assert_eq!(braces("{x,yy}/{1..2}").unwrap(), ["x/1", "x/2", "yy/1", "yy/2"]);
        assert_eq!(braces("plain").unwrap(), ["plain"]);
        for wrong in ["{1..", "{2..1}", "{a..b}", "{0..99999999999}", "{0..9999}{0..9999}"] {
            assert!(braces(wrong).is_err(), "{wrong}");
        }
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
        assert_eq!(of("a.parquet", b""), Format::Parquet);
        assert_eq!(of("a.TAR", b""), Format::WebDataset);
        assert_eq!(of("a.tgz", b""), Format::WebDataset);
        assert_eq!(of("a.jsonl", b" \n[{}]"), Format::Json);
        assert_eq!(of("a.json", b"\xef\xbb\xbf{}\n{}"), Format::Jsonl);
        assert_eq!(of("b", b"PAR1..."), Format::Parquet);
        assert_eq!(of("c", &[0x1f, 0x8b, 8]), Format::WebDataset);
        assert!(format_of(&dir.path().join("gone.json")).unwrap_err().to_string().contains("gone.json"));
    }

    #[test]
    fn a_folder_or_pattern_means_its_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["data/t-1.parquet", "data/t-0.parquet", "data/v-0.parquet", ".cache/x.parquet", "README.md"] {
            touch(dir.path(), name, b"");
        }
        let found = |pattern: &str| {
            let found = files(&dir.path().join(pattern), Format::Parquet);
            let names =
                |f: Vec<PathBuf>| f.iter().map(|p| p.file_name().unwrap().display().to_string()).collect::<Vec<_>>();
            found.map(names).map_err(|error| error.to_string())
        };
        assert_eq!(found("").unwrap(), ["t-0.parquet", "t-1.parquet", "v-0.parquet"]);
        assert_eq!(found("data/t-*.parquet").unwrap(), ["t-0.parquet", "t-1.parquet"]);
        assert_eq!(found("data/t-{1..1}.parquet").unwrap(), ["t-1.parquet"]);
        assert!(found("data/t-{0..2}.parquet").unwrap_err().contains("t-2.parquet"));
        assert!(found("data/w-*.parquet").unwrap_err().contains("no file matches"));
        assert_eq!(format_of(dir.path()).unwrap(), Format::Parquet);
        touch(dir.path(), "data/x.tar", b"");
        assert!(format_of(dir.path()).unwrap_err().to_string().contains("parquet, webdataset"));
    }
}
