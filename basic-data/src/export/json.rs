//! LLaVA's JSON, an array or lines.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_128;

use super::writer::{ExportError, Image, Named, Writer, record};
use crate::Sample;

pub struct JsonWriter {
    dir: Named,
    name: &'static str,
    array: bool,
    out: BufWriter<File>,
    /// The names of images by content: what several samples show is written once.
    images: HashMap<u128, String>,
}

impl JsonWriter {
    pub fn new(dir: Named, name: &'static str, array: bool) -> Result<Self, ExportError> {
        let (path, io) = dir.file(name);
        let out = BufWriter::new(File::create(path).map_err(io)?);
        Ok(Self { dir, name, array, out, images: HashMap::new() })
    }

    /// Writes an image where no image of the same bytes was written; returns its name.
    fn image(&mut self, index: usize, number: usize, image: &Image) -> Result<String, ExportError> {
        let (bytes, extension) = match image {
            Image::Reference(name) => return Ok(name.clone()),
            Image::Bytes { bytes, extension } => (bytes, extension),
        };
        let content = xxh3_128(bytes);
        if let Some(name) = self.images.get(&content) {
            return Ok(name.clone());
        }
        // Folders of a thousand: no file system likes 600,000 files in one.
        let folder = format!("images/{:05}", index / 1000);
        let name = format!("{folder}/{index:08}-{number}.{extension}");
        let (path, io) = self.dir.file(&folder);
        std::fs::create_dir_all(path).map_err(io)?;
        let (path, io) = self.dir.file(&name);
        std::fs::write(path, bytes).map_err(io)?;
        self.images.insert(content, name.clone());
        Ok(name)
    }
}

impl Writer for JsonWriter {
    fn add(&mut self, index: usize, sample: &Sample, images: &[Image]) -> Result<(), ExportError> {
        let names: Vec<String> = images
            .iter()
            .enumerate()
            .map(|(number, image)| self.image(index, number, image))
            .collect::<Result<_, _>>()?;
        let separator = match (self.array, index) {
            (true, 0) => "[\n",
            (true, _) => ",\n",
            (false, _) => "",
        };
        let end = if self.array { "" } else { "\n" };
        let (_, io) = self.dir.file(self.name);
        write!(self.out, "{separator}{}{end}", record(index, sample, &names)).map_err(io)
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, ExportError> {
        let (_, io) = self.dir.file(self.name);
        let end = if self.array { "\n]\n" } else { "" };
        self.out.write_all(end.as_bytes()).and_then(|()| self.out.flush()).map_err(io)?;
        Ok(vec![self.name.into()])
    }
}
