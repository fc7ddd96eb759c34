//! Which files a path, a folder or a pattern means, and which format they are of.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use basic_models::outside::excerpt;

use super::image_root::ImageRoot;
use super::llava::Layout;
use super::{DataError, Format};

/// The extensions of images.
pub(super) const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
/// What a pattern in braces may expand to.
const MOST: usize = 1_000_000;
/// The bytes that the names of all of these may take.
const MOST_BYTES: usize = 1 << 28;
/// The digits of a number in a pattern.
const DIGITS: usize = 20;
/// What `basic data export` calls the file of these formats, in a folder of its own.
const EXPORTED: [(Format, &str); 2] = [(Format::Json, "data.json"), (Format::Jsonl, "data.jsonl")];

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

/// The first bytes of archives that are packed as none of the formats is, and what they are called.
const PACKED: [(&[u8], &str); 4] =
    [(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip")];

/// Refuses a file that is packed so: as a text it would be samples that are all broken.
fn unpacked(path: &Path, head: &[u8]) -> Result<(), DataError> {
    match PACKED.iter().find(|(magic, _)| head.starts_with(magic)) {
        None => Ok(()),
        Some((_, name)) => {
            let reason = format!("is packed by {name}, which is not read: unpack it, or pack it as .tar or .tar.gz");
            Err(DataError::Set { path: path.into(), reason })
        }
    }
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
            Format::Json | Format::Jsonl => {
                let file = exported(path, format);
                let file = file.ok_or_else(|| set(format!("is a folder, {format} is one file: name the file")))?;
                at_home(path, &file)?;
                return Ok(vec![file]);
            }
            Format::Folder => return Ok(vec![path.into()]),
        };
        let mut files = walk(path)?;
        files.retain(|file| wanted(file));
        if files.is_empty() {
            return Err(set(format!("holds no file of the format {format}")));
        }
        files.iter().try_for_each(|file| at_home(path, file))?;
        return Ok(files);
    }
    expand(path)
}

/// The file of a folder that `basic data export` wrote in a format of one file.
fn exported(dir: &Path, format: Format) -> Option<PathBuf> {
    let (_, name) = EXPORTED.iter().find(|(of, _)| *of == format)?;
    Some(dir.join(name)).filter(|file| file.is_file())
}

/// Refuses a file found in a folder that is a link to somewhere else: nobody named it.
pub(super) fn at_home(dir: &Path, file: &Path) -> Result<(), DataError> {
    let io = |source| DataError::Io { path: file.into(), source };
    if !file.symlink_metadata().map_err(io)?.is_symlink() {
        return Ok(());
    }
    let real = file.canonicalize().map_err(io)?;
    if ImageRoot::new(dir)?.holds(&real) {
        return Ok(());
    }
    let reason = format!(
        "is a link that leads outside the folder {}, to {}: name it, or a pattern of files, instead of the folder",
        dir.display(),
        real.display()
    );
    Err(DataError::Set { path: file.into(), reason })
}

/// Refuses what is no file: a device or a pipe has no places to read by, and may never end.
fn regular(path: &Path) -> Result<(), DataError> {
    // The system says why: absent, or not readable.
    let meta = path.metadata().map_err(|source| DataError::Io { path: path.into(), source })?;
    match meta.is_file() {
        true => Ok(()),
        false => Err(DataError::Set { path: path.into(), reason: "is no file that can be read by place".into() }),
    }
}

/// The files that a path or a pattern names.
fn expand(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let set = |reason: String| DataError::Set { path: path.into(), reason };
    if path.exists() {
        regular(path)?;
        return Ok(vec![path.into()]);
    }
    let text = path.to_str().ok_or_else(|| set("is not UTF-8, which a pattern must be".into()))?;
    let mut files = Vec::new();
    for text in braces(text).map_err(set)? {
        if text.contains(['*', '?', '[']) && !Path::new(&text).exists() {
            let found = glob::glob(&text).map_err(|error| set(format!("is no pattern: {error}")))?;
            let mut found: Vec<PathBuf> = found
                .take(MOST + 1)
                .collect::<Result<_, _>>()
                .map_err(|error| DataError::Io { path: error.path().into(), source: error.into() })?;
            found.sort();
            if found.is_empty() {
                return Err(set(format!("no file matches {}", excerpt(&text))));
            }
            found.iter().try_for_each(|file| regular(file))?;
            files.append(&mut found);
        } else {
            let file = PathBuf::from(text);
            regular(&file)?;
            files.push(file);
        }
        if files.len() > MOST {
            return Err(set(format!("means more than {MOST} files")));
        }
    }
    Ok(files)
}

