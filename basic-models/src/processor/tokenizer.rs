//! The tokenizer of a checkpoint, with the special tokens from its files.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokenizers::{AddedToken, ModelWrapper, PostProcessorWrapper};

use super::config::read_json_if_exists;
use super::literal::AddedTokens;
use super::piece::overlaps;
use super::timed::{Clock, checked};
use super::tokenizer_bounds::may_be_slow;
use super::tokenizer_build::build_tokenizer;
use super::tokenizer_files::read_tokenizer;
use super::{PLACEHOLDER, ProcessorError, Result, SpecialTokens, TokenIds, wanted};
use crate::outside::excerpt;

/// The tokens of a text, and the bytes of the text that each of them covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each id, the range of *bytes* of the text that it covers; empty for a token that covers none (such as one
    /// that the tokenizer inserted).
    pub spans: Vec<Range<usize>>,
    /// For each id, whether the post-processor added it (such as `<s>` at the start).
    pub added: Vec<bool>,
}

/// A tokenizer.json with its special tokens. It encodes and decodes like transformers' fast tokenizers.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// The file that the tokenizer was read from.
    path: PathBuf,
    /// Present if its work may take longer than in proportion to a text's length.
    pub(super) clock: Option<Clock>,
    specials: SpecialTokens,
    ids: TokenIds,
    /// The ids of all special tokens, ascending.
    special_ids: Vec<u32>,
    clean_up: bool,
}

