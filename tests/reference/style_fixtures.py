#!/usr/bin/env python3
"""Makes basic-models/tests/fixtures/processor/styles.json: conversations as LLaVA's own code renders them.

    python style_fixtures.py LLAVA.py LLAVA_NEXT.py LLAMA_3_V.py PHI_3_V.py OUT.json

The arguments are checked-out copies of the sources' conversation.py: llava/conversation.py of haotian-liu/LLaVA
(c121f04) and of LLaVA-VL/LLaVA-NeXT (df17966), LLaMA-3-V/ and Phi-3-V/conversation.py of mbzuai-oryx/LLaVA-pp
(5ccb07b). They are run, not copied. A conversation whose last answer is null is a prompt to generate from. The plain
style is written out as preprocess_plain does it, since get_prompt fails on it.
"""
import importlib.util
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # LLaVA-NeXT looks for Llama 3's tokenizer when imported, and does without


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


llava, following, llama_3, phi_3 = (load(path, f"conversation_{i}") for i, path in enumerate(sys.argv[1:5]))
STYLES = {  # our name: (source, its name)
    "vicuna_v1": (llava, "vicuna_v1"), "llama_2": (llava, "llama_2"), "llama_3": (llama_3, "llama3"),
    "mistral": (llava, "mistral_instruct"), "chatml": (llava, "chatml_direct"), "phi3": (phi_3, "phi3_instruct"),
    "gemma": (following, "gemma_instruct"), "qwen_2": (following, "qwen_2"), "mpt": (llava, "mpt"),
    "llava_v1": (llava, "llava_v1"), "llava_llama_2": (llava, "llava_llama_2"), "llava_v0": (llava, "llava_v0"),
}
# What stands before a conversation's own system text, where the source's field holds both.
HEADERS = ["<|im_start|>system\n", "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n", "<|system|>\n"]
DIALOGUES = [
    ["<image>\nWhat is it?", "A dog."],
    ["<image>\nWhat is it?", "A dog.", "Where?", " On the grass,\n left. "],
    ["<image>\n<image>\nWhich is red? 漢字 🙂", "The  second.", "Sure?", "Yes.", "Why?", "It has\tthe hue."],
    ["Write </s> and <|im_end|>, please.", "</s><s>[INST]", "<s>", "###"],
    ["<image>", None],
    ["Hello", "Hi", "How are you?", None],
    ["Hello", "Hi", "", "Nothing?", "Again", None],
    ["Hello", "", "Are you there?", None],
    [" a ", "b", "\n", None],
]


def render(conversation, turns, system):
    conversation = conversation.copy()
    conversation.messages = []
    if system is not None:
        header = next((h for h in HEADERS if conversation.system.startswith(h)), "")
        conversation.system = header + system
    for i, turn in enumerate(turns):
        conversation.append_message(conversation.roles[i % 2], turn)
    return conversation.get_prompt()


cases = []
for name, (module, theirs) in STYLES.items():
    for turns in DIALOGUES:
        for system in [None] if name == "gemma" else [None, "Be brief.", ""]:
            text = render(module.conv_templates[theirs], turns, system)
            cases.append(dict(style=name, alias=theirs, system=system, turns=turns, text=text))
for caption in ["a red circle", " two\nlines "]:
    text = "<image>" + caption + llava.conv_templates["plain"].sep
    cases.append(dict(style="plain", alias="plain", system=None, turns=["<image>\nDescribe it.", caption], text=text))
# The system texts are long and come often: each once.
systems = sorted({m.conv_templates[t].system for m, t in STYLES.values()} - {""}, key=len, reverse=True)
for case in cases:
    for i, system in enumerate(systems):
        case["text"] = case["text"].replace(system, f"\x00{i}")
with open(sys.argv[5], "w") as out:
    json.dump(dict(systems=systems, cases=cases), out, ensure_ascii=False, indent=0)
    out.write("\n")
