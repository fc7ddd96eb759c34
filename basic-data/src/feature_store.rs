//! Keeps the patch features of frozen vision encoders on disk, for all runs that see the same images in the same way.
//!
//! One file holds the features of one image by one encoder. Its name is a hash of the image's bytes and of everything
//! else that the features depend on. A file that is damaged or not what its name says is ignored and written anew;
//! nothing is ever deleted. Several processes may use a folder at the same time.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use basic_models::atomic_file::write_atomically;
use basic_models::checkpoint::{EncoderIdentity, PatchEncoder};
use basic_models::processor::ImageProcessor;
use burn::tensor::{DType, TensorData};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

use super::{DataError, ImageSource};

const MAGIC: &[u8; 8] = b"BASICPF\n";
/// Changes with what files hold, and with how features are computed.
const FORMAT: u32 = 1;
/// Magic, format, type, rows, width, key, checksum.
const HEADER: usize = 8 + 4 + 4 + 4 + 4 + 32 + 8;
/// The largest encoded image whose features are kept.
const MOST_IMAGE: u64 = 64 << 20;
/// After this share of the limit was written, the folder is looked through again, because other processes write too.
const COUNT_EVERY: u64 = 32;
/// The most positions of an image: a damaged file does not claim more memory.
const MOST_ROWS: usize = 1 << 20;
const ENDING: &str = "features";

/// A folder of features, and how much it may hold.
#[derive(Debug)]
pub struct FeatureStore {
    dir: PathBuf,
    limit: u64,
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    /// The bytes of the folder's files, once they have been counted.
    used: Option<u64>,
    /// What was written since.
    written: u64,
    /// Why nothing more is written.
    problem: Option<String>,
}