impl Tokenizer {
    /// Reads a checkpoint's tokenizer.json, and tokenizer_config.json and special_tokens_map.json if they exist.
    /// Without a tokenizer.json, it reads SentencePiece's tokenizer.model like transformers' `LlamaTokenizer`. `config`
    /// has the ids of the model's config.json.
    ///
    /// The post-processor of tokenizer.json determines which special tokens `encode` adds, unless tokenizer_config.json
    /// has `add_bos_token` or `add_eos_token`: as in transformers 5, these replace it.
    ///
    /// # Errors
    /// Returns `MissingFile`, `Read`, `Json`, `LoadTokenizer` or `Unsupported`, which name the file.
    pub fn load(dir: &Path, config: &TokenIds) -> Result<Self> {
        let tokenizer_config = read_json_if_exists(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let (path, bytes) = read_tokenizer(dir, &tokenizer_config)?;
        let load = |e: tokenizers::Error| ProcessorError::LoadTokenizer { path: path.clone(), message: e.to_string() };
        let mut inner = build_tokenizer(&path, &bytes)?;
        drop(bytes);
        let map = read_json_if_exists(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        let processor = read_json_if_exists(&dir.join("processor_config.json"))?.unwrap_or_default();
        let file = |name: &str| dir.join(name);
        for (name, value) in [
            ("tokenizer_config.json", &tokenizer_config),
            ("special_tokens_map.json", &map),
            ("processor_config.json", &processor),
        ] {
            if !value.is_object() && !value.is_null() {
                return Err(wanted::wrong(&file(name), "", value, "an object"));
            }
        }
        let (config_path, map_path) = (file("tokenizer_config.json"), file("special_tokens_map.json"));
        let named = |key: &str| {
            let there = wanted::token(&config_path, &tokenizer_config, key)?;
            Ok::<_, ProcessorError>(match there {
                Some(token) => Some(token.to_owned()),
                None => wanted::token(&map_path, &map, key)?.map(str::to_owned),
            })
        };
        let extra = wanted::token(&config_path, &tokenizer_config["extra_special_tokens"], "image_token")?;
        let of_processor = wanted::token(&file("processor_config.json"), &processor, "image_token")?;
        let image = named("image_token")?
            .or_else(|| extra.or(of_processor).map(str::to_owned))
            .unwrap_or_else(|| PLACEHOLDER.into());
        let by_id = |id: Option<u32>| id.and_then(|id| inner.id_to_token(id));
        let specials = SpecialTokens {
            bos: named("bos_token")?.or_else(|| by_id(config.bos)),
            eos: named("eos_token")?.or_else(|| by_id(config.eos)),
            pad: named("pad_token")?.or_else(|| by_id(config.pad)),
            unk: named("unk_token")?,
            image: by_id(config.image).unwrap_or(image),
            others: Vec::new(),
        };
        // Null means false here, as in transformers.
        let adds = |key: &str| {
            let there = tokenizer_config.get(key).is_some();
            Ok::<_, ProcessorError>(wanted::flag(&config_path, &tokenizer_config, key)?.or(there.then_some(false)))
        };
        let (bos, eos) = (adds("add_bos_token")?, adds("add_eos_token")?);
        adapt_post_processor(&mut inner, bos, eos, &specials).map_err(load)?;
        let clean_up = wanted::flag(&config_path, &tokenizer_config, "clean_up_tokenization_spaces")?.unwrap_or(false);
        let tokenizer = checked(|| Self::new(inner, specials)).map_err(load)?;
        Ok(Self { clean_up, path, ..tokenizer })
    }

    /// A tokenizer with these special tokens; `others` is filled from the tokenizer itself. Those that the
    /// vocabulary contains but does not mark as special are marked, so that each is one token wherever it occurs in
    /// a text, as in transformers.
    ///
    /// # Errors
    /// Returns the errors of the tokenizers library.
    pub fn new(mut inner: tokenizers::Tokenizer, mut specials: SpecialTokens) -> tokenizers::Result<Self> {
        // A saved tokenizer may truncate or pad texts; transformers' do so only on request.
        inner.with_truncation(None)?;
        inner.with_padding(None);
        let names =
            [&specials.bos, &specials.eos, &specials.pad, &specials.unk].into_iter().flatten().chain([&specials.image]);
        let known = inner.get_added_tokens_decoder();
        let unmarked = names
            .filter(|name| inner.token_to_id(name).is_some_and(|id| !known.contains_key(&id)))
            .map(|name| AddedToken::from(name.as_str(), true).normalized(false))
            .collect::<Vec<_>>();
        inner.add_special_tokens(&unmarked);
        let id = |name: &Option<String>| name.as_ref().and_then(|name| inner.token_to_id(name));
        let ids = TokenIds {
            bos: id(&specials.bos),
            eos: id(&specials.eos),
            pad: id(&specials.pad),
            image: inner.token_to_id(&specials.image),
        };
        let added = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        let mut special: Vec<(u32, String)> = added.map(|(id, token)| (id, token.content)).collect();
        special.sort_unstable();
        let (special_ids, contents): (Vec<u32>, Vec<String>) = special.into_iter().unzip();
        let named: Vec<String> = specials.all().map(str::to_owned).collect();
        specials.others.extend(contents.into_iter().filter(|content| !named.contains(content)));
        let clock = needs_clock(&inner)?.then(Clock::default);
        let path = "tokenizer.json".into();
        Ok(Self { inner: Arc::new(inner), path, clock, specials, ids, special_ids, clean_up: false })
    }

    /// The special tokens' texts.
    pub fn specials(&self) -> &SpecialTokens {
        &self.specials
    }

    /// The special tokens' ids.
    pub fn ids(&self) -> &TokenIds {
        &self.ids
    }

    /// The image token's id.
    ///
    /// # Errors
    /// Returns [`ProcessorError::MissingToken`] if the vocabulary lacks it.
    pub fn image_id(&self) -> Result<u32> {
        let named = format!(" \"{}\"", self.specials.image);
        self.ids.image.ok_or(ProcessorError::MissingToken { what: "image", named })
    }

    /// The end-of-sequence token's id.
    ///
    /// # Errors
    /// Returns [`ProcessorError::MissingToken`] if there is none.
    pub fn eos_id(&self) -> Result<u32> {
        let named = self.specials.eos.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
        self.ids.eos.ok_or(ProcessorError::MissingToken { what: "end-of-sequence", named })
    }

    /// The id of a token in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with this id, as in the vocabulary.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token with the largest id, and that id, which may be larger than the number of tokens because
    /// ids may have gaps.
    pub fn largest_id(&self) -> Option<(String, u32)> {
        self.inner.get_vocab(true).into_iter().max_by_key(|(_, id)| *id)
    }

    /// The number of tokens, including added ones.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of a text. With `add_special`, the tokens that the post-processor adds are included.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Tokenize`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_inner(text, add_special).map(|encoding| encoding.get_ids().to_vec())
    }

    /// The ids of a text, and the ranges of the text that they cover.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Tokenize`].
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoded> {
        self.encode_inner(text, add_special).map(|encoding| encoded(&encoding))
    }

    /// Like [`Tokenizer::encode_with_offsets`], except that special tokens are plain text within the ranges of bytes in
    /// `literal` (ascending and disjoint), as with transformers' `split_special_tokens=True`.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Tokenize`].
    pub fn encode_with_literals(&self, text: &str, literal: &[Range<usize>], add_special: bool) -> Result<Encoded> {
        let usual = self.encode_with_offsets(text, add_special)?;
        let special = |i: usize| !usual.added[i] && self.special_ids.binary_search(&usual.ids[i]).is_ok();
        if !(0..usual.ids.len()).any(|i| special(i) && overlaps(literal, &usual.spans[i])) {
            return Ok(usual);
        }
        let (whole, literal) = (text.to_owned(), literal.to_vec());
        self.work(text.len(), move |inner| AddedTokens::of(inner)?.encode(inner, &whole, &literal, add_special))
            .map(|encoding| encoded(&encoding))
            .map_err(|e| self.failed_on(text, &e))
    }

    /// The text of ids; with `skip_special`, without special tokens.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Tokenize`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let fail = |e: tokenizers::Error| ProcessorError::Tokenize {
            path: self.path.clone(),
            text: format!("the ids {}", excerpt(&format!("{ids:?}"))),
            message: e.to_string(),
        };
        let whole = ids.to_vec();
        let text = self.work(ids.len(), move |inner| inner.decode(&whole, skip_special)).map_err(fail)?;
        // transformers 5 ignores this setting for BPE, because the clean-up would damage its texts.
        let clean_up = self.clean_up && !matches!(self.inner.get_model(), ModelWrapper::BPE(_));
        Ok(if clean_up { clean_up_spaces(text) } else { text })
    }

    // `encode` returns offsets in bytes of the text, `encode_char_offsets` in characters.
    fn encode_inner(&self, text: &str, add_special: bool) -> Result<tokenizers::Encoding> {
        let whole = text.to_owned();
        let encoding = self.work(text.len(), move |inner| inner.encode(whole, add_special));
        encoding.map_err(|e| self.failed_on(text, &e))
    }

    /// Runs the library on `bytes` bytes or ids, with a time limit if the tokenizer needs one.
    fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T> + Send + 'static,
    ) -> tokenizers::Result<T> {
        match &self.clock {
            None => checked(|| work(&self.inner)),
            Some(clock) => {
                let inner = self.inner.clone();
                clock.run(bytes, move || work(&inner))
            }
        }
    }

    fn failed_on(&self, text: &str, source: &tokenizers::Error) -> ProcessorError {
        let text = format!("{:?}", excerpt(text));
        ProcessorError::Tokenize { path: self.path.clone(), text, message: source.to_string() }
    }
}

