#!/usr/bin/env python3
"""Makes basic-models/tests/fixtures/processor/labels.json: what LLaVA's own masks make of conversations.

    python label_fixtures.py LLAVA_REPOSITORY FIXTURES      (FIXTURES: basic-models/tests/fixtures/processor)

LLaVA's preprocess_v1, preprocess_llama_2, preprocess_mpt and preprocess_plain are read from a clone of
haotian-liu/LLaVA (at c121f04) and run as they are, over the tokenizers of FIXTURES and variants of them (`patch`
replaces top-level keys of tokenizer.json; its `merges` are added to the model's, with ids from 900 on). Beside LLaVA's labels stands the truth, which is made in another way: the
answers' places in the text, as the style writes them, against the offsets of the tokens. A case has

    tokenizer, patch, style, system, turns    what is rendered ("<image>" as in LLaVA's JSON)
    text, ids      as LLaVA renders and tokenizes it; an image is one token
    truth          the runs [from, to) of ids that bear a loss
    llava          the same of LLaVA's labels; null where it raises
    right          whether LLaVA's are the truth
    why, warning   where they are not: what goes wrong, and what LLaVA prints
    repaired       whether LLaVA's code was run with the change that issue 1706 gives

A case whose ids differ from the tokenizer's own on the whole text has `whole`, those ids; truth then counts in them.
"""
import ast
import contextlib
import copy
import io
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

repository, fixtures = sys.argv[1], Path(sys.argv[2])
IGNORE, IMAGE = -100, -200


def source(path):
    return subprocess.run(["git", "-C", repository, "show", f"c121f04:{path}"], check=True, capture_output=True, text=True).stdout


def functions(path, names, scope):
    """Runs the named functions' definitions of a file, and nothing else of it."""
    tree = ast.parse(source(path))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert len(tree.body) == len(names)
    exec(compile(ast.fix_missing_locations(tree), path, "exec"), scope)


conversation_lib = types.ModuleType("conversation")
sys.modules["conversation"] = conversation_lib
exec(compile(source("llava/conversation.py"), "conversation.py", "exec"), conversation_lib.__dict__)
scope = dict(torch=torch, transformers=transformers, copy=copy, conversation_lib=conversation_lib, IGNORE_INDEX=IGNORE,
             IMAGE_TOKEN_INDEX=IMAGE, DEFAULT_IMAGE_TOKEN="<image>", IS_TOKENIZER_GREATER_THAN_0_14=True)
exec("from typing import Dict, Sequence\nclass DataArguments: pass", scope)
functions("llava/mm_utils.py", ["tokenizer_image_token"], scope)
functions("llava/train/train.py", ["preprocess_multimodal", "preprocess_v1", "preprocess_llama_2", "preprocess_mpt", "preprocess_plain"], scope)
PREPROCESS = {"vicuna_v1": "preprocess_v1", "llava_v1": "preprocess_v1", "llama_2": "preprocess_llama_2", "mistral": "preprocess_llama_2",
              "mpt": "preprocess_mpt", "chatml": "preprocess_mpt", "plain": "preprocess_plain"}
THEIRS = {"mistral": "mistral_instruct", "chatml": "chatml_direct"}

METASPACE = dict(normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False})


def load(name, patch, legacy=None, pad=None):
    state = json.loads((fixtures / name / "tokenizer.json").read_text())
    patch = dict(patch)
    for i, pair in enumerate(patch.pop("merges", [])):  # one more merge each
        state["model"]["vocab"]["".join(pair)] = 900 + i
        state["model"]["merges"].append(pair)
    state.update(patch)
    config = json.loads((fixtures / name / "tokenizer_config.json").read_text())
    special = {key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(key)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **special)
    if pad is not None:
        tokenizer.pad_token = pad
    tokenizer.model_max_length = 2048
    if legacy is not None:  # an attribute of Llama's tokenizers alone
        tokenizer.legacy = legacy
    return tokenizer


def repair(name):
    """LLaVA's function with the first count as issue 1706 sets it."""
    text = ast.get_source_segment(source("llava/train/train.py"), next(n for n in ast.parse(source("llava/train/train.py")).body if getattr(n, "name", "") == name))
    assert text.count("cur_len = 0\n") == 1
    own = dict(scope)
    exec(text.replace("cur_len = 0\n", "cur_len = 1\n"), own)
    return own[name]


def render(style, system, turns):
    """LLaVA's text, and the places of the answers in it (with what a style puts around them)."""
    conversation = conversation_lib.conv_templates[THEIRS.get(style, style)].copy()
    if system is not None:
        header = "<|im_start|>system\n" if style in ("mpt", "chatml") else ""
        conversation.system = header + system
    if style == "plain":
        text = "<image>" + turns[1] + conversation.sep
        return conversation, text, [(len("<image>"), len(text))]
    conversation.messages = []
    answers = []
    for i, turn in enumerate(turns):
        conversation.append_message(conversation.roles[i % 2], turn)
        text = conversation.get_prompt()
        if i % 2 == 0:
            start = len(text)
        # The header of an answer is the prompt's.
        elif turn:
            header = {"preprocess_v1": conversation.roles[1] + ":", "preprocess_mpt": conversation.roles[1]}.get(PREPROCESS[style], "")
            answers.append((start + len(header), len(text)))
    return conversation, text, answers


