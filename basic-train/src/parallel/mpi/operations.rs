//! The operations: each is started, and then waited for while this process listens to the others.

use std::time::{Duration, Instant};

use mpi::Tag;
use mpi::point_to_point::MatchedReceiveVec;
use mpi::request::{Request, StaticScope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use super::super::failure::ANSWER;
use super::{BLOCK, CollectiveError, FAILED, GIVES_UP, Operation, State};

impl State {
    pub(super) fn world(&self) -> usize {
        self.all.size() as usize
    }

    pub(super) fn rank(&self) -> usize {
        self.all.rank() as usize
    }

    /// An error if the ranks bring different headers. Bytes may differ in length.
    pub(super) fn agree(&mut self, header: [u64; 3]) -> Result<(), CollectiveError> {
        let all = self.all_gather(header.iter().flat_map(|number| number.to_le_bytes()).collect())?;
        let (numbers, _) = all.as_chunks::<8>();
        let numbers: Vec<u64> = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let (headers, _) = numbers.as_chunks::<3>();
        let differs = |found: &[u64; 3]| found[0] != headers[0][0] || found[1..] != headers[0][1..];
        let Some(rank) = headers.iter().position(differs) else { return Ok(()) };
        let describe = |[code, length, _]: [u64; 3]| Operation::describe(code, length);
        Err(CollectiveError::Mismatch { rank, found: describe(headers[rank]), expected: describe(headers[0]) })
    }

    /// The bytes of all ranks, joined in rank order; all bring as many.
    pub(super) fn all_gather(&mut self, mine: Vec<u8>) -> Result<Vec<u8>, CollectiveError> {
        let (world, length, most) = (self.world(), mine.len(), BLOCK / self.world());
        if length <= most {
            let gathered = vec![0; length * world];
            return self
                .run(mine, gathered, |all, mine, gathered| all.immediate_all_gather_into(StaticScope, mine, gathered));
        }
        let mut gathered = vec![0; length * world];
        for start in (0..length).step_by(most) {
            let end = length.min(start + most);
            let part = self.all_gather(mine[start..end].to_vec())?;
            for (rank, part) in part.chunks_exact(end - start).enumerate() {
                gathered[rank * length + start..rank * length + end].copy_from_slice(part);
            }
        }
        Ok(gathered)
    }

    /// Sends the r-th of equal parts to rank r; gives the parts that are for this rank, in rank order.
    pub(super) fn all_to_all(&mut self, parts: Vec<u8>) -> Result<Vec<u8>, CollectiveError> {
        let world = self.world();
        let (each, most) = (parts.len() / world, BLOCK / world);
        if each <= most {
            let received = vec![0; parts.len()];
            return self.run(parts, received, |all, sent, received| {
                all.immediate_all_to_all_into(StaticScope, sent, received)
            });
        }
        let mut received = vec![0; parts.len()];
        for start in (0..each).step_by(most) {
            let end = each.min(start + most);
            let block = parts.chunks_exact(each).flat_map(|part| &part[start..end]).copied().collect();
            let block = self.all_to_all(block)?;
            for (rank, block) in block.chunks_exact(end - start).enumerate() {
                received[rank * each + start..rank * each + end].copy_from_slice(block);
            }
        }
        Ok(received)
    }

    /// Gives all the bytes of `root`; all bring as many.
    pub(super) fn broadcast(&mut self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>, CollectiveError> {
        let mut whole = Vec::with_capacity(bytes.len());
        for block in bytes.chunks(BLOCK) {
            let sent = self.run(Vec::new(), block.to_vec(), |all, _, block| {
                all.process_at_rank(root as i32).immediate_broadcast_into(StaticScope, block)
            })?;
            whole.extend(sent);
        }
        Ok(whole)
    }

    /// Starts an operation on two buffers and waits for its end; gives the second buffer back.
    pub(super) fn run(
        &mut self,
        sent: Vec<u8>,
        received: Vec<u8>,
        start: impl FnOnce(&SimpleCommunicator, &'static [u8], &'static mut [u8]) -> Request<'static, [u8], StaticScope>,
    ) -> Result<Vec<u8>, CollectiveError> {
        if received.is_empty() {
            return Ok(received);
        }
        // The buffers belong to MPI until the operation is done. If it never is, they stay where they are.
        let (sent, received) = (Box::into_raw(sent.into_boxed_slice()), Box::into_raw(received.into_boxed_slice()));
        // SAFETY: both point to memory that nothing else refers to, and that is freed below alone, after the request
        // is done and with it every use of these references.
        let request = unsafe { start(&self.all, &*sent, &mut *received) };
        self.finish(request)?;
        // SAFETY: the pointers come from `Box::into_raw`, and MPI has done with them.
        unsafe {
            drop(Box::from_raw(sent));
            Ok(Box::from_raw(received).into_vec())
        }
    }

    /// Waits for an operation, for a failure of another rank, or for the end of the time limit.
    pub(super) fn finish(&mut self, mut request: Request<'static, [u8], StaticScope>) -> Result<(), CollectiveError> {
        let start = Instant::now();
        loop {
            request = match request.test() {
                Ok(_) => return Ok(()),
                Err(request) => request,
            };
            let waited = start.elapsed();
            let failure = self.heard().or_else(|| {
                let gives_up =
                    waited >= self.limit || self.all.any_process().immediate_probe_with_tag(GIVES_UP).is_some();
                gives_up.then(|| self.give_up(waited))
            });
            if let Some(failure) = failure {
                // It must not be dropped before it is done, and it never will be.
                std::mem::forget(request);
                return Err(failure);
            }
            pause(waited);
        }
    }

    /// The failure that another rank has told of.
    pub(super) fn heard(&self) -> Option<CollectiveError> {
        let (text, status): (Vec<u8>, _) =
            self.all.any_process().immediate_matched_probe_with_tag(FAILED)?.matched_receive_vec();
        let message = String::from_utf8_lossy(&text).into_owned();
        Some(CollectiveError::Replica { rank: status.source_rank() as usize, message })
    }

    /// Tells the others that this rank does not wait any longer, and finds out who waits as it does: the others are
    /// those that did not come.
    pub(super) fn give_up(&self, waited: Duration) -> CollectiveError {
        self.tell(GIVES_UP, &self.number.to_le_bytes());
        let (start, mut here) = (Instant::now(), vec![false; self.world()]);
        here[self.rank()] = true;
        while start.elapsed() < ANSWER && here.contains(&false) {
            if let Some(failure) = self.heard() {
                return failure;
            }
            if let Some(message) = self.all.any_process().immediate_matched_probe_with_tag(GIVES_UP) {
                let (_, status): (Vec<u8>, _) = message.matched_receive_vec();
                here[status.source_rank() as usize] = true;
            }
            pause(start.elapsed());
        }
        let ranks: Vec<usize> = (0..here.len()).filter(|rank| !here[*rank]).collect();
        CollectiveError::Silent { ranks, seconds: waited.as_secs() }
    }

    /// Sends a message to every other rank, and goes on before they have it.
    pub(super) fn tell(&self, tag: Tag, text: &[u8]) {
        let text: &'static [u8] = Box::leak(text.to_vec().into_boxed_slice());
        for rank in (0..self.world()).filter(|rank| *rank != self.rank()) {
            let sent = self.all.process_at_rank(rank as i32).immediate_send_with_tag(StaticScope, text, tag);
            if let Err(sent) = sent.test() {
                // The text is never freed, so the request may be forgotten.
                std::mem::forget(sent);
            }
        }
    }
}

/// Waits a moment: not at all at first, so that a short operation is not made longer, and up to a millisecond where the
/// wait is long, so that this process leaves its core to others.
pub(super) fn pause(waited: Duration) {
    match waited.as_micros() {
        0..=200 => std::hint::spin_loop(),
        201..=10_000 => std::thread::yield_now(),
        10_001..=1_000_000 => std::thread::sleep(Duration::from_micros(50)),
        _ => std::thread::sleep(Duration::from_millis(1)),
    }
}
