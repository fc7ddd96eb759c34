#!/usr/bin/env python3
"""`basic serve` under load beside transformers' `generate` in batches of the same size, on the same CPU.

    python tests/reference/compare_serving.py --basic target/release/basic [--reference BASIC_REFERENCE.py] [--preset small]
        [--threads 2] [--requests 100] [--tokens 64] [--at-once 1 4 16] [--rounds 1]

Builds a random LLaVA checkpoint of a preset's sizes. Ours: so many streamed chat requests, each with a picture and a question
of its own, so that no cache serves two, that many at a time; the time to the first token is the mean of the server's own
measure (`basic_time_to_first_token_seconds`), because the tokens of a random model often make no text that a client could see.
transformers: the same prompts in batches of that many, all begun at once; the time to the first token of a batch is that of
`generate` with one new token. Ours also receives and decodes a PNG, theirs preprocesses a PIL image. Needs torch, transformers,
pillow. Run it on an otherwise idle machine."""
import argparse
import base64
import concurrent.futures
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from compare_generation import VICUNA, build


def question(number):
    return f"<image>\nquestion {number}: what is in the picture?"


def picture(number, side):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8))


def ask(url, name, number, a):
    png = io.BytesIO()
    picture(number, a.side).save(png, "PNG", compress_level=0)
    data = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": question(number)[8:]}]
    body = {"model": name, "messages": [{"role": "user", "content": parts}], "max_tokens": a.tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(url + "/v1/chat/completions", data=json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    count = 0
    with urllib.request.urlopen(request, timeout=600) as answer:
        for event in answer:
            if event.startswith(b"data: {"):
                count = (json.loads(event[6:]).get("usage") or {}).get("completion_tokens", count)
    return count


def first_token(url):
    """The sum of the times to the first token so far, and their number."""
    lines = urllib.request.urlopen(url + "/metrics").read().decode().splitlines()
    name = "basic_time_to_first_token_seconds"
    return [sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}_{end}")) for end in ("sum", "count")]


def ours(a, folder, at_once):
    line = [a.basic, "serve", folder, "--port", "0", "--device", "cpu", "--max-batch", str(max(a.at_once)), "--max-queue", "128"]
    process = subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, text=True,
                               env=dict(os.environ, RAYON_NUM_THREADS=str(a.threads)))
    url = next(line.split()[2] for line in process.stdout if line.startswith("listening on "))
    try:
        name = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]
        ask(url, name, a.requests, a)
        before = first_token(url)
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            count = sum(pool.map(lambda number: ask(url, name, number, a), range(a.requests)))
        seconds = time.perf_counter() - start
        after = first_token(url)
    finally:
        process.terminate()
        process.wait(60)
    assert after[1] - before[1] == a.requests, "every request has a first token"
    return count / seconds, (after[0] - before[0]) / a.requests


def theirs(a, folder, at_once):
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"

    def run(numbers, tokens):
        start = time.perf_counter()
        inputs = processor(images=[picture(n, a.side) for n in numbers], text=[VICUNA.format(question(n)) for n in numbers],
                           return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        return time.perf_counter() - start, out.numel() - inputs["input_ids"].numel()

    run([a.requests], 2)
    groups = [range(a.requests)[at:at + at_once] for at in range(0, a.requests, at_once)]
    first = [(run(group, 1)[0], len(group)) for group in groups[:20]]
    done = [run(group, a.tokens) for group in groups]
    rate = sum(count for _, count in done) / sum(seconds for seconds, _ in done)
    return rate, sum(seconds * n for seconds, n in first) / sum(n for _, n in first)


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
    print("side | at a time | tokens/s | time to the first token, mean")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        build(reference, a.preset, folder, [1])
        a.side = reference.PRESETS[a.preset][0][8]
        for _ in range(a.rounds):
            for at_once in a.at_once:
                for side in (ours, theirs):
                    rate, first = side(a, folder, at_once)
                    print(f"{side.__name__} | {at_once} | {rate:.1f} | {1000 * first:.0f} ms", flush=True)


if __name__ == "__main__":
    sys.exit(main())
