#!/usr/bin/env python3
"""Makes examples/onnx-vision/clip.onnx: the vision encoder of tests/fixtures/plain, exported for burn-onnx.

    python onnx_fixture.py [CHECKPOINT] [OUT.onnx]

The graph ends at the feature layer that config.json names: input `pixels` [N, 3, S, S], output `hidden`
[N, CLS + patches, width], N free. Needs torch, transformers, onnx, onnxscript.
"""
import sys
from pathlib import Path

import onnx
import torch
from transformers import LlavaForConditionalGeneration

root = Path(__file__).resolve().parents[2]
checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "tests/fixtures/plain"
out = Path(sys.argv[2]) if len(sys.argv) > 2 else root / "examples/onnx-vision/clip.onnx"

llava = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
layer = llava.config.vision_feature_layer
vision = llava.config.vision_config


class FeatureLayer(torch.nn.Module):
    """The tower up to one hidden state: the exporter leaves out what nothing reads."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, pixels):
        return self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]


model = FeatureLayer(llava.model.vision_tower).eval()
# Two images: a batch of one would be taken for a constant.
pixels = torch.randn(2, vision.num_channels, vision.image_size, vision.image_size)
torch.onnx.export(model, (pixels,), out, input_names=["pixels"], output_names=["hidden"], opset_version=18, dynamo=True,
                  external_data=False, dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}})
graph = onnx.load(out)
onnx.checker.check_model(graph)
for node in graph.graph.node:  # where in Python each node came from: longer than the weights
    del node.metadata_props[:]
    node.doc_string = ""
for value in [*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]:
    del value.metadata_props[:]
del graph.graph.metadata_props[:]
del graph.metadata_props[:]
onnx.save(graph, out)
operators = sorted({node.op_type for node in graph.graph.node})
print(f"{out}: {out.stat().st_size} bytes, {len(graph.graph.node)} nodes of {operators}")