/// Whether a tokenizer has patterns that may be slow, or added tokens for which the library searches
/// the text before them.
fn needs_clock(inner: &tokenizers::Tokenizer) -> tokenizers::Result<bool> {
    let steps = json!([
        serde_json::to_value(inner.get_normalizer())?,
        serde_json::to_value(inner.get_pre_tokenizer())?,
        serde_json::to_value(inner.get_post_processor())?,
        serde_json::to_value(inner.get_decoder())?,
    ]);
    let looks_back = |token: &AddedToken| token.lstrip || token.single_word;
    Ok(may_be_slow(&steps) || inner.get_added_tokens_decoder().values().any(looks_back))
}

/// As in transformers 5, `add_bos_token` and `add_eos_token` in tokenizer_config.json replace the post-processor.
fn adapt_post_processor(
    inner: &mut tokenizers::Tokenizer,
    bos: Option<bool>,
    eos: Option<bool>,
    specials: &SpecialTokens,
) -> tokenizers::Result<()> {
    if (bos, eos) == (None, None) {
        return Ok(());
    }
    let wanted = |adds: Option<bool>, token: &Option<String>| {
        let token = token.as_ref().filter(|_| adds == Some(true))?;
        Some((token.clone(), inner.token_to_id(token)?))
    };
    let (bos, eos) = (wanted(bos, &specials.bos), wanted(eos, &specials.eos));
    let piece = |(token, _): &(String, u32)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let single: Vec<Value> = bos.iter().map(piece).chain([text]).chain(eos.iter().map(piece)).collect();
    let tokens: serde_json::Map<String, Value> = [&bos, &eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] })))
        .collect();
    let pair = json!([{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }]);
    let processor = json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens });
    inner.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(processor)?));
    Ok(())
}

fn encoded(encoding: &tokenizers::Encoding) -> Encoded {
    Encoded {
        ids: encoding.get_ids().to_vec(),
        spans: encoding.get_offsets().iter().map(|&(start, end)| start..end).collect(),
        added: encoding.get_special_tokens_mask().iter().map(|&mask| mask == 1).collect(),
    }
}

/// transformers' `clean_up_tokenization`, with its rules in the same order.
fn clean_up_spaces(text: String) -> String {
    let rules = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    rules.into_iter().fold(text, |text, (from, to)| text.replace(from, to))
}
