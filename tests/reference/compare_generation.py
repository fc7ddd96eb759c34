#!/usr/bin/env python3
"""Greedy decoding of this project and of transformers on the same CPU: tokens a second, alternately in one run.

    python tests/reference/compare_generation.py --basic target/release/basic [--reference BASIC_REFERENCE.py]
        [--preset small] [--threads 2] [--new 128] [--rounds 3] [--batch 1 4]

Builds a random LLaVA checkpoint of a preset's sizes and asks it questions about random images: `basic generate` for a
batch of 1, `basic eval` for more. Each side runs once with one new token and once with 1 + NEW; the difference is NEW
steps with a warm cache, without loading and prompt. Needs torch, transformers, pillow. Run it on an otherwise idle
machine."""
import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

QUESTION = "<image>\nwhat is in the picture, and what is left of it?"
VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
          "and polite answers to the user's questions. USER: {} ASSISTANT:")


def build(reference, preset, folder, batch):
    torch.manual_seed(0)
    sizes, vocabulary, _, _ = reference.PRESETS[preset]
    tokenizer = reference.tokenizer()
    config = reference.config("llama", "clip", sizes, vocabulary, tokenizer.convert_tokens_to_ids("<image>"))
    side, patch = sizes[8], sizes[9]
    LlavaForConditionalGeneration(config).float().eval().save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    LlavaProcessor(image_processor=images, tokenizer=tokenizer, patch_size=patch, image_token="<image>",
                   vision_feature_select_strategy="default", num_additional_image_tokens=1).save_pretrained(folder)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(max(batch)):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(dict(question_id=i, image=f"{i}.png", text=QUESTION, answer="x", category="any"))
    for n in batch:
        (folder / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:n]))


def ours(a, folder, batch, new):
    if batch == 1:
        command = ["generate", folder, "--image", folder / "0.png", "--prompt", VICUNA.format(QUESTION).replace("\n", "\\n"),
                   "--greedy", "--json"]
    else:
        command = ["eval", folder, folder / f"{batch}.jsonl", "--batch-size", str(batch), "--json"]
    command = [a.basic, *map(str, command), "--max-new-tokens", str(new), "--device", "cpu"]
    start = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, RAYON_NUM_THREADS=str(a.threads)))
    seconds = time.perf_counter() - start
    if ran.returncode:
        sys.exit(f"{' '.join(command)}:\n{ran.stderr}")
    ids = json.loads(ran.stdout).get("ids")
    assert ids is None or len(ids) == new, "an end token cut the answer short: build with another seed"
    return seconds, ids


def theirs(model, processor, folder, batch, new):
    images = [Image.open(folder / f"{i}.png").convert("RGB") for i in range(batch)]
    inputs = processor(images=images, text=[VICUNA.format(QUESTION)] * batch, return_tensors="pt")
    start = time.perf_counter()
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    prompt = inputs["input_ids"].shape[1]
    return time.perf_counter() - start, out[0, prompt:].tolist(), prompt


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--reference", type=Path, default=Path(__file__).resolve().parent / "basic_reference.py")
    p.add_argument("--basic", required=True)
    p.add_argument("--preset", default="small")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--new", type=int, default=128)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    p.add_argument("--keep", type=Path, help="build the checkpoint here and leave it")
    a = p.parse_args()
    spec = importlib.util.spec_from_file_location("basic_reference", a.reference)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        build(reference, a.preset, folder, a.batch)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        processor = LlavaProcessor.from_pretrained(folder)
        print(f"{a.preset}, {a.threads} threads, {a.new} steps, medians of {a.rounds} alternating runs, greedy, f32\n")
        print("| batch | prompt | transformers, tokens/s (least to most) | ours, tokens/s (least to most) | ratio |\n|---|---|---|---|---|")
        for batch in a.batch:
            theirs(model, processor, folder, batch, 4)
            rates = {"theirs": [], "ours": []}
            for _ in range(a.rounds):
                short, _, prompt = theirs(model, processor, folder, batch, 1)
                long, expected, _ = theirs(model, processor, folder, batch, 1 + a.new)
                rates["theirs"].append(batch * a.new / (long - short))
                short, _ = ours(a, folder, batch, 1)
                long, ids = ours(a, folder, batch, 1 + a.new)
                rates["ours"].append(batch * a.new / (long - short))
            cell = {side: f"{statistics.median(x):.1f} ({min(x):.1f} to {max(x):.1f})" for side, x in rates.items()}
            ratio = statistics.median(rates["ours"]) / statistics.median(rates["theirs"])
            print(f"| {batch} | {prompt} | {cell['theirs']} | {cell['ours']} | {ratio:.2f} |", flush=True)
            if ids is not None:
                same = next((i for i, (x, y) in enumerate(zip(ids, expected)) if x != y), len(ids))
                print(f"ids equal for {same} of {len(ids)} steps", file=sys.stderr)


if __name__ == "__main__":
    main()
