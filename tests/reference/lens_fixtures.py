#!/usr/bin/env python3
"""Makes tests/fixtures/lens.json: what tests/tests/lens.rs compares `basic analyze` with.

    python lens_fixtures.py FIXTURES

For checkpoints and images that are in FIXTURES already: v and the output of every decoder layer at the image positions
(hooks in a plain transformers run), and of each row its length, its angle to V^, the attention that the text after its image
pays it, and its first tokens by cosine with the embedding table, by softmax(x E^T) and by softmax(logits). All in float64
from float32 hidden states. And the greedy answer to the prompt with the nearest tokens in the image's places. Needs torch, transformers, safetensors, pillow.
"""
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

fixtures = Path(sys.argv[1])
TOP = 3
TOKENS = 6
# name: checkpoint, images, prompt, k, layer weights.
CASES = {
    "llama": ("plain", ["a.png"], "USER: <image>\nwhat is in the picture? ASSISTANT:", 2, "increasing"),
    "several images": ("plain", ["b.png", "c.png"], "USER: <image> and then <image>\nwhich is larger? ASSISTANT:", 3, "decreasing"),
    # Token embeddings scaled, norms of 1 + weight.
    "gemma": ("families/gemma-clip", ["d.png"], "USER: <image>\nwhat is in the picture? ASSISTANT:", 2, "increasing"),
    # The encoder's first position is kept.
    "cls": ("families/llama-dynamic", ["a.png"], "describe <image> now", 2, "constant"),
    # No text after the image.
    "nothing after": ("plain", ["c.png"], "USER: <image>", 2, "increasing"),
}
WEIGHTS = {"increasing": lambda h, k: h * h, "constant": lambda h, k: 1, "decreasing": lambda h, k: (k + 1 - h) ** 2}


def rounded(values):
    return [float(f"{x:.7g}") for x in values]


def top(scores):
    found = scores.topk(TOP, dim=-1)
    return [[[int(i), float(f"{x:.6g}")] for i, x in zip(ids, values)] for ids, values in zip(found.indices, found.values)]


@torch.no_grad()
def case(checkpoint, images, prompt, k, weights):
    path = fixtures / checkpoint
    model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    proc = LlavaProcessor.from_pretrained(path)
    inner, config = model.model, model.config
    layers = inner.language_model.layers
    kept = {}
    inner.multi_modal_projector.register_forward_hook(lambda m, i, o: kept.__setitem__(0, o))
    for h, layer in enumerate(layers, 1):
        layer.register_forward_hook(lambda m, i, o, h=h: kept.__setitem__(h, o[0] if isinstance(o, tuple) else o))
    pictures = [Image.open(fixtures / "images" / name).convert("RGB") for name in images]
    batch = proc(images=pictures, text=prompt, return_tensors="pt")
    out = model(**batch, output_attentions=True, use_cache=False)
    ids = batch["input_ids"][0]
    is_image = ids == config.image_token_index
    v = kept[0].reshape(-1, kept[0].shape[-1])
    m = len(v) // len(images)
    table = inner.language_model.embed_tokens.weight.double()
    lengths = table.norm(dim=-1)
    raw = torch.tensor([float(WEIGHTS[weights](h, k)) for h in range(1, k + 1)], dtype=torch.float64)
    w = raw / raw.sum()
    found = []
    for number, places in enumerate(is_image.nonzero()[:, 0].split(m)):
        text = ~is_image
        text[: int(places[-1]) + 1] = False
        rows = {h: (v[number * m : (number + 1) * m] if h == 0 else kept[h][0, places]).double() for h in kept}
        target = sum(w[h - 1] * rows[h] for h in range(1, k + 1))
        mass = {h: (out.attentions[h - 1][0].double().mean(0)[text][:, places].mean(0) if text.any() else torch.zeros(m, dtype=torch.float64))
                for h in range(1, len(layers) + 1)}
        image = dict(text_rows=int(text.sum()), attention=rounded((sum(mass[h] for h in range(1, k + 1)) / k).tolist()), layers=[])
        for h in range(len(layers) + 1):
            x = rows[h]
            cosine = (x / x.norm(dim=-1, keepdim=True)) @ (table / lengths[:, None]).T
            angle = torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(x, target, dim=-1).clamp(-1, 1)))
            logits = model.lm_head(inner.language_model.norm(x.float())).double()
            image["layers"].append(dict(
                layer=h, norm=rounded(x.norm(dim=-1).tolist()), angle=rounded(angle.tolist()),
                attention=rounded(mass[h].tolist()) if h else None, nearest=top(cosine),
                scores=top((x @ table.T).softmax(-1)), logits=top(logits.softmax(-1)),
                end_cosine=float(f"{cosine[:, proc.tokenizer.eos_token_id].mean().item():.7g}")))
        found.append(image)
    # The replacement experiment: the nearest tokens of v stand in the image's places, as text.
    nearest = ids.clone()
    cosine = (v.double() / v.double().norm(dim=-1, keepdim=True)) @ (table / lengths[:, None]).T
    nearest[is_image] = cosine.argmax(-1)
    new = model.generate(input_ids=nearest[None], attention_mask=torch.ones_like(nearest)[None], max_new_tokens=TOKENS,
                         do_sample=False)[0, len(ids):]
    full = torch.cat([nearest, new])[None]
    gaps = [float(x[0] - x[1]) for x in model(input_ids=full).logits[0, len(ids) - 1:-1].topk(2).values]
    return dict(checkpoint=checkpoint, images=images, prompt=prompt, k=k, layer_weights=weights, top=TOP,
                token_norm=lengths.mean().item(), expected=found, tokens=TOKENS, smallest_gap=min(gaps),
                replaced=proc.tokenizer.decode(new, skip_special_tokens=True).strip())


torch.set_num_threads(1)
cases = [dict(name=name, **case(*settings)) for name, settings in CASES.items()]
(fixtures / "lens.json").write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
