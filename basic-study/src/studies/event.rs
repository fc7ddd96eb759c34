//! What a study tells while it runs.

use basic_train::watch::StepMetrics;

/// What a study is doing.
pub enum Event<'a> {
    /// A line about how far it is.
    Line(&'a str),
    /// Something that is not as it should be and ends nothing.
    Warning(&'a str),
    /// A part of the work begins: its name, and how many units it has.
    Part(&'a str, usize),
    /// A training step.
    Step(&'a StepMetrics),
    /// So many other units of the part are done: questions that are answered.
    Done(usize),
}

/// Hears what a study is doing; all of its workers call it.
pub type Observer<'a> = &'a (dyn Fn(Event<'_>) + Sync);
