#!/usr/bin/env python3
"""Makes tests/fixtures/projectors: what tests/tests/projectors.rs compares with.

    python projector_fixtures.py OUT [--originals DIR]

Puts each resampler, written here in plain PyTorch, into the model of tests/fixtures/plain in place of its projector, and
writes NAME.safetensors with its weights, and the gradients of the losses of tests/fixtures/samples.jsonl with respect to
them (as basic_reference.py computes them; those of das and sds with respect to v alone), and NAME.json with the losses. Needs torch, transformers, safetensors.

--originals compares the modules with those of the original projects, at the given weights: DIR holds checkouts of
TinyLLaVA_Factory, MobileVLM and honeybee. Needs timm, torchvision, einops and einops_exts as well.
"""
import argparse
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
torch.set_num_threads(1)
VISION, WIDTH, SIDE = 32, 48, 4  # the features' and the decoder's width, and the grid, of the fixture


def load_file_as(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


READS = []  # where the queries looked in the last layer that read the features: [images, queries, positions]


def attend(q, k, v, heads, positions=0):
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k, v = split(q), split(k), split(v)
    p = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    if positions:
        READS[:] = [p.mean(1)[..., :positions].detach()]
    return (p @ v).transpose(1, 2).flatten(2)


class PerceiverLayer(nn.Module):
    def __init__(self, d, heads=8, head=64):
        super().__init__()
        self.heads = heads
        self.norm_media, self.norm_latents = nn.LayerNorm(d), nn.LayerNorm(d)
        self.to_q = nn.Linear(d, heads * head, bias=False)
        self.to_kv = nn.Linear(d, 2 * heads * head, bias=False)
        self.to_out = nn.Linear(heads * head, d, bias=False)
        self.norm = nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, media, x):
        latents = self.norm_latents(x)
        k, v = self.to_kv(torch.cat([self.norm_media(media), latents], 1)).chunk(2, -1)
        x = x + self.to_out(attend(self.to_q(latents), k, v, self.heads, media.shape[1]))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Perceiver(nn.Module):
    def __init__(self, vision, d, queries, layers):
        super().__init__()
        self.linear = nn.Linear(vision, d)
        self.latents = nn.Parameter(torch.randn(queries, d))
        self.layers = nn.ModuleList(PerceiverLayer(d) for _ in range(layers))
        self.norm = nn.LayerNorm(d)

    def forward(self, features):
        media = self.linear(features)
        x = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(media, x)
        return self.norm(x)


class QFormerAttention(nn.Module):
    def __init__(self, width, read):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(read, width), nn.Linear(read, width)
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, read):
        seen = attend(self.query(x), self.key(read), self.value(read), x.shape[-1] // 64, 0 if read is x else read.shape[1])
        return self.norm(self.dense(seen) + x)


class QFormerLayer(nn.Module):
    def __init__(self, width, vision, cross):
        super().__init__()
        self.attention = QFormerAttention(width, width)
        self.crossattention = QFormerAttention(width, vision) if cross else None
        self.intermediate, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, features):
        x = self.attention(x, x)
        if self.crossattention is not None:
            x = self.crossattention(x, features)
        return self.norm(self.output(F.gelu(self.intermediate(x))) + x)


class QFormer(nn.Module):
    def __init__(self, vision, d, queries, layers, width):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.layers = nn.ModuleList(QFormerLayer(width, vision, i % 2 == 0) for i in range(layers))
        self.projector = nn.Linear(width, d)

    def forward(self, features):
        x = F.layer_norm(self.query_tokens, self.query_tokens.shape[-1:], eps=1e-12).expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, features)
        return self.projector(x)


def on_grid(module, x):
    side = math.isqrt(x.shape[1])
    return module(x.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)


class RegBlock(nn.Module):
    def __init__(self, inner, width):
        super().__init__()
        plain = lambda i, o: nn.Linear(i, o, bias=False)
        squeezed = round(inner * 0.25)
        self.conv1, self.norm1 = plain(inner, width), nn.LayerNorm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.LayerNorm(width)
        self.squeeze, self.excite = nn.Linear(width, squeezed), nn.Linear(squeezed, width)
        self.conv3, self.norm3 = plain(width, width), nn.LayerNorm(width)
        self.shortcut = plain(inner, width) if inner != width else None
        self.shortcut_norm = nn.LayerNorm(width) if inner != width else None

    def forward(self, x):
        y = F.silu(self.norm1(self.conv1(x)))
        y = F.silu(self.norm2(on_grid(self.conv2, y)))
        y = y * self.excite(F.silu(self.squeeze(y.mean(1, keepdim=True)))).sigmoid()
        y = self.norm3(self.conv3(y))
        return F.silu(y + (x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))))


