//! Trains a model as a recipe describes and writes a checkpoint.
//!
//! [`recipe`] reads a run's TOML file; [`plan`] estimates the memory of a run before it starts; [`train`] runs the
//! steps and writes the run's files; [`optim`] holds the optimizer; [`parallel`] divides each step among several
//! devices; [`watch`] records what the steps measure and evaluates held-out samples during the run. [`mod@bench`] times
//! steps on random data.
//!
//! ```
//! use basic_train::recipe::{Part, Recipe};
//!
//! let recipe: Recipe = toml::from_str(
//!     r#"
//!     stage = "pretrain"
//!     model.checkpoint = "models/llava"
//!     data.path = "data/pretrain.json"
//!     train = { batch_size = 16, steps = 100 }
//!     "#,
//! )?;
//! // LLaVA's recipe for the stage: the projector alone, at 1e-3.
//! assert_eq!((recipe.trainable(), recipe.lr()), (vec![Part::Projector], 1e-3));
//! # Ok::<(), toml::de::Error>(())
//! ```
//!
//! `examples/train.rs` shows how to train from code.

#![warn(missing_docs)]

mod batch_error;
pub mod bench;
pub mod directory_lock;
pub mod optim;
pub mod parallel;
pub mod plan;
pub mod recipe;
pub mod train;
pub mod trainable;
pub mod watch;

pub use batch_error::BatchError;
