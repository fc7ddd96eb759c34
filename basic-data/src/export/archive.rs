//! Writes WebDataset: tar archives, plain or gzipped. The same samples give the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::writer::{ExportError, Image, Named, Sharding, Writer, record};
use crate::Sample;

pub struct ArchiveWriter {
    dir: Named,
    gzip: bool,
    shard: usize,
    open: Option<tar::Builder<Out>>,
    names: Vec<String>,
}

enum Out {
    Plain(BufWriter<File>),
    Gzip(Box<GzEncoder<BufWriter<File>>>),
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(out) => out.flush(),
        }
    }
}

impl ArchiveWriter {
    pub fn new(dir: Named, sharding: Sharding) -> Self {
        Self { dir, gzip: sharding.gzip, shard: sharding.shard, open: None, names: Vec::new() }
    }

    /// The archive for sample `index`; opens a new one when the previous one is full.
    fn archive(&mut self, index: usize) -> Result<&mut tar::Builder<Out>, ExportError> {
        if index.is_multiple_of(self.shard) {
            self.close()?;
            let end = if self.gzip { "tar.gz" } else { "tar" };
            let name = format!("{:05}.{end}", index / self.shard);
            let (path, io) = self.dir.file(&name);
            let file = BufWriter::with_capacity(1 << 18, File::create(path).map_err(io)?);
            let out = match self.gzip {
                true => Out::Gzip(Box::new(GzEncoder::new(file, Compression::default()))),
                false => Out::Plain(file),
            };
            self.names.push(name);
            self.open = Some(tar::Builder::new(out));
        }
        self.open.as_mut().ok_or_else(|| ExportError::Impossible("the samples must come in order, from 0".into()))
    }

    fn close(&mut self) -> Result<(), ExportError> {
        let Some(builder) = self.open.take() else { return Ok(()) };
        let (_, io) = self.dir.file(self.names.last().map_or("", String::as_str));
        let mut file = match builder.into_inner().map_err(&io)? {
            Out::Plain(file) => file,
            Out::Gzip(encoder) => encoder.finish().map_err(&io)?,
        };
        file.flush().map_err(io)
    }
}

impl Writer for ArchiveWriter {
    fn add(&mut self, index: usize, sample: &Sample, images: &[Image]) -> Result<(), ExportError> {
        let record = record(index, sample, &[]).to_string();
        let key = format!("{index:09}");
        let alone = images.len() == 1;
        let mut members = vec![(format!("{key}.json"), record.as_bytes())];
        for (number, image) in images.iter().enumerate() {
            if let Image::Bytes { bytes, extension } = image {
                let number = if alone { String::new() } else { format!("{number}.") };
                members.push((format!("{key}.{number}{extension}"), &bytes[..]));
            }
        }
        let dir = self.dir.clone();
        let archive = self.archive(index)?;
        for (name, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            let (_, io) = dir.file(&name);
            archive.append_data(&mut header, &name, bytes).map_err(io)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, ExportError> {
        self.close()?;
        Ok(self.names.iter().map(PathBuf::from).collect())
    }
}
