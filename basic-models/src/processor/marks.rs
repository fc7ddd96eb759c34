//! Follows special tokens in users' messages through a chat template.
//!
//! A template is a program: it may trim, split or repeat its input, so its output does not show who wrote what. Each
//! special token in a message is therefore enclosed in two noncharacters that no message contains, and whatever comes
//! out between them is plain text. transformers marks them in the same way for
//! `apply_chat_template(.., sanitize_control_tokens=True)`.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::placeholders::count_placeholders;
use super::{Message, PLACEHOLDER, ProcessorError, RenderedPiece, Result, Role, SpecialTokens};

/// The marks around special tokens in messages, if there are any.
pub(super) struct Marks {
    around: Option<(char, char)>,
    tokens: Vec<String>,
    image: String,
}

impl Marks {
    /// The messages for the template, with marks. Image placeholders are left unmarked.
    pub fn new<'a>(messages: &'a [Message], specials: &SpecialTokens) -> Result<(Self, Cow<'a, [Message]>)> {
        let tokens: Vec<String> =
            specials.all().filter(|token| !token.is_empty() && *token != PLACEHOLDER).map(str::to_owned).collect();
        // In a message without images, a placeholder is marked like a special token.
        let tokens_of = |message: &Message| {
            let placeholder = (!message.shows_images()).then(|| PLACEHOLDER.to_owned());
            tokens.iter().cloned().chain(placeholder).collect::<Vec<_>>()
        };
        let all = || tokens.iter().cloned().chain([PLACEHOLDER.to_owned()]).collect();
        let marks = |around| Self { around, tokens: all(), image: specials.image.clone() };
        if !messages
            .iter()
            .any(|message| tokens_of(message).iter().any(|token| message.content.contains(token.as_str())))
        {
            return Ok((marks(None), Cow::Borrowed(messages)));
        }
        let fail = |message: String| ProcessorError::Conversation { place: "a message".into(), reason: message };
        let unused = |mark: &char| !messages.iter().any(|message| message.content.contains(*mark));
        let mut free = ('\u{FDD0}'..='\u{FDEF}').filter(unused);
        let (Some(open), Some(close)) = (free.next(), free.next()) else {
            return Err(fail("it holds special tokens and nearly all of the noncharacters U+FDD0 to U+FDEF".into()));
        };
        let finder = |tokens: Vec<String>| {
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(tokens);
            built.map_err(|e| fail(format!("the special tokens cannot be searched for: {e}")))
        };
        let (questions, others) = (finder(tokens.clone())?, finder(all())?);
        let marked = messages.iter().map(|message| {
            let mut content = String::with_capacity(message.content.len() + 16);
            let mut copied = 0;
            let finder = if message.shows_images() { &questions } else { &others };
            for found in finder.find_iter(&message.content) {
                content += &message.content[copied..found.start()];
                content.push(open);
                content += &message.content[found.range()];
                content.push(close);
                copied = found.end();
            }
            content += &message.content[copied..];
            message.with_content(content)
        });
        Ok((marks(Some((open, close))), Cow::Owned(marked.collect())))
    }

    /// The number of image placeholders in the rendered messages.
    pub fn images(&self, rendered: &str, token: &str) -> usize {
        let text = self.around.map(|(open, close)| format!("{open}{token}{close}"));
        let text = text.map_or(0, |text| count_placeholders(rendered, &text));
        count_placeholders(rendered, token).saturating_sub(text)
    }

    /// A piece of the rendered messages without its marks: tokens between two marks become plain text, and placeholders
    /// become the tokenizer's image tokens. Marks that the template separated are dropped.
    pub fn piece(&self, rendered: &str, supervised: bool) -> RenderedPiece {
        let mut piece = RenderedPiece { supervised, ..RenderedPiece::default() };
        let Some((open, close)) = self.around else {
            piece.fixed(&self.with_image(rendered));
            return piece;
        };
        let mut rest = rendered;
        while let Some(at) = rest.find([open, close]) {
            piece.fixed(&self.with_image(&rest[..at]));
            let opens = rest[at..].starts_with(open);
            rest = &rest[at + open.len_utf8()..]; // both marks take three bytes
            let inside = rest.find([open, close]).filter(|&end| opens && rest[end..].starts_with(close));
            if let Some(end) = inside.filter(|&end| self.tokens.iter().any(|token| *token == rest[..end])) {
                piece.literal_text(&rest[..end]);
                rest = &rest[end + close.len_utf8()..];
            }
        }
        piece.fixed(&self.with_image(rest));
        piece
    }

    /// Conversations write `<image>`; the checkpoint's image token may be another.
    fn with_image<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.image == PLACEHOLDER { text.into() } else { text.replace(PLACEHOLDER, &self.image).into() }
    }
}

/// Marks at the ends of questions and answers, which show where these end in a rendering.
pub(super) struct Ends {
    question: char,
    answer: char,
}

impl Ends {
    /// Two noncharacters that no message contains, if there are any.
    pub fn new(messages: &[Message]) -> Option<Self> {
        let unused = |mark: &char| !messages.iter().any(|message| message.content.contains(*mark));
        let mut free = ('\u{FDD0}'..='\u{FDEF}').rev().filter(unused);
        Some(Self { question: free.next()?, answer: free.next()? })
    }

    /// The message with its mark before the white space at its end, which templates strip.
    pub fn mark(&self, message: &Message) -> Message {
        let mark = match message.role {
            Role::System => return message.clone(),
            Role::User => self.question,
            Role::Assistant => self.answer,
        };
        let space = trailing(&message.content);
        let said = &message.content[..message.content.len() - space.len()];
        message.with_content(format!("{said}{mark}{space}"))
    }

    /// A rendering without marks, and the positions of the marks. The list is empty unless questions and
    /// answers alternate.
    pub fn places(&self, rendered: &str) -> (String, Vec<usize>) {
        let mut text = String::with_capacity(rendered.len());
        let (mut places, mut turns) = (Vec::new(), true);
        for part in rendered.split_inclusive([self.question, self.answer]) {
            let said = part.trim_end_matches([self.question, self.answer]);
            text += said;
            if said.len() < part.len() {
                let expected = if places.len() % 2 == 0 { self.question } else { self.answer };
                turns &= part.ends_with(expected);
                places.push(text.len());
            }
        }
        if turns { (text, places) } else { (text, Vec::new()) }
    }

    /// What follows the last message, `message`, in a rendering.
    pub fn tail<'a>(&self, rendered: &'a str, message: &Message) -> Option<&'a str> {
        let at = rendered.rfind([self.question, self.answer])?;
        let tail = rendered[at..].trim_start_matches([self.question, self.answer]);
        // Removes the message's own white space, unless the template stripped it. A template that writes the same white
        // space itself leaves it twice.
        let space = trailing(&message.content);
        Some(tail.strip_prefix(space).unwrap_or(tail))
    }
}

/// The white space at the end of a text.
pub(super) fn trailing(text: &str) -> &str {
    &text[text.trim_end().len()..]
}
