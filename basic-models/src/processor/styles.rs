//! LLaVA's conversation styles by name, for checkpoints without a chat template.
//!
//! Each renders the same text as `Conversation.get_prompt` of its source: LLaVA (haotian-liu/LLaVA,
//! `llava/conversation.py`), its successor LLaVA-NeXT (LLaVA-VL/LLaVA-NeXT), and LLaVA-pp (mbzuai-oryx/LLaVA-pp), which
//! added Llama 3 and Phi-3. The tokenizer's own end and beginning tokens replace the sources' `</s>` and `<s>`.

use super::{Message, ProcessorError, RenderedPiece, Result, Role, SpecialTokens};

/// LLaVA's format of a conversation for one family of language models.
#[derive(Debug, PartialEq, Eq)]
pub struct LlavaStyle {
    name: &'static str,
    /// The style's names in the sources.
    aliases: &'static [&'static str],
    /// The system text of a conversation without a system turn.
    system: &'static str,
    layout: TurnLayout,
    stops: &'static [&'static str],
}

#[derive(Debug, PartialEq, Eq)]
enum TurnLayout {
    /// The images, the caption, a line break.
    Caption,
    /// `SYSTEM USER: .. ASSISTANT: ..</s>USER: ..`
    Named { user: &'static str, assistant: &'static str, separator: &'static str, ends_sequence: bool },
    /// Each turn between a header and an end marker.
    Marked { system: Option<&'static str>, user: &'static str, assistant: &'static str, end: &'static str },
    /// `[INST] <<SYS>>..<</SYS>> .. [/INST] .. </s>`; with `begins_sequence`, rounds after the first begin with `<s>`.
    Instructed { begins_sequence: bool },
}

const VICUNA: &str = "A chat between a curious user and an artificial intelligence assistant. \
                      The assistant gives helpful, detailed, and polite answers to the user's questions.";
const CURIOUS_HUMAN: &str = "A chat between a curious human and an artificial intelligence assistant. \
                             The assistant gives helpful, detailed, and polite answers to the human's questions.";
const LLAMA_2: &str = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while \
                       being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, \
                       dangerous, or illegal content. Please ensure that your responses are socially unbiased and \
                       positive in nature.\n\nIf a question does not make any sense, or is not factually coherent, \
                       explain why instead of answering something not correct. If you don't know the answer to a \
                       question, please don't share false information.";
const VISION: &str = "You are a helpful language and vision assistant. You are able to understand the visual content \
                      that the user provides, and assist the user with a variety of tasks using natural language.";
const MPT: &str = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest \
                   answers.";

const IM_SYSTEM: &str = "<|im_start|>system\n";
const IM_USER: &str = "<|im_start|>user\n";
const IM_ASSISTANT: &str = "<|im_start|>assistant\n";

const fn chatml(
    name: &'static str,
    aliases: &'static [&'static str],
    system: &'static str,
    end: &'static str,
) -> LlavaStyle {
    let layout = TurnLayout::Marked { system: Some(IM_SYSTEM), user: IM_USER, assistant: IM_ASSISTANT, end };
    LlavaStyle { name, aliases, system, layout, stops: &["<|im_end|>"] }
}

const fn named(name: &'static str, aliases: &'static [&'static str], system: &'static str) -> LlavaStyle {
    let layout = TurnLayout::Named { user: "USER", assistant: "ASSISTANT", separator: " ", ends_sequence: true };
    LlavaStyle { name, aliases, system, layout, stops: &["</s>"] }
}

const fn instructed(
    name: &'static str,
    aliases: &'static [&'static str],
    system: &'static str,
    begins_sequence: bool,
) -> LlavaStyle {
    LlavaStyle { name, aliases, system, layout: TurnLayout::Instructed { begins_sequence }, stops: &["</s>"] }
}

