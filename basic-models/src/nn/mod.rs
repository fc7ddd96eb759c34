//! The networks. A file holds one network and nothing of files or names on disk.

mod attention;
mod cache;
mod clip;
mod decoder;
mod init;
mod llava;
mod projector;
mod rope;

pub use attention::{DecoderAttention, Mask};
pub use cache::KvCache;
pub use clip::ClipVision;
pub use decoder::{DecoderLayer, LlamaDecoder, SwiGlu};
pub use init::{InitScheme, seeded_init};
pub use llava::{Forward, Llava};
pub use projector::MlpProjector;
pub use rope::RotaryTables;
