//! Writes any data set in any format that can be read back: the same samples in the same order. A manifest beside them
//! tells that the directory is a written one, which `overwrite` may replace.

mod archive;
mod json;
mod table;

use std::path::{Path, PathBuf};

use basic_models::CheckpointError;
use basic_models::checkpoint::{Contents, MANIFEST, Replaces, StagedDir, spare};
use basic_models::processor::Role;
use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;

use super::{DataError, Format, ImageSource, Sample, Samples};

/// Where a written set has its images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Images {
    /// In it: beside JSON in a folder `images`, in the archive, in the table.
    #[default]
    Copy,
    /// Where they are: image files are named relative to this folder, the set's image root.
    Reference(PathBuf),
}

/// How to write.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The format: any but a folder of images, which has no place for conversations.
    pub format: Format,
    /// Where the images go.
    pub images: Images,
    /// WebDataset: gzip the archives.
    pub gzip: bool,
    /// WebDataset and Parquet: samples of a file.
    pub shard: usize,
    /// Replace a written set that is there.
    pub overwrite: bool,
    /// What the samples are read from, beside the files that they name themselves: nothing of it may be replaced.
    pub sources: Vec<PathBuf>,
    /// How many broken samples may be left out; with 0 the first one is an error.
    pub max_skipped: usize,
}

impl ExportOptions {
    /// Copies of the images, files of 10,000 samples.
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

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// What to open: a recipe's `data.path`.
    pub path: PathBuf,
    /// What `data.images` must be to read it, where it is not the default.
    pub images_root: Option<PathBuf>,
    /// Samples.
    pub samples: usize,
    /// Images.
    pub images: usize,
    /// Data files.
    pub files: usize,
    /// Broken samples that were left out.
    pub skipped: usize,
    /// The first of these, and what is wrong with them.
    pub first_skipped: Vec<String>,
}

/// Broken samples that are named where some were left out.
const NAMED: usize = 5;

/// Why a set could not be written.
#[derive(Debug, Error)]
pub enum ExportError {
    /// It could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] CheckpointError),
    /// A file could not be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// More broken samples than may be left out.
    #[error(
        "{skipped} samples are broken, at most {limit} may be left out (--max-skipped); the last one: {last}; look at the data with `basic data check`, or raise the limit"
    )]
    TooManySkipped {
        /// Samples left out so far.
        skipped: usize,
        /// How many may be.
        limit: usize,
        /// The last one's place and what is wrong with it.
        last: String,
    },
    /// What is asked for cannot be written.
    #[error("{0}")]
    Impossible(String),
}

/// A format's writer: takes the samples in order.
trait Writer {
    fn add(&mut self, index: usize, sample: &Sample, images: &[Image]) -> Result<(), ExportError>;

    /// Completes the files and returns their names.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, ExportError>;
}

/// An image to write.
enum Image {
    Bytes { bytes: std::sync::Arc<[u8]>, extension: &'static str },
    Reference(String),
}

/// Writes the samples of `data` into the directory `out`: `data.json`, `data.jsonl`, `NNNNN.tar` or `NNNNN.parquet`.
/// Nothing has its name until all is written; `progress` hears of every sample.
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
    if options.format == Format::WebDataset && options.images != Images::Copy {
        return impossible("webdataset holds its images itself: write it with --images copy");
    }
    let replaces = Replaces::new(options.overwrite, Contents::Export, options.sources.clone());
    let staged = StagedDir::replacing(out, replaces)?;
    let occupied = options.overwrite && out.is_dir();
    let dir = Named { staged: staged.path().into(), target: out.into() };
    let mut writer: Box<dyn Writer> = match options.format {
        Format::Json => Box::new(json::JsonWriter::new(dir, true)?),
        Format::Jsonl => Box::new(json::JsonWriter::new(dir, false)?),
        Format::WebDataset => Box::new(archive::ArchiveWriter::new(dir, options)),
        Format::Parquet => Box::new(table::TableWriter::new(dir, options)),
        Format::Folder => return impossible("a folder of images has no place for conversations: use another format"),
    };
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
    let alone = matches!(options.format, Format::Json | Format::Jsonl);
    Ok(Exported {
        path: files.first().filter(|_| alone).map_or(out.into(), |file| out.join(file)),
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

/// The files that a sample comes from.
fn read(sample: &Sample) -> Vec<PathBuf> {
    let images = sample.images.iter().filter_map(|image| match image {
        ImageSource::File(path) => Some(path.to_path_buf()),
        ImageSource::Bytes { .. } => None,
    });
    images.chain([sample.file.to_path_buf()]).collect()
}

/// A sample with its images.
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

/// An image's extension, by its content.
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

/// The turns as LLaVA writes them: `(from, value)`.
fn turns(sample: &Sample) -> Vec<(&'static str, &str)> {
    let from = |role| match role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
    };
    sample.messages.iter().map(|message| (from(message.role), message.content.as_str())).collect()
}

/// LLaVA's record of a sample, with the names of its images where they are named.
fn record(index: usize, sample: &Sample, names: &[String]) -> Value {
    let mut record = json!({ "id": sample.id().map_or(index.to_string(), String::from) });
    match names {
        [] => {}
        [name] => record["image"] = name.as_str().into(),
        names => record["image"] = names.into(),
    }
    record["conversations"] =
        turns(sample).into_iter().map(|(from, value)| json!({"from": from, "value": value})).collect();
    record
}

/// A directory under construction and the name that it will have.
#[derive(Debug, Clone)]
struct Named {
    staged: PathBuf,
    target: PathBuf,
}

impl Named {
    /// Where to write `name`, and an error that names where it will be.
    fn file(&self, name: &str) -> (PathBuf, impl Fn(std::io::Error) -> ExportError + use<>) {
        let path = self.target.join(name);
        (self.staged.join(name), move |source| ExportError::Io { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests;
