//! Indexes an archive: where its members are, and which of them make up a sample.

use std::collections::HashSet;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use basic_models::outside::{Budget, excerpt};
use xxhash_rust::xxh3::xxh3_64;

use super::headers::{Headers, Stored};
use crate::DataError;
use crate::file_range::FileRange;
use crate::locate::IMAGES;
use crate::media;

/// The bytes that the index takes per member besides its name, including the checks for duplicates and spare capacity.
const MEMBER: u64 = 128;

/// Where a member's bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    offset: u64,
    pub size: u64,
    /// The offset of its name in the shard's names; it ends where the next one begins.
    name: usize,
    stored: Stored,
}

/// The index of an archive: its members in order, and the first member of each sample.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: Arc<Path>,
    source: FileRange,
    names: String,
    members: Vec<Member>,
    samples: Vec<usize>,
    /// The first member that was left out although it looks like a part of a sample.
    pub strange: Option<String>,
}

/// The members of a sample.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub key: &'a str,
    pub json: Option<Member>,
    pub text: Option<Member>,
    /// The images with their names, in the sample's order.
    pub images: Vec<(&'a str, Member)>,
    /// Why the sample cannot be used, if one of its members cannot be read.
    pub flaw: Option<String>,
}

impl Shard {
    /// Reads the headers of the archive that takes `len` bytes from `start` of `source`.
    pub fn index(path: &Path, source: FileRange, start: u64, len: u64) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.into(), source };
        let damaged = |reason: String| DataError::Set { path: path.into(), reason };
        let section = source.section(start, len).map_err(io)?;
        let mut shard = Self {
            path: path.into(),
            source,
            names: String::new(),
            members: Vec::new(),
            samples: Vec::new(),
            strange: None,
        };
        let mut seen = HashSet::new();
        // Keys that samples already have; a sample's members must be adjacent.
        let mut keys = HashSet::new();
        let budget = Budget::of(path);
        let mut headers = Headers::new(path, section, len);
        while let Some(entry) = headers.next()? {
            budget.check_time().map_err(|over| io(over.into()))?;
            if entry.stored == Stored::Nothing {
                continue;
            }
            let Some((key, extension)) = split(&entry.name) else { continue };
            if Kind::of(extension).is_none() {
                if shard.strange.is_none() && (names_a_part(extension) || shard.last_key() == Some(key)) {
                    shard.strange = Some(excerpt(&entry.name));
                }
                continue;
            }
            // The index stays in memory, and the names in an archive may be of any length.
            let took = (entry.name.len() as u64).saturating_mul(2).saturating_add(MEMBER);
            budget.take(took).map_err(|over| io(over.into()))?;
            if !seen.insert(xxh3_64(below(&entry.name).as_os_str().as_encoded_bytes())) {
                return Err(damaged(format!(
                    "holds the member {} twice: give every sample a key of its own",
                    excerpt(&entry.name)
                )));
            }
            let member = Member {
                offset: start.saturating_add(entry.offset),
                size: entry.size,
                name: shard.names.len(),
                stored: entry.stored,
            };
            if shard.add(&entry.name, member) && !keys.insert(xxh3_64(key.as_bytes())) {
                return Err(damaged(format!(
                    "holds the members of {} apart from each other: sort the archive by name (tar --sort=name)",
                    excerpt(key)
                )));
            }
        }
        shard.names.shrink_to_fit();
        shard.members.shrink_to_fit();
        shard.samples.shrink_to_fit();
        Ok(shard)
    }

    /// Adds a member; returns whether it begins a new sample.
    fn add(&mut self, name: &str, member: Member) -> bool {
        let begins = self.last_key() != split(name).map(|(key, _)| key);
        if begins {
            self.samples.push(self.members.len());
        }
        self.members.push(member);
        self.names.push_str(name);
        begins
    }

    /// The key of the member that was added last.
    fn last_key(&self) -> Option<&str> {
        let last = self.members.len().checked_sub(1)?;
        split(self.name(last)).map(|(key, _)| key)
    }

    fn name(&self, member: usize) -> &str {
        let end = self.members.get(member + 1).map_or(self.names.len(), |next| next.name);
        &self.names[self.members[member].name..end]
    }

    /// Number of samples in the archive.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// The members of a sample.
    pub fn group(&self, sample: usize) -> Group<'_> {
        let start = self.samples[sample];
        let end = self.samples.get(sample + 1).copied().unwrap_or(self.members.len());
        let mut group = Group { key: "", json: None, text: None, images: Vec::new(), flaw: None };
        for (index, member) in (start..end).zip(&self.members[start..end]) {
            let name = self.name(index);
            let (key, extension) = split(name).unwrap_or((name, ""));
            group.key = key;
            group.flaw = group.flaw.or_else(|| flaw(name, extension, member.stored));
            match Kind::of(extension) {
                Some(Kind::Json) => group.json = Some(*member),
                Some(Kind::Text) => group.text = Some(*member),
                Some(Kind::Image) => group.images.push((name, *member)),
                Some(Kind::Unread(_)) | None => {}
            }
        }
        // Writers sort by name, which puts 10.jpg before 2.jpg. If all images are numbered, the numbers decide the
        // order.
        let number = |name: &str| split(name).and_then(|(_, e)| e.split('.').next()?.parse::<u64>().ok());
        if group.images.iter().all(|(name, _)| number(name).is_some()) {
            group.images.sort_by_key(|(name, _)| number(name));
        }
        group
    }

    /// A member's bytes.
    pub fn read(&self, member: Member) -> io::Result<Vec<u8>> {
        self.source.read(member.offset, usize::try_from(member.size).unwrap_or(usize::MAX))
    }
}

