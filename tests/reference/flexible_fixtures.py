#!/usr/bin/env python3
"""Makes tests/fixtures/flexible: what tests/tests/flexible.rs compares with.

    python flexible_fixtures.py OUT

Writes a tiny SigLIP 2 NaFlex encoder with its image processor (OUT/siglip2), and expected.json and expected.safetensors: the
losses and gradients of the model of tests/fixtures/plain with this encoder, whose images have as many patches as fit with
their aspect ratio. The samples are those of tests/fixtures/samples_next.jsonl; das and sds are computed as basic_reference.py does, over
the patches of each image. Gradients: of each loss with respect to the projector's weights and v, and of lm + das + 0.01 sds with respect to the
encoder's. Also what the image processor makes of two images. Needs torch, transformers, safetensors, pillow."""
import importlib.util
import json
import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
torch.set_num_threads(1)
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
spec = importlib.util.spec_from_file_location("basic_reference", HERE / "basic_reference.py")
reference = importlib.util.module_from_spec(spec)
sys.modules["basic_reference"] = reference
spec.loader.exec_module(reference)


class Projector(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(24, 48), nn.Linear(48, 48)

    def forward(self, x):
        return self.linear_2(F.gelu(self.linear_1(x)))


# More patches than the table has positions, so that it is interpolated to larger and to smaller grids.
torch.manual_seed(7)
encoder = Siglip2VisionModel(Siglip2VisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
                                                 patch_size=8, num_patches=9)).float().eval()
with torch.no_grad():
    for p in encoder.parameters():  # larger than the init, so that a wrong order of operations shows
        p.add_(torch.randn_like(p) * 0.05)
encoder.save_pretrained(out / "siglip2")
images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20)
images.save_pretrained(out / "siglip2")

model, proc = reference.load(FIXTURES / "plain")
projector = Projector()
model.model.multi_modal_projector = projector
path = FIXTURES / "samples_next.jsonl"
samples = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
names = [[s["image"]] if isinstance(s.get("image", []), str) else s.get("image", []) for s in samples]
pixels = images([Image.open(path.parent / n).convert("RGB") for own in names for n in own], return_tensors="pt")
counts = [int(a * b) for a, b in pixels.spatial_shapes]


def features(*_, **__):
    hidden = encoder(**pixels, output_hidden_states=True).hidden_states[-2]
    v = projector(hidden)
    return BaseModelOutputWithPooling(pooler_output=[own[:count] for own, count in zip(v, counts)])


model.model.get_image_features = features
# The rows of the projector's output that are patches and not padding.
reference.packed = lambda model, v, batch: [torch.arange(count) + at * v.shape[1] for at, count in enumerate(counts)]
tok, ids, labels, left = proc.tokenizer, [], [], iter(counts)
for sample in samples:
    text = re.sub("<image>", lambda _: "<image>" * next(left), sample["prompt"])
    head = tok(text, return_tensors="pt").input_ids[0]
    answer = torch.cat([tok(sample["answer"], add_special_tokens=False, return_tensors="pt").input_ids[0], torch.tensor([tok.eos_token_id])])
    ids.append(torch.cat([head, answer]))
    labels.append(torch.cat([torch.full_like(head, -100), answer]))
width = max(map(len, ids))
pad = lambda rows, value: torch.stack([F.pad(row, (0, width - len(row)), value=value) for row in rows])
batch = dict(input_ids=pad(ids, tok.pad_token_id), attention_mask=pad([torch.ones_like(i) for i in ids], 0), labels=pad(labels, -100),
             pixel_values=pixels.pixel_values)
lm, das, sds, v, weights = reference.basic_terms(model, batch)
rows = torch.cat([torch.arange(count) + at * v.shape[1] for at, count in enumerate(counts)])
params = dict(projector.named_parameters())
tensors = {f"multi_modal_projector.{key}": p.detach() for key, p in params.items()}
for term, value in (("lm", lm), ("das", das), ("sds", sds)):
    grads = torch.autograd.grad(value, [*params.values(), v], retain_graph=True)
    if term == "lm":  # the others reach the weights through v alone, as this one does
        tensors |= {f"{term}.{key}": g.contiguous() for key, g in zip(params, grads)}
    tensors[f"{term}.v"] = grads[-1].reshape(-1, v.shape[-1])[rows].contiguous()
own = dict(encoder.named_parameters())
grads = torch.autograd.grad(lm + das + 0.01 * sds, list(own.values()), retain_graph=True, allow_unused=True)
tensors |= {f"encoder.{key}": g.contiguous() for key, g in zip(own, grads) if g is not None}
for name in ("wide", "strip"):
    made = images([Image.open(FIXTURES / "images" / f"{name}.png").convert("RGB")], return_tensors="pt")
    tensors |= {f"{name}.pixel_values": made.pixel_values[0].contiguous(), f"{name}.spatial_shapes": made.spatial_shapes[0].float()}
save_file(tensors, out / "expected.safetensors")
losses = dict(lm=lm.item(), das=das.item(), sds=sds.item(), tokens=[len(i) for i in ids], patches=counts,
              attention=[[round(x, 8) for a in w for x in a.tolist()] for w in weights])
(out / "expected.json").write_text(json.dumps(losses) + "\n")
print({k: round(losses[k], 4) for k in ("lm", "das", "sds")}, losses["tokens"], counts)