def runs(flags):
    out = []
    for i, flag in enumerate(flags):
        if flag and out and out[-1][1] == i:
            out[-1][1] = i + 1
        elif flag:
            out.append([i, i + 1])
    return out


def case(tokenizer, name, patch, style, turns, system=None, why=None, preprocess=None):
    multimodal = any("<image>" in turn for turn in turns)
    speakers = [dict(zip(("from", "value"), (("human", "gpt")[i % 2], turn))) for i, turn in enumerate(turns)]
    sources = [copy.deepcopy(speakers)]
    if multimodal:
        sources = scope["preprocess_multimodal"](sources, types.SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False))
    rendered = [turn["value"] for turn in sources[0]]
    conversation, text, answers = render(style, system, rendered)
    conversation_lib.default_conversation = conversation
    arguments = dict(has_image=multimodal) if style != "plain" else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            made = (repair(PREPROCESS[style]) if preprocess else scope[PREPROCESS[style]])(copy.deepcopy(sources), tokenizer, **arguments)
        ids, labels = ([int(x) for x in made[key][0]] for key in ("input_ids", "labels"))
        warning = printed.getvalue().strip()
    except Exception as error:  # its own failures are what is recorded
        ids = scope["tokenizer_image_token"](text, tokenizer) if multimodal else tokenizer(text).input_ids
        labels, warning = None, f"{type(error).__name__}: {error}"
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids = [image if i == IMAGE else i for i in ids]
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    whole, offsets = encoding.input_ids, encoding.offset_mapping
    added = [m and o == (0, 0) for m, o in zip(encoding.special_tokens_mask, offsets)]
    flags = []
    for i, (start, end) in enumerate(offsets):
        empty = start == end  # "▁" or a space whose offsets were trimmed away: it goes with what follows
        stop = end + 1 if empty else end
        flags.append(not added[i] and whole[i] != image and any(start < b and stop > a for a, b in answers))
    truth = runs(flags)
    llava = None if labels is None else runs([label != IGNORE for label in labels])
    if not truth:  # an answer that says nothing
        labels = llava = None
    out = dict(tokenizer=name, patch=patch, style=style, system=system, turns=turns, text=text, ids=ids, truth=truth, llava=llava)
    if preprocess:
        out["repaired"] = True
    if whole != ids:
        out["whole"] = whole
        spoken = [whole[i] for a, b in truth for i in range(a, b)]
        out["right"] = labels is not None and spoken == [i for i in labels if i != IGNORE]
    else:
        out["right"] = llava == truth
    if not out["right"]:
        out["why"], out["warning"] = why, warning
    return out


ONE = ["<image>\nwhat is in the picture?", "a small red circle"]
TURNS = [*ONE, "where is the dog?", "on the  grass, isn't it", "sure?", "yes", "and then?", "the dog sits.", "漢字 🙂?", "naïve café"]
LATER = ["hello", "hi, how can I help?", "what is here? <image>", "the lazy dog"]
TEXT = ["what is 1 + 1?", "2", "why?", "it is so"]
NO_BOS = "the offsets of 1 and 2 are Llama's <s> and lone space, which this tokenizer has not (1166, 1706)"
NO_LEGACY = "`tokenizer.legacy`, which Llama's tokenizers alone have, is asked for in the second round"
UNEQUAL = "a round tokenized apart begins with a space that it has not in the text, and has as many tokens only by chance"
SPELLED = "the style's end mark is several tokens of this tokenizer, of which rounds tokenized apart have none"
ACROSS = "a token across the boundary: LLaVA's offset takes it for one on either side"
# Tokenizers that merge across the boundary: the header's last character with the answer's first.
LINES = dict(merges=[["Ċ", "Ċ"], ["ĊĊ", "Ċ"]])
COLON = dict(merges=[["▁ASSISTANT:", "▁"]])
SHORT = "an end mark less is counted than there is (1706, where starting from 1 is found to repair it)"


