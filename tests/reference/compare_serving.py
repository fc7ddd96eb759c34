#!/usr/bin/env python3
"""`basic serve` under load beside transformers' `generate` in batches of the same size, on the same CPU.

    python tests/reference/compare_serving.py --basic target/release/basic [--reference BASIC_REFERENCE.py] [--preset small]
        [--threads 2] [--requests 100] [--tokens 64] [--at-once 1 4 16] [--rounds 1]

Builds a random LLaVA checkpoint of a preset's sizes. Ours: so many streamed chat requests, each with an image and another
question, that many at a time; the time to the first token is what each client measures. transformers: the same prompts in
batches of that many, all begun at once; the time to the first token of a batch is that of `generate` with one new token.
Both sides start with the image's pixels encoded (ours decodes a PNG of a data URL, theirs preprocesses a PIL image). Needs
torch, transformers, pillow. Run it on an otherwise idle machine."""
import argparse
import base64
import concurrent.futures
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from compare_generation import VICUNA, build


def question(number):
    # Each is another one, so that no cache holds more than its beginning.
    return f"<image>\nquestion {number}: what is in the picture?"


def ask(url, name, picture, number, tokens):
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question(number)[8:]}]
    body = {"model": name, "messages": [{"role": "user", "content": parts}], "max_tokens": tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(url + "/v1/chat/completions", data=json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    start, first, count = time.perf_counter(), None, 0
    with urllib.request.urlopen(request, timeout=600) as answer:
        for event in answer:
            if event.startswith(b"data: {"):
                first = first or time.perf_counter() - start
                count = (json.loads(event[6:]).get("usage") or {}).get("completion_tokens", count)
    return first, count


def ours(a, folder, at_once):
    line = [a.basic, "serve", folder, "--port", "0", "--device", "cpu", "--max-batch", str(max(a.at_once)), "--max-queue", "128"]
    process = subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, text=True,
                               env=dict(os.environ, RAYON_NUM_THREADS=str(a.threads)))
    url = next(line.split()[2] for line in process.stdout if line.startswith("listening on "))
    try:
        name = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]
        picture = "data:image/png;base64," + base64.b64encode((folder / "0.png").read_bytes()).decode()
        ask(url, name, picture, -1, a.tokens)
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            found = list(pool.map(lambda number: ask(url, name, picture, number, a.tokens), range(a.requests)))
        seconds = time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(60)
    return sum(count for _, count in found) / seconds, [first for first, _ in found]


def theirs(a, folder, at_once):
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    image = Image.open(folder / "0.png").convert("RGB")

    def run(numbers, tokens):
        start = time.perf_counter()
        inputs = processor(images=[image] * len(numbers), text=[VICUNA.format(question(n)) for n in numbers],
                           return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        return time.perf_counter() - start, out.numel() - inputs["input_ids"].numel()

    run([-1], 2)
    groups = [range(a.requests)[at:at + at_once] for at in range(0, a.requests, at_once)]
    first = [seconds for group in groups[:20] for seconds in [run(group, 1)[0]] * len(group)]
    done = [run(group, a.tokens) for group in groups]
    return sum(count for _, count in done) / sum(seconds for seconds, _ in done), first


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--basic", required=True)
    p.add_argument("--reference", default=Path(__file__).with_name("basic_reference.py"))
    p.add_argument("--preset", default="small")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--requests", type=int, default=100)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    p.add_argument("--rounds", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    spec = importlib.util.spec_from_file_location("reference", a.reference)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    print("side | at a time | tokens/s | time to first token, median and 95th percentile")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        build(reference, a.preset, folder, [1])
        for _ in range(a.rounds):
            for at_once in a.at_once:
                for side in (ours, theirs):
                    rate, first = side(a, folder, at_once)
                    first = sorted(first)
                    middle, late = statistics.median(first), first[int(0.95 * len(first))]
                    print(f"{side.__name__} | {at_once} | {rate:.1f} | {1000 * middle:.0f} ms, {1000 * late:.0f} ms", flush=True)


if __name__ == "__main__":
    sys.exit(main())
