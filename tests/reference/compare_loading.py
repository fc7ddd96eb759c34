#!/usr/bin/env python3
"""Loading a checkpoint of 1 GB in this project and in transformers on the same CPU: seconds and peak memory.

    python tests/reference/compare_loading.py --basic target/release/basic [--rounds 5] [--threads 2] [--dir FOLDER] [--reference BASIC_REFERENCE.py]

Builds a random LLaVA checkpoint in bf16 (or takes the one in FOLDER) and loads it, alternately, into f32 and bf16:
`basic chat` that is asked nothing, from the start of the process to its end, and
`LlavaForConditionalGeneration.from_pretrained`, timed inside a process that has imported everything. Each load is a
process of its own; its peak is the kernel's (wait4). Then `basic convert` to both types. Medians; the file stays in the
page cache. Needs torch, transformers."""
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

LOAD = """
import json, resource, sys, time
import torch
from transformers import LlavaForConditionalGeneration, logging
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(int(sys.argv[3]))
# LLaVA's modules are imported when they are first used: not within the time.
from transformers.models.llava import modeling_llava
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start, busy = peak(), time.perf_counter(), time.process_time()
model = LlavaForConditionalGeneration.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
seconds, busy = time.perf_counter() - start, time.process_time() - busy
# What is still only mapped comes into memory.
for p in model.parameters():
    p.detach().view(-1)[:: 4096 // p.element_size()].sum()
print(json.dumps(dict(seconds=seconds, busy=busy, before=before)))
"""


def build(folder, script):
    import torch
    from transformers import (CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration,
                              LlavaProcessor)
    spec = importlib.util.spec_from_file_location("basic_reference", script)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    tokenizer = reference.tokenizer()
    text = LlamaConfig(vocab_size=32000, hidden_size=1280, intermediate_size=3456, num_hidden_layers=16,
                       num_attention_heads=20, max_position_embeddings=2048)
    vision = CLIPVisionConfig(image_size=224, patch_size=16)
    config = LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(),
                         image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    LlavaProcessor(image_processor=images, tokenizer=tokenizer, patch_size=16, image_token="<image>",
                   vision_feature_select_strategy="default", num_additional_image_tokens=1).save_pretrained(folder)


def run(command, threads):
    """Standard output of a process, its seconds, its seconds of computing and its peak memory in MiB."""
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    start = time.perf_counter()
    child = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             text=True, env=environment)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command}: exit code {child.returncode}")
    return out, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def show(name, rows):
    middle = [statistics.median(column) for column in zip(*rows)]
    seconds = [row[0] for row in rows]
    spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
    print(f"{name:<24} {middle[0]:6.2f} s {spread:<16} {middle[1]:6.2f} s of CPU   peak {middle[2]:6.0f} MiB")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--basic", required=True)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--dir")
    p.add_argument("--reference", default=str(Path(__file__).resolve().parent / "basic_reference.py"))
    p.add_argument("--build", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.build:
        return build(a.build, a.reference)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(a.dir) if a.dir else Path(scratch) / "model"
        if not (folder / "config.json").exists():
            # In a process of its own: a child's peak begins with what its parent holds.
            subprocess.run([sys.executable, __file__, "--build", folder, "--basic", a.basic, "--reference", a.reference], check=True)
        files = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        print(f"{files / 1e6:.0f} MB of safetensors, {a.threads} threads, medians of {a.rounds}")
        rows, imported = {}, []
        for _ in range(a.rounds):
            for dtype in ("float32", "bfloat16"):
                out, _, _, peak = run([sys.executable, "-c", LOAD, folder, dtype, a.threads], a.threads)
                theirs = json.loads(out.splitlines()[-1])
                rows.setdefault(f"transformers, {dtype}", []).append((theirs["seconds"], theirs["busy"], peak))
                imported.append(theirs["before"])
                command = [a.basic, "chat", folder, "--device", "cpu", "--dtype", dtype]
                rows.setdefault(f"basic, {dtype}", []).append(run(command, a.threads)[1:])
        for _ in range(a.rounds):
            for dtype in ("f32", "bf16"):
                command = [a.basic, "convert", folder, Path(scratch) / "out", "--dtype", dtype, "--overwrite"]
                rows.setdefault(f"basic convert to {dtype}", []).append(run(command, a.threads)[1:])
        for name in sorted(rows):
            show(name, rows[name])
        print(f"of transformers' peaks {statistics.median(imported):.0f} MiB are there before the load")


main()