static STYLES: [LlavaStyle; 13] = [
    LlavaStyle { name: "plain", aliases: &["v0_plain"], system: "", layout: TurnLayout::Caption, stops: &["\n"] },
    named("vicuna_v1", &["v1"], VICUNA),
    instructed("llama_2", &[], LLAMA_2, true),
    // From LLaVA-pp. LLaVA-NeXT's llava_llama_3 is the model's own chat template with another system text.
    LlavaStyle {
        name: "llama_3",
        aliases: &["llama3"],
        system: VICUNA,
        layout: TurnLayout::Marked {
            system: Some("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"),
            user: "<|start_header_id|>user<|end_header_id|>\n\n",
            assistant: "<|start_header_id|>assistant<|end_header_id|>\n\n",
            end: "<|eot_id|>",
        },
        stops: &["<|eot_id|>"],
    },
    instructed("mistral", &["mistral_instruct", "llava_mistral_instruct"], "", false),
    // LLaVA's version of ChatML, which has no line breaks between the turns, unlike OpenAI's.
    chatml("chatml", &["chatml_direct", "mistral_direct"], "Answer the questions.", "<|im_end|>"),
    // From LLaVA-pp.
    LlavaStyle {
        name: "phi3",
        aliases: &["phi3_instruct"],
        system: "You are a helpful AI assistant.",
        layout: TurnLayout::Marked {
            system: Some("<|system|>\n"),
            user: "\n<|user|>\n",
            assistant: "\n<|assistant|>\n",
            end: "<|end|>",
        },
        stops: &["<|end|>"],
    },
    // From LLaVA-NeXT. Gemma has no system turn.
    LlavaStyle {
        name: "gemma",
        aliases: &["gemma_instruct"],
        system: "",
        layout: TurnLayout::Marked {
            system: None,
            user: "<start_of_turn>user\n",
            assistant: "<start_of_turn>model\n",
            end: "<end_of_turn>\n",
        },
        stops: &["<end_of_turn>"],
    },
    // From LLaVA-NeXT: ChatML as Qwen was trained with it.
    chatml("qwen_2", &["qwen_1_5"], "You are a helpful assistant.", "<|im_end|>\n"),
    chatml("mpt", &[], MPT, "<|im_end|>"),
    named("llava_v1", &[], CURIOUS_HUMAN),
    instructed("llava_llama_2", &[], VISION, true),
    LlavaStyle {
        name: "llava_v0",
        aliases: &[],
        system: CURIOUS_HUMAN,
        layout: TurnLayout::Named { user: "Human", assistant: "Assistant", separator: "###", ends_sequence: false },
        stops: &["###"],
    },
];

