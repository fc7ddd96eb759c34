#!/usr/bin/env python3
"""Makes basic-models/tests/fixtures/processor/{corpus.json,qwen,llama3,gemma,phi3,vicuna}: tiny tokenizers of the kinds
that people use, and what transformers makes of a corpus with them.

    python tokenizer_fixtures.py OUT_DIR        (needs sentencepiece and protobuf beside transformers)

Per tokenizer and text: ids (with the special tokens that the tokenizer adds), split (the same with
split_special_tokens=True), and decoded where decoding doesn't give the text back. `literal` has texts of which parts
are literal: a part between two special tokens is tokenized with split_special_tokens=True, the special tokens
themselves as they are; for tokenizers that treat such parts alike wherever they stand. vicuna has a tokenizer.model and
no tokenizer.json; it is tokenized by transformers' LlamaTokenizer under several settings.
"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

out = Path(sys.argv[1])
TRAINING = ["A chat between a curious user and an artificial intelligence assistant. USER: what is in the picture? ASSISTANT: a small red circle",
            "USER: where is the dog? ASSISTANT: the dog sits on the grass.", "naïve café – 漢字 and emoji 🙂, the 漢字 again",
            "the quick brown fox jumps over the lazy dog 0123456789\n\tit's here, isn't it? They'll SEE."] * 6
TEXTS = ["", " ", "the dog", " the dog", "  two  spaces   three ", "a\nb\r\n\r\nc\n\n\n", "\ttabs\t\tand\u00a0no-break\u3000wide", "it's IT'S we'll they're don't",
         "12345 6.7e-8 ٣٤ ½ x²", "snake_case CamelCase http://a.b/c?d=e&f#g", "naïve café é e\u0301 ﬁ Å Å", "漢字とかな交じり文、中文。한국어", "日本語 mixed with English漢字x",
         "🙂 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ a🙂b", "Русский עברית العربية हिन्दी ไทย", "\u0000\u0001\u0007\u001b[0m\u007f\u0085\u200b\u200e\u2028\u2029\ufeff", "\ufffe\uffff\ufdd0\ue000\U0010ffff\U000e0041",
         "a\u0300\u0301\u0302\u0303 zalgo\u0334\u0335", "\\n \\t \"q\" 'q' `c` <b> {j} [k] ▁ ▁▁x", "</s>", "a</s>b <s> c<unk>", "<|im_start|>user\nhi<|im_end|>\n", "x <image>\ny<image><image>",
         "<0x0A><0xFF> <0x41>", "<|end|>  <|user|>\n trailing  \n", "<start_of_turn>user\n<end_of_turn>\n", "<|eot_id|><|begin_of_text|>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
QWEN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA_3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def byte_level(name, pattern, special, bos=None, eos=None, normalizer=None, **bpe):
    tok = Tokenizer(models.BPE(**bpe))
    tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tok.token_to_id(bos))])
        tok.post_processor = processors.Sequence([tok.post_processor, template])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=bos, eos_token=eos, pad_token=eos)


def byte_fallback(special, normalizer, pre_tokenizer, decoder, bos, eos, unk="<unk>"):
    """SentencePiece's scheme: pieces with "▁", bytes for what the vocabulary lacks."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    tokens = [*special, *(f"<0x{b:02X}>" for b in range(256)), *sorted(state["vocab"], key=state["vocab"].get)]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m) for m in state["merges"]], byte_fallback=True, fuse_unk=True, unk_token=unk))
    tok.normalizer, tok.pre_tokenizer, tok.decoder = normalizer, pre_tokenizer, decoder
    tok.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))])
    tok.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=bos, eos_token=eos, unk_token=unk, pad_token=eos)