class CAbstractor(nn.Module):
    def __init__(self, vision, d, queries, layers, width):
        super().__init__()
        self.pos_emb = nn.Parameter(torch.randn(SIDE * SIDE, vision) * 0.02)
        self.before = nn.ModuleList(RegBlock(vision if i == 0 else width, width) for i in range(layers))
        self.after = nn.ModuleList(RegBlock(width, width) for _ in range(layers))
        self.readout_1, self.readout_2 = nn.Linear(width, d), nn.Linear(d, d)
        self.side = math.isqrt(queries)

    def forward(self, features):
        x = features + self.pos_emb
        for block in self.before:
            x = block(x)
        x = on_grid(nn.AdaptiveAvgPool2d(self.side), x)
        for block in self.after:
            x = block(x)
        return self.readout_2(F.silu(self.readout_1(x)))


class Ldp(nn.Module):
    def __init__(self, vision, d, queries):
        super().__init__()
        self.mlp_1, self.mlp_2 = nn.Linear(vision, d), nn.Linear(d, d)
        self.peg = nn.Conv2d(d, d, 3, padding=1, groups=d)
        self.side = math.isqrt(queries)

    def forward(self, features):
        x = on_grid(nn.AdaptiveAvgPool2d(self.side), self.mlp_2(F.gelu(self.mlp_1(features))))
        return x + on_grid(self.peg, x)


# The name in config.json: the field in the projector, and the module. More queries than features are among them, and a
# pooling whose squares overlap; the number of queries is a square for LlavaProcessor.
CASES = {
    "perceiver_q9_l2": ("perceiver", lambda: Perceiver(VISION, WIDTH, 9, 2)),
    "qformer_q49_l2_w64": ("qformer", lambda: QFormer(VISION, WIDTH, 49, 2, 64)),
    "c_abstractor_q9_l2_w24": ("c_abstractor", lambda: CAbstractor(VISION, WIDTH, 9, 2, 24)),
    "c_abstractor_q4_l1_w32": ("c_abstractor", lambda: CAbstractor(VISION, WIDTH, 4, 1, 32)),
    "ldpv2_q4": ("ldpv2", lambda: Ldp(VISION, WIDTH, 4)),
}


class Projector(nn.Module):
    def __init__(self, field, module):
        super().__init__()
        setattr(self, field, module)
        self.field = field

    def forward(self, features):
        return getattr(self, self.field)(features)


