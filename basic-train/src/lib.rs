//! Training: recipe in, checkpoint out.
//!
//! [`recipe`] reads a run's TOML file; [`plan`] says what the run takes of memory before it starts; [`train`] does its
//! steps and writes its files; [`optim`] is the optimizer, [`parallel`] shares each step among several devices, [`watch`]
//! keeps what the steps measure and evaluates held-out samples on the way. [`mod@bench`] times steps on random data.
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
//! `examples/train.rs` trains from code.

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
