#!/usr/bin/env python3
"""VIRAL's term and its gradients in PyTorch (f64), from its definition in docs/method.md.

    python tests/reference/viral_fixtures.py > basic-core/tests/fixtures/viral.json

Needs torch and numpy. The inputs are a hash of their index, so that the test makes the same ones without a file. Four
images of a 2 x 2 grid in three samples: one alone, two in one sample, one without text after it; the vision encoder's
grid is 3 x 3, and once 2 x 2. The term is averaged over three samples of a larger batch, of which two are here."""
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F

D, W, HIDDEN, IMAGES, GRID = 5, 6, 7, 4, 2
SAMPLES = [0, 1, 1, 2]
COUNTED = [True, True, False]
IMAGE_SAMPLES = 3


def numbers(count, seed, scale):
    """Murmur3's finalizer of index and seed, to 24 bits, in [-scale, scale)."""
    h = (np.arange(count, dtype=np.uint64) * 0x9E3779B1 + seed * 0x85EBCA6B) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> np.uint64(shift)
        h = (h * factor) & 0xFFFFFFFF
    h ^= h >> np.uint64(16)
    return torch.tensor(((h >> np.uint64(8)).astype(np.float64) / 2**23 - 1.0) * scale)


def rows(n, d, seed):
    return numbers(n * d, seed, 1.0).reshape(n, d)


def mean(of_images):
    """Over a sample's images, then over the samples of the whole batch that count."""
    total = 0
    for sample, counted in enumerate(COUNTED):
        own = [value for value, at in zip(of_images, SAMPLES) if at == sample]
        if counted:
            total = total + sum(own) / len(own)
    return total / IMAGE_SAMPLES


def case(similarity, grid):
    m, p = GRID * GRID, grid * grid
    hidden = rows(IMAGES * m, D, 1).requires_grad_()
    features = rows(IMAGES * p, W, 2)
    if grid != GRID:
        square = features.reshape(IMAGES, grid, grid, W).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=(GRID, GRID), mode="bilinear", align_corners=False)
        features = square.permute(0, 2, 3, 1).reshape(IMAGES * m, W)
    head = []
    if similarity == "cosine":
        for index, (i, o) in enumerate([(D, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, W)]):
            head.append((rows(i, o, 10 + index).requires_grad_(), numbers(o, 20 + index, 1.0).requires_grad_()))
        x = hidden
        for index, (weight, bias) in enumerate(head):
            x = (x if index == 0 else F.silu(x)) @ weight + bias
        cosines = F.cosine_similarity(x, features, dim=1).reshape(IMAGES, m)
        value = mean([-image.mean() for image in cosines])
    else:
        def gram(x):
            unit = F.normalize(x, dim=1).reshape(IMAGES, m, -1)
            return unit @ unit.transpose(1, 2)
        value = mean([image.mean() for image in (gram(hidden) - gram(features)).square()])
    parameters = [hidden] + [x for pair in head for x in pair]
    gradients = torch.autograd.grad(value, parameters)
    names = ["hidden"] + [f"{kind}{layer}" for layer in range(len(head)) for kind in ("weight", "bias")]
    return {"similarity": similarity, "grid": grid, "value": value.item(),
            "gradients": {name: g.flatten().tolist() for name, g in zip(names, gradients)}}


json.dump({"torch": torch.__version__, "cases": [case(s, g) for s in ("cosine", "gram") for g in (2, 3)]}, sys.stdout)
