//! Reads the pages of a row group under a memory budget. Before the library decodes a page, the size that the page
//! claims is taken from the file's budget; it is given back when nothing refers to the page any more.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::sync::{Arc, Mutex, PoisonError};

use basic_models::outside::OverBudget;
use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length, SerializedPageReader};

use super::delta::prefix_bytes;
use super::room::Purse;
use super::thrift::{self, PageClaims, Unreadable};
use crate::file_range::FileRange;
use crate::file_range::Section;

/// The largest size of a page header in bytes; its statistics may hold whole values.
const HEADER: u64 = 16 << 20;

/// The bytes counted per value besides its data: its view, its place in lists, and its levels.
pub(super) const VALUE: u64 = 24;

/// The largest compression ratios of deflate and LZ4.
const DEFLATE: u64 = 1032;
const LZ4: u64 = 255;

pub(super) fn over(error: OverBudget) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// A file of which every read takes from a budget; footers and indexes are read through it.
#[derive(Debug)]
pub(super) struct Bounded {
    source: FileRange,
    len: u64,
    pub budget: Arc<Purse>,
}

impl Bounded {
    pub fn new(file: File, budget: Arc<Purse>) -> std::io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { source: FileRange::Open(Arc::new(file)), len, budget })
    }

    fn section(&self, start: u64) -> Result<Section> {
        Ok(self.source.section(start, self.len.saturating_sub(start))?)
    }

    /// Reads a range without taking from the budget.
    fn range(&self, start: u64, length: u64) -> Result<Vec<u8>> {
        if start.checked_add(length).is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF(format!("{length} bytes from byte {start} are not in the file")));
        }
        Ok(self.source.read(start, length as usize)?)
    }

    /// The footer, for its schema; `None` if the file is not Parquet.
    pub fn footer(&self) -> Result<Option<Vec<u8>>> {
        let Some(tail) = self.len.checked_sub(8) else { return Ok(None) };
        let bytes = self.range(tail, 8)?;
        let len = u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        if bytes[4..] != *b"PAR1" || len > tail {
            return Ok(None);
        }
        self.budget.take(len).map_err(over)?;
        self.range(tail - len, len).map(Some)
    }
}

impl Length for Bounded {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Bounded {
    type T = BufReader<Section>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BufReader::new(self.section(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.budget.take(length as u64).map_err(over)?;
        self.range(start, length as u64).map(Bytes::from)
    }
}

/// A row group to be read.
pub(super) struct Group<'a> {
    pub file: Arc<Bounded>,
    pub metadata: &'a ParquetMetaData,
    pub group: usize,
}

impl RowGroups for Group<'_> {
    fn num_rows(&self) -> usize {
        usize::try_from(self.metadata.row_group(self.group).num_rows()).unwrap_or(0)
    }

