//! Reads the headers of a tar archive in order: the name of each member, and where its bytes are.
//!
//! A member's name and size may be stored in separate headers before it (GNU's long names, pax). A member's bytes are
//! not read, and at most [`EXTENDED`] bytes of such a header are.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use basic_models::outside::excerpt;
use tar::Header;

use crate::DataError;
use crate::file_range::Section;

/// The size of a block of a tar archive in bytes.
const BLOCK: u64 = 512;

/// The largest size in bytes of the long name or the pax header of one member.
const EXTENDED: u64 = 1 << 20;

/// How many bytes after the end marker are searched for another archive.
const AFTER: u64 = 4 << 20;

/// How a member's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// As a whole, in one piece.
    Whole,
    /// As a hard link: the bytes are those of another member.
    HardLink,
    /// As a symbolic link: it names another file.
    SymbolicLink,
    /// As a sparse file, without the parts that are zero.
    Sparse,
    /// In part; the other part is in another archive.
    InPart,
    /// The member is not a file.
    Nothing,
}

/// A member of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub stored: Stored,
    /// The offset of its bytes in the archive.
    pub offset: u64,
    pub size: u64,
}

/// Steps through the headers of an archive.
#[derive(Debug)]
pub(super) struct Headers<'a> {
    path: &'a Path,
    section: Section,
    len: u64,
    /// The offset of the next header.
    at: u64,
}

