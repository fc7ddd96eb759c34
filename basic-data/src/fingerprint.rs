//! Hashes of data files, so that a resumed run can detect that its data has changed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::DataError;

/// Files up to this many bytes are hashed whole.
pub(super) const WHOLE: u64 = 16 << 20;
/// Larger files are hashed by their size and this many pieces, the first and last bytes included.
const PLACES: u64 = 64;
/// The bytes of a piece.
const PIECE: u64 = 64 << 10;

/// A hash of the contents of files in order, independent of their names and times. In a file above 16 MiB, a change
/// that keeps the size and misses the 64 evenly spread pieces of 64 KiB is not detected.
pub fn of_contents(files: &[PathBuf]) -> Result<u64, DataError> {
    let hash = |path: &PathBuf| {
        let hashed = File::open(path).and_then(content);
        hashed.map_err(|source| DataError::Io { path: path.clone(), source })
    };
    let hashes: Vec<u64> = files.par_iter().map(hash).collect::<Result<_, _>>()?;
    Ok(combine(hashes))
}

/// A hash of the names (relative to `dir`) and sizes of files, for sets with one file per sample.
pub(super) fn of_names(dir: &Path, files: &[PathBuf]) -> u64 {
    let hash = |path: &PathBuf| {
        // A missing caption counts too, since it may be added later.
        let size = path.metadata().map_or(u64::MAX, |meta| meta.len());
        let name = path.strip_prefix(dir).unwrap_or(path);
        xxh3_64(name.as_os_str().as_encoded_bytes()) ^ size.rotate_left(32)
    };
    combine(files.par_iter().map(hash).collect::<Vec<u64>>())
}

/// Combines several hashes into one that depends on their order.
pub(super) fn combine(hashes: impl IntoIterator<Item = u64>) -> u64 {
    let mut hasher = Xxh3::new();
    hashes.into_iter().for_each(|hash| hasher.update(&hash.to_le_bytes()));
    hasher.digest()
}

fn content(mut file: File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut hasher = Xxh3::new();
    hasher.update(&size.to_le_bytes());
    let mut buffer = Vec::new();
    if size <= WHOLE {
        file.read_to_end(&mut buffer)?;
        hasher.update(&buffer);
        return Ok(hasher.digest());
    }
    for place in 0..PLACES {
        let start = u128::from(size - PIECE) * u128::from(place) / u128::from(PLACES - 1);
        file.seek(SeekFrom::Start(start as u64))?;
        buffer.clear();
        file.by_ref().take(PIECE).read_to_end(&mut buffer)?;
        hasher.update(&buffer);
    }
    Ok(hasher.digest())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{WHOLE, of_contents, of_names};

    #[test]
    fn contents_count_and_names_and_times_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "one").unwrap();
        let of = |path: &std::path::PathBuf| of_contents(std::slice::from_ref(path)).unwrap();
        assert_eq!(of(&a), of(&b));
        fs::write(&b, "two").unwrap();
        assert_ne!(of(&a), of(&b));
        assert_ne!(of_contents(&[a.clone(), b.clone()]).unwrap(), of_contents(&[b.clone(), a.clone()]).unwrap());
        fs::remove_file(&b).unwrap();
        assert!(of_contents(&[b]).is_err());
    }

    #[test]
    fn a_large_file_is_told_by_its_size_and_its_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut bytes = vec![7; WHOLE as usize + 1000];
        let of = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            of_contents(std::slice::from_ref(&path)).unwrap()
        };
        let first = of(&bytes);
        assert_eq!(of(&bytes), first);
        *bytes.last_mut().unwrap() = 8;
        let second = of(&bytes);
        assert_ne!(second, first);
        bytes.push(8);
        assert_ne!(of(&bytes), second);
    }

    #[test]
    fn a_folder_is_told_by_names_and_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("a.png"), dir.path().join("a.txt")];
        fs::write(&files[0], "x").unwrap();
        let without = of_names(dir.path(), &files);
        fs::write(&files[1], "x").unwrap();
        let with = of_names(dir.path(), &files);
        assert_ne!(without, with);
        fs::write(&files[1], "xy").unwrap();
        assert_ne!(of_names(dir.path(), &files), with);
    }
}