impl FeatureStore {
    /// The store in `dir`, of at most `mib` MiB. The folder is made when something is written. Within a process there
    /// is one store for a folder and a limit.
    ///
    /// # Errors
    ///
    /// [`DataError`] if `dir` is something else than a folder, or cannot be looked at.
    pub fn open(dir: &Path, mib: usize) -> Result<Arc<Self>, DataError> {
        static OPENED: Mutex<Vec<Arc<FeatureStore>>> = Mutex::new(Vec::new());
        let io = |source| DataError::Io { path: dir.into(), source };
        match dir.metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(io(ErrorKind::NotADirectory.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let dir = dir.canonicalize().or_else(|_| std::path::absolute(dir)).map_err(io)?;
        let limit = (mib as u64).saturating_mul(1 << 20);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = opened.iter().find(|store| store.dir == dir && store.limit == limit) {
            return Ok(store.clone());
        }
        let store = Arc::new(Self { dir, limit, room: Mutex::default() });
        opened.push(store.clone());
        Ok(store)
    }

    /// Why features could not be written, if that failed. Nothing is written after that.
    pub fn problem(&self) -> Option<String> {
        self.room().problem.clone()
    }

    fn path(&self, key: &FeatureKey) -> PathBuf {
        let name: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(&name[..2]).join(format!("{}.{ENDING}", &name[2..]))
    }

    /// The features of a key, which must be of this form. `None` if there is no such file or anything about it is wrong.
    fn read(&self, key: &FeatureKey, form: Rows) -> Option<TensorData> {
        let path = self.path(key);
        // Before it is opened: a pipe would not return.
        let meta = path.symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
        let form = form.filled(usize::try_from(meta.len()).ok()?.checked_sub(HEADER)?)?;
        let length = HEADER + form.bytes();
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).ok()?;
        File::open(&path).ok()?.take(length as u64).read_to_end(&mut bytes).ok()?;
        if bytes.len() != length || bytes[..HEADER] != header(key, form, &bytes[HEADER..])? {
            return None;
        }
        bytes.drain(..HEADER);
        Some(TensorData::from_bytes_vec(bytes, [form.rows, form.width], form.dtype))
    }

    /// Writes features unless there is no room for them. Whatever fails is no loss but that of time.
    fn write(&self, key: &FeatureKey, form: Form, payload: &[u8]) {
        let Some(header) = header(key, form, payload) else { return };
        let path = self.path(key);
        // What was damaged is replaced.
        let before = path.symlink_metadata().map_or(0, |meta| meta.len());
        let bytes = (HEADER + payload.len()) as u64;
        if !self.takes(bytes.saturating_sub(before)) {
            return;
        }
        if let Err(error) = write_atomically(&path, &[&header, payload].concat()) {
            let reason = format!("{}: {error}: no more features are kept in this folder", path.display());
            self.room().problem.get_or_insert(reason);
        }
    }

    /// Whether so many bytes more fit; then they count as used.
    fn takes(&self, bytes: u64) -> bool {
        let mut room = self.room();
        let used = match room.used {
            Some(used) if room.written <= self.limit / COUNT_EVERY => used,
            _ => {
                room.written = 0;
                self.count()
            }
        };
        let fits = room.problem.is_none() && used.saturating_add(bytes) <= self.limit;
        let taken = if fits { bytes } else { 0 };
        room.used = Some(used.saturating_add(taken));
        room.written = room.written.saturating_add(taken);
        fits
    }

    /// The bytes of the folder's files.
    fn count(&self) -> u64 {
        let files = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let folders = files(&self.dir).filter(|entry| entry.file_name().len() == 2);
        let files = folders.flat_map(|folder| files(&folder.path()).collect::<Vec<_>>());
        let of_store = files.filter(|file| file.path().extension().is_some_and(|ending| ending == ENDING));
        of_store.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first bytes of a file. `None` for what files cannot hold.
fn header(key: &FeatureKey, form: Form, payload: &[u8]) -> Option<[u8; HEADER]> {
    let dtype: u32 = match form.dtype {
        DType::F32 => 1,
        DType::F16 => 2,
        DType::BF16 => 3,
        _ => return None,
    };
    let numbers = [FORMAT, dtype, u32::try_from(form.rows).ok()?, u32::try_from(form.width).ok()?];
    let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let described = [&MAGIC[..], &numbers, &key.0].concat();
    let mut checksum = Xxh3::new();
    checksum.update(&described);
    checksum.update(payload);
    [described, checksum.digest().to_le_bytes().to_vec()].concat().try_into().ok()
}

/// The form of an image's features.
#[derive(Debug, Clone, Copy)]
struct Form {
    rows: usize,
    width: usize,
    dtype: DType,
}

impl Form {
    fn bytes(self) -> usize {
        self.rows * self.width * self.dtype.size()
    }
}

/// The form of the features of all images by an encoder.
#[derive(Debug, Clone, Copy)]
struct Rows {
    /// `None` if they differ from image to image.
    rows: Option<usize>,
    width: usize,
    dtype: DType,
}

impl Rows {
    /// The form of an image's features that take so many bytes; `None` if none has as many.
    fn filled(self, bytes: usize) -> Option<Form> {
        let row = self.width.checked_mul(self.dtype.size()).filter(|row| *row > 0)?;
        let rows = self.rows.unwrap_or(bytes / row);
        let fits = rows <= MOST_ROWS && rows.checked_mul(row) == Some(bytes);
        fits.then_some(Form { rows, width: self.width, dtype: self.dtype })
    }
}

/// The name of an image's features by an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureKey([u8; 32]);

/// What is known of an image's features before they are asked for.
#[derive(Debug, Clone)]
pub struct KnownFeatures {
    /// Their name, by the image's bytes as they were read.
    pub key: FeatureKey,
    /// The features, where the store has them: `[positions, width]`.
    pub features: Option<TensorData>,
}

/// A store as it is used by one encoder. Clones are the same.
#[derive(Debug, Clone)]
pub struct EncoderStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<FeatureStore>,
    /// `None` for an encoder that could not be identified.
    encoder: OnceLock<Option<Identified>>,
}

#[derive(Debug)]
struct Identified {
    hash: [u8; 32],
    form: Rows,
}

impl EncoderStore {
    /// The store, for an encoder that is not known yet.
    pub fn new(store: Arc<FeatureStore>) -> Self {
        Self(Arc::new(Inner { store, encoder: OnceLock::new() }))
    }

    /// Takes what the features depend on from the encoder and its image processor; later calls change nothing. The
    /// encoder must stay as it is.
    pub fn identify(&self, encoder: &impl PatchEncoder, images: &ImageProcessor) {
        self.0.encoder.get_or_init(|| {
            let EncoderIdentity { text, rows, width, dtype } = encoder.identity()?;
            let endian = cfg!(target_endian = "little");
            let all = [&*text, &images.identity(), env!("CARGO_PKG_VERSION"), &format!("{FORMAT} {endian}")];
            Some(Identified { hash: Sha256::digest(all.join("\n")).into(), form: Rows { rows, width, dtype } })
        });
    }

    /// Reads an image's bytes and looks for its features: what is known of them, and the image as it was read, from
    /// which they must be computed if the store lacks them. `None` before the encoder is known, and for images that
    /// cannot be read or are too large.
    pub fn look(&self, image: &ImageSource) -> Option<(KnownFeatures, ImageSource)> {
        let Identified { hash, form } = self.identified()?;
        let bytes = match image {
            ImageSource::Bytes { bytes, .. } => bytes.clone(),
            ImageSource::File(path) => {
                path.metadata().ok().filter(|meta| meta.is_file() && meta.len() <= MOST_IMAGE)?;
                image.bytes().ok()?
            }
        };
        if bytes.len() as u64 > MOST_IMAGE {
            return None;
        }
        let key = FeatureKey(Sha256::new().chain_update(hash).chain_update(Sha256::digest(&bytes)).finalize().into());
        let features = self.0.store.read(&key, *form);
        Some((KnownFeatures { key, features }, ImageSource::Bytes { name: image.name().into(), bytes }))
    }

    /// Writes the features of an image, `[positions, width]` in order.
    pub(super) fn keep(&self, key: &FeatureKey, features: &[u8]) {
        if let Some(Identified { form, .. }) = self.identified()
            && let Some(form) = form.filled(features.len())
        {
            self.0.store.write(key, form, features);
        }
    }

    fn identified(&self) -> Option<&Identified> {
        self.0.encoder.get()?.as_ref()
    }

    /// Why features could not be written, if that failed.
    pub fn problem(&self) -> Option<String> {
        self.0.store.problem()
    }
}

#[cfg(test)]
mod tests;
