//! Damaged bytes that the Parquet library panics on, as errors.
//!
//! Pages carry no checksum that the reader looks at, and some of its loops trust what a page says of itself. A panic there
//! unwinds over values of this call alone.

use basic_models::outside;

/// Runs `read`; a panic inside is an error.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    outside::guarded(read).unwrap_or_else(|_| Err("its bytes contradict each other".into()))
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
