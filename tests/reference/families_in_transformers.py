#!/usr/bin/env python3
"""Saves every family's fixture with the binary, loads it in transformers, and compares the logits.

    python families_in_transformers.py [--basic ../../target/release/basic] [--dtype f32] [--shard-size 100KB]

`basic convert` reads and writes each checkpoint of tests/fixtures/families; LlavaForConditionalGeneration, or
LlavaNextForConditionalGeneration for models that cut images into tiles, must load it without a missing, unexpected or
mismatched key, and its logits must be those that transformers computed from the fixture, within 1e-3 (in f32; f16 and bf16
files come out as they went in). Ends with 1 where one doesn't. Needs torch, transformers, safetensors, pillow.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, logging
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures"


def compare(name, out, a):
    source = FIXTURES / "families" / name
    command = [a.basic, "convert", source, out / name, "--dtype", a.dtype, "--shard-size", a.shard_size]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if ran.returncode:
        print(f"{name}: {ran.stderr.strip()}")
        return False
    expected = json.loads((source / "reference.json").read_text())
    # Only models that cut images into tiles have images of their own.
    kind = LlavaNextForConditionalGeneration if "images" in expected else LlavaForConditionalGeneration
    model, info = kind.from_pretrained(out / name, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    # The class is the one that the directory names.
    processor = AutoProcessor.from_pretrained(out / name)
    if kind is LlavaNextForConditionalGeneration:  # as the fixtures were made
        processor.image_processor = LlavaNextImageProcessorPil.from_pretrained(out / name)
    images = [Image.open(FIXTURES / "images" / image).convert("RGB") for image in expected.get("images", ["b.png"])]
    batch = processor(images=images, text=expected["prompt"], return_tensors="pt")
    same_ids = batch["input_ids"][0].tolist() == expected["ids"]
    with torch.no_grad():
        logits = model(**batch).logits[0]
    off = (logits - load_file(source / "logits.safetensors")["logits"]).abs().max().item() if same_ids else float("nan")
    print(f"{name:<16} keys {wrong or 'all matched'}; prompt ids {'equal' if same_ids else 'DIFFER'}; logits within {off:.1e}")
    return not wrong and same_ids and off <= 1e-3


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--basic", default=str(ROOT / "target/release/basic"))
    p.add_argument("--dtype", default="f32")
    p.add_argument("--shard-size", default="5GB")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as out:
        results = [compare(path.name, Path(out), a) for path in sorted((FIXTURES / "families").iterdir())]
    print(f"{sum(results)} of {len(results)}")
    sys.exit(0 if all(results) else 1)


main()