def make(out, name, field, build):
    reference = load_file_as("basic_reference", HERE / "basic_reference.py")
    torch.manual_seed(sum(name.encode()))
    module = build()
    with torch.no_grad():
        for p in module.parameters():  # so that weights at their start, such as norms', matter
            p.add_(torch.randn_like(p) * 0.1)
    queries = int(name.split("_q")[1].split("_")[0])
    model, proc = reference.load(FIXTURES / "plain")
    model.model.multi_modal_projector = Projector(field, module)
    side = math.isqrt(queries)
    proc.patch_size, proc.num_additional_image_tokens = 28 // side, 1
    assert (28 // proc.patch_size) ** 2 == queries
    path = FIXTURES / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    batch = reference.collate(proc, samples, path.parent)
    READS.clear()
    lm, das, sds, v, weights = reference.basic_terms(model, batch)
    params = dict(model.model.multi_modal_projector.named_parameters())
    tensors = {f"multi_modal_projector.{key}": p.detach() for key, p in params.items()}
    for term, value in (("lm", lm), ("das", das), ("sds", sds)):
        grads = torch.autograd.grad(value, [*params.values(), v], retain_graph=True, allow_unused=True)
        if term == "lm":  # the others reach the weights through v alone, as this one does
            tensors |= {f"{term}.{key}": g.contiguous() for key, g in zip(params, grads)}
        tensors[f"{term}.v"] = grads[-1].reshape(-1, v.shape[-1]).contiguous()
    save_file(tensors, out / f"{name}.safetensors")
    losses = dict(lm=lm.item(), das=das.item(), sds=sds.item(), tokens=[int(m.sum()) for m in batch["attention_mask"]],
                  attention=[[round(x, 8) for a in w for x in a.tolist()] for w in weights])
    if READS:
        losses["reads"] = [[[round(x, 7) for x in query] for query in image] for image in READS[0].tolist()]
    (out / f"{name}.json").write_text(json.dumps(losses) + "\n")
    print(name, {k: round(losses[k], 4) for k in ("lm", "das", "sds")}, losses["tokens"])


def originals(root):
    """The modules of the original projects beside those above, at the same weights."""
    torch.manual_seed(0)
    features = torch.randn(3, SIDE * SIDE, VISION)

    def same(name, theirs, ours):
        off = (theirs - ours).abs().max().item()
        print(f"{name:<26} within {off:.1e} of the original")
        assert off < 1e-4, name

    def copied(module, state):
        unused = module.load_state_dict(state, strict=False)
        missing = [key for key in unused.missing_keys if not key.endswith("position_ids")]
        assert not unused.unexpected_keys and not missing, unused

    tiny = root / "TinyLLaVA_Factory/tinyllava/model/connector"
    package = types.ModuleType("connector")
    package.__path__, package.register_connector = [str(tiny)], lambda name: lambda cls: cls
    sys.modules["connector"] = package
    sys.modules["connector.base"] = types.ModuleType("connector.base")
    sys.modules["connector.base"].Connector = nn.Module
    config = types.SimpleNamespace(hidden_size=WIDTH, vision_hidden_size=VISION, num_resampler_layers=2, num_queries=9)
    theirs, ours = load_file_as("connector.resampler", tiny / "resampler.py").PerceiverResampler(config), Perceiver(VISION, WIDTH, 9, 2)
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("layers")}
    for i, layer in enumerate(ours.layers):
        for k, v in layer.state_dict().items():
            at = {"norm.weight": "1.0.weight", "norm.bias": "1.0.bias", "up.weight": "1.1.weight", "down.weight": "1.3.weight"}
            state[f"layers.{i}.{at.get(k, '0.' + k)}"] = v
    copied(theirs, state)
    same("perceiver_q9_l2", theirs(features), ours(features))

    from transformers import BertConfig
    import transformers
    import transformers.modeling_utils as utils
    files = types.ModuleType("transformers.file_utils")
    files.ModelOutput = transformers.utils.ModelOutput
    sys.modules.setdefault("transformers.file_utils", files)
    chunked = lambda forward, size, dim, *tensors: forward(*tensors)
    for gone, stand_in in (("apply_chunking_to_forward", chunked), ("find_pruneable_heads_and_indices", None), ("prune_linear_layer", None)):
        if not hasattr(utils, gone):  # transformers 5 has moved or removed them; no head is pruned here
            setattr(utils, gone, stand_in)
    source = (tiny / "qformer.py").read_text()
    module = types.ModuleType("connector.qformer")
    module.__package__ = "connector"
    exec(compile(source, "qformer.py", "exec"), module.__dict__)
    bert = BertConfig(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=512, vocab_size=8,
                      hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    module.BertConfig = types.SimpleNamespace(from_pretrained=lambda _: bert)
    module.BertPreTrainedModel.init_weights = lambda self: None
    module.BertPreTrainedModel.dtype = torch.float32
    if not hasattr(module.BertPreTrainedModel, "get_head_mask"):
        module.BertPreTrainedModel.get_head_mask = lambda self, mask, layers: [None] * layers
    if not hasattr(module.BertPreTrainedModel, "invert_attention_mask"):  # all features are seen
        module.BertPreTrainedModel.invert_attention_mask = lambda self, mask: torch.zeros_like(mask)[:, None, None].float()
    config = types.SimpleNamespace(hidden_size=WIDTH, vision_hidden_size=VISION, num_queries=49)
    theirs, ours = module.QFormer(config), QFormer(VISION, WIDTH, 49, 3, 128)
    state = {"query_tokens": ours.query_tokens[None], "projector.weight": ours.projector.weight, "projector.bias": ours.projector.bias}
    for i, layer in enumerate(ours.layers):
        for k, v in layer.state_dict().items():
            part, rest = k.split(".", 1)
            rest = {"attention": lambda r: ("output." + r.replace("norm", "LayerNorm")) if r.split(".")[0] in ("dense", "norm") else "self." + r,
                    "crossattention": lambda r: ("output." + r.replace("norm", "LayerNorm")) if r.split(".")[0] in ("dense", "norm") else "self." + r,
                    "intermediate": lambda r: "dense." + r, "output": lambda r: "dense." + r, "norm": lambda r: "LayerNorm." + r}[part](rest)
            part = {"intermediate": "intermediate_query", "output": "output_query", "norm": "output_query"}.get(part, part)
            state[f"bert.encoder.layer.{i}.{part}.{rest}"] = v
    copied(theirs, state)
    same("qformer_q49_l3_w128", theirs.eval()(features), ours(features))

    mobile = load_file_as("vision_projector", root / "MobileVLM/mobilevlm/model/vision_projector.py")
    theirs, ours = mobile.LDPNetV2Projector(types.SimpleNamespace(mm_hidden_size=VISION, hidden_size=WIDTH)), Ldp(VISION, WIDTH, 144)
    names = {"mlp_1": "mlp.mlp.0", "mlp_2": "mlp.mlp.2", "peg": "peg.peg.0"}
    copied(theirs, {names[k.split(".")[0]] + "." + k.split(".")[1]: v for k, v in ours.state_dict().items()})
    large = torch.randn(2, 576, VISION)
    same("ldpv2_q144", theirs(large), ours(large))

    bee = types.ModuleType("honeybee")
    bee.__path__ = [str(root / "honeybee/honeybee")]
    sys.modules["honeybee"] = bee
    settings = types.ModuleType("honeybee.configuration_honeybee")
    settings.HoneybeeVisualProjectorConfig = object
    sys.modules["honeybee.configuration_honeybee"] = settings
    projectors = types.ModuleType("honeybee.projectors")
    projectors.__path__ = [str(root / "honeybee/honeybee/projectors")]
    sys.modules["honeybee.projectors"] = projectors
    abstractor = load_file_as("honeybee.projectors.projectors", root / "honeybee/honeybee/projectors/projectors.py").CAbstractor
    for queries, layers, width in ((9, 2, 24), (4, 1, 32)):
        config = types.SimpleNamespace(num_eos_tokens=0, pos_emb=True, prenorm=False, encoder_hidden_size=VISION, hidden_size=width,
                                       output_hidden_size=WIDTH, depth=layers, mlp_depth=2, num_query_tokens=queries)
        theirs, ours = abstractor(config, SIDE * SIDE), CAbstractor(VISION, WIDTH, queries, layers, width)
        state = {"pos_emb": ours.pos_emb[None]}
        names = {"conv1": "conv1.conv", "norm1": "conv1.bn", "conv2": "conv2.conv", "norm2": "conv2.bn", "squeeze": "se.fc1",
                 "excite": "se.fc2", "conv3": "conv3.conv", "norm3": "conv3.bn"}
        for stage, blocks in ((0, ours.before), (2, ours.after)):
            for i, block in enumerate(blocks):
                own = theirs.net[stage].get_submodule(f"b{i + 1}").state_dict()
                shortcut = [k for k in own if k.startswith("downsample")]
                for k, v in block.state_dict().items():
                    part, kind = k.split(".")
                    if part.startswith("shortcut"):
                        name = next(s for s in shortcut if s.endswith(kind) and own[s].dim() == (4 if part == "shortcut" else 1))
                    else:
                        name = f"{names[part]}.{kind}"
                    state[f"net.{stage}.b{i + 1}.{name}"] = v.reshape(own[name].shape)
        for i, layer in ((0, ours.readout_1), (2, ours.readout_2)):
            state |= {f"readout.{i}.weight": layer.weight, f"readout.{i}.bias": layer.bias}
        for key, value in state.items():
            target = dict(theirs.named_parameters())[key]
            with torch.no_grad():
                target.copy_(value)
        assert set(state) == {key for key, _ in theirs.named_parameters()}
        same(f"c_abstractor_q{queries}_l{layers}_w{width}", theirs(features.clone()).last_hidden_state, ours(features))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out", type=Path)
    p.add_argument("--originals", type=Path)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    for name, (field, build) in CASES.items():
        make(a.out, name, field, build)
    if a.originals:
        originals(a.originals)


main()
