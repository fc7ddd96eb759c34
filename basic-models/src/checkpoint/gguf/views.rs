//! Gives the tensors of a mapped GGUF file in Hugging Face's form: quantized values as f32, the rows of Llama's queries
//! and keys in their original order, Gemma's norms without the added 1.

use std::collections::HashMap;
use std::ops::Range;

use memmap2::Mmap;

use super::super::CheckpointError;
use super::super::source::release;
use super::blocks::dequantize;
use super::format::{BLOCK, Kind};

/// The number of bytes that are converted at a time.
const WINDOW: usize = 4 << 20;

/// A tensor as the rest of the program sees it. Positions and lengths of parts count the bytes of its float type
/// ([`Kind::float`]), as if the tensor were stored in it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(super) kind: Kind,
    /// The position of its first byte in the file.
    pub(super) start: usize,
    /// The number of bytes in the file.
    pub(super) bytes: usize,
    /// The number of values in a row; a vector whose rows are reordered has one.
    pub(super) columns: usize,
    /// The rows of a head, if the two halves of each head are interleaved in the file.
    pub(super) interleaved: Option<usize>,
    /// Subtracted from each value, for f32.
    pub(super) minus: f32,
}

impl View {
    /// The row of the file with the row `row` of the tensor.
    fn row(&self, row: usize) -> usize {
        let Some(height) = self.interleaved else { return row };
        let (head, inside) = (row / height, row % height);
        let (half, pair) = (inside / (height / 2), inside % (height / 2));
        head * height + 2 * pair + half
    }
}

/// The mapped file and its tensors, by their names in it.
#[derive(Debug)]
pub(crate) struct Views {
    map: Mmap,
    tensors: HashMap<String, View>,
}

impl Views {
    pub(super) fn new(map: Mmap, tensors: HashMap<String, View>) -> Self {
        Self { map, tensors }
    }

    /// Passes the bytes `range` of a tensor to `take` in windows of whole multiples of `unit` bytes.
    pub(crate) fn windows(
        &self,
        name: &str,
        range: Range<usize>,
        unit: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let Some(view) = self.tensors.get(name) else { return Ok(()) };
        let step = (WINDOW / unit.max(1)).max(1) * unit.max(1);
        let size = view.kind.float().size();
        let mut buffer = Vec::new();
        for start in range.clone().step_by(step) {
            let end = (start + step).min(range.end);
            buffer.clear();
            self.append(view, start / size..end / size, &mut buffer);
            take(&buffer)?;
        }
        // The pages can be read again from the file.
        release(&self.map, view.start..view.start + view.bytes);
        Ok(())
    }

    /// Appends the bytes of some values.
    fn append(&self, view: &View, values: Range<usize>, out: &mut Vec<u8>) {
        let mut at = values.start;
        while at < values.end {
            let (row, column) = (at / view.columns, at % view.columns);
            let count = (view.columns - column).min(values.end - at);
            self.append_run(view, view.row(row) * view.columns + column, count, out);
            at += count;
        }
    }

    /// Appends values that are neighbours in the file.
    fn append_run(&self, view: &View, first: usize, count: usize, out: &mut Vec<u8>) {
        let data = &self.map[view.start..view.start + view.bytes];
        let (block, bytes) = view.kind.block();
        if block == 1 {
            let run = &data[first * bytes..(first + count) * bytes];
            if view.minus == 0.0 || view.kind != Kind::F32 {
                out.extend_from_slice(run);
            } else {
                let (values, _) = run.as_chunks::<4>();
                out.extend(values.iter().flat_map(|value| (f32::from_le_bytes(*value) - view.minus).to_le_bytes()));
            }
            return;
        }
        let mut values = [0.0f32; BLOCK];
        let (mut at, end) = (first, first + count);
        while at < end {
            let index = at / block;
            dequantize(view.kind, &data[index * bytes..(index + 1) * bytes], &mut values);
            let (from, to) = (at - index * block, (end - index * block).min(block));
            out.extend(values[from..to].iter().flat_map(|value| value.to_le_bytes()));
            at = index * block + to;
        }
    }
}
