"""Values and gradients of every operation for bfloat16 inputs, computed in float64: basic-core/tests/fixtures/half.json.

    pip install torch
    python tests/reference/half_fixtures.py

The inputs are bfloat16 numbers; what an operation makes of them in float64 is the truth that a bfloat16 result may
differ from by its own rounding. The gradients are those of sum(result * cotangent), with the cotangent of
basic-core/tests/ops/harness.rs.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

MASK = (1 << 64) - 1
torch.manual_seed(0)


def cotangent(n):
    """As `cotangent` in harness.rs: SplitMix64 seeded by n."""
    if n == 1:
        return torch.tensor([3.5], dtype=torch.float64)
    state, out = n, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        x = state
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(((x ^ (x >> 31)) % 33) / 8 - 2)
    return torch.tensor(out, dtype=torch.float64)


def half(x):
    return x.to(torch.bfloat16).to(torch.float64)


def uniform(*shape, low=-2.0, high=2.0):
    return half(torch.rand(*shape, dtype=torch.float64) * (high - low) + low)


cases = {}


def case(name, function, inputs, tracked):
    leaves = [x.clone().requires_grad_(t) for x, t in zip(inputs, tracked)]
    value = function(*leaves).reshape(-1)
    (value * cotangent(value.numel())).sum().backward()
    numbers = lambda x: [float(f"{v:.8e}") for v in x.detach().reshape(-1).tolist()]
    cases[name] = {
        "inputs": [{"dims": list(x.shape), "values": numbers(x)} for x in inputs],
        "value": numbers(value),
        "grads": [numbers(leaf.grad) if t else None for leaf, t in zip(leaves, tracked)],
    }


# The tails, where `1 + erf` and `1 - sigmoid` cancel, and the middle.
line = half(torch.linspace(-8, 8, 129, dtype=torch.float64))
case("gelu", F.gelu, [line], [True])
case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), [line], [True])
case("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x), [line], [True])
case("silu", F.silu, [line], [True])
case("swiglu", lambda g, u: F.silu(g) * u, [line, uniform(129)], [True, True])
case("rms_norm", lambda x, g: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * g,
     [uniform(4, 32), uniform(32, low=0.5, high=1.5)], [True, True])

# One token 700 times: bfloat16's sum of ones stalls at 256.
ids = [1] * 700 + [0, 3, 3, 2]
case("embedding", lambda table: table[torch.tensor(ids)], [uniform(5, 2)], [True])
# The cotangent of 1,408 numbers is as long as the result; the value itself follows from the table.
cases["embedding"]["value"] = []
cases["embedding"]["ids"] = ids


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    c, s = cos[:, :, None], sin[:, :, None]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


angle = torch.arange(6, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
case("rotate", rotate, [uniform(2, 6, 2, 6), half(angle.cos()), half(angle.sin())], [True, False, False])


def attention(q, k, v):
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)


case("attention", attention, [uniform(2, 7, 4, 8), uniform(2, 7, 2, 8), uniform(2, 7, 2, 8)], [True] * 3)


def das(v, target, weights):
    return (weights * (F.normalize(v, dim=1) - F.normalize(target, dim=1)).square().sum(1)).sum()


def sds(v, target, table, weights):
    log_p, log_q = (target @ table.T).log_softmax(1), (v @ table.T).log_softmax(1)
    return (weights * (log_p.exp() * (log_p - log_q)).sum(1)).sum()


weights = uniform(6, low=0.0, high=1.0)
case("das", das, [uniform(6, 16), uniform(6, 16), weights], [True, False, False])
case("sds", sds, [uniform(6, 8, low=-1, high=1), uniform(6, 8, low=-1, high=1), uniform(40, 8), weights],
     [True, False, False, False])
labels = [3, -100, 0, 39, 7]
case("cross_entropy", lambda h, w: F.cross_entropy(h @ w.T, torch.tensor(labels)),
     [uniform(5, 8, low=-1, high=1), uniform(40, 8)], [True, True])
cases["cross_entropy"]["labels"] = labels

out = Path(__file__).parents[2] / "basic-core/tests/fixtures/half.json"
out.write_text(json.dumps(cases, separators=(",", ":")) + "\n")
print(out, out.stat().st_size, "bytes")
