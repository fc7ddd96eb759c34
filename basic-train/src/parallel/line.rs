//! Processes that `torchrun` launches, on one machine or several.
//!
//! Rank 0 listens at MASTER_ADDR:MASTER_PORT, and every other rank keeps a connection to it. Over these go the host's
//! values: counts, fingerprints, answers and the id by which NCCL's devices find each other; rank 0 collects the bytes of
//! all ranks and sends them to all. Tensors go from device to device by NCCL ([`Nccl`](super::Nccl)), never over these.

mod frame;
mod meeting;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use self::frame::{Frame, LARGEST, write};
pub(super) use self::meeting::Place;
use super::failure::{ANSWER, reporter};
use super::launch::LaunchError;
use super::{Collective, CollectiveError, Failure};

/// A process that is connected to the others of its launch by sockets.
#[derive(Debug)]
pub(super) struct Line {
    rank: usize,
    world: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the peers have sent, and when their connections ended.
    inbox: Receiver<(usize, Frame)>,
    /// The connections: of rank 0 to all others, of the others to rank 0 alone.
    peers: Vec<(usize, TcpStream)>,
    /// How many of them have ended.
    gone: usize,
    limit: Duration,
    /// Why nothing more is sent.
    failure: Option<CollectiveError>,
}

impl Line {
    /// Connects the processes of a launch, and waits for all of them for at most `patience`.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Meeting`]
    pub(super) fn open(place: &Place, patience: Duration, limit: Duration) -> Result<Self, LaunchError> {
        let (peers, inbox) = meeting::meet(place, patience)?;
        let state = State { inbox, peers, gone: 0, limit, failure: None };
        Ok(Self { rank: place.rank, world: place.world, state: Mutex::new(state) })
    }

    // No code that can panic leaves the state inconsistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let result = match self.rank {
            0 => state.collect(self.world, mine),
            rank => state.contribute(rank, mine),
        };
        if let Err(failure) = &result {
            state.failure = Some(failure.clone());
        }
        result
    }
}

impl State {
    /// What comes within `patience`; `None` where nothing does. Rank 0 passes failures on to all others.
    fn next(&mut self, patience: Duration) -> Option<(usize, Frame)> {
        let (from, frame) = match self.inbox.recv_timeout(patience) {
            Ok(received) => received,
            Err(RecvTimeoutError::Timeout) => return None,
            // The threads that read hold the other end for as long as there is a connection.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(patience.min(ANSWER));
                return None;
            }
        };
        self.gone += usize::from(frame == Frame::Gone);
        if matches!(frame, Frame::Failed { .. }) {
            self.peers.iter().filter(|(rank, _)| *rank != from).for_each(|(_, peer)| send(peer, &frame));
        }
        Some((from, frame))
    }

    fn tell(&self, frame: &Frame) {
        self.peers.iter().for_each(|(_, peer)| send(peer, frame));
    }

    /// Rank 0: waits for the bytes of all, and sends them to all.
    fn collect(&mut self, world: usize, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let mut all: Vec<Option<Vec<u8>>> = vec![None; world];
        all[0] = Some(mine.to_vec());
        let start = Instant::now();
        while all.contains(&None) {
            let Some((from, frame)) = self.next(self.limit.saturating_sub(start.elapsed())) else {
                let missing = all.iter().enumerate().filter(|(_, bytes)| bytes.is_none()).map(|(rank, _)| rank);
                let (ranks, seconds): (Vec<usize>, u64) = (missing.collect(), start.elapsed().as_secs());
                self.tell(&Frame::Silent { ranks: ranks.clone(), seconds });
                return Err(CollectiveError::Silent { ranks, seconds });
            };
            match frame {
                Frame::Bytes(bytes) => all[from] = Some(bytes),
                Frame::Failed { rank, message } => return Err(CollectiveError::Replica { rank, message }),
                Frame::Gone => {
                    self.tell(&Frame::Ended(from));
                    return Err(CollectiveError::Ended { rank: from });
                }
                Frame::All(_) | Frame::Silent { .. } | Frame::Ended(_) => {}
            }
        }
        let all: Vec<Vec<u8>> = all.into_iter().flatten().collect();
        let total = all.iter().fold(0_usize, |total, bytes| total.saturating_add(bytes.len()));
        if total > LARGEST {
            return Err(too_large(total));
        }
        let frame = Frame::All(all);
        self.tell(&frame);
        match frame {
            Frame::All(all) => Ok(all),
            _ => Ok(Vec::new()),
        }
    }

    /// Another rank: sends its bytes to rank 0, and waits for those of all.
    fn contribute(&mut self, own: usize, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        if mine.len() > LARGEST {
            return Err(too_large(mine.len()));
        }
        self.tell(&Frame::Bytes(mine.to_vec()));
        let start = Instant::now();
        loop {
            // Rank 0 gives up first, and says who was missing.
            let patience = self.limit.saturating_add(ANSWER).saturating_sub(start.elapsed());
            match self.next(patience) {
                Some((_, Frame::All(all))) => return Ok(all),
                Some((_, Frame::Failed { rank, message })) => return Err(CollectiveError::Replica { rank, message }),
                Some((_, Frame::Silent { ranks, seconds })) => return Err(CollectiveError::Silent { ranks, seconds }),
                Some((_, Frame::Ended(rank))) if rank != own => return Err(CollectiveError::Ended { rank }),
                Some((_, Frame::Gone)) => return Err(CollectiveError::Ended { rank: 0 }),
                Some((_, Frame::Bytes(_) | Frame::Ended(_))) => {}
                None => {
                    return Err(CollectiveError::Silent { ranks: vec![0], seconds: start.elapsed().as_secs() });
                }
            }
        }
    }
}

