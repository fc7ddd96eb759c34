#!/usr/bin/env python3
"""Makes tests/fixtures from the reference script: what tests/tests/conformance.rs compares the binary with.

    python make_fixtures.py OUT [BASIC_REFERENCE.py]

Three tiny LLaVA checkpoints of different seeds and layouts, images and samples drawn from fixed seeds, and the
reference's losses, gradients, generated ids and pixel values. cases.json lists every call with its arguments and the
file that holds its result. Needs torch, transformers, safetensors, pillow, numpy.
"""
import contextlib
import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

out = Path(sys.argv[1])
here = Path(__file__).resolve().parent
script = Path(sys.argv[2]) if len(sys.argv) > 2 else here / "basic_reference.py"
spec = importlib.util.spec_from_file_location("basic_reference", script)
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
torch.set_num_threads(1)

# Not the default of 10000: a reader that overlooks the key must fail.
ROPE_THETA = 500.0

SAMPLES = [
    {"image": "images/a.png", "prompt": "USER: <image>\nwhat is in the picture? ASSISTANT:", "answer": " a small red circle"},
    {"image": ["images/b.png", "images/c.png"], "prompt": "USER: <image> and then <image>\nwhich is larger? ASSISTANT:", "answer": " the first one, left of a large blue square."},
    {"prompt": "USER: there are two green triangles. how many? ASSISTANT:", "answer": " two"},
    {"image": "images/d.png", "prompt": "USER: the dog sits on the grass. what does <image> show? ASSISTANT:", "answer": " one yellow star. the dog sits on the grass, and the picture is large."},
    {"image": "images/a.png", "prompt": "describe the picture: <image>", "answer": " grass"},
    {"image": "images/c.png", "prompt": "<image>", "answer": "a large blue square"},
]
TEXT_ONLY = [
    {"prompt": "USER: how many triangles? ASSISTANT:", "answer": " two green triangles and one yellow star."},
    {"prompt": "USER: is the grass red? ASSISTANT:", "answer": " it is green"},
]
CHECKPOINTS = {
    "plain": ["--seed", "0"],
    "sharded": ["--seed", "1", "--minimal", "--shard", "200KB"],
    "transformers4": ["--seed", "2"],
}
KNOBS = {
    "default": [],
    "k1": ["--k", "1"],
    "k4": ["--k", "4"],
    "constant": ["--layer-weights", "constant"],
    "decreasing": ["--layer-weights", "decreasing"],
    "uniform": ["--patch-weights", "uniform"],
    "lambdas": ["--lambda-das", "0.5", "--lambda-sds", "0.3"],
    "mixed": ["--k", "3", "--layer-weights", "decreasing", "--patch-weights", "uniform", "--lambda-das", "0.2"],
}
WITH_GRADS = {("plain", "default"), ("sharded", "default"), ("transformers4", "default"), ("sharded", "mixed")}
# Prompts that generate no <image> token: the reference's run over its own output would miss that image's pixels.
PROMPTS = {
    "question": ("images/b.png", "USER: <image>\\nwhat is in the picture? ASSISTANT:", 12),
    "caption": ("images/a.png", "the dog sits on the grass. <image>", 8),
}
PHOTOS = {"wide": (97, 61), "tall": (45, 118)}  # width, height


def call(*args):
    """Runs the reference's command line in this process; gives its standard output."""
    before, sys.argv = sys.argv, ["basic_reference.py", *map(str, args)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            reference.main()
    finally:
        sys.argv = before
    return printed.getvalue()


def photo(rng, width, height):
    """Smooth light, edges, fine stripes that alias unless the filter averages, and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 90 * np.sin(x / (9 + 4 * c) + c) * np.cos(y / (11 + c)) for c in range(3)]
    channels[0] += 50 * ((x // 7 + y // 5) % 2)
    channels[2] += 40 * ((x + y) % 2)
    noise = rng.normal(0, 3, (height, width, 3))
    return np.clip(np.stack(channels, -1) + noise, 0, 255).astype(np.uint8)


def make_images():
    (out / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abcd":  # of the model's size, so that resizing is the identity
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(out / "images" / f"{name}.png")
    for name, (width, height) in PHOTOS.items():
        Image.fromarray(photo(rng, width, height)).save(out / "images" / f"{name}.png", optimize=True)


def to_transformers4(path):
    """The same model as transformers 4 wrote it: names, rope_theta, the image processor in a file of its own."""
    renamed = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        name = name.removeprefix("model.")
        if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
            name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        elif name.startswith("language_model.") and not name.startswith(("language_model.model.", "language_model.lm_head.")):
            name = name.replace("language_model.", "language_model.model.", 1)
        elif name.startswith("lm_head."):
            name = "language_model." + name
        renamed[name] = tensor.contiguous()
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    text = config["text_config"]
    text.pop("rope_parameters")
    text.update(rope_theta=ROPE_THETA, rope_scaling=None)
    config["torch_dtype"] = config.pop("dtype", "float32")
    config["transformers_version"] = "4.46.0"
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor = json.loads((path / "processor_config.json").read_text())
    images = processor.pop("image_processor")
    (path / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    (path / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")


def make_checkpoints():
    for name, args in CHECKPOINTS.items():
        call("checkpoint", out / name, "--family", "llama", "--vision", "clip", *args)
    v4 = out / "transformers4"
    before = reference.load(v4)[0].state_dict()
    to_transformers4(v4)
    model, _ = reference.load(v4)
    assert model.config.text_config.rope_parameters["rope_theta"] == ROPE_THETA, "rope_theta was not read"
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before), "a renamed tensor was not read"


def make_expected():
    folder = out / "expected"
    folder.mkdir()
    cases = []

    def case(command, name, checkpoint, **more):
        cases.append(dict(command=command, name=f"{checkpoint}-{name}", checkpoint=checkpoint, **more))
        return folder / cases[-1]["name"]

    for checkpoint in CHECKPOINTS:
        for knob, args in KNOBS.items():
            grads = (checkpoint, knob) in WITH_GRADS
            path = case("losses", knob, checkpoint, samples="samples.jsonl", args=args, grads=grads)
            extra = ["--grads", path.with_suffix(".safetensors")] if grads else []
            path.with_suffix(".json").write_text(call("losses", out / checkpoint, out / "samples.jsonl", *args, *extra))
        grads = checkpoint == "plain"
        path = case("losses", "text_only", checkpoint, samples="text_only.jsonl", args=[], grads=grads)
        extra = ["--grads", path.with_suffix(".safetensors")] if grads else []
        path.with_suffix(".json").write_text(call("losses", out / checkpoint, out / "text_only.jsonl", *extra))
        for name, (image, prompt, tokens) in PROMPTS.items():
            args = ["--prompt", prompt, "--max-new-tokens", str(tokens)]
            path = case("generate", name, checkpoint, image=image, args=args)
            path.with_suffix(".json").write_text(call("generate", out / checkpoint, "--image", out / image, *args))
        for name in PHOTOS if checkpoint != "sharded" else ():
            path = case("preprocess", name, checkpoint, image=f"images/{name}.png")
            call("preprocess", out / checkpoint, out / "images" / f"{name}.png", path.with_suffix(".safetensors"))
    (out / "cases.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if out.exists():
    shutil.rmtree(out)
make_images()
(out / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SAMPLES))
(out / "text_only.jsonl").write_text("".join(json.dumps(s) + "\n" for s in TEXT_ONLY))
make_checkpoints()
make_expected()
for file in out.rglob("*.safetensors"):
    file.chmod(0o644)  # safetensors makes them private
