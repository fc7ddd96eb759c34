#!/usr/bin/env python3
"""Values and gradients of the supervision losses and the language-model loss at a real vocabulary, from PyTorch in f64.

    python tests/reference/ops_fixtures.py > basic-core/tests/fixtures/vocabulary.json

Needs torch and numpy. The inputs are a hash of their index, so that the test makes the same ones without a file."""
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F

M, N, D, V = 7, 5, 24, 32000


def numbers(count, seed, scale):
    """Murmur3's finalizer of index and seed, to 24 bits, in [-scale, scale)."""
    h = (np.arange(count, dtype=np.uint64) * 0x9E3779B1 + seed * 0x85EBCA6B) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> np.uint64(shift)
        h = (h * factor) & 0xFFFFFFFF
    h ^= h >> np.uint64(16)
    return torch.tensor(((h >> np.uint64(8)).astype(np.float64) / 2**23 - 1.0) * scale)


def rows(n, d, seed, scale=1.0):
    return numbers(n * d, seed, scale).reshape(n, d)


def main():
    v, target, table = rows(M, D, 1).requires_grad_(), rows(M, D, 2), rows(V, D, 3, 1.5)
    weights = numbers(M, 4, 0.5) + 0.5
    u, t = F.normalize(v, dim=1), F.normalize(target, dim=1)
    das = (weights * (u - t).square().sum(1)).sum()
    log_p, log_q = F.log_softmax(target @ table.T, 1), F.log_softmax(v @ table.T, 1)
    sds = (weights * (log_p.exp() * (log_p - log_q)).sum(1)).sum()
    hidden, head = rows(N, D, 5).requires_grad_(), rows(V, D, 6, 1.5).requires_grad_()
    labels = torch.tensor([31999, -100, 0, 17, 20000])
    lm = F.cross_entropy(hidden @ head.T, labels)
    das_grad, = torch.autograd.grad(das, v)
    sds_grad, = torch.autograd.grad(sds, v)
    hidden_grad, head_grad = torch.autograd.grad(lm, [hidden, head])
    touched = [31999, 0, 17, 20000, 5, 12345]
    json.dump({
        "torch": torch.__version__, "labels": labels.tolist(),
        "das": das.item(), "das_grad": das_grad.flatten().tolist(),
        "sds": sds.item(), "sds_grad": sds_grad.flatten().tolist(),
        "lm": lm.item(), "hidden_grad": hidden_grad.flatten().tolist(),
        "head_rows": touched, "head_grad": head_grad[touched].flatten().tolist(),
        # The whole gradient against a fixed direction: no row can be wrong unseen.
        "head_grad_dot": (head_grad * rows(V, D, 7)).sum().item(),
    }, sys.stdout)


main()
