//! What processes send each other: a byte for its kind, its length, and its bytes.

use std::io::{self, Read, Write};

/// The most bytes of a frame.
pub const LARGEST: usize = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A rank's bytes, for rank 0.
    Bytes(Vec<u8>),
    /// The bytes of all ranks.
    All(Vec<Vec<u8>>),
    /// A rank has failed.
    Failed { rank: usize, message: String },
    /// Ranks did not send anything in time.
    Silent { ranks: Vec<usize>, seconds: u64 },
    /// A rank has ended.
    Ended(usize),
    /// The connection has ended; never sent.
    Gone,
}

/// Writes a frame.
pub fn write(mut to: impl Write, frame: &Frame) -> io::Result<()> {
    let mut body = Vec::new();
    let number = |body: &mut Vec<u8>, number: usize| body.extend((number as u64).to_le_bytes());
    let kind = match frame {
        Frame::Bytes(bytes) => {
            body.extend(bytes);
            1
        }
        Frame::All(all) => {
            all.iter().for_each(|bytes| number(&mut body, bytes.len()));
            all.iter().for_each(|bytes| body.extend(bytes));
            2
        }
        Frame::Failed { rank, message } => {
            number(&mut body, *rank);
            body.extend(message.as_bytes());
            3
        }
        Frame::Silent { ranks, seconds } => {
            body.extend(seconds.to_le_bytes());
            ranks.iter().for_each(|rank| number(&mut body, *rank));
            4
        }
        Frame::Ended(rank) => {
            number(&mut body, *rank);
            5
        }
        Frame::Gone => return Ok(()),
    };
    let mut head = vec![kind];
    number(&mut head, body.len());
    to.write_all(&head)?;
    to.write_all(&body)?;
    to.flush()
}

/// Reads a frame of a launch of `world` processes.
pub fn read(mut from: impl Read, world: usize) -> io::Result<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    // Beside the bytes themselves, there are their lengths.
    if length > (LARGEST + 8 * world) as u64 {
        return Err(bad());
    }
    let mut body = Vec::new();
    // Grows with what comes, not with what is announced.
    if from.by_ref().take(length).read_to_end(&mut body)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(bad);
    let rank = |bytes: &[u8]| number(bytes)?.try_into().ok().filter(|rank| *rank < world).ok_or_else(bad);
    match kind {
        1 => Ok(Frame::Bytes(body)),
        2 => {
            let (lengths, mut rest) = body.split_at_checked(8 * world).ok_or_else(bad)?;
            let mut all = Vec::with_capacity(world);
            for length in lengths.chunks_exact(8) {
                let length = number(length)?.try_into().map_err(|_| bad())?;
                let (bytes, after) = rest.split_at_checked(length).ok_or_else(bad)?;
                all.push(bytes.to_vec());
                rest = after;
            }
            if rest.is_empty() { Ok(Frame::All(all)) } else { Err(bad()) }
        }
        3 => {
            let message = String::from_utf8_lossy(body.get(8..).unwrap_or_default()).into_owned();
            Ok(Frame::Failed { rank: rank(&body)?, message })
        }
        4 => {
            let ranks: io::Result<Vec<usize>> = body.get(8..).unwrap_or_default().chunks_exact(8).map(rank).collect();
            Ok(Frame::Silent { ranks: ranks?, seconds: number(&body)? })
        }
        5 => Ok(Frame::Ended(rank(&body)?)),
        _ => Err(bad()),
    }
}

fn bad() -> io::Error {
    io::ErrorKind::InvalidData.into()
}
