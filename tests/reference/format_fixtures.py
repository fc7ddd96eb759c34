#!/usr/bin/env python3
"""Makes tests/fixtures/original: a tiny checkpoint as LLaVA's own code writes it, for tests/tests/formats.rs.

    python format_fixtures.py OUT PLAIN_FIXTURE

`LlavaLlamaForCausalLM` with PyTorch shards and an index, its vision tower apart (tower/, one PyTorch file), a tokenizer
without <image> (PLAIN_FIXTURE's, less that token), and a projector alone (mm_projector.bin, in PyTorch's format before
1.6). Every value follows from its tensor's name and place, so that the test can compute it too. Needs torch.
"""
import json
import shutil
import sys
from pathlib import Path

import torch

out, plain = Path(sys.argv[1]), Path(sys.argv[2])
D, INTER, LAYERS, HEADS, KV, VOCAB = 16, 24, 2, 4, 2, 358
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)


def tensor(name, *shape):
    """Sixteenths from -11 to 11: exact in f16 and bf16. Norms are near 1, so that the model computes."""
    seed = sum(name.encode())
    count = torch.Size(shape).numel()
    values = (torch.arange(count) * 7 + seed) % 23 - 11
    return (values / 16).reshape(shape).to(torch.float16)


def decoder():
    names = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,), "lm_head.weight": (VOCAB, D)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        names |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
        names |= {p + "self_attn.q_proj.weight": (D, D), p + "self_attn.o_proj.weight": (D, D)}
        names |= {p + f"self_attn.{x}_proj.weight": (D // HEADS * KV, D) for x in "kv"}
        names |= {p + f"mlp.{x}_proj.weight": (INTER, D) for x in ("gate", "up")} | {p + "mlp.down_proj.weight": (D, INTER)}
    return names


def projector():
    return {f"model.mm_projector.{i}.{p}": ((D, D) if p == "weight" else (D,)) for i in (0, 2) for p in ("weight", "bias")}


def tower():
    d, m = VISION["hidden_size"], VISION["intermediate_size"]
    p = "vision_model."
    names = {p + "embeddings.class_embedding": (d,), p + "embeddings.patch_embedding.weight": (d, 3, 14, 14),
             p + "embeddings.position_embedding.weight": (5, d)}
    for norm in ("pre_layrnorm", "post_layernorm"):
        names |= {p + f"{norm}.weight": (d,), p + f"{norm}.bias": (d,)}
    for i in range(VISION["num_hidden_layers"]):
        q = p + f"encoder.layers.{i}."
        for x in ("q", "k", "v", "out"):
            names |= {q + f"self_attn.{x}_proj.weight": (d, d), q + f"self_attn.{x}_proj.bias": (d,)}
        for norm in ("layer_norm1", "layer_norm2"):
            names |= {q + f"{norm}.weight": (d,), q + f"{norm}.bias": (d,)}
        names |= {q + "mlp.fc1.weight": (m, d), q + "mlp.fc1.bias": (m,), q + "mlp.fc2.weight": (d, m), q + "mlp.fc2.bias": (d,)}
    return names


def make(names):
    return {name: tensor(name, *shape) for name, shape in names.items()}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


shutil.rmtree(out, ignore_errors=True)
(out / "tower").mkdir(parents=True)
whole = make(decoder() | projector())
names = list(whole)
shards = {"pytorch_model-00001-of-00002.bin": names[: len(names) // 2], "pytorch_model-00002-of-00002.bin": names[len(names) // 2:]}
for shard, held in shards.items():
    torch.save({name: whole[name] for name in held}, out / shard)
size = sum(t.numel() * 2 for t in whole.values())
write_json(out / "pytorch_model.bin.index.json", {"metadata": {"total_size": size}, "weight_map": {n: s for s, held in shards.items() for n in held}})
# torch.save before 1.6 wrote this format.
torch.save(make(projector()), out / "mm_projector.bin", _use_new_zipfile_serialization=False)
buffers = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
torch.save(make(tower()) | buffers, out / "tower/pytorch_model.bin")
write_json(out / "tower/config.json", {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], **VISION})
write_json(out / "tower/preprocessor_config.json", {
    "feature_extractor_type": "CLIPFeatureExtractor", "do_resize": True, "size": 28, "resample": 3, "do_center_crop": True, "crop_size": 28,
    "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]})
write_json(out / "config.json", {
    "_name_or_path": "llava-tiny", "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "hidden_size": D,
    "intermediate_size": INTER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True, "pretraining_tp": 1,
    "rope_scaling": None, "initializer_range": 0.02, "freeze_mm_mlp_adapter": False, "tune_mm_mlp_adapter": False, "use_mm_proj": True,
    "image_aspect_ratio": "pad", "image_grid_pinpoints": None, "mm_hidden_size": 16, "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
    "mm_vision_tower": "tower", "unfreeze_mm_vision_tower": False})
tokenizer = json.loads((plain / "tokenizer.json").read_text())
tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<image>"]
tokenizer["model"]["vocab"].pop("<image>", None)
(out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
write_json(out / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
