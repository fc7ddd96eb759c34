//! Runs the tokenizers library with limits on its time and on its regular expressions.
//!
//! A regular expression in a tokenizer.json may take time quadratic or exponential in a text's length, and Oniguruma,
//! which matches it, cannot be interrupted. Its own limits end backtracking within one search. Other work that may be
//! slow runs on a thread of its own, which is abandoned when the time is up.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use crate::outside::{FileLimits, file_limits, guarded};

/// Work on a text may take this fraction of the time for a file, once for every [`BYTES`] bytes begun.
const PART: u32 = 12;
const BYTES: usize = 500_000;
/// The most abandoned threads at a time; each occupies a processor until its work ends.
const MOST_LEFT_BEHIND: usize = 4;
/// The size of the stack: regular expressions and JSON are parsed recursively.
const STACK: usize = 32 << 20;
/// The most backtracking steps of one search; within one match, Oniguruma allows 10,000,000.
const MOST_RETRIES: std::ffi::c_ulong = 50_000_000;
/// The most entries of Oniguruma's stack, which take about 48 bytes each.
const DEEPEST: std::ffi::c_uint = 8_000_000;

const RUNNING: u8 = 0;
const DONE: u8 = 1;
const LEFT: u8 = 2;

/// The number of threads that still run although nobody waits for them.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    left_behind: Arc<AtomicUsize>,
}

impl Clock {
    /// Returns what `work` on `bytes` bytes returns, unless it takes too long.
    pub fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> tokenizers::Result<T> + Send + 'static,
    ) -> tokenizers::Result<T> {
        self.run_within(limit(bytes, &file_limits()), work)
    }

    fn run_within<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> tokenizers::Result<T> + Send + 'static,
    ) -> tokenizers::Result<T> {
        if self.left_behind.load(Ordering::Acquire) >= MOST_LEFT_BEHIND {
            return Err("its regular expressions took too long on other texts and still run; mend its patterns".into());
        }
        let state = Arc::new(AtomicU8::new(RUNNING));
        let (send, receive) = sync_channel(1);
        let (ours, left_behind) = (state.clone(), self.left_behind.clone());
        let whole = move || {
            let done = checked(work);
            if ours.swap(DONE, Ordering::AcqRel) == LEFT {
                left_behind.fetch_sub(1, Ordering::AcqRel);
            } else {
                // The caller is still waiting.
                let _ = send.send(done);
            }
        };
        let thread = thread::Builder::new().name("tokenizer".into()).stack_size(STACK).spawn(whole);
        thread.map_err(|e| format!("no thread can be started for it: {e}"))?;
        match receive.recv_timeout(limit) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Disconnected) => return Err("its thread ended without a result".into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        self.left_behind.fetch_add(1, Ordering::AcqRel);
        if state.compare_exchange(RUNNING, LEFT, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // The work ended just now.
            self.left_behind.fetch_sub(1, Ordering::AcqRel);
            return receive.recv().unwrap_or_else(|_| Err("its thread ended without a result".into()));
        }
        let seconds = limit.as_secs_f64();
        Err(format!(
            "it takes more than {seconds:.0} seconds, as patterns that try the same characters again and again do; mend \
             its patterns or, if they are to be trusted, raise the limit with --file-seconds"
        )
        .into())
    }
}

/// How long work on a text of `bytes` bytes may take.
fn limit(bytes: usize, limits: &FileLimits) -> Duration {
    let parts = u32::try_from(bytes / BYTES).unwrap_or(u32::MAX).saturating_add(1);
    (limits.time / PART).saturating_mul(parts)
}

/// Returns what `work` returns. The tokenizers library asserts some properties of a tokenizer.json instead of checking
/// them, so a damaged file may make it panic when it is read or used. Here that becomes an error like the others.
pub(super) fn checked<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    limit_patterns();
    guarded(work).unwrap_or_else(|reason| {
        // Oniguruma's messages for its limits.
        let reason = match reason.to_lowercase() {
            said if said.contains("limit") && (said.contains("regex") || said.contains("match")) => format!(
                "a regular expression gave up ({reason}), as patterns that try the same characters again and again do; \
                 mend the patterns of tokenizer.json"
            ),
            _ => format!("the tokenizers library gave up ({reason}); tokenizer.json is damaged"),
        };
        Err(reason.into())
    })
}

/// Sets Oniguruma's limits, once, for all searches that begin afterwards.
fn limit_patterns() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        // SAFETY: both store a number that searches read when they begin.
        #[allow(unsafe_code)]
        unsafe {
            onig_sys::onig_set_retry_limit_in_search(MOST_RETRIES);
            onig_sys::onig_set_match_stack_limit_size(DEEPEST);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Clock, MOST_LEFT_BEHIND, limit};
    use crate::outside::FileLimits;

    #[test]
    fn work_that_takes_too_long_is_left_behind_and_not_too_often() {
        let clock = Clock::default();
        assert_eq!(clock.run(0, || Ok(3)).unwrap(), 3);
        assert!(clock.run::<()>(0, || panic!("no")).unwrap_err().to_string().contains("gave up (no)"));
        let begun = Instant::now();
        let slow = || {
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        };
        for _ in 0..MOST_LEFT_BEHIND {
            let late = clock.run_within(Duration::from_millis(20), slow).unwrap_err().to_string();
            assert!(late.contains("--file-seconds"), "{late}");
        }
        let refused = clock.run(0, || Ok(3)).unwrap_err().to_string();
        assert!(refused.contains("still run"), "{refused}");
        assert!(begun.elapsed() < Duration::from_secs(3));
        std::thread::sleep(Duration::from_millis(3500));
        assert_eq!(clock.run(0, || Ok(4)).unwrap(), 4, "what was left behind has ended");
    }

    #[test]
    fn longer_texts_and_higher_limits_have_more_time() {
        let limits = FileLimits { bytes: 0, time: Duration::from_secs(120) };
        assert_eq!(limit(10, &limits), Duration::from_secs(10));
        assert_eq!(limit(1_000_000, &limits), Duration::from_secs(30));
        assert!(limit(usize::MAX, &FileLimits { bytes: 0, time: Duration::MAX }) > Duration::from_secs(1 << 40));
    }
}
