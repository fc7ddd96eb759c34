//! Finds the files that a path, a folder or a pattern stands for.

use std::path::{Path, PathBuf};

use basic_models::outside::excerpt;

use super::DataError;
use super::image_root::ImageRoot;

/// The file extensions of images.
pub(super) const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
/// The largest number of names that a pattern in braces may expand to.
const MOST: usize = 1_000_000;
/// The largest size of these names together, in bytes.
const MOST_BYTES: usize = 1 << 28;
/// The largest number of digits of a number in a pattern.
const DIGITS: usize = 20;
/// Whether a file's name ends in one of `ends`, ignoring case.
pub(super) fn ends_in(path: &Path, ends: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    ends.iter().any(|end| name.ends_with(end))
}

/// The first bytes of compressed files and archives that no format reads, and their names.
const PACKED: [(&[u8], &str); 4] =
    [(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip")];

/// Refuses such a file: read as text, it would give only broken samples.
pub(super) fn unpacked(path: &Path, head: &[u8]) -> Result<(), DataError> {
    match PACKED.iter().find(|(magic, _)| head.starts_with(magic)) {
        None => Ok(()),
        Some((_, name)) => {
            let reason = format!("is packed by {name}, which is not read: unpack it, or pack it as .tar or .tar.gz");
            Err(DataError::Set { path: path.into(), reason })
        }
    }
}

/// Whether a file's name has the extension of an image.
pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    IMAGES.contains(&extension.as_str())
}

/// Refuses a link in a folder that leads out of the folder, because the user did not name its target.
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

/// Refuses anything that is not a regular file: a device or a pipe cannot be read by position and may never end.
fn regular(path: &Path) -> Result<(), DataError> {
    // The system's error says whether the file is missing or not readable.
    let meta = path.metadata().map_err(|source| DataError::Io { path: path.into(), source })?;
    match meta.is_file() {
        true => Ok(()),
        false => Err(DataError::Set { path: path.into(), reason: "is no file that can be read by place".into() }),
    }
}

/// The files that a path or a pattern names.
pub(super) fn expand(path: &Path) -> Result<Vec<PathBuf>, DataError> {
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

/// Expands `a{00..02}b` to a00b, a01b, a02b and `{x,y}` to x, y, anywhere in the text. The number of results is
/// computed before they are written out.
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

/// The choices between braces: numbers that count up, or texts.
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

/// Every file below a folder, in order, except hidden ones. Links to folders are not followed.
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

#[cfg(test)]
mod tests {
    use super::braces;

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
}
