#!/usr/bin/env python3
"""Loads directories that this project saved in transformers and compares greedy generation with the binary's.

    python load_in_transformers.py CKPT_DIR... [--image X.png] [--prompt "USER: <image>\\nhi ASSISTANT:"]
           [--max-new-tokens 12] [--basic ../../target/release/basic] [--device cpu]

Every directory must load in LlavaForConditionalGeneration.from_pretrained without a missing, unexpected or mismatched
key, its processor in LlavaProcessor.from_pretrained, and both must give the same ids, up to the first step whose
runner-up is nearer than 2e-3 (docs/architecture.md). Ends with 1 where one doesn't. The image should have the model's size:
resizing is compared elsewhere. Needs torch, transformers, pillow.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

GAP = 2e-3
ROOT = Path(__file__).resolve().parents[2]


def in_transformers(path, a):
    """New ids, the gap between the best two logits at each step, and what was wrong with the keys."""
    model, info = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    processor = LlavaProcessor.from_pretrained(path)
    text = a.prompt.replace("\\n", "\n")
    batch = processor(images=Image.open(a.image).convert("RGB"), text=text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=a.max_new_tokens, do_sample=False, output_scores=True, return_dict_in_generate=True)
    ids = out.sequences[0, batch["input_ids"].shape[1]:].tolist()
    gaps = [float(top[0] - top[1]) for top in (scores[0].topk(2).values for scores in out.scores)]
    return ids, gaps, processor.tokenizer.decode(ids, skip_special_tokens=True), wrong


def in_basic(path, a):
    command = [a.basic, "generate", path, "--image", a.image, "--prompt", a.prompt, "--max-new-tokens", a.max_new_tokens,
               "--greedy", "--json", "--device", a.device]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{path}: {ran.stderr.strip()}")
    return json.loads(ran.stdout)


def same(path, a):
    ids, gaps, text, wrong = in_transformers(path, a)
    ours = in_basic(path, a)
    sure = next((i for i, gap in enumerate(gaps) if gap < GAP), len(gaps))
    agree = ours["ids"][:sure] == ids[:sure] and (sure < len(gaps) or (len(ours["ids"]), ours["text"]) == (len(ids), text))
    print(f"{path}: keys {wrong or 'all matched'}; ids {'equal' if agree else 'DIFFER'} over {sure} of {len(ids)} steps")
    if not agree:
        print(f"  transformers {ids} {text!r}\n  basic        {ours['ids']} {ours['text']!r}")
    return agree and not wrong


def main():
    p = argparse.ArgumentParser()
    p.add_argument("checkpoints", nargs="+", type=Path)
    p.add_argument("--image", type=Path, default=ROOT / "tests/fixtures/images/a.png")
    p.add_argument("--prompt", default="USER: <image>\\nwhat is in the picture? ASSISTANT:")
    p.add_argument("--max-new-tokens", type=int, default=12)
    p.add_argument("--basic", type=Path, default=ROOT / "target/release/basic")
    p.add_argument("--device", default="cpu")
    a = p.parse_args()
    results = [same(path, a) for path in a.checkpoints]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
