//! The style sheet that every HTML page of this project begins with.

/// Colours, type and tables.
pub const STYLE: &str = include_str!("page.css");