    fn column_chunks(&self, leaf: usize) -> Result<Box<dyn PageIterator>> {
        let column = self.metadata.row_group(self.group).column(leaf);
        let places = self.metadata.page_index().and_then(|index| index.page_locations(self.group, leaf).cloned());
        let chunk = Arc::new(Chunk {
            file: self.file.clone(),
            codec: column.compression(),
            placed: places.is_some(),
            next: Mutex::default(),
        });
        let inner = SerializedPageReader::new(chunk.clone(), column, self.num_rows(), places)?;
        let levels = column.column_descr();
        let levels = (levels.max_rep_level() > 0, levels.max_def_level() > 0);
        let pages: Box<dyn PageReader> = Box::new(Pages { inner, chunk, levels });
        Ok(Box::new(Once(Some(pages))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(std::iter::once(self.metadata.row_group(self.group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.metadata
    }
}

struct Once(Option<Box<dyn PageReader>>);

impl Iterator for Once {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl PageIterator for Once {}

/// The page that the library is about to decode.
#[derive(Debug, Default)]
struct Next {
    /// The offset at which the data of the page with the last read header begins, and what that header claims.
    header: Option<(u64, PageClaims)>,
    /// The bytes taken from the budget for the page that is being decoded, and the number of values that it claims.
    taken: u64,
    values: u64,
}

/// A column of a row group, as bytes.
struct Chunk {
    file: Arc<Bounded>,
    codec: Compression,
    /// Whether pages are located by an index, so that header and data are read together.
    placed: bool,
    next: Mutex<Next>,
}

impl Chunk {
    fn next(&self) -> std::sync::MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the decoded size of a page from the budget, after giving back what a previous failed page had taken.
    fn take(&self, claims: &PageClaims, packed: &[u8]) -> Result<()> {
        let budget = &self.file.budget;
        let mut next = self.next();
        budget.give_back(std::mem::take(&mut next.taken));
        let plain = match self.codec {
            // The library decompresses these to their end, whatever size the header claims.
            Compression::GZIP(_) => claims.plain.max(inflated(packed, budget.left())),
            Compression::LZ4 if packed.starts_with(&[0x04, 0x22, 0x4d, 0x18]) => {
                claims.plain.max(packed.len() as u64 * LZ4)
            }
            _ => claims.plain,
        };
        let all = plain.saturating_add(claims.values.saturating_mul(VALUE));
        budget.take(all).map_err(over)?;
        (next.taken, next.values) = (all, claims.values);
        Ok(())
    }
}

/// The size of `packed` after decompression, or 0 if deflate's largest ratio keeps it within `left`.
fn inflated(packed: &[u8], left: u64) -> u64 {
    if (packed.len() as u64).saturating_mul(DEFLATE) <= left {
        return 0;
    }
    let mut plain = flate2::read::MultiGzDecoder::new(packed).take(left.saturating_add(1));
    std::io::copy(&mut plain, &mut std::io::sink()).unwrap_or(0)
}

impl Length for Chunk {
    fn len(&self) -> u64 {
        self.file.len
    }
}

impl ChunkReader for Chunk {
    type T = Box<dyn Read + Send>;

    /// The library reads page headers through this method; the claims of the header are recorded.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut next = self.next();
        if next.header.is_some_and(|(bytes, _)| bytes == start) {
            return Ok(Box::new(self.file.get_read(start)?));
        }
        let left = self.file.len.saturating_sub(start).min(HEADER);
        let mut length = 512;
        loop {
            let bytes = self.file.range(start, left.min(length))?;
            match thrift::page(&bytes) {
                Ok(claims) => {
                    next.header = Some((start.saturating_add(claims.header as u64), claims));
                    return Ok(Box::new(Cursor::new(bytes)));
                }
                Err(Unreadable::Short) if length < left => length = length.saturating_mul(16),
                Err(_) => return Err(ParquetError::General("the header of a page is damaged".into())),
            }
        }
    }

    /// A page's data: without its header, or with it if an index locates the pages.
    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.file.budget.check_time().map_err(over)?;
        let noted = self.next().header.filter(|(bytes, _)| !self.placed && *bytes == start).map(|(_, claims)| claims);
        // The library drops these bytes as soon as the page is decoded, so they are taken and given back at once.
        self.file.budget.take(length as u64).map_err(over)?;
        self.file.budget.give_back(length as u64);
        let bytes = self.file.range(start, length as u64)?;
        let (claims, at) = match noted {
            Some(claims) => (claims, 0),
            None => {
                let damaged = |_| ParquetError::General("the header of a page is damaged".into());
                let claims = thrift::page(&bytes).map_err(damaged)?;
                (claims, claims.header)
            }
        };
        self.take(&claims, bytes.get(at..).unwrap_or_default())?;
        Ok(Bytes::from(bytes))
    }
}

/// The pages of a column in a row group.
struct Pages {
    inner: SerializedPageReader<Chunk>,
    chunk: Arc<Chunk>,
    /// Whether the column has repetition and definition levels.
    levels: (bool, bool),
}

/// A page's bytes together with what was taken from the budget for them.
struct Held {
    bytes: Bytes,
    budget: Arc<Purse>,
    taken: u64,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(self.taken);
    }
}

impl Pages {
    /// Wraps the page so that dropping its bytes gives back what was taken for them. In list columns the share of the
    /// values stays taken, because a row may have any number of values and they outlive the page.
    fn held(&self, mut page: Page) -> Result<Page> {
        let mut next = self.chunk.next();
        let (taken, values) = (std::mem::take(&mut next.taken), std::mem::take(&mut next.values));
        drop(next);
        let budget = self.chunk.file.budget.clone();
        let returns = if self.levels.0 { taken.saturating_sub(values.saturating_mul(VALUE)) } else { taken };
        let prefixes = if page.encoding() == Encoding::DELTA_BYTE_ARRAY { self.prefixes(&page) } else { 0 };
        budget.take(prefixes).map_err(over)?;
        let (Page::DataPage { buf, .. } | Page::DataPageV2 { buf, .. } | Page::DictionaryPage { buf, .. }) = &mut page;
        // A single list may hold any number of texts, so their prefixes stay taken; elsewhere the number of rows in a
        // batch bounds them.
        let returns = if self.levels.0 { returns } else { returns.saturating_add(prefixes) };
        *buf = Bytes::from_owner(Held { bytes: std::mem::take(buf), budget, taken: returns });
        Ok(page)
    }

    fn prefixes(&self, page: &Page) -> u64 {
        let values = match page {
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                buf.get((*def_levels_byte_len as usize).saturating_add(*rep_levels_byte_len as usize)..)
            }
            other => {
                let levels = usize::from(self.levels.0) + usize::from(self.levels.1);
                (0..levels).try_fold(&other.buffer()[..], |rest, _| {
                    let (len, rest) = rest.split_first_chunk::<4>()?;
                    rest.get(u32::from_le_bytes(*len) as usize..)
                })
            }
        };
        values.and_then(prefix_bytes).unwrap_or(0)
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        match self.inner.get_next_page()? {
            Some(page) => self.held(page).map(Some),
            None => Ok(None),
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.inner.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.inner.at_record_boundary()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}
