//! Holds the style sheet that all HTML pages of this project share.

/// The CSS rules for colours, type and tables.
pub const STYLE: &str = include_str!("page.css");