/// A member's name as a path below its archive: without a root and without parts that mean nothing, so that members of
/// different archives never have the same path, nor two of one.
pub(super) fn below(name: &str) -> PathBuf {
    let means = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    Path::new(name).components().filter(means).collect()
}

/// Why a member cannot be read, if it is of an unsupported kind or stored in an unsupported way.
fn flaw(name: &str, extension: &str, stored: Stored) -> Option<String> {
    let reason = match (Kind::of(extension), stored) {
        (Some(Kind::Unread(reason)), _) => reason,
        (_, Stored::Whole | Stored::Nothing) => return None,
        (_, Stored::HardLink) => {
            "is a link to another member, which has no bytes: make the archive with --hard-dereference"
        }
        (_, Stored::SymbolicLink) => "is a link to a file, which has no bytes: make the archive with --dereference",
        (_, Stored::Sparse) => "is stored sparse: make the archive without --sparse",
        (_, Stored::InPart) => "goes on in another archive: join the volumes, or make one archive",
    };
    Some(format!("its member {} {reason}", excerpt(name)))
}

/// The kind of a member, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Json,
    Text,
    /// A video, sound, or image of an unsupported format, with the reason; a sample that has one cannot be used.
    Unread(&'static str),
}

impl Kind {
    /// `0.jpg` is an image like `jpg`, but only a plain extension makes a text.
    fn of(extension: &str) -> Option<Self> {
        let extension = extension.to_lowercase();
        let last = extension.rsplit('.').next().unwrap_or_default();
        match extension.as_str() {
            "json" => Some(Self::Json),
            "txt" => Some(Self::Text),
            _ if IMAGES.contains(&last) => Some(Self::Image),
            _ => media::unread(last).map(Self::Unread),
        }
    }
}

/// Whether a member that is not part of a sample looks as if it was meant to be one, such as `a.outputs.txt`.
fn names_a_part(extension: &str) -> bool {
    let last = extension.rsplit('.').next().unwrap_or_default().to_lowercase();
    matches!(&last[..], "json" | "txt") && extension.contains('.')
}

/// Splits a member's name into key and extension, at the first dot of its last path component. `None` for hidden files.
fn split(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[base..].find('.').filter(|dot| *dot > 0)?;
    Some((&name[..base + dot], &name[base + dot + 1..]))
}
