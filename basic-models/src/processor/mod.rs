//! Turns files and conversations into the network's inputs: pixels, token ids, labels and the positions of the images.
//!
//! ```text
//! image file     -> open_image -> ImageProcessor::process          -> PixelValues [tiles, 3, H, W]
//! LLaVA's JSON   -> from_llava -> render(style, ..) -> tokenize(..) -> Example { ids, labels, image_positions }
//! ```
//!
//! Labels cannot drift: every piece of a conversation keeps its role through *one* tokenization, and the token offsets
//! determine which tokens an answer covers. Nothing is tokenized a second time to find where an answer begins, which is
//! how masks become wrong in other code. Each piece also records which of its bytes a user or a data set wrote: a
//! `</s>` or `<|im_start|>` there is plain text, whatever it would mean to the tokenizer elsewhere.
//!
//! # Example
//!
//! ```
//! use basic_models::processor::{LlavaStyle, Message, Role, SpecialTokens, Style, render, render_prompt};
//!
//! # fn main() -> Result<(), basic_models::processor::ProcessorError> {
//! let specials = SpecialTokens { eos: Some("</s>".into()), ..SpecialTokens::default() };
//! let question = Message::new(Role::User, "<image>\nWhat is it?");
//! let style = Style::from(LlavaStyle::by_name("vicuna_v1")?);
//! let prompt = render_prompt(&style, &[question.clone()], &specials)?;
//! assert!(prompt.text.ends_with("USER: <image>\nWhat is it? ASSISTANT:"));
//!
//! let pieces = render(&style, &[question, Message::new(Role::Assistant, "A dog.")], &specials)?;
//! assert_eq!(pieces[1].text, " A dog.</s>");
//! assert!(pieces[1].supervised);
//! # Ok(())
//! # }
//! ```

mod bounds;
mod charsmap;
mod config;
mod config_write;
mod conversation;
mod error;
mod image;
mod labels;
mod literal;
mod marks;
mod open;
mod patches;
mod piece;
mod placeholders;
mod program;
mod render;
mod resample;
mod sentencepiece;
mod specials;
mod styles;
mod template;
mod tiles;
mod timed;
mod today;
mod tokenizer;
mod tokenizer_added;
mod tokenizer_bounds;
mod tokenizer_build;
mod tokenizer_files;
mod wanted;

#[cfg(test)]
mod tests;

pub use config::{ImageKind, ImageProcessorConfig, Patches, Resample, Size};
pub use conversation::{Message, Role, from_llava, from_llava_without_images};
pub use error::ProcessorError;
pub use image::{ImageProcessor, PixelValues};
pub use labels::{Example, IGNORE, Prompt, tokenize, tokenize_apart, tokenize_prompt};
pub use open::{
    DEFAULT_MAX_PIXELS, decode_image_within, decoded_size_within, image_size_within, open_image, open_image_within,
};
pub use piece::RenderedPiece;
pub use placeholders::{FeatureSelect, PLACEHOLDER, ProcessorConfig, expand_images};
pub use render::{Style, render, render_prompt};
pub use specials::{SpecialTokens, TokenIds};
pub use styles::LlavaStyle;
pub use template::ChatTemplate;
pub use tokenizer::{Encoded, Tokenizer};
pub(crate) use tokenizer_build::build_tokenizer;
pub use tokenizer_files::copy_tokenizer_files;
pub(crate) use tokenizer_files::{TOKENIZER_FILES, read_tokenizer_files};

/// The result type of this module's functions.
pub type Result<T> = std::result::Result<T, ProcessorError>;