impl Drop for State {
    // The threads that read have the connections too, and they end with these.
    fn drop(&mut self) {
        self.peers.iter().for_each(|(_, peer)| {
            let _ = peer.shutdown(Shutdown::Both);
        });
    }
}

/// A connection that fails has ended, which its reader tells.
fn send(peer: &TcpStream, frame: &Frame) {
    let _ = write(peer, frame);
}

fn too_large(bytes: usize) -> CollectiveError {
    CollectiveError::Transfer(format!(
        "{bytes} bytes are more than the {LARGEST} that processes of torchrun exchange at once: launch with mpirun"
    ))
}

fn no_tensors<T>() -> Result<T, CollectiveError> {
    Err(CollectiveError::Transfer("processes of torchrun move tensors between CUDA devices alone, by NCCL".into()))
}

impl Collective for Line {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn separate(&self) -> bool {
        true
    }

    fn moves_tensors(&self) -> bool {
        false
    }

    fn set_time_limit(&self, limit: Duration) {
        self.lock().limit = limit;
    }

    fn fail(&self, message: &str) -> Failure {
        let mut state = self.lock();
        let known = state.failure.clone();
        // Rank 0 tells all others; they tell it.
        let state = RefCell::new(&mut *state);
        let tell = |message: &str| state.borrow().tell(&Frame::Failed { rank: self.rank, message: message.into() });
        let heard = |patience: Duration| match state.borrow_mut().next(patience) {
            Some((_, Frame::Failed { rank, message })) => Some((rank, message)),
            _ => None,
        };
        let failure = reporter((self.rank, self.world), known.as_ref(), message, tell, heard);
        let state = state.into_inner();
        let message = message.to_string();
        state.failure.get_or_insert(CollectiveError::Replica { rank: self.rank, message });
        // All that still can end together: a launcher kills the others when it sees the first end.
        state.peers.iter().for_each(|(_, peer)| {
            let _ = peer.shutdown(Shutdown::Write);
        });
        let start = Instant::now();
        while state.gone < state.peers.len() && start.elapsed() < ANSWER {
            state.next(ANSWER.saturating_sub(start.elapsed()));
        }
        failure
    }

    fn sum(&self, _: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CollectiveError> {
        no_tensors()
    }

    fn reduce_scatter(&self, _: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        no_tensors()
    }

    fn all_gather(&self, _: Tensor<1>) -> Result<Tensor<1>, CollectiveError> {
        no_tensors()
    }

    fn broadcast(&self, _: Tensor<1>, _: usize) -> Result<Tensor<1>, CollectiveError> {
        no_tensors()
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.exchange(mine)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        let mine: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.exchange(&mine)?;
        if let Some(rank) = all.iter().position(|bytes| bytes.len() != all[0].len()) {
            let describe = |bytes: &[u8]| format!("{} values", bytes.len() / 8);
            return Err(CollectiveError::Mismatch { rank, found: describe(&all[rank]), expected: describe(&all[0]) });
        }
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|bytes| f64::from_le_bytes(bytes.as_chunks::<8>().0[i])).sum();
        }
        Ok(())
    }
}