impl LlavaStyle {
    /// The style with that name: one of [`LlavaStyle::names`], or a name from the sources (`v1`, `mistral_instruct`,
    /// `chatml_direct`, ..).
    ///
    /// # Errors
    /// Returns [`ProcessorError::UnknownStyle`].
    pub fn by_name(name: &str) -> Result<&'static Self> {
        let found = STYLES.iter().find(|style| style.name == name || style.aliases.contains(&name));
        found.ok_or_else(|| ProcessorError::UnknownStyle {
            name: name.into(),
            known: Self::names().collect::<Vec<_>>().join(", "),
        })
    }

    /// The names of all styles, without aliases.
    pub fn names() -> impl Iterator<Item = &'static str> {
        STYLES.iter().map(|style| style.name)
    }

    /// LLaVA's pretraining style.
    pub(super) fn plain() -> &'static Self {
        &STYLES[0]
    }

    /// LLaVA-1.5's style.
    pub(super) fn vicuna_v1() -> &'static Self {
        &STYLES[1]
    }

    /// The style's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The system text of a conversation without a system turn.
    pub fn system(&self) -> &'static str {
        self.system
    }

    /// The texts that end an answer. Generation stops at the tokenizer's end-of-sequence token in any case.
    pub fn stops(&self) -> &'static [&'static str] {
        self.stops
    }

    /// The conversation's pieces, in which prompt and answer alternate. If the last message is the user's, the last
    /// piece ends where the assistant's answer begins. The caller has checked that the roles alternate.
    pub(super) fn pieces(&self, messages: &[Message], specials: &SpecialTokens) -> Result<Vec<RenderedPiece>> {
        let (system, turns) = match messages.split_first() {
            Some((first, rest)) if first.role == Role::System => (Some(first.content.as_str()), rest),
            _ => (None, messages),
        };
        match self.layout {
            TurnLayout::Caption => self.caption(system, turns, specials),
            _ => self.turns(system, turns, specials),
        }
    }

    fn caption(&self, system: Option<&str>, turns: &[Message], specials: &SpecialTokens) -> Result<Vec<RenderedPiece>> {
        let fail = |reason: &str| ProcessorError::Conversation {
            place: format!("style {}", self.name),
            reason: reason.into(),
        };
        if turns.len() > 2 || system.is_some() {
            return Err(fail("expected one question with an image and one caption; use vicuna_v1 for conversations"));
        }
        let images = turns.first().map_or(0, Message::images);
        if images == 0 {
            return Err(fail("the question has no <image>; use vicuna_v1 for samples without images"));
        }
        let mut pieces = vec![RenderedPiece::prompt(specials.image.repeat(images))];
        if let Some(caption) = turns.get(1) {
            let mut piece = RenderedPiece::answer("");
            piece.said(caption, &specials.image).fixed("\n");
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn turns(&self, system: Option<&str>, turns: &[Message], specials: &SpecialTokens) -> Result<Vec<RenderedPiece>> {
        let mut pieces = Vec::with_capacity(turns.len());
        let mut prompt = RenderedPiece::default();
        self.open(&mut prompt, system)?;
        for (i, turn) in turns.iter().enumerate() {
            if turn.role == Role::User {
                self.question(&mut prompt, (i == 0).then_some(system), turn, specials);
                pieces.push(std::mem::take(&mut prompt));
            } else {
                // LLaVA treats an empty answer as one that is still to come.
                let mut answer = RenderedPiece::answer("");
                if !turn.content.is_empty() {
                    self.answer(&mut answer, turn, specials)?;
                }
                pieces.push(answer);
            }
        }
        Ok(pieces)
    }

    /// Writes what comes before the first turn.
    fn open(&self, prompt: &mut RenderedPiece, system: Option<&str>) -> Result<()> {
        let text = |prompt: &mut RenderedPiece| match system {
            Some(own) => prompt.literal_text(own),
            None => prompt.text += self.system,
        };
        match self.layout {
            TurnLayout::Named { separator, .. } => {
                text(prompt);
                prompt.fixed(separator);
            }
            TurnLayout::Marked { system: Some(header), end, .. } => {
                prompt.fixed(header);
                text(prompt);
                prompt.fixed(end);
            }
            TurnLayout::Marked { system: None, .. } if system.is_some() => {
                return Err(ProcessorError::Conversation {
                    place: format!("style {}", self.name),
                    reason: "this style has no system turn; put its text into the first question".into(),
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes a question and the header of its answer. In the first round, `first` contains the system text.
    fn question(
        &self,
        prompt: &mut RenderedPiece,
        first: Option<Option<&str>>,
        message: &Message,
        specials: &SpecialTokens,
    ) {
        let blank = message.content.is_empty();
        let image = &specials.image;
        match self.layout {
            TurnLayout::Named { user, assistant, separator, .. } => {
                prompt.fixed(user).fixed(":");
                if !blank {
                    prompt.fixed(" ").said(message, image).fixed(separator);
                }
                prompt.fixed(assistant).fixed(":");
            }
            TurnLayout::Marked { user, assistant, end, .. } => {
                prompt.fixed(user);
                if !blank {
                    prompt.said(message, image).fixed(end);
                }
                prompt.fixed(assistant);
            }
            TurnLayout::Instructed { begins_sequence } => {
                let system = match first {
                    // LLaVA writes nothing for an empty later question, and fails on a conversation
                    // that begins with one.
                    None if blank => return,
                    Some(own) => own.or(Some(self.system)).filter(|text| !text.is_empty()),
                    None => {
                        let bos = specials.bos.as_deref().filter(|_| begins_sequence);
                        prompt.fixed(bos.unwrap_or_default());
                        None
                    }
                };
                prompt.fixed("[INST] ");
                if let Some(text) = system {
                    prompt.fixed("<<SYS>>\n");
                    match first {
                        Some(Some(_)) => prompt.literal_text(text),
                        _ => prompt.text += text,
                    }
                    prompt.fixed("\n<</SYS>>\n\n");
                }
                prompt.said(message, image).fixed(" [/INST]");
            }
            TurnLayout::Caption => {}
        }
    }

    fn answer(&self, answer: &mut RenderedPiece, message: &Message, specials: &SpecialTokens) -> Result<()> {
        let image = &specials.image;
        let eos = || {
            let missing = ProcessorError::MissingToken { what: "end-of-sequence", named: String::new() };
            specials.eos.as_deref().ok_or(missing)
        };
        match self.layout {
            TurnLayout::Named { separator, ends_sequence, .. } => {
                let end = if ends_sequence { eos()? } else { separator };
                answer.fixed(" ").said(message, image).fixed(end);
            }
            TurnLayout::Marked { end, .. } => {
                answer.said(message, image).fixed(end);
            }
            TurnLayout::Instructed { .. } => {
                answer.fixed(" ").said(message, image).fixed(" ").fixed(eos()?);
            }
            TurnLayout::Caption => {}
        }
        Ok(())
    }
}
