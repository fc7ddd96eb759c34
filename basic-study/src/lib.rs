//! Experiments that consist of several training runs, and HTML pages with their results.
//!
//! [`studies`] reads a study's TOML file, trains each of its cells with several seeds, measures them, and writes
//! tables, figures and a page (`basic ablate`). [`demo`] trains the LLaVA baseline and BASIC side by side on the
//! embedded Shapes data, from backbones that [`backbones`] pretrains. [`export`] writes metrics for other tools.
//! [`report`] writes one HTML file about runs,
//! evaluations and studies.
//!
//! ```
//! use basic_study::studies::Study;
//!
//! let dir = tempfile::tempdir()?;
//! let file = dir.path().join("study.toml");
//! std::fs::write(
//!     &file,
//!     r#"
//!     name = "one loss or both"
//!     seeds = [0, 1, 2]
//!     [world]
//!     train = 100
//!     validation = 20
//!     eval = 20
//!     [[stages]]
//!     name = "pretrain"
//!     measure = ["accuracy"]
//!     [stages.recipe]
//!     stage = "pretrain"
//!     model = { vision = "world:backbones/vision", llm = "world:backbones/llm" }
//!     data.path = "world:data/pretrain.json"
//!     train = { batch_size = 4, steps = 10 }
//!     [evaluation]
//!     questions = "world:data/eval.jsonl"
//!     [[factors]]
//!     name = "losses"
//!     baseline = "both"
//!     cells = [{ name = "both" }, { name = "das", set = { objective.sds = false } }]
//!     "#,
//! )?;
//! let study = Study::open(&file)?;
//! assert_eq!((study.seeds.len(), study.factors.len()), (3, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

pub mod backbones;
pub mod demo;
pub mod export;
pub mod pages;
pub mod report;
pub mod studies;
