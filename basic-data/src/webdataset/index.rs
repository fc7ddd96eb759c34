//! Where the members of an archive lie, and which of them make up a sample.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use basic_models::outside::{Budget, excerpt};
use xxhash_rust::xxh3::xxh3_64;

use super::headers::{Headers, Stored};
use crate::DataError;
use crate::file_range::FileRange;
use crate::locate::IMAGES;
use crate::media;

/// What the index of a member takes beside its name, the checks for doubles and the room to grow included.
const MEMBER: u64 = 128;

/// A member's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    offset: u64,
    pub size: u64,
    /// Where its name begins in the shard's names; it ends where the next begins.
    name: usize,
    stored: Stored,
}

/// An archive's index: members in the archive's order, and where each sample begins among them.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: Arc<Path>,
    source: FileRange,
    names: String,
    members: Vec<Member>,
    samples: Vec<usize>,
    /// The first member that is left out though it looks as if it were a part of a sample.
    pub strange: Option<String>,
}

/// The members of a sample.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub key: &'a str,
    pub json: Option<Member>,
    pub text: Option<Member>,
    /// By name, in the sample's order.
    pub images: Vec<(&'a str, Member)>,
    /// Why the sample cannot be used, where a member of it cannot be read.
    pub flaw: Option<String>,
}

impl Shard {
    /// Steps through the headers of the archive that is `len` bytes from `start` of `source`.
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
        // Keys whose members have ended.
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
            // The index of the archive stays in memory: its names may be as long as the archive pleases.
            let took = (entry.name.len() as u64).saturating_mul(2).saturating_add(MEMBER);
            budget.take(took).map_err(|over| io(over.into()))?;
            if !seen.insert(xxh3_64(entry.name.as_bytes())) {
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

    /// Adds a member, and says whether it begins a sample.
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

    /// Samples in the archive.
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
        // Writers sort by name, which puts 10.jpg before 2.jpg: where all images have a number, it counts.
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

/// Why a member cannot be read, where it is something that is not read, or stored so that it cannot be.
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

/// What a member is by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Json,
    Text,
    /// A film, a sound, an image of another format, and why it is not read: a sample that has one is none without it.
    Unread(&'static str),
}

impl Kind {
    /// `0.jpg` is an image as `jpg` is; a text is one alone.
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

/// Whether a member that is no part of a sample looks as if somebody took it for one: `a.outputs.txt`.
fn names_a_part(extension: &str) -> bool {
    let last = extension.rsplit('.').next().unwrap_or_default().to_lowercase();
    matches!(&last[..], "json" | "txt") && extension.contains('.')
}

/// A member's key and extension: its name up to and after the first dot of its last part. None for hidden files.
fn split(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[base..].find('.').filter(|dot| *dot > 0)?;
    Some((&name[..base + dot], &name[base + dot + 1..]))
}
