//! The networks. Each file holds one network, without anything about files or the names of tensors in them.

mod activation;
mod attention;
mod cache;
mod decoder;
mod init;
mod linear;
mod llava;
mod norm;
mod positions;
mod projector;
mod rope;
mod vision;

pub use activation::activate;
pub use attention::{DecoderAttention, Mask, Masks, packed_positions};
pub use cache::KvCache;
pub use decoder::{Decoder, DecoderLayer, GatedMlp};
pub use init::{InitScheme, seeded_init};
pub use llava::{Forward, Llava, LossCounts, Visual};
pub use projector::Projector;
pub use rope::{RotaryTable, RotaryTables};
pub use vision::VisionEncoder;
