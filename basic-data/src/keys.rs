//! The keys under which records hold their text.

/// The keys that may hold a list of turns.
pub(crate) const TURN_KEYS: [&str; 3] = ["conversations", "messages", "texts"];

/// The keys that may hold a caption.
pub(crate) const CAPTION_KEYS: [&str; 2] = ["caption", "text"];
