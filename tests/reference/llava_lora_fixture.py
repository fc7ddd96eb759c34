#!/usr/bin/env python3
"""Makes tests/fixtures/adapters/llava: adapters as LLaVA's own train.py leaves them, for tests/tests/llava_lora.rs.

    python llava_lora_fixture.py OUT ORIGINAL_FIXTURE

`model.config.save_pretrained` (config.json of the whole model), `model.save_pretrained` of PEFT's model (adapter_config.json,
adapter_model.bin) and `torch.save` of what else was trained (non_lora_trainables.bin), over tests/fixtures/original, whose
values follow from their names too. The projector's are those of names with a "trained." before them. Needs torch.
"""
import json
import shutil
import sys
from pathlib import Path

import torch

out, original = Path(sys.argv[1]), Path(sys.argv[2])
R, D, INTER, LAYERS, KV = 2, 16, 24, 2, 8


def tensor(name, *shape):
    """As in format_fixtures.py."""
    seed = sum(name.encode())
    values = (torch.arange(torch.Size(shape).numel()) * 7 + seed) % 23 - 11
    return (values / 16).reshape(shape).to(torch.float16)


shutil.rmtree(out, ignore_errors=True)
out.mkdir(parents=True)
layers = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (D, KV), "self_attn.v_proj": (D, KV), "self_attn.o_proj": (D, D),
          "mlp.gate_proj": (D, INTER), "mlp.up_proj": (D, INTER), "mlp.down_proj": (INTER, D)}
factors = {}
for i in range(LAYERS):
    for layer, (inputs, outputs) in layers.items():
        name = f"base_model.model.model.layers.{i}.{layer}"
        factors |= {f"{name}.lora_A.weight": tensor(f"{name}.lora_A.weight", R, inputs),
                    f"{name}.lora_B.weight": tensor(f"{name}.lora_B.weight", outputs, R)}
torch.save(factors, out / "adapter_model.bin")
projector = {f"model.mm_projector.{i}.{p}": ((D, D) if p == "weight" else (D,)) for i in (0, 2) for p in ("weight", "bias")}
torch.save({f"base_model.model.{name}": tensor("trained." + name, *shape) for name, shape in projector.items()}, out / "non_lora_trainables.bin")
config = json.loads((original / "config.json").read_text())
config["mm_vision_tower"] = "../../original/tower"
(out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
(out / "adapter_config.json").write_text(json.dumps({
    "auto_mapping": None, "base_model_name_or_path": "../../original", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 3, "lora_dropout": 0.05,
    "modules_to_save": None, "peft_type": "LORA", "r": R, "revision": None,
    "target_modules": [layer.split(".")[1] for layer in layers], "task_type": "CAUSAL_LM"}, indent=1) + "\n")