/// The fields of pax headers for the member that follows them.
#[derive(Debug, Default)]
struct Pax {
    name: Option<Vec<u8>>,
    /// The real name of a sparse member, whose `name` is a placeholder.
    real_name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<'a> Headers<'a> {
    /// The headers of an archive of `len` bytes in `section`; `path` names it in messages.
    pub fn new(path: &'a Path, section: Section, len: u64) -> Self {
        Self { path, section, len, at: 0 }
    }

    fn wrong(&self, reason: String) -> DataError {
        DataError::Set { path: self.path.into(), reason }
    }

    fn bytes(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), DataError> {
        let read = self.section.seek(SeekFrom::Start(at)).and_then(|_| self.section.read_exact(bytes));
        read.map_err(|source: io::Error| DataError::Io { path: self.path.into(), source })
    }

    /// The next header block; `None` at the end marker.
    fn block(&mut self) -> Result<Option<[u8; BLOCK as usize]>, DataError> {
        if self.len == 0 {
            return Ok(None);
        }
        // Writers end an archive with blocks of zeros; without them, members may be missing.
        if self.at.checked_add(BLOCK).is_none_or(|end| end > self.len) {
            return Err(self.wrong("is truncated: it has no end marker: fetch or make it again".into()));
        }
        let mut block = [0; BLOCK as usize];
        self.bytes(self.at, &mut block)?;
        if block == [0; BLOCK as usize] {
            self.check_end()?;
            return Ok(None);
        }
        if !is_header(&block) {
            return Err(match self.at {
                0 => self.wrong("is no tar archive, or a damaged one: it does not begin with a member's header".into()),
                at => self.wrong(format!("is damaged: byte {at} should begin a member's header and does not")),
            });
        }
        self.at += BLOCK;
        Ok(Some(block))
    }

    /// Refuses an archive that is followed by another one, whose members would otherwise be lost silently.
    fn check_end(&mut self) -> Result<(), DataError> {
        let end = self.len.min(self.at.saturating_add(AFTER));
        let mut at = self.at;
        let mut block = [0; BLOCK as usize];
        while at + BLOCK <= end {
            self.bytes(at, &mut block)?;
            if block != [0; BLOCK as usize] {
                return match is_header(&block) {
                    true => Err(self.wrong(
                        "goes on after its end marker, as archives do that were joined with cat: join them with \
                         tar --concatenate, or name each by itself"
                            .into(),
                    )),
                    false => Ok(()),
                };
            }
            at += BLOCK;
        }
        Ok(())
    }

    /// The next member; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the archive and the member if it is cut off or damaged.
    pub fn next(&mut self) -> Result<Option<Entry>, DataError> {
        let mut long_name: Option<Vec<u8>> = None;
        let mut pax: Option<Pax> = None;
        loop {
            let Some(block) = self.block()? else {
                return match long_name.is_none() && pax.is_none() {
                    true => Ok(None),
                    false => Err(self.wrong("is damaged: it ends after a header that tells of another member".into())),
                };
            };
            let header = Header::from_byte_slice(&block);
            let kind = header.entry_type().as_byte();
            let plain_name = header.path_bytes().into_owned();
            let mut size = match size(header) {
                Some(size) => size,
                None => {
                    let name = said(long_name.as_deref().unwrap_or(&plain_name));
                    return Err(self.wrong(format!("is damaged: its member {name} has a size that no member has")));
                }
            };
            match kind {
                b'L' => {
                    let mut name = self.extended(size)?;
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                    long_name = Some(name);
                    continue;
                }
                b'x' | b'X' => {
                    let bytes = self.extended(size)?;
                    if pax.get_or_insert_default().read(&bytes).is_none() {
                        return Err(self.wrong(format!("is damaged: its pax header before byte {} is none", self.at)));
                    }
                    continue;
                }
                // The names of links, and settings for the whole archive, are skipped.
                b'K' | b'g' => {
                    self.pass(size, &plain_name)?;
                    continue;
                }
                _ => {}
            }
            let pax = pax.unwrap_or_default();
            size = pax.size.unwrap_or(size);
            let name = pax.real_name.or(pax.name).or(long_name).unwrap_or(plain_name);
            let stored = match kind {
                _ if pax.sparse => Stored::Sparse,
                b'0' | 0 | b'7' if name.ends_with(b"/") => Stored::Nothing,
                b'0' | 0 | b'7' => Stored::Whole,
                b'1' => Stored::HardLink,
                b'2' => Stored::SymbolicLink,
                b'S' => Stored::Sparse,
                b'M' => Stored::InPart,
                _ => Stored::Nothing,
            };
            // Links, devices and folders have no bytes, whatever size their header states.
            if (b'1'..=b'6').contains(&kind) {
                size = 0;
            }
            if kind == b'S' {
                self.pass_map(&block)?;
            }
            let offset = self.at;
            self.pass(size, &name)?;
            return Ok(Some(Entry { name: String::from_utf8_lossy(&name).into_owned(), stored, offset, size }));
        }
    }

    /// Skips a member's bytes.
    fn pass(&mut self, size: u64, name: &[u8]) -> Result<(), DataError> {
        let end = size.checked_next_multiple_of(BLOCK).and_then(|size| self.at.checked_add(size));
        match end.filter(|end| *end <= self.len) {
            Some(end) => self.at = end,
            None => {
                let reason = format!("is truncated inside its member {}: fetch or make it again", said(name));
                return Err(self.wrong(reason));
            }
        }
        Ok(())
    }

    /// Reads the bytes of a header that is stored as a member.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, DataError> {
        if size > EXTENDED {
            let reason = format!("has a member whose name or pax header takes {size} bytes, more than {EXTENDED}");
            return Err(self.wrong(reason));
        }
        let at = self.at;
        self.pass(size, b"of headers")?;
        let mut bytes = vec![0; size as usize];
        self.bytes(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Skips the blocks that continue the map of a sparse member.
    fn pass_map(&mut self, block: &[u8; BLOCK as usize]) -> Result<(), DataError> {
        let mut more = Header::from_byte_slice(block).as_gnu().is_some_and(|gnu| gnu.is_extended());
        while more {
            let mut next = [0; BLOCK as usize];
            let at = self.at;
            self.pass(BLOCK, b"that is stored sparse")?;
            self.bytes(at, &mut next)?;
            // The last field of the block, after 21 entries of the map, says whether another block follows.
            more = next[504] != 0;
        }
        Ok(())
    }
}

impl Pax {
    /// Reads the lines of a header, each of which begins with its own length; `None` if they are malformed.
    fn read(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let line = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
            bytes = &bytes[len..];
            let equals = line.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&line[..equals], &line[equals + 1..]);
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"size" => self.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                b"GNU.sparse.name" => (self.real_name, self.sparse) = (Some(value.to_vec()), true),
                _ if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" => self.sparse = true,
                _ => {}
            }
        }
        Some(())
    }
}

/// Whether a block has the checksum of a header; some old writers added signed bytes.
fn is_header(block: &[u8; BLOCK as usize]) -> bool {
    let Ok(wanted) = Header::from_byte_slice(block).cksum() else { return false };
    let counted = || block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
    let unsigned: u32 = counted().map(|byte| u32::from(*byte)).sum();
    let signed: i32 = counted().map(|byte| i32::from(*byte as i8)).sum();
    wanted == unsigned || i32::try_from(wanted) == Ok(signed)
}

/// A member's size, in octal digits or in base 256; `None` if it is negative or larger than a file can be.
fn size(header: &Header) -> Option<u64> {
    let field = &header.as_old().size;
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Some(0);
    }
    match field.split_at(4) {
        ([0x80, 0, 0, 0], low) => low.try_into().ok().map(u64::from_be_bytes).filter(|size| *size <= i64::MAX as u64),
        _ if field[0] >= 0x80 => None,
        _ => header.entry_size().ok(),
    }
}

/// A member's name as messages show it.
fn said(name: &[u8]) -> String {
    excerpt(&String::from_utf8_lossy(name))
}
