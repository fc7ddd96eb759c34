#!/usr/bin/env python3
"""Checks directories that `basic assemble` or `basic convert` wrote against transformers.

    python check_assembled.py CKPT_DIR... [--decoder DIR]

Each must load in LlavaForConditionalGeneration without a missing, unexpected or mismatched key, its processor in
LlavaProcessor, `<image>` must be one id, the configuration's, and an image's placeholder must become as many tokens as the
model makes features. With --decoder (the decoder that it was made of), the first checkpoint's new rows are compared with
those of transformers' own resize_token_embeddings. Needs torch, transformers, pillow.
"""
import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

p = argparse.ArgumentParser()
p.add_argument("checkpoints", nargs="+", type=Path)
p.add_argument("--decoder", type=Path)
a = p.parse_args()
good = True
for path in a.checkpoints:
    model, info = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    processor = LlavaProcessor.from_pretrained(path)
    ids = processor.tokenizer("a <image> b", add_special_tokens=False).input_ids
    image = model.config.image_token_id
    alone = processor.tokenizer.encode("<image>", add_special_tokens=False)
    side = model.config.vision_config.image_size
    batch = processor(images=Image.new("RGB", (side, side), "red"), text="USER: <image>\nhi ASSISTANT:", return_tensors="pt")
    placed = int((batch["input_ids"] == image).sum())
    with torch.no_grad():
        logits = model(**batch).logits
    chat = None  # a converted checkpoint has a template where its source had one
    if getattr(processor, "chat_template", None):
        talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
        chat = processor.apply_chat_template(talk, add_generation_prompt=True)
    fine = not wrong and alone == [image] and ids.count(image) == 1 and placed == model.config.image_seq_length and bool(torch.isfinite(logits).all()) and (chat is None or chat.count("<image>") == 1)
    print(f"{path}: keys {wrong or 'all matched'}; <image> is {alone} (config {image}); {placed} image tokens; chat {chat!r}; {'good' if fine else 'BAD'}")
    good &= fine
if a.decoder:
    ours, _ = LlavaForConditionalGeneration.from_pretrained(a.checkpoints[0], dtype=torch.float32), None
    theirs = AutoModelForCausalLM.from_pretrained(a.decoder, dtype=torch.float32)
    old = theirs.config.vocab_size
    new = ours.config.text_config.vocab_size
    torch.manual_seed(0)
    theirs.resize_token_embeddings(new)
    for name, x, y in (("table", ours.get_input_embeddings(), theirs.get_input_embeddings()), ("head", ours.get_output_embeddings(), theirs.get_output_embeddings())):
        same = torch.equal(x.weight[:old], y.weight[:old])
        apart = float((x.weight[old:] - y.weight[old:]).abs().max()) if new > old else 0.0
        print(f"{name}: {old} to {new} rows; old rows {'equal' if same else 'DIFFER'}; new rows apart by at most {apart:.2e}")
        good &= same and apart < 1e-3
sys.exit(0 if good else 1)
