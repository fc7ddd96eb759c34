//! Checks the cost of parsing a PyTorch file before its reader allocates memory: pickles can make objects from single
//! bytes, and archives can be compressed a thousandfold.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::CheckpointError;
use crate::outside::{Budget, excerpt, guarded};

/// Bytes of memory that an opcode may take: an object on the stack, which grows by doubling, and one in a container.
const OPCODE: u64 = 128;

/// Bytes of memory for an archive's entry in its directory.
const ENTRY: u64 = 1024;

/// The number of pickles before the data in the format before PyTorch 1.6.
const PICKLES: usize = 5;

/// Checks that a file can be parsed within its budget.
///
/// # Errors
///
/// Returns [`CheckpointError::OverBudget`], [`CheckpointError::Torch`] for unsupported formats, and I/O errors.
pub(super) fn check(path: &Path) -> Result<(), CheckpointError> {
    let budget = Budget::of(path);
    let failed = |reason: String| CheckpointError::Torch { path: path.into(), reason: excerpt(&reason) };
    let mut start = Vec::new();
    let file = File::open(path).map_err(CheckpointError::io(path))?;
    (&file).take(262).read_to_end(&mut start).map_err(CheckpointError::io(path))?;
    let file = BufReader::new(File::open(path).map_err(CheckpointError::io(path))?);
    if start.get(257..262) == Some(b"ustar") {
        return Err(failed("an archive from before PyTorch 0.1.10: load it with torch and save it again".into()));
    }
    if !start.starts_with(b"PK") {
        return pickles(file, &budget, path);
    }
    // An entry takes at least 46 bytes of the directory at the end of the archive.
    let archive = guarded(|| ZipArchive::new(file)).map_err(failed)?;
    let mut archive = archive.map_err(|error| failed(format!("zip archive error: {error}")))?;
    budget.take((archive.len() as u64).saturating_mul(ENTRY))?;
    for index in 0..archive.len() {
        let Ok(mut entry) = archive.by_index(index) else { continue };
        let name = entry.name().map(|name| name.into_owned()).unwrap_or_default();
        if name.ends_with("data.pkl") {
            budget.take(entry.size())?;
            let mut pickle = BufReader::new(&mut entry);
            opcodes(&mut pickle, &budget, path)?;
        } else if entry.compression() != CompressionMethod::Stored {
            budget.take(entry.size())?;
        }
    }
    Ok(())
}

/// Checks the pickles at the beginning of a file, up to its data.
fn pickles(mut file: impl BufRead, budget: &Budget, path: &Path) -> Result<(), CheckpointError> {
    for _ in 0..PICKLES {
        if !opcodes(&mut file, budget, path)? {
            break;
        }
    }
    Ok(())
}

/// Takes the cost of a pickle's opcodes from the budget; returns whether the pickle ended properly. An unknown opcode
/// ends it too: the reader stops there with its own error.
fn opcodes(pickle: &mut impl BufRead, budget: &Budget, path: &Path) -> Result<bool, CheckpointError> {
    let io = |error| CheckpointError::io(path)(error);
    loop {
        let mut code = [0];
        if pickle.read(&mut code).map_err(io)? == 0 {
            return Ok(false);
        }
        budget.take(OPCODE)?;
        let length = match code[0] {
            b'.' => return Ok(true),
            // One line, or two.
            b'I' | b'L' | b'F' | b'V' | b'g' | b'p' | b'P' | b'S' => Argument::Lines(1),
            b'c' | b'i' => Argument::Lines(2),
            b'K' | b'h' | b'q' | 0x80 | 0x82 => Argument::Bytes(1),
            b'M' | 0x83 => Argument::Bytes(2),
            b'J' | b'j' | b'r' | 0x84 => Argument::Bytes(4),
            b'G' | 0x95 => Argument::Bytes(8),
            b'U' | b'C' | 0x8a | 0x8c => Argument::Counted(1),
            b'T' | b'X' | b'B' | 0x8b => Argument::Counted(4),
            0x8d | 0x8e | 0x96 => Argument::Counted(8),
            _ => continue,
        };
        let bytes = match length {
            Argument::Lines(lines) => {
                for _ in 0..lines {
                    skip_line(pickle, budget).map_err(io)?;
                }
                continue;
            }
            Argument::Bytes(bytes) => bytes,
            Argument::Counted(width) => {
                let mut length = [0; 8];
                if pickle.read_exact(&mut length[..width]).is_err() {
                    return Ok(false);
                }
                let length = u64::from_le_bytes(length);
                budget.take(length)?;
                length
            }
        };
        std::io::copy(&mut pickle.by_ref().take(bytes), &mut std::io::sink()).map_err(io)?;
    }
}

/// The argument that follows an opcode.
enum Argument {
    Lines(usize),
    Bytes(u64),
    Counted(usize),
}

fn skip_line(pickle: &mut impl BufRead, budget: &Budget) -> std::io::Result<()> {
    loop {
        let held = pickle.fill_buf()?;
        let end = held.iter().position(|byte| *byte == b'\n');
        let (used, over) = (end.map_or(held.len(), |end| end + 1), end.is_some() || held.is_empty());
        budget.take(used as u64)?;
        pickle.consume(used);
        if over {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// A pickle of `count` empty lists in a tuple.
    fn pickle(count: usize) -> Vec<u8> {
        [b"\x80\x02(".as_slice(), &vec![b']'; count], b"t."].concat()
    }

    fn archive(path: &Path, entries: &[(&str, &[u8])]) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in entries {
            let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
            zip.start_file(*name, deflated).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn a_pickle_that_would_grow_beyond_the_budget_is_refused_in_every_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pytorch_model.bin");
        let over = || check(&path).unwrap_err().to_string();
        archive(&path, &[("x/data.pkl", &pickle(20_000_000)), ("x/version", b"3")]);
        assert!(fs::metadata(&path).unwrap().len() < 100_000);
        assert!(over().contains("--file-bytes") && over().contains("pytorch_model.bin"), "{}", over());
        archive(&path, &[("x/data.pkl", &pickle(20_000)), ("x/version", b"3")]);
        check(&path).unwrap();
        fs::write(&path, pickle(20_000_000)).unwrap();
        assert!(over().contains("--file-bytes"), "{}", over());
        fs::write(&path, pickle(20_000)).unwrap();
        check(&path).unwrap();
    }

    #[test]
    fn a_length_that_a_pickle_claims_counts_before_its_bytes_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(&path, [b"\x80\x04\x8e".as_slice(), &(1u64 << 40).to_le_bytes()].concat()).unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("--file-bytes"));
    }

    #[test]
    fn pytorchs_own_files_are_far_from_the_limit() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/original");
        for name in ["pytorch_model-00002-of-00002.bin", "mm_projector.bin"] {
            check(&fixtures.join(name)).unwrap();
        }
    }
}
