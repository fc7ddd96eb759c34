#!/usr/bin/env python3
"""Makes tests/fixtures/fused: what tests/tests/fused.rs compares with.

    python fused_fixtures.py OUT

Writes a tiny DINOv2 with registers, a SigLIP and a CLIP, each with an image processor of its own, and for each case below
the losses and gradients of the model of tests/fixtures/plain whose vision encoder is replaced by several of them: their
patches' features of the second-to-last layer, on the grid of the first one, joined by channel, and a projector of that width.
prismatic.pt is a checkpoint in the layout of Prismatic's code. CASE.safetensors has the projector's weights, the gradients of the losses of tests/fixtures/samples.jsonl with respect to them and to v
(as basic_reference.py computes them), and those of lm + das + 0.01 sds with respect to the encoders' weights. Needs torch,
transformers, safetensors, pillow."""
import importlib.util
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (CLIPVisionConfig, CLIPVisionModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel,
                          SiglipVisionConfig, SiglipVisionModel)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
torch.set_num_threads(1)
WIDTH = 48  # the decoder's

# Name: config and model, its sizes, and its image processor. Their grids are 4 x 4, 3 x 3 and 6 x 6; all images differ in
# size, and DINOv2's are smaller than those that its position embeddings are for.
ENCODERS = {
    "dinov2": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel,
               dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=35, patch_size=7, mlp_ratio=2, num_register_tokens=2),
               BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, resample=3,
                                    image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]), 3),
    "siglip": (SiglipVisionConfig, SiglipVisionModel,
               dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8, intermediate_size=32),
               SiglipImageProcessorPil(size={"height": 24, "width": 24}), 0),
    "clip": (CLIPVisionConfig, CLIPVisionModel,
             dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=30, patch_size=5, intermediate_size=48),
             CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}), 1),
}
# The encoders in their order, and the projector's name and inner width as a multiple of the features'. The first one's
# grid has 16 patches, as the prompts of `plain` have places.
CASES = {
    "two": (["dinov2", "siglip"], "mlp2x_gelu", None),
    "three": (["dinov2", "clip", "siglip"], "fused_gelu_mlp", 4),
}


def load_file_as(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Projector(nn.Module):
    def __init__(self, features, widen):
        super().__init__()
        inner = features * widen if widen else WIDTH
        self.linear_1, self.linear_2 = nn.Linear(features, inner), nn.Linear(inner, WIDTH)
        self.linear = nn.ModuleList([nn.Linear(WIDTH, WIDTH)] if widen else [])

    def forward(self, x):
        x = self.linear_2(F.gelu(self.linear_1(x)))
        for layer in self.linear:
            x = layer(F.gelu(x))
        return x


class Fused(nn.Module):
    def __init__(self, names, files):
        super().__init__()
        self.names, self.files = names, files
        self.each = nn.ModuleDict({name: ENCODERS[name][1].from_pretrained(out / name).eval() for name in names})
        self.dtype = torch.float32

    def forward(self, pixel_values, **_):
        joined, side = [], None
        for name in self.names:
            *_, processor, special = ENCODERS[name]
            pixels = processor([Image.open(f).convert("RGB") for f in self.files], return_tensors="pt").pixel_values
            x = self.each[name](pixels, output_hidden_states=True).hidden_states[-2][:, special:]
            own = math.isqrt(x.shape[1])
            side = side or own
            if own != side:
                x = x.transpose(1, 2).unflatten(2, (own, own))
                x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
            joined.append(x)
        x = torch.cat(joined, -1)
        # LlavaModel takes a layer of these and drops its first position.
        return BaseModelOutputWithPooling(hidden_states=(torch.cat([torch.zeros_like(x[:, :1]), x], 1),) * 9)


def encoder(name):
    config, cls, sizes, processor, _ = ENCODERS[name]
    torch.manual_seed(sum(name.encode()))
    model = cls(config(**sizes)).float().eval()
    with torch.no_grad():
        for p in model.parameters():  # larger than the init, so that a wrong order of operations shows
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(out / name)
    processor.save_pretrained(out / name)


def case(name):
    names, projector, widen = CASES[name]
    reference = load_file_as("basic_reference", HERE / "basic_reference.py")
    model, proc = reference.load(FIXTURES / "plain")
    path = FIXTURES / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    images = [s.get("image", []) for s in samples]
    files = [path.parent / f for image in images for f in ([image] if isinstance(image, str) else image)]
    model.model.vision_tower = Fused(names, files)
    torch.manual_seed(sum(name.encode()))
    model.model.multi_modal_projector = Projector(sum(ENCODERS[n][2]["hidden_size"] for n in names), widen)
    batch = reference.collate(proc, samples, path.parent)
    lm, das, sds, v, weights = reference.basic_terms(model, batch)
    params = dict(model.model.multi_modal_projector.named_parameters())
    tensors = {f"multi_modal_projector.{key}": p.detach() for key, p in params.items()}
    for term, value in (("lm", lm), ("das", das), ("sds", sds)):
        grads = torch.autograd.grad(value, [*params.values(), v], retain_graph=True, allow_unused=True)
        if term == "lm":  # the others reach the weights through v alone, as this one does
            tensors |= {f"{term}.{key}": g.contiguous() for key, g in zip(params, grads)}
        tensors[f"{term}.v"] = grads[-1].reshape(-1, v.shape[-1]).contiguous()
    for n in names:
        # What no hidden state passes through has no gradient.
        own = dict(model.model.vision_tower.each[n].named_parameters())
        grads = torch.autograd.grad(lm + das + 0.01 * sds, list(own.values()), retain_graph=True, allow_unused=True)
        tensors |= {f"{n}.{key}": g.contiguous() for key, g in zip(own, grads) if g is not None}
    save_file(tensors, out / f"{name}.safetensors")
    losses = dict(encoders=names, projector=projector, lm=lm.item(), das=das.item(), sds=sds.item(),
                  tokens=[int(m.sum()) for m in batch["attention_mask"]],
                  attention=[[round(x, 8) for a in w for x in a.tolist()] for w in weights])
    (out / f"{name}.json").write_text(json.dumps(losses) + "\n")
    print(name, {k: round(losses[k], 4) for k in ("lm", "das", "sds")}, losses["tokens"])


def prismatic():
    """A file as Prismatic's code writes it: the projector of `three`, and the decoder of `plain` at half its weights, with a token
    for padding and rows up to a multiple of 64."""
    from safetensors.torch import load_file
    half = lambda x: (x * 0.5).half()
    names = {"linear_1": "0", "linear_2": "2", "linear.0": "4"}
    projector, decoder = {}, {}
    for key, x in load_file(out / "three.safetensors").items():
        if key.startswith("multi_modal_projector."):
            layer, kind = key.removeprefix("multi_modal_projector.").rsplit(".", 1)
            projector[f"projector.{names[layer]}.{kind}"] = half(x)
    for key, x in load_file(FIXTURES / "plain/model.safetensors").items():
        if key.startswith("language_model."):
            if x.shape[0] == 359:
                x = torch.cat([x, x[:25] * 0])
            decoder["llm." + key.removeprefix("language_model.")] = half(x)
    torch.save({"model": {"projector": projector, "llm_backbone": decoder}}, out / "prismatic.pt")


out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
for name in ENCODERS:
    encoder(name)
for name in CASES:
    case(name)
prismatic()
