//! Writes LLaVA's JSON: an array, or one sample per line.

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
    /// The file names of images by a hash of their content, so that an image that several samples share is written
    /// once.
    images: HashMap<u128, String>,
}

impl JsonWriter {
    pub fn new(dir: Named, name: &'static str, array: bool) -> Result<Self, ExportError> {
        let (path, io) = dir.file(name);
        let out = BufWriter::new(File::create(path).map_err(io)?);
        Ok(Self { dir, name, array, out, images: HashMap::new() })
    }

    /// Writes an image unless one with the same bytes has been written already; returns its name.
    fn image(&mut self, index: usize, number: usize, image: &Image) -> Result<String, ExportError> {
        let (bytes, extension) = match image {
            Image::Reference(name) => return Ok(name.clone()),
            Image::Bytes { bytes, extension } => (bytes, extension),
        };
        let content = xxh3_128(bytes);
        if let Some(name) = self.images.get(&content) {
            return Ok(name.clone());
        }
        // Each folder holds the images of a thousand samples, because many file systems are slow with 600,000 files in
        // one folder.
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
