//! Reads ranges of a file without loading the whole file; many threads may read at once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file whose ranges can be read.
#[derive(Debug, Clone)]
pub(super) enum FileRange {
    /// Opened for each read, because a data set may have more shards than a process may have open files.
    Path(PathBuf),
    /// Held open, because the file has no name.
    Open(Arc<File>),
}

impl FileRange {
    /// Reads `len` bytes from `offset`.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Path(path) => read_at(&File::open(path)?, offset, len),
            Self::Open(file) => read_at(file, offset, len),
        }
    }

    /// A reader over `len` bytes from `start`.
    pub fn section(&self, start: u64, len: u64) -> io::Result<Section> {
        let file = match self {
            Self::Path(path) => Arc::new(File::open(path)?),
            Self::Open(file) => file.clone(),
        };
        Ok(Section { file, start, len, at: 0 })
    }
}

/// A range of a file, with its own read position.
#[derive(Debug)]
pub(super) struct Section {
    file: Arc<File>,
    start: u64,
    len: u64,
    at: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = read_some(&self.file, &mut buffer[..wanted], self.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match read_some(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => {
                let reason = "the file is shorter than when it was opened";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
            }
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(unix)]
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

/// The line and column, both from 1, of the byte at `offset`.
pub(super) fn line_column(path: &Path, offset: u64) -> io::Result<(u64, u64)> {
    let mut reader = File::open(path)?.take(offset);
    let (mut line, mut column) = (1, 1);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok((line, column));
        }
        for byte in &buffer[..read] {
            (line, column) = if *byte == b'\n' { (line + 1, 1) } else { (line, column + 1) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};

    use super::{FileRange, line_column};

    #[test]
    fn ranges_and_sections_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "0123456789").unwrap();
        let source = FileRange::Path(path.clone());
        assert_eq!(source.read(3, 4).unwrap(), b"3456");
        assert!(source.read(8, 4).unwrap_err().to_string().contains("shorter"));
        let mut section = source.section(2, 5).unwrap();
        let mut text = String::new();
        section.read_to_string(&mut text).unwrap();
        assert_eq!(text, "23456");
        section.seek(SeekFrom::End(-2)).unwrap();
        text.clear();
        section.read_to_string(&mut text).unwrap();
        assert_eq!(text, "56");
    }

    #[test]
    fn lines_and_columns_begin_at_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "ab\ncd\n").unwrap();
        let at = |offset| line_column(&path, offset).unwrap();
        assert_eq!([at(0), at(1), at(3), at(4), at(6)], [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]);
    }
}
