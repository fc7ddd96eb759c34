#!/usr/bin/env python3
"""Makes tiles.json and tiles.safetensors, which basic-models/src/processor/tests/tiles.rs compares with.

    python tile_fixtures.py OUT IMAGES

tiles.json: for two models, small tiles and LLaVA-NeXT's own, the number of an image's tokens by LlavaNextProcessor and the
number of its tiles, for sizes of all aspect ratios; for some sizes of the small model also the row of the tiles' features
at each of the tokens, -1 for a newline (transformers' pack_image_features applied to the rows' numbers).
tiles.safetensors: the pixel values of the images in IMAGES, [tiles, 3, 28, 28] each, as the 8-bit values before rescaling and normalization.
Needs torch, transformers, safetensors, pillow, numpy.
"""
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

SMALL = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[336 * a, 336 * b] for a in range(1, 7) for b in range(1, 7)]


def model(side, patch, pinpoints, count, rows):
    images = LlavaNextImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=pinpoints)
    processor = SimpleNamespace(image_processor=images, patch_size=patch, num_additional_image_tokens=0)
    processor._get_unpadded_features = lambda *a: LlavaNextProcessor._get_unpadded_features(processor, *a)
    draw = random.Random(20)
    sizes = [[1, 1], [1, 100000], [100000, 1], [side, side], [2 * side, side]]
    while len(sizes) < count:
        longest = draw.choice([40, 300, 1500, 5000])
        sizes.append([draw.randint(1, longest), draw.randint(1, longest)])
    grid = side // patch
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=side, patch_size=patch), image_grid_pinpoints=pinpoints)
    out = []
    for index, size in enumerate(sizes):
        tokens = LlavaNextProcessor._get_number_of_features(processor, *size, side, side)
        tiles = image_size_to_num_patches(size, pinpoints, side)
        row = dict(size=size, tokens=tokens, tiles=tiles)
        if index < rows:
            features = torch.arange(tiles * grid * grid, dtype=torch.float64).view(1, tiles, grid * grid, 1)
            packed, _ = LlavaNextModel.pack_image_features(SimpleNamespace(config=config), list(features), torch.tensor([size]), "full",
                                                           torch.full((1,), -1.0, dtype=torch.float64))
            row["rows"] = packed[0][:, 0].long().tolist()
            assert len(row["rows"]) == tokens, (size, tokens)
        out.append(row)
    return dict(side=side, patches=grid, pinpoints=pinpoints, sizes=out)


out, images = Path(sys.argv[1]), Path(sys.argv[2])
models = [model(28, 7, SMALL, 120, 40), model(336, 14, NEXT, 150, 0), model(336, 14, ONEVISION, 60, 0)]
(out / "tiles.json").write_text(json.dumps(models) + "\n")
processor = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=SMALL)
pixels = {}
for name in ("a.png", "wide.png", "tall.png", "strip.png"):
    values = processor(Image.open(images / name).convert("RGB"), return_tensors="pt").pixel_values[0]
    mean, std = torch.tensor(processor.image_mean).view(3, 1, 1), torch.tensor(processor.image_std).view(3, 1, 1)
    steps = (values * std + mean) * 255
    # The processor resamples and pads 8-bit pixels, so that a value is one of 256 steps.
    assert (steps - steps.round()).abs().max() < 1e-3
    pixels[name] = steps.round().to(torch.uint8).contiguous()
save_file(pixels, out / "tiles.safetensors")
print({name: tuple(p.shape) for name, p in pixels.items()}, [len(m["sizes"]) for m in models])
