//! Where a study's files lie below its output directory.

/// How a study's files are called below its output directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// `cells/HASH` and `world-ID`: what is the same has one place, and another study finds it there.
    Hashed,
    /// `runs/SETTING-CELL-seedN/STAGE`, with the world in `backbones` and `data`: for people, in a study of one factor.
    Named,
}