def tokenizers_():
    replace = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    yield "qwen", byte_level("qwen", QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"], eos="<|im_end|>", normalizer=normalizers.NFC())
    yield "llama3", byte_level("llama3", LLAMA_3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"],
                               bos="<|begin_of_text|>", eos="<|eot_id|>", ignore_merges=True)
    gemma = byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], normalizers.Replace(" ", "▁"),
                          pre_tokenizers.Split(" ", "merged_with_previous"), decoders.Sequence(replace), "<bos>", "<eos>")
    gemma.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<b>", normalized=False)])  # Gemma has such tokens, which aren't special
    yield "gemma", gemma
    phi3 = byte_fallback(["<unk>", "<s>", "</s>"], normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
                         decoders.Sequence([*replace, decoders.Strip(" ", 1, 0)]), "<s>", "</s>")
    phi3.add_tokens([AddedToken(t, special=True, normalized=False, rstrip=True) for t in ("<|end|>", "<|user|>", "<|assistant|>")])
    phi3.add_tokens([AddedToken("<image>", special=True, normalized=False, lstrip=True), AddedToken("café", single_word=True, normalized=True)])
    yield "phi3", phi3


def record(tok):
    cases = []
    for text in TEXTS:
        ids, split = tok(text).input_ids, tok(text, split_special_tokens=True).input_ids
        case = dict(text=text, ids=ids, decoded=tok.decode(ids, skip_special_tokens=True))
        cases.append({k: v for k, v in case.items() if k != "decoded" or v != text} | ({"split": split} if split != ids else {}))
    return cases


def literal(tok, marks):
    """Texts as lists of [text, is it literal?]; ids without the tokens that the post-processor adds."""
    cases = []
    for question in ["hi", f"a {marks[0]} b", f"{marks[1]}", f"  {marks[1]}{marks[0]} \n", f"x<image>{marks[1]}", "🙂" + marks[0], f"half {marks[0][:-1]}"]:
        parts = [[marks[0], False], [question, True], [marks[1], False], [question, True], [marks[1], False]]
        ids = []
        for text, plain in parts:
            ids += tok(text, add_special_tokens=False, split_special_tokens=plain).input_ids
        cases.append(dict(parts=parts, ids=ids))
    return cases


VICUNA = {"default": {}, "legacy": {"legacy": True, "add_bos_token": True, "add_eos_token": False}, "new": {"legacy": False, "add_bos_token": True, "add_eos_token": True},
          "bare": {"add_prefix_space": False, "add_bos_token": False}}


def vicuna():
    folder = out / "vicuna"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp) / "c.txt").write_text("\n".join(line.replace("\n", " ") for line in TRAINING))
        sentencepiece.SentencePieceTrainer.train(
            input=f"{tmp}/c.txt", model_prefix=f"{tmp}/t", vocab_size=420, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.99, hard_vocab_limit=False,
            num_threads=1, user_defined_symbols=["<b>"], minloglevel=2)
        shutil.copy(f"{tmp}/t.model", folder / "tokenizer.model")
        shutil.copy(f"{tmp}/t.model", f"{tmp}/tokenizer.model")
        result = {}
        for name, settings in VICUNA.items():
            config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
            if name == "new":
                size = sentencepiece.SentencePieceProcessor(f"{tmp}/tokenizer.model").get_piece_size()
                config["added_tokens_decoder"] = {str(size): dict(content="<image>", lstrip=False, rstrip=False, normalized=False, single_word=False, special=True)}
            (Path(tmp) / "tokenizer_config.json").write_text(json.dumps(config))
            tok = LlamaTokenizer.from_pretrained(tmp)
            result[name] = dict(config=config, cases=record(tok))
    return result


corpus = {}
for name, tok in tokenizers_():
    tok.save_pretrained(out / name)
    path = out / name / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":")) + "\n")
    tok = AutoTokenizer.from_pretrained(out / name)
    marks = {"qwen": ("<|im_start|>", "<|im_end|>"), "llama3": ("<|eot_id|>", "<|begin_of_text|>"), "gemma": ("<start_of_turn>", "<end_of_turn>"), "phi3": ("<s>", "</s>")}[name]
    corpus[name] = dict(cases=record(tok), literal=literal(tok, marks))
corpus["vicuna"] = vicuna()
(out / "corpus.json").write_text(json.dumps(corpus, ensure_ascii=True, separators=(",", ":")) + "\n")