def cases():
    llama = load("llama", {}, legacy=True)
    plain = load("bytelevel", {})
    for style in ["vicuna_v1", "llama_2", "llava_v1"]:
        def made(turns, why=None, system="Be brief."):
            return case(llama, "llama", {}, style, turns, system=system, why=why)
        for rounds in range(1, 6):
            yield made(TURNS[: 2 * rounds])
        yield made(LATER)
        yield made(TEXT, system="" if style == "llama_2" else "You see. 漢字")
        if style == "llava_v1":
            continue
        yield made(ONE, system=None)
        yield made(["q", " a b ", "\nq", "\n\tindented"])
        yield made(["what is it?", ""], "nothing is answered: a sample without a loss for LLaVA, an error for us")
        yield made(["what is it?", "a dog", "where?", ""], "the last answer is empty, and all that is before it loses its labels; an error for us")
        yield made(["what is it?", "a dog", "", "here"], "an empty question changes what rounds are split at (779)")
        yield made(["say </s>", "a dog", "where?", "here"], "`</s>` in a question ends a round (779)")
        yield made(["say ASSISTANT: or [/INST] now", "x ASSISTANT: [/INST] y", "where?", "here"],
                   "the answer's header in a turn: the round falls into three parts and counting stops (779: mismatch 1 vs. N)")
    colon = load("llama", COLON, legacy=True)
    for turns in (["q", "漢字", "q", "\tb"], ["<image>\nq", "漢字"]):
        yield case(colon, "llama", COLON, "vicuna_v1", turns, system="Be brief.", why=ACROSS)
    later = load("llama", METASPACE, legacy=False)
    for turns in (TEXT, TURNS[:6], LATER):
        for style in ("vicuna_v1", "llama_2"):
            yield case(later, "llama", METASPACE, style, turns, system="Be brief.", why=UNEQUAL)
    for rounds in (1, 3):
        yield case(llama, "llama", {}, "mistral", TURNS[: 2 * rounds], system="")
        yield case(llama, "llama", {}, "mpt", TURNS[: 2 * rounds], system="Be brief.", why=SPELLED)
    for rounds in (1, 2, 5):
        yield case(plain, "bytelevel", {}, "vicuna_v1", TURNS[: 2 * rounds], system="Be brief.", why=NO_LEGACY)
        yield case(plain, "bytelevel", {}, "llama_2", TURNS[: 2 * rounds], system="Be brief.", why=NO_BOS)
        yield case(plain, "bytelevel", {}, "mpt", TURNS[: 2 * rounds], system="Be brief.", why=SPELLED)
    yield case(plain, "bytelevel", {}, "llama_2", LATER, system="Be brief.", why=NO_BOS)
    yield case(plain, "bytelevel", {}, "vicuna_v1", ["q", "  two  spaces "], system="Be brief.", why=NO_BOS)
    # Qwen's tokenizer, padded with another token than the one that ends turns; LLaVA's code as it is, and with the
    # first count that issue 1706 gives it.
    qwen = load("qwen", {})
    apart = load("qwen", {}, pad="<|endoftext|>")
    repaired = load("qwen", {}, pad="<|endoftext|>", legacy=True)
    across = load("qwen", LINES, pad="<|endoftext|>", legacy=True)
    for style in ("chatml", "mpt"):
        for turns in (TURNS[:2], TURNS[:4], TURNS, LATER, TEXT):
            yield case(apart, "qwen", {}, style, turns, system="Be brief.", why=SHORT)
            yield case(repaired, "qwen", {}, style, turns, system="Be brief.", preprocess="repaired")
        yield case(across, "qwen", LINES, style, ["q", "\n\nan answer", "q", "\n another"], system="Be brief.", preprocess="repaired", why=ACROSS)
        yield case(apart, "qwen", {}, style, ["say <|im_end|>", "a dog"], system="Be brief.", why="`<|im_end|>` in a question ends a turn")
        yield case(qwen, "qwen", {}, style, TURNS[:4], system="Be brief.", why="padding with the token that ends turns: the ends count as padding, and the sums differ (1706)")
    llama3 = load("llama3", {})
    for style in ("vicuna_v1", "llama_2", "mpt"):
        for turns in (TURNS[:2], TURNS[:4]):
            why = NO_LEGACY if style == "vicuna_v1" and len(turns) > 2 else SPELLED
            yield case(llama3, "llama3", {}, style, turns, system="Be brief.", why=why + " (1710)")
    gemma = load("gemma", {})
    yield case(gemma, "gemma", {}, "vicuna_v1", TEXT, system="Be brief.", why=NO_LEGACY)
    yield case(gemma, "gemma", {}, "llama_2", TEXT[:2], system="Be brief.", why=NO_BOS)
    phi3 = load("phi3", {}, legacy=True, pad="<unk>")
    for style in ("vicuna_v1", "llama_2"):
        yield case(phi3, "phi3", {}, style, TEXT, system="Be brief.")
        yield case(load("phi3", {}, legacy=True), "phi3", {}, style, TEXT, system="Be brief.", why="padding with `</s>`: the ends of the answers count as padding, and the sums differ")
    for tokenizer, name in ((llama, "llama"), (plain, "bytelevel"), (apart, "qwen"), (llama3, "llama3"), (phi3, "phi3")):
        for caption in ("a red circle", "two\nlines "):
            yield case(tokenizer, name, {}, "plain", ["<image>\nDescribe it.", caption], why="one of the text's tokens is masked for the <s> that this tokenizer has not")


made = list(cases())
for one in made:
    if not one["right"]:
        print(one["tokenizer"], one["style"], "META" if one["patch"] else "", len(one["turns"]), "whole" in one, one.get("repaired"), one["warning"][:70], "|", one["why"][:60], "|", one["truth"], one["llava"])
assert all(one.get("why") for one in made if not one["right"])
print(len(made), sum(one["right"] for one in made), sum("whole" in one for one in made))
with open(fixtures / "labels.json", "w") as out:
    out.write("[\n" + ",\n".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in made) + "\n]\n")
