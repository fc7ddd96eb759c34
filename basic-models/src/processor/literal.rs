//! Tokenization of texts with literal ranges, in which special tokens are plain text.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::normalizer::Range as Offsets;
use tokenizers::{
    AddedToken, Encoding, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

use super::piece::overlaps;

/// Finds the added tokens of a tokenizer like the tokenizers library, but skips special tokens that touch a literal
/// range. That is transformers' `split_special_tokens=True`, limited to those ranges.
pub(super) struct AddedTokens {
    /// Tokens that are searched for in the text itself, and those that are searched for after normalization.
    raw: Finder,
    normalized: Finder,
}

struct Finder {
    automaton: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
}

impl AddedTokens {
    /// The added tokens of `tokenizer`.
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Result<Self> {
        let mut tokens: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        let (normalized, raw): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|(_, token)| token.normalized);
        let pattern = |(_, token): &(u32, AddedToken)| {
            let mut content = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = tokenizer.get_normalizer().filter(|_| token.normalized) {
                normalizer.normalize(&mut content)?;
            }
            Ok(content.get().to_owned())
        };
        let finder = |tokens: Vec<(u32, AddedToken)>| {
            let patterns = tokens.iter().map(pattern).collect::<tokenizers::Result<Vec<_>>>()?;
            let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns)?;
            tokenizers::Result::Ok(Finder { automaton, tokens })
        };
        Ok(Self { raw: finder(raw)?, normalized: finder(normalized)? })
    }

    /// Tokenizes like `tokenizer.encode(text, add_special)`, but special tokens within `literal` are plain text.
    /// `literal` must be ascending.
    pub fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        literal: &[Range<usize>],
        add_special: bool,
    ) -> tokenizers::Result<Encoding> {
        let mut split = PreTokenizedString::from(text);
        split.split(|_, part| self.raw.split(part, literal))?;
        split.split(|_, mut part| {
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut part)?;
            }
            self.normalized.split(part, literal)
        })?;
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split)?;
        }
        split.tokenize(|part| tokenizer.get_model().tokenize(part.get()))?;
        tokenizer.post_process(split.into_encoding(None, 0, OffsetType::Byte)?, None, add_special)
    }
}

type Parts = Vec<(NormalizedString, Option<Vec<Token>>)>;

impl Finder {
    /// Splits `part` at the tokens in it.
    fn split(&self, part: NormalizedString, literal: &[Range<usize>]) -> tokenizers::Result<Parts> {
        let text = part.get();
        let slice = |range: Range<usize>| {
            part.slice(Offsets::Normalized(range)).ok_or("a token ends within a character of the text")
        };
        let mut parts = Parts::new();
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            if token.special && self.touches(&part, found.range(), literal) {
                continue;
            }
            let (before, after) = (&text[..found.start()], &text[found.end()..]);
            if token.single_word && (before.ends_with(is_word) || after.starts_with(is_word)) {
                continue;
            }
            let start = if token.lstrip { before.trim_end().len().max(done) } else { found.start() };
            let end = if token.rstrip { text.len() - after.trim_start().len() } else { found.end() };
            if done < start {
                parts.push((slice(done..start)?, None));
            }
            let value = text[start..end].to_owned();
            let length = value.len();
            parts.push((slice(start..end)?, Some(vec![Token::new(*id, value, (0, length))])));
            done = end;
        }
        if done < text.len() || text.is_empty() {
            parts.push((slice(done..text.len())?, None));
        }
        Ok(parts)
    }

    /// Whether a range of the normalized part overlaps a literal range of the original text, if only by one byte.
    fn touches(&self, part: &NormalizedString, range: Range<usize>, literal: &[Range<usize>]) -> bool {
        let (shift, _) = part.offsets_original();
        let original = part.convert_offsets(Offsets::Normalized(range));
        original.is_none_or(|range| overlaps(literal, &(range.start + shift..range.end + shift)))
    }
}

/// `\w` of regular expressions, without combining marks.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
