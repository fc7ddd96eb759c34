//! Special tokens that users write, followed through a chat template.
//!
//! A template is a program: it may trim, split or repeat what it is given, so that nothing in its output says who wrote
//! what. Each special token in a message goes in between two noncharacters that no message holds, and what
//! comes out between the same two is text. transformers marks them in the same way for
//! `apply_chat_template(.., sanitize_control_tokens=True)`.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::{Message, PLACEHOLDER, Piece, ProcessorError, Result, SpecialTokens};

/// The marks around special tokens in messages, where there are any.
pub(super) struct Marks {
    around: Option<(char, char)>,
    tokens: Vec<String>,
    image: String,
}

impl Marks {
    /// The messages as a template is to see them. Placeholders of images stay what they are.
    pub fn new<'a>(messages: &'a [Message], specials: &SpecialTokens) -> Result<(Self, Cow<'a, [Message]>)> {
        let tokens: Vec<String> =
            specials.all().filter(|token| !token.is_empty() && *token != PLACEHOLDER).map(str::to_owned).collect();
        let marks = |around| Self { around, tokens: tokens.clone(), image: specials.image.clone() };
        if !messages.iter().any(|message| tokens.iter().any(|token| message.content.contains(token.as_str()))) {
            return Ok((marks(None), Cow::Borrowed(messages)));
        }
        let fail = |message: String| ProcessorError::Conversation { place: "a message".into(), reason: message };
        let unused = |mark: &char| !messages.iter().any(|message| message.content.contains(*mark));
        let mut free = ('\u{FDD0}'..='\u{FDEF}').filter(unused);
        let (Some(open), Some(close)) = (free.next(), free.next()) else {
            return Err(fail("it holds special tokens and nearly all of the noncharacters U+FDD0 to U+FDEF".into()));
        };
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&tokens)
            .map_err(|e| fail(format!("the special tokens cannot be searched for: {e}")))?;
        let marked = messages.iter().map(|message| {
            let mut content = String::with_capacity(message.content.len() + 16);
            let mut copied = 0;
            for found in finder.find_iter(&message.content) {
                content += &message.content[copied..found.start()];
                content.push(open);
                content += &message.content[found.range()];
                content.push(close);
                copied = found.end();
            }
            content += &message.content[copied..];
            Message { role: message.role, content }
        });
        Ok((marks(Some((open, close))), Cow::Owned(marked.collect())))
    }

    /// A piece of what the template made of the messages: without marks, the tokens between two of them as text, the
    /// placeholders as the tokenizer's image tokens. Marks that a template tore apart are dropped.
    pub fn piece(&self, rendered: &str, supervised: bool) -> Piece {
        let mut piece = Piece { supervised, ..Piece::default() };
        let Some((open, close)) = self.around else {
            piece.fixed(&self.with_image(rendered));
            return piece;
        };
        let mut rest = rendered;
        while let Some(at) = rest.find([open, close]) {
            piece.fixed(&self.with_image(&rest[..at]));
            let opens = rest[at..].starts_with(open);
            rest = &rest[at + open.len_utf8()..]; // both take three bytes
            let inside = rest.find([open, close]).filter(|&end| opens && rest[end..].starts_with(close));
            if let Some(end) = inside.filter(|&end| self.tokens.iter().any(|token| *token == rest[..end])) {
                piece.literal_text(&rest[..end]);
                rest = &rest[end + close.len_utf8()..];
            }
        }
        piece.fixed(&self.with_image(rest));
        piece
    }

    /// Conversations say `<image>`; the checkpoint may call its token otherwise.
    fn with_image<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.image == PLACEHOLDER { text.into() } else { text.replace(PLACEHOLDER, &self.image).into() }
    }
}
