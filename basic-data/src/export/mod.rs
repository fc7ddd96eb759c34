//! Writes any data set in any format that can be read back: the same samples in the same order. A manifest beside the
//! data marks the directory as an exported set, which `overwrite` may replace.

mod archive;
mod json;
mod table;
mod writer;

use std::path::{Path, PathBuf};

use basic_models::checkpoint::{Contents, MANIFEST, Replaces, StagedDir, spare};
use serde::Serialize;
use serde_json::json;

pub(super) use archive::ArchiveWriter;
pub(super) use json::JsonWriter;
pub(super) use table::TableWriter;
use writer::Image;
pub use writer::{ExportError, Images};
pub(super) use writer::{Named, Sharding, Writer};

use super::{DataError, Format, ImageSource, Sample, Samples};

/// Options of [`export`].
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The format: any but a folder of images, which cannot hold conversations.
    pub format: Format,
    /// Whether images are copied or referred to.
    pub images: Images,
    /// WebDataset: whether the archives are gzipped.
    pub gzip: bool,
    /// WebDataset and Parquet: number of samples per file.
    pub shard: usize,
    /// Whether an exported set that is already there is replaced.
    pub overwrite: bool,
    /// Files that the samples are read from, besides those that the samples themselves name; none of them may be
    /// replaced.
    pub sources: Vec<PathBuf>,
    /// How many broken samples may be left out; with 0 the first one is an error.
    pub max_skipped: usize,
}

impl ExportOptions {
    /// Options that copy the images and write 10,000 samples per file.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            images: Images::Copy,
            gzip: false,
            shard: 10_000,
            overwrite: false,
            sources: Vec::new(),
            max_skipped: 0,
        }
    }
}

/// The result of [`export`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The path to open the set with: a recipe's `data.path`.
    pub path: PathBuf,
    /// The value of `data.images` needed to read the set, if it is not the default.
    pub images_root: Option<PathBuf>,
    /// Number of samples written.
    pub samples: usize,
    /// Number of images written.
    pub images: usize,
    /// Number of data files written.
    pub files: usize,
    /// Number of broken samples that were left out.
    pub skipped: usize,
    /// The errors of the first few of these.
    pub first_skipped: Vec<String>,
}

/// The number of left-out samples whose errors are kept.
const NAMED: usize = 5;

/// Writes the samples of `data` into the directory `out` as `data.json`, `data.jsonl`, `NNNNN.tar` or `NNNNN.parquet`.
/// The directory gets its name only when everything has been written; `progress` is called for every sample.
///
/// # Errors
///
/// [`ExportError`] that names the sample that could not be read, or the file that could not be written.
pub fn export(
    data: &dyn Samples,
    out: &Path,
    options: &ExportOptions,
    mut progress: impl FnMut(usize),
) -> Result<Exported, ExportError> {
    let impossible = |reason: &str| Err(ExportError::Impossible(reason.into()));
    if options.shard == 0 {
        return impossible("a file must hold at least one sample");
    }
    let format = options.format.spec();
    if let Some(reason) = format.cannot_write(&options.images) {
        return impossible(reason);
    }
    if options.gzip && !format.writes_gzip() {
        return impossible("only the archives of a WebDataset are compressed with gzip: leave --gzip out");
    }
    let replaces = Replaces::new(options.overwrite, Contents::Export, options.sources.clone());
    let staged = StagedDir::replacing(out, replaces)?;
    let occupied = options.overwrite && out.is_dir();
    let dir = Named { staged: staged.path().into(), target: out.into() };
    let mut writer = format.writer(dir, Sharding { shard: options.shard, gzip: options.gzip })?;
    let (mut samples, mut images, mut skipped, mut first_skipped) = (0, 0, 0, Vec::new());
    for index in 0..data.len() {
        progress(1);
        let (sample, written) = match whole(data, index, options) {
            Err(ExportError::Data(error)) if options.max_skipped > 0 && error.is_sample() => {
                skipped += 1;
                if skipped > options.max_skipped {
                    let (limit, last) = (options.max_skipped, error.to_string());
                    return Err(ExportError::TooManySkipped { skipped, limit, last });
                }
                if first_skipped.len() < NAMED {
                    first_skipped.push(error.to_string());
                }
                continue;
            }
            read => read?,
        };
        if occupied {
            spare(&read(&sample), out)?;
        }
        images += written.len();
        writer.add(samples, &sample, &written)?;
        samples += 1;
    }
    if let Some(first) = first_skipped.first().filter(|_| samples == 0) {
        return Err(ExportError::Impossible(format!("every sample is broken; the first: {first}")));
    }
    let files = writer.finish()?;
    let manifest = json!({ "basic": env!("CARGO_PKG_VERSION"), "samples": samples, "files": &files });
    staged.write(MANIFEST, format!("{manifest:#}\n").as_bytes())?;
    staged.commit()?;
    Ok(Exported {
        path: files.first().filter(|_| format.is_one_file()).map_or(out.into(), |file| out.join(file)),
        images_root: match &options.images {
            Images::Copy => None,
            Images::Reference(root) => Some(root.clone()),
        },
        samples,
        images,
        files: files.len(),
        skipped,
        first_skipped,
    })
}

/// The files that a sample was read from.
fn read(sample: &Sample) -> Vec<PathBuf> {
    let images = sample.images.iter().filter_map(|image| match image {
        ImageSource::File(path) => Some(path.to_path_buf()),
        ImageSource::Bytes { .. } => None,
    });
    images.chain([sample.file.to_path_buf()]).collect()
}

/// A sample together with its images as they will be written.
fn whole(data: &dyn Samples, index: usize, options: &ExportOptions) -> Result<(Sample, Vec<Image>), ExportError> {
    let sample = data.sample(index)?;
    let written = sample.images.iter().map(|image| to_write(&sample, image, &options.images));
    let written: Vec<Image> = written.collect::<Result<_, _>>()?;
    Ok((sample, written))
}

fn to_write(sample: &Sample, image: &ImageSource, images: &Images) -> Result<Image, ExportError> {
    if let Images::Reference(root) = images {
        let inside = match image {
            ImageSource::File(path) => path.strip_prefix(root).ok().and_then(Path::to_str),
            ImageSource::Bytes { .. } => None,
        };
        return inside.map(|name| Image::Reference(name.into())).ok_or_else(|| {
            let root = root.display();
            ExportError::Impossible(format!("image {image} is no file below {root}: write with --images copy"))
        });
    }
    let bytes = image.bytes().map_err(|error| sample.image_error(error.into()))?;
    let extension = extension(&bytes).ok_or_else(|| {
        let reason = match bytes.is_empty() {
            true => format!("image {image} is empty (0 bytes): leave the sample out"),
            false => format!("image {image} is of no format that is known: leave the sample out"),
        };
        DataError::ImageFile { path: sample.file.to_path_buf(), place: sample.place.clone(), reason }
    })?;
    Ok(Image::Bytes { bytes, extension })
}

/// The file extension for an image, from its content.
fn extension(bytes: &[u8]) -> Option<&'static str> {
    use image::ImageFormat;
    match image::guess_format(bytes).ok()? {
        ImageFormat::Jpeg => Some("jpg"),
        ImageFormat::Png => Some("png"),
        ImageFormat::WebP => Some("webp"),
        ImageFormat::Gif => Some("gif"),
        ImageFormat::Bmp => Some("bmp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
