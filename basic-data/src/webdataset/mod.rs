//! Reads WebDataset: tar archives in which the members of a sample are adjacent and share their name up to the first
//! dot.
//!
//! Opening the set reads the headers and records where each member is; a sample is then read by position. A gzipped
//! archive cannot be read by position, so it is decompressed once into an unnamed file in the folder for temporary
//! files, which disappears when the process ends.

mod headers;
mod index;

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::outside::{Budget, Unparsed, excerpt, file_limits, parse_json};
use flate2::read::MultiGzDecoder;
use rayon::prelude::*;
use serde_json::Value;

use self::index::{Member, Shard, below};
use super::export::{ArchiveWriter, ExportError, Images, Named, Sharding, Writer};
use super::file_range::FileRange;
use super::format::{DataFormat, Opening, Reader};
use super::keys;
use super::locate::ends_in;
use super::sample_record::{self as record, Fault};
use super::stamps::Stamps;
use super::{DataError, ImageSource, Sample, Samples, fingerprint};

/// A gzipped archive may decompress to this many times its size, or to the size limit of a file if that is larger. The
/// factor is generous because small captions in a tar's blocks of 512 bytes compress several dozen times.
const RATIO: u64 = 200;

/// A data set in tar archives.
#[derive(Debug)]
pub struct WebDataset {
    shards: Vec<Shard>,
    /// The index of each shard's first sample.
    firsts: Vec<usize>,
    len: usize,
}

/// Tar archives as a format: plain or gzipped, as the webdataset library writes them.
pub(super) struct Archives;

impl DataFormat for Archives {
    fn name(&self) -> &'static str {
        "webdataset"
    }

    fn is_named(&self, file: &Path) -> bool {
        ends_in(file, &[".tar", ".tar.gz", ".tgz"])
    }

    fn begins(&self, head: &[u8]) -> bool {
        head.starts_with(&[0x1f, 0x8b]) || head.get(257..262) == Some(b"ustar")
    }

    fn holds_images(&self, _: &Path) -> bool {
        true
    }

    fn open(&self, set: &Opening<'_>, _: &mut Stamps) -> Result<Box<dyn Reader>, DataError> {
        Ok(Box::new(WebDataset::open(set.files, set.limit)?))
    }

    fn cannot_write(&self, images: &Images) -> Option<&'static str> {
        (*images != Images::Copy).then_some("webdataset holds its images itself: write it with --images copy")
    }

    fn writes_gzip(&self) -> bool {
        true
    }

    fn writer(&self, dir: Named, sharding: Sharding) -> Result<Box<dyn Writer>, ExportError> {
        Ok(Box::new(ArchiveWriter::new(dir, sharding)))
    }
}

impl Reader for WebDataset {
    fn root(&self) -> Option<&Path> {
        None
    }

    fn hash(&self) -> Result<u64, DataError> {
        fingerprint::of_contents(&self.files())
    }
}