/// `a{00..02}b` as a00b, a01b, a02b and `{x,y}` as x, y, wherever they stand. What a pattern means is counted before it
/// is written out.
fn braces(text: &str) -> Result<Vec<String>, String> {
    let (mut parts, mut rest, mut count) = (Vec::new(), text, 1usize);
    while let Some((before, more)) = rest.split_once('{') {
        let (inside, after) = more.split_once('}').ok_or("has a { without its }")?;
        let choices = choices(inside)?;
        let many = count.checked_mul(choices.len()).filter(|count| *count <= MOST);
        count = many.ok_or_else(|| format!("means more than {MOST} files"))?;
        parts.push((before, choices));
        rest = after;
    }
    if count.saturating_mul(text.len()) > MOST_BYTES {
        return Err(format!("means {count} files whose names take more than {MOST_BYTES} bytes"));
    }
    let mut names = vec![String::new()];
    for (before, choices) in &parts {
        let with = |name: &String| choices.iter().map(|choice| format!("{name}{before}{choice}")).collect::<Vec<_>>();
        names = names.iter().flat_map(with).collect();
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

/// What stands between braces: numbers that count up, or texts.
fn choices(inside: &str) -> Result<Vec<String>, String> {
    let Some((first, last)) = inside.split_once("..") else { return Ok(inside.split(',').map(String::from).collect()) };
    let shown = excerpt(inside);
    let number = |text: &str| {
        let digits = text.len() <= DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse::<u64>().ok()).flatten();
        number.ok_or_else(|| format!("{{{shown}}} is no range of numbers"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to || to - from >= MOST as u64 {
        return Err(format!("{{{shown}}} must count up, over at most {MOST} files"));
    }
    Ok((from..=to).map(|n| format!("{n:0width$}", width = first.len())).collect())
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
    unpacked(first, &head)?;
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
    let [json, jsonl] = EXPORTED.map(|(format, _)| exported(dir, format).is_some());
    // The images of an exported file have no captions beside them.
    let captioned = |file: &PathBuf| is_image(file) && files.binary_search(&file.with_extension("txt")).is_ok();
    let folder = if json || jsonl { files.iter().any(captioned) } else { holds(is_image) };
    let found = [
        (Format::Parquet, holds(is_parquet)),
        (Format::WebDataset, holds(is_tar)),
        (Format::Json, json),
        (Format::Jsonl, jsonl),
        (Format::Folder, folder),
    ];
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
    use crate::Format;

    #[test]
    fn braces_count_with_leading_zeros_and_multiply() {
        assert_eq!(braces("a-{08..11}.tar").unwrap(), ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
        assert_eq!(braces("{x,yy}/{1..2}").unwrap(), ["x/1", "x/2", "yy/1", "yy/2"]);
        assert_eq!(braces("plain").unwrap(), ["plain"]);
        for wrong in ["{1..", "{2..1}", "{a..b}", "{0..99999999999}", "{0..9999}{0..9999}", "{+1..2}", "{0..}"] {
            assert!(braces(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pattern_of_any_length_is_counted_before_it_is_written_out() {
        let zeros = "0".repeat(100_000);
        for wrong in [
            "{a,b}".repeat(20_000),
            "{".repeat(100_000),
            format!("{{{}}}", ",".repeat(200_000)),
            format!("{{{zeros}..1}}"),
            format!("{}{{0..999999}}", "x".repeat(100_000)),
            "{0..18446744073709551615}".into(),
        ] {
            let said = braces(&wrong).unwrap_err();
            assert!(said.len() < 400, "{said}");
        }
        assert_eq!(braces(&"{a}".repeat(2000)).unwrap(), ["a".repeat(2000)]);
        assert_eq!(braces("{18446744073709551615..18446744073709551615}").unwrap().len(), 1);
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
        assert_eq!(format_of(dir.path()).unwrap(), Format::Folder);
        let file = touch(dir.path(), "data.jsonl", b"{}");
        assert_eq!(format_of(dir.path()).unwrap(), Format::Jsonl);
        assert_eq!(files(dir.path(), Format::Jsonl).unwrap(), [file]);
        assert!(files(dir.path(), Format::Json).unwrap_err().to_string().contains("is a folder"));
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
        assert_eq!(files(dir.path(), Format::WebDataset).unwrap().len(), 2);
        symlink(&there, dir.path().join("d.tar")).unwrap();
        let said = files(dir.path(), Format::WebDataset).unwrap_err().to_string();
        assert!(said.contains("d.tar") && said.contains("leads outside"), "{said}");
        assert_eq!(files(&dir.path().join("*.tar"), Format::WebDataset).unwrap().len(), 3, "they were named");
        assert!(files(Path::new("/dev/zero"), Format::Json).unwrap_err().to_string().contains("no file"));
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
