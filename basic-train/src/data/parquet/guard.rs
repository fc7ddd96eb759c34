//! Damaged bytes that the Parquet library panics on, as errors.
//!
//! Pages carry no checksum that the reader looks at, and some of its loops trust what a page says of itself. A panic there
//! unwinds over values of this call alone; it becomes an error, and its message is not printed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Runs `read`; a panic inside is an error.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(read));
    QUIET.set(false);
    done.unwrap_or_else(|_| Err("its bytes contradict each other".into()))
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn a_panic_is_an_error() {
        assert_eq!(guarded(|| Ok(3)), Ok(3));
        assert!(guarded::<()>(|| panic!("out of bounds")).unwrap_err().contains("contradict"));
        assert_eq!(guarded::<()>(|| Err("said".into())), Err("said".into()));
    }
}
