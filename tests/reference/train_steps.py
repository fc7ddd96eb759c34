#!/usr/bin/env python3
"""Twenty steps of training in PyTorch, which `basic train` must repeat (tests/tests/training_reference.rs).

    python tests/reference/train_steps.py [--reference BASIC_REFERENCE.py]

Reads tests/fixtures/training/runs.json, which says what each run trains and with which settings, and NAME.samples.json,
which this project has written (`BASIC_WRITE_FIXTURES=1 cargo test -p tests --test training_reference`): the token ids and
labels of the samples and the order in which they are drawn. Everything else is PyTorch's own: transformers' model, peft's
adapters, torch.optim.AdamW, clip_grad_norm_, transformers' cosine schedule with warmup, and the objective of the reference
script. A step's samples come in micro batches; their losses are divided by the counts of the whole step, so that the
gradients add up to those of one large batch. Writes NAME.losses.json. f32 on a CPU.

Needs torch, transformers, peft, pillow."""
import argparse
import importlib.util
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from PIL import Image
from transformers import get_cosine_schedule_with_warmup

HERE = Path(__file__).resolve().parents[1] / "fixtures"
TRAINING = HERE / "training"


def collate(processor, samples):
    ids = [torch.tensor(s["ids"]) for s in samples]
    labels = [torch.tensor(s["labels"]) for s in samples]
    files = [file for s in samples for file in s["images"]]
    width, pad = max(map(len, ids)), processor.tokenizer.pad_token_id
    batch = dict(input_ids=torch.stack([F.pad(i, (0, width - len(i)), value=pad) for i in ids]),
                 attention_mask=torch.stack([F.pad(torch.ones_like(i), (0, width - len(i))) for i in ids]),
                 labels=torch.stack([F.pad(i, (0, width - len(i)), value=-100) for i in labels]))
    if files:
        pictures = [Image.open(HERE / "images" / file).convert("RGB") for file in files]
        # pixel_values; image_sizes too where images are cut into tiles
        batch |= processor.image_processor(images=pictures, return_tensors="pt")
    return batch


def targets(samples):
    """Target tokens, and samples with text behind an image."""
    return sum(sum(x != -100 for x in s["labels"][1:]) for s in samples), sum(bool(s["images"]) for s in samples)


def part_of(name):
    part = name.removeprefix("model.").split(".")[0]
    return "multi_modal_projector" if part == "image_newline" else part


def prepared(reference, run):
    model, processor = reference.load(HERE / run.get("checkpoint", "plain"))
    if "adapters" in run:
        peft = PeftModel.from_pretrained(model, HERE / "adapters" / run["adapters"], is_trainable=True)
        model = peft.base_model.model
    for name, parameter in model.named_parameters():
        part = part_of(name)
        adapter = "lora_" in name
        whole = part in run["full"] and "original_module" not in name
        parameter.requires_grad_(adapter or whole)
    return model.train(), processor


def steps(reference, name, run):
    model, processor = prepared(reference, run)
    held = json.loads((TRAINING / f"{name}.samples.json").read_text())
    groups = []
    for part, lr in run["lr"].items():
        mine = [(n, p) for n, p in model.named_parameters() if p.requires_grad and
                (part_of(n) == part or (part == "language_model" and n.startswith("lm_head")))]
        for decays in (True, False):
            params = [p for n, p in mine if (p.ndim >= 2) == decays]
            if params:
                groups.append(dict(params=params, lr=lr, weight_decay=run["weight_decay"] if decays else 0.0))
    trained = [p for group in groups for p in group["params"]]
    assert len(trained) == sum(p.requires_grad for p in model.parameters())
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    warmup = -(-len(held["order"]) * run["warmup"] // 100)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, len(held["order"]))
    found = []
    for indices in held["order"]:
        drawn = [held["samples"][i] for i in indices]
        tokens, images = targets(drawn)
        sums = dict(lm=0.0, das=0.0, sds=0.0, total=0.0)
        optimizer.zero_grad()
        for at in range(0, len(drawn), run["micro_batch"]):
            part = drawn[at:at + run["micro_batch"]]
            t, n = targets(part)
            lm, das, sds, _, _ = reference.basic_terms(model, collate(processor, part))
            lm, das, sds = lm * t / tokens, das * n / max(1, images), sds * n / max(1, images)
            total = lm + run["lambda_das"] * das + run["lambda_sds"] * sds
            total.backward()
            for key, value in dict(lm=lm, das=das, sds=sds, total=total).items():
                sums[key] += value.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        found.append(dict(**sums, grad_norm=norm.item(), lr=rate))
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--reference", type=Path, default=Path(__file__).resolve().parent / "basic_reference.py")
    a = p.parse_args()
    spec = importlib.util.spec_from_file_location("basic_reference", a.reference)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for name, run in json.loads((TRAINING / "runs.json").read_text()).items():
        found = steps(reference, name, run)
        lines = ",\n".join(json.dumps(step) for step in found)
        (TRAINING / f"{name}.losses.json").write_text(f"[\n{lines}\n]\n")
        print(f"{name}: total {found[0]['total']:.4f} to {found[-1]['total']:.4f}, gradient norms {found[0]['grad_norm']:.2f} to {found[-1]['grad_norm']:.2f}")


main()
