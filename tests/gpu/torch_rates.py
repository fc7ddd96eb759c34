"""The operations of `basic devices --rates` in PyTorch, on the same sizes: one JSON object."""

import json

import torch
import torch.nn.functional as F

ROWS, HIDDEN, INNER, VOCABULARY, PATCHES, TEXT = 2820, 4096, 11008, 32000, 2304, 512
DEVICE, DTYPE = "cuda", torch.bfloat16
rates = []


def time(name, flops, run):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    count = max(3, min(1000, int(200 / max(start.elapsed_time(end), 1e-3))))
    start.record()
    for _ in range(count):
        run()
    end.record()
    torch.cuda.synchronize()
    seconds = start.elapsed_time(end) / 1e3 / count
    rates.append(dict(name=name, seconds=seconds, tflops=flops / seconds / 1e12))


def random(*shape, grad=False):
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE, requires_grad=grad)


def product(name, m, k, n, turned=(False, False)):
    a = random(k, m).T if turned[0] else random(m, k)
    b = random(n, k).T if turned[1] else random(k, n)
    time(f"{name} {m}x{k}x{n}", 2 * m * k * n, lambda: a @ b)


def attention(name, b, t, heads, kv, width):
    flops = 2 * b * heads * t * t * width
    shapes = [(b, heads, t, width), (b, kv, t, width), (b, kv, t, width)]
    q, k, v = (random(*shape) for shape in shapes)

    def forward(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv)

    time(f"attention forward {name}", flops, lambda: forward(q, k, v))
    q, k, v = (random(*shape, grad=True) for shape in shapes)
    time(f"attention with backward {name}", 3.5 * flops, lambda: forward(q, k, v).sum().backward())


with torch.no_grad():
    big = random(16384, 16384)
    time("scale 16384x16384", 0, lambda: big * 1.5)
    product("product", 8192, 8192, 8192)
    product("projection", ROWS, HIDDEN, HIDDEN)
    product("up", ROWS, HIDDEN, INNER)
    product("down", ROWS, INNER, HIDDEN)
    product("up, input gradient", ROWS, INNER, HIDDEN, (False, True))
    product("down, input gradient", ROWS, HIDDEN, INNER, (False, True))
    product("up, weight gradient", HIDDEN, ROWS, INNER, (True, False))
    product("logits", TEXT, HIDDEN, VOCABULARY, (False, True))
    product("tower", 2308, 1024, 4096)
attention("4x705, 32 heads of 128", 4, 705, 32, 32, 128)
attention("4x705, 32 heads on 4 of 64", 4, 705, 32, 4, 64)
print(json.dumps(dict(engine="pytorch " + torch.__version__, device=torch.cuda.get_device_name(), operations=rates)))
