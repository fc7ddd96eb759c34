//! Turns a library's panic on damaged input into an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// The number of calls of [`guarded`] that this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

static HOOK: Once = Once::new();

/// Runs `work`, which passes bytes from outside to a library that asserts some of what it should check. A panic inside
/// prints nothing and is returned as its message. `work` must not leave anything half changed that is used afterwards.
///
/// A panic on another thread that `work` waits for is still printed.
///
/// # Errors
/// Returns the panic's message, cut to the length of a line.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if DEPTH.get() == 0 {
                before(info);
            }
        }));
    });
    DEPTH.set(DEPTH.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        super::excerpt(text.lines().next().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn a_panic_is_an_error_with_its_message_also_inside_another_guard() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(guarded::<()>(|| panic!("index {} out of bounds", 7)), Err("index 7 out of bounds".into()));
        let nested = guarded(|| guarded::<()>(|| panic!("inner")));
        assert_eq!(nested, Ok(Err("inner".into())));
        let long = guarded::<()>(|| panic!("{}", "x".repeat(100_000))).unwrap_err();
        assert!(long.len() < 300, "{long}");
    }
}