impl WebDataset {
    /// Indexes the archives; `limit` keeps the first samples.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the archive that is truncated, not a tar, or holds a member twice; also if no archive
    /// holds a sample.
    pub fn open(archives: &[PathBuf], limit: Option<usize>) -> Result<Self, DataError> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut spool = Spool::default();
        let mut sections = Vec::with_capacity(archives.len());
        for path in archives {
            sections.push((path, spool.source(path)?));
        }
        let index = |(path, (source, start, len)): &(&PathBuf, (FileRange, u64, u64))| {
            Shard::index(path, source.clone(), *start, *len)
        };
        let shards: Vec<Shard> = sections.par_iter().map(index).collect::<Result<_, _>>()?;
        let mut firsts = Vec::with_capacity(shards.len());
        let mut len = 0;
        for shard in &shards {
            firsts.push(len);
            len += shard.len();
        }
        if len == 0 {
            return Err(DataError::Empty(archives.first().cloned().unwrap_or_default()));
        }
        Ok(Self { shards, firsts, len: len.min(limit) })
    }

    /// The archives.
    pub fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path.to_path_buf()).collect()
    }

    fn read(&self, index: usize, with_images: bool) -> Result<Sample, DataError> {
        let number = self.firsts.partition_point(|first| *first <= index) - 1;
        let shard = &self.shards[number];
        let first = self.firsts[number];
        let group = shard.group(index - first);
        let place = record::place(index - first, &Value::String(group.key.into()));
        let io = |source| DataError::Io { path: shard.path.to_path_buf(), source };
        let wrong = |reason: String| Fault::Reason(reason).at(&shard.path, &place);
        if let Some(reason) = group.flaw {
            return Err(wrong(reason));
        }
        let budget = record::budget(&shard.path);
        let of_images = Budget::of(&*shard.path);
        let costly = |member: Member, what: &str| {
            let reason = format!(
                "its {what} of {} bytes takes more memory than it may; --file-bytes raises the limit",
                member.size
            );
            wrong(reason)
        };
        let mut record = match group.json {
            Some(member) => {
                budget.take(member.size).map_err(|_| costly(member, ".json"))?;
                let bytes = shard.read(member).map_err(io)?;
                parse_json(record::without_mark(&bytes), &budget).map_err(|error| match error {
                    Unparsed::Syntax(error) => wrong(format!("{}.json: {error}", excerpt(group.key))),
                    Unparsed::Costly(_) => costly(member, ".json"),
                })?
            }
            None => Value::Object(serde_json::Map::new()),
        };
        let keys = keys::TURN_KEYS.iter().chain(&keys::CAPTION_KEYS);
        let silent = record.is_object() && keys.clone().all(|key| record[*key].is_null());
        if let Some(member) = group.text.filter(|_| silent) {
            budget.take(member.size.saturating_mul(2)).map_err(|_| costly(member, ".txt"))?;
            let bytes = shard.read(member).map_err(io)?;
            let text = record::caption(&bytes).map_err(|_| wrong("its .txt is not UTF-8".into()))?;
            if text.is_empty() {
                return Err(wrong(format!("its .txt is empty ({} bytes)", member.size)));
            }
            record["caption"] = text.into();
        } else if silent {
            let keys: Vec<&str> = keys.copied().collect();
            let hint = shard.strange.as_ref().map_or(String::new(), |name| {
                format!(
                    " (the archive's {name} is left out: a key ends at the first dot of a name, and json, txt or the \
                     ending of an image must follow, so that a.outputs.txt should be a.txt)"
                )
            });
            let folder = match hint.is_empty() && group.key.contains('/') {
                true => " (the folder is a part of the key: img/a.jpg and txt/a.txt are two samples)",
                false => "",
            };
            return Err(wrong(format!("has no .txt and no .json with one of {}{hint}{folder}", keys.join(", "))));
        }
        let named = record::image_names(&record).is_ok_and(|names| !names.is_empty());
        if named && group.images.is_empty() {
            return Err(wrong(format!(
                "names an image, but the archive holds none under the key {}",
                excerpt(group.key)
            )));
        }
        let image = |(name, member): &(&str, Member)| {
            if with_images {
                of_images.take(member.size).map_err(|_| costly(*member, "images"))?;
            }
            let bytes = if with_images { shard.read(*member).map_err(io)? } else { Vec::new() };
            Ok(ImageSource::Bytes { name: shard.path.join(below(name)), bytes: bytes.into() })
        };
        let images = group.images.iter().map(image).collect::<Result<Vec<_>, DataError>>()?;
        // The record's own id is kept, so that an export to another format has it.
        let place = if record["id"].is_null() { place } else { record::place(index - first, &record["id"]) };
        record::sample(&shard.path, place, &record, images)
    }
}

impl Samples for WebDataset {
    fn len(&self) -> usize {
        self.len
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        self.read(index, true)
    }

    fn outline(&self, index: usize) -> Result<Sample, DataError> {
        self.read(index, false)
    }
}

/// The temporary file that gzipped archives are decompressed into.
#[derive(Debug, Default)]
struct Spool {
    file: Option<Arc<File>>,
    len: u64,
}

impl Spool {
    /// Where an archive's uncompressed bytes are: a source, a start and a length.
    fn source(&mut self, path: &Path) -> Result<(FileRange, u64, u64), DataError> {
        let io = |source| DataError::Io { path: path.into(), source };
        let mut archive = File::open(path).map_err(io)?;
        let mut magic = [0; 2];
        let read = archive.read(&mut magic).map_err(io)?;
        if magic[..read] != [0x1f, 0x8b] {
            return Ok((FileRange::Path(path.into()), 0, archive.metadata().map_err(io)?.len()));
        }
        archive.rewind().map_err(io)?;
        let packed = archive.metadata().map_err(io)?.len();
        let most = packed.saturating_mul(RATIO).max(file_limits().bytes);
        let folder = std::env::temp_dir();
        let unpacked = |reason: String| DataError::Set { path: path.into(), reason };
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let file = tempfile::tempfile_in(&folder)
                    .map_err(|error| unpacked(format!("cannot be unpacked into {}: {error}", folder.display())))?;
                self.file.insert(Arc::new(file)).clone()
            }
        };
        let start = self.len;
        let mut decoder = MultiGzDecoder::new(BufReader::with_capacity(1 << 18, archive));
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    let reason = format!("is damaged or truncated: {error}: fetch or make it again");
                    return Err(unpacked(reason));
                }
            };
            if (self.len - start).saturating_add(read as u64) > most {
                return Err(unpacked(format!(
                    "becomes more than {RATIO} times as large when it is unpacked: unpack it yourself, or raise --file-bytes"
                )));
            }
            (&*file).write_all(&buffer[..read]).map_err(|error| {
                let hint = "unpack the archives yourself, or set TMPDIR to a folder with room";
                unpacked(format!("cannot be unpacked into {}: {error}: {hint}", folder.display()))
            })?;
            self.len += read as u64;
        }
        Ok((FileRange::Open(file), start, self.len - start))
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
