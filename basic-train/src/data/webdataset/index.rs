//! Where the members of an archive lie, and which of them make up a sample.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use basic_models::outside::{self, Budget};
use xxhash_rust::xxh3::xxh3_64;

use crate::data::DataError;
use crate::data::locate::IMAGES;
use crate::data::source::Source;

/// What the index of a member takes beside its name, the checks for doubles included.
const MEMBER: u64 = 64;

/// A block of a tar archive.
const BLOCK: u64 = 512;

/// A member's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    offset: u64,
    size: u64,
    /// Where its name begins in the shard's names; it ends where the next begins.
    name: usize,
}

/// An archive's index: members in the archive's order, and where each sample begins among them.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: Arc<Path>,
    source: Source,
    names: String,
    members: Vec<Member>,
    samples: Vec<u32>,
    /// The first member that is left out though its name ends as a sample's text does.
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
}

impl Shard {
    /// Steps through the headers of the archive that is `len` bytes from `start` of `source`.
    pub fn index(path: &Path, source: Source, start: u64, len: u64) -> Result<Self, DataError> {
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
        // Keys whose members have ended, and members whose names are media but for what stands before the ending.
        let mut keys = HashSet::new();
        let mut strange: Option<String> = None;
        let budget = Budget::of(path);
        let mut end = 0;
        let mut archive = tar::Archive::new(section);
        let unreadable = |error: io::Error| damaged(format!("is no tar archive, or a damaged one: {error}"));
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let (offset, size) = (entry.raw_file_position(), entry.size());
            let bytes = entry.path_bytes();
            let name = String::from_utf8_lossy(&bytes);
            let kind = entry.header().entry_type();
            if kind.is_gnu_sparse() {
                return Err(damaged(format!("its member {name} is stored sparse, which cannot be read by place")));
            }
            if !kind.is_file() && !kind.is_contiguous() {
                end = offset;
                continue;
            }
            end = offset.saturating_add(size).saturating_add((BLOCK - size % BLOCK) % BLOCK);
            if end > len {
                return Err(damaged(format!("is truncated inside its member {name}: fetch or make it again")));
            }
            let Some((key, kind)) = split(&name).map(|(key, extension)| (key, Kind::of(extension))) else { continue };
            if kind.is_none() {
                strange = strange.or_else(|| names_a_part(&name).then(|| outside::excerpt(&name)));
                continue;
            }
            // The index of the archive stays in memory: its names may be as long as the archive pleases.
            let took = (name.len() as u64).saturating_add(MEMBER);
            budget.take(took).map_err(|over| io(over.into()))?;
            if !seen.insert(xxh3_64(name.as_bytes())) {
                return Err(damaged(format!("holds the member {name} twice: give every sample a key of its own")));
            }
            if shard.add(&name, start.saturating_add(offset), size) && !keys.insert(xxh3_64(key.as_bytes())) {
                return Err(damaged(format!(
                    "holds the members of {} apart from each other: sort the archive by name (tar --sort=name)",
                    outside::excerpt(key)
                )));
            }
        }
        // Writers end an archive with blocks of zeros: without one, members may be missing.
        if len > 0 && end.saturating_add(BLOCK) > len {
            return Err(damaged("is truncated: it has no end marker: fetch or make it again".into()));
        }
        shard.strange = strange;
        shard.names.shrink_to_fit();
        shard.members.shrink_to_fit();
        shard.samples.shrink_to_fit();
        Ok(shard)
    }

    /// Adds a member, and says whether it begins a sample.
    fn add(&mut self, name: &str, offset: u64, size: u64) -> bool {
        let key = split(name).map(|(key, _)| key);
        let last = self.members.len().checked_sub(1).and_then(|last| split(self.name(last)));
        let begins = last.map(|(key, _)| key) != key;
        if begins {
            self.samples.push(self.members.len() as u32);
        }
        self.members.push(Member { offset, size, name: self.names.len() });
        self.names.push_str(name);
        begins
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
        let start = self.samples[sample] as usize;
        let end = self.samples.get(sample + 1).map_or(self.members.len(), |next| *next as usize);
        let mut group = Group { key: "", json: None, text: None, images: Vec::new() };
        for (index, member) in (start..end).zip(&self.members[start..end]) {
            let name = self.name(index);
            let (key, extension) = split(name).unwrap_or((name, ""));
            group.key = key;
            match Kind::of(extension) {
                Some(Kind::Json) => group.json = Some(*member),
                Some(Kind::Text) => group.text = Some(*member),
                Some(Kind::Image) => group.images.push((name, *member)),
                None => {}
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

/// What a member is by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Json,
    Text,
}

impl Kind {
    /// `0.jpg` is an image as `jpg` is; everything else is what it is alone.
    fn of(extension: &str) -> Option<Self> {
        let extension = extension.to_lowercase();
        let last = extension.rsplit('.').next().unwrap_or_default();
        match extension.as_str() {
            "json" => Some(Self::Json),
            "txt" => Some(Self::Text),
            _ if IMAGES.contains(&last) => Some(Self::Image),
            _ => None,
        }
    }
}

/// Whether a member that is no part of a sample looks as if somebody took it for one: `a.outputs.txt`.
fn names_a_part(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default().to_lowercase();
    matches!(&last[..], "json" | "txt") && split(name).is_some_and(|(_, extension)| extension.contains('.'))
}

/// A member's key and extension: its name up to and after the first dot of its last part. None for hidden files.
fn split(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[base..].find('.').filter(|dot| *dot > 0)?;
    Some((&name[..base + dot], &name[base + dot + 1..]))
}
