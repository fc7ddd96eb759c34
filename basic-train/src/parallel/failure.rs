//! Which of several processes tells that they have failed, so that it is said once.

use std::time::{Duration, Instant};

use super::{CollectiveError, Failure, failed};

/// How long a process waits for the others' answers when it gives up, and for them to end when it ends.
pub(super) const ANSWER: Duration = Duration::from_secs(3);
/// The longest text of a failure in bytes: MPI hands over messages of this size without the receiver's help.
pub(super) const TEXT: usize = 3 << 10;
/// How long a process that fails listens for others that fail with the same message.
const LISTEN: Duration = Duration::from_millis(300);

/// Whose the failure of process `rank` of `world` is. `known` is why its last operation failed; `tell` sends the
/// message's beginning to the others, and `heard` waits for at most the given time for what another has told.
pub(super) fn reporter(
    (rank, world): (usize, usize),
    known: Option<&CollectiveError>,
    message: &str,
    tell: impl FnOnce(&str),
    mut heard: impl FnMut(Duration) -> Option<(usize, String)>,
) -> Failure {
    // All that are still there find out the same about those that are not.
    let found = matches!(known, Some(CollectiveError::Silent { .. } | CollectiveError::Ended { .. }));
    // Another rank may also have said it in what the ranks tell each other between operations.
    let of_other = |other: usize| other != rank && message.contains(&failed(other));
    match known {
        Some(CollectiveError::Replica { rank: other, .. }) if *other != rank => return Failure::Heard,
        _ if (0..world).any(of_other) => return Failure::Heard,
        _ => {}
    }
    let mut end = message.len().min(TEXT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    tell(&message[..end]);
    let (start, mut alike, mut lowest) = (Instant::now(), 1, rank);
    while alike < world {
        let left = LISTEN.saturating_sub(start.elapsed());
        if left.is_zero() {
            break;
        }
        if let Some((other, said)) = heard(left)
            && (found || message.starts_with(&said))
        {
            (alike, lowest) = (alike + 1, lowest.min(other));
        }
    }
    // What fails everywhere is said once, by the lowest rank; so is what some find out about others.
    match (lowest == rank, found || alike == world) {
        (true, true) => Failure::Alike,
        (true, false) => Failure::Alone,
        (false, _) => Failure::Heard,
    }
}
