#!/usr/bin/env python3
"""Makes tests/fixtures/families: what tests/tests/families.rs compares with.

    python family_fixtures.py OUT [BASIC_REFERENCE.py] [NAME ...]

A tiny random LLaVA checkpoint for every decoder family with CLIP and with SigLIP, with the settings that change the
computation spread over them (windows, biases, rotary types, tied heads, several feature layers, shards, f16 and bf16
files, configurations without defaults), DINOv2 towers, and models that cut images into tiles (LLaVA-NeXT). Beside each: the reference's losses (reference.json) and
their gradients (grads.safetensors), the logits of every position of one prompt (logits.safetensors) and 32 greedy ids. Needs torch, transformers, safetensors.
"""
import contextlib
import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (Aimv2VisionConfig, BitImageProcessor, CLIPImageProcessor, CLIPVisionConfig, Dinov2Config,
                          Dinov2WithRegistersConfig, DINOv3ViTConfig,
                          Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration, LlavaNextConfig, LlavaNextForConditionalGeneration,
                          LlavaNextProcessor, LlavaProcessor, Ministral3Config, MistralConfig, Olmo2Config,
                          Phi3Config, Qwen2Config, Qwen3Config, SiglipImageProcessor, SiglipVisionConfig, SmolLM3Config)

out = Path(sys.argv[1])
here = Path(__file__).resolve().parent
script = Path(sys.argv[2]) if len(sys.argv) > 2 else here / "basic_reference.py"
spec = importlib.util.spec_from_file_location("basic_reference", script)
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil as LlavaNextImageProcessor
torch.set_num_threads(1)

TEXT = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "phi3": Phi3Config,
        "gemma": GemmaConfig, "gemma2": Gemma2Config, "gemma3": Gemma3TextConfig, "olmo2": Olmo2Config,
        "smollm3": SmolLM3Config, "ministral3": Ministral3Config}
VISION = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig, "dinov2": Dinov2Config,
          "registers": Dinov2WithRegistersConfig, "dinov3": DINOv3ViTConfig, "aimv2": Aimv2VisionConfig}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64, rope_theta=500.0)
LONGROPE = dict(rope_type="longrope", rope_theta=500.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.4],
                long_factor=[1.5, 2.5, 4.0])
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0,
            beta_slow=1.0, llama_4_scaling_beta=0.3)
GRID = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
# name: family, vision, settings of text / vision / LLaVA, the file's type, and how it is written.
CASES = {
    "llama-siglip": ("llama", "siglip", dict(rope_parameters=LLAMA3), {}, {}, "bfloat16", {}),
    "llama-bias": ("llama", "clip", dict(attention_bias=True, mlp_bias=True, rope_parameters=dict(
        rope_type="linear", factor=2.0, rope_theta=500.0)), dict(hidden_act="gelu"), dict(vision_feature_layer=[-2, 1]),
        "float16", {}),
    # Longer sequences than 24 positions stretch the base.
    "llama-dynamic": ("llama", "clip", dict(max_position_embeddings=24, rope_parameters=dict(
        rope_type="dynamic", factor=8.0, rope_theta=500.0)), {}, dict(vision_feature_select_strategy="full",
        multimodal_projector_bias=False, vision_feature_layer=-1), "float16", {}),
    "mistral-clip": ("mistral", "clip", dict(sliding_window=20), {}, {}, "float16", dict(minimal=True)),
    "mistral-siglip": ("mistral", "siglip", dict(sliding_window=None, head_dim=12), {}, {}, "bfloat16", {}),
    "qwen2-clip": ("qwen2", "clip", dict(use_sliding_window=True, sliding_window=18, max_window_layers=2), {}, {},
        "float16", {}),
    "qwen2-siglip": ("qwen2", "siglip", dict(tie_word_embeddings=True), {}, {}, "bfloat16", dict(minimal=True)),
    "qwen3-clip": ("qwen3", "clip", dict(head_dim=16), {}, {}, "bfloat16", dict(shard="60KB")),
    "qwen3-siglip": ("qwen3", "siglip", dict(head_dim=8, tie_word_embeddings=True, attention_bias=True,
        use_sliding_window=True, sliding_window=15, layer_types=["sliding_attention", "full_attention"] * 2),
        dict(vision_use_head=False), {}, "float16", {}),
    "phi3-clip": ("phi3", "clip", dict(rope_parameters=dict(rope_type="default", rope_theta=500.0,
        partial_rotary_factor=0.5)), {}, {}, "float16", {}),
    "phi3-siglip": ("phi3", "siglip", dict(sliding_window=19), {}, {}, "bfloat16", dict(minimal=True, shard="60KB")),
    "gemma-clip": ("gemma", "clip", dict(head_dim=12), {}, {}, "bfloat16", {}),
    "gemma-siglip": ("gemma", "siglip", dict(head_dim=8, num_key_value_heads=1), {}, {}, "float16", dict(minimal=True)),
    # Llama 3.2: its scaling and a tied head.
    "llama32-siglip": ("llama", "siglip", dict(rope_parameters=LLAMA3 | dict(factor=32.0), head_dim=16,
        tie_word_embeddings=True), {}, {}, "bfloat16", {}),
    # Phi-4-mini. Sequences beyond the original context take other divisors: with 24 positions all that are compared do,
    # with 56 the answer crosses the limit.
    "phi4-clip": ("phi3", "clip", dict(tie_word_embeddings=True, original_max_position_embeddings=24,
        rope_parameters=LONGROPE), {}, {}, "bfloat16", dict(minimal=True)),
    "phi4-siglip": ("phi3", "siglip", dict(tie_word_embeddings=True, original_max_position_embeddings=56, sliding_window=50,
        rope_parameters=LONGROPE), {}, {}, "float16", {}),
    "gemma2-clip": ("gemma2", "clip", dict(head_dim=12, query_pre_attn_scalar=20, attn_logit_softcapping=2.0,
        sliding_window=18), {}, {}, "bfloat16", {}),
    "gemma2-siglip": ("gemma2", "siglip", dict(head_dim=8, num_key_value_heads=1, query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0, sliding_window=11, attention_bias=True,
        layer_types=["full_attention", "sliding_attention"] * 2), {}, {}, "float16", dict(minimal=True)),
    "gemma3-clip": ("gemma3", "clip", dict(head_dim=8, sliding_window=13, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=5000.0),
                             sliding_attention=dict(rope_type="default", rope_theta=50.0))), {}, {}, "bfloat16", {}),
    # The keys of transformers 4, as in Google's files, with the pattern of five windows to one layer without.
    "gemma3-siglip": ("gemma3", "siglip", dict(head_dim=12, sliding_window=16, num_hidden_layers=6), {}, {}, "float16",
        dict(minimal=True, keys=dict(rope_theta=4000.0, rope_local_base_freq=70.0, sliding_window_pattern=6,
                                     rope_scaling=dict(rope_type="linear", factor=8.0)),
             without=["rope_parameters", "layer_types"])),
    "olmo2-clip": ("olmo2", "clip", {}, {}, {}, "bfloat16", {}),
    "olmo2-siglip": ("olmo2", "siglip", dict(num_key_value_heads=4, attention_bias=True, tie_word_embeddings=True), {}, {},
        "float16", dict(minimal=True)),
    "smollm3-clip": ("smollm3", "clip", {}, {}, {}, "bfloat16", dict(minimal=True)),
    "smollm3-siglip": ("smollm3", "siglip", dict(no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=17,
        tie_word_embeddings=False, attention_bias=True, mlp_bias=True), {}, {}, "float16", {}),
    "ministral3-clip": ("ministral3", "clip", dict(head_dim=8, rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=0.5)),
        {}, {}, "bfloat16", {}),
    "ministral3-siglip": ("ministral3", "siglip", dict(head_dim=16, sliding_window=19, rope_parameters=YARN | dict(
        original_max_position_embeddings=50)), {}, {}, "float16", dict(minimal=True)),
    # Images of 4 x 4 patches where the positions are for 5 x 5 and 6 x 6: interpolated.
    "llama-dinov2": ("llama", "dinov2", {}, dict(layerscale_value=0.7, image_size=35), {}, "float16", {}),
    "llama-registers": ("llama", "registers", {}, dict(num_register_tokens=3, use_swiglu_ffn=False, image_size=42), {}, "bfloat16", {}),
    # Rotary positions of the patches, for another image size than the configuration's, which has no effect on them.
    "llama-dinov3": ("llama", "dinov3", {}, dict(num_register_tokens=2, layerscale_value=0.7, rope_theta=30.0, image_size=56), {}, "float16", {}),
    "llama-dinov3-gated": ("llama", "dinov3", {}, dict(num_register_tokens=4, use_gated_mlp=True, hidden_act="silu", key_bias=True,
        query_bias=False, proj_bias=False, mlp_bias=False), dict(vision_feature_layer=[-1, 1]), "bfloat16", dict(minimal=True)),
    "llama-aimv2": ("llama", "aimv2", {}, {}, {}, "bfloat16", {}),
    # Positions by sines, of the images' own size; without a pooling head.
    "llama-aimv2-native": ("llama", "aimv2", {}, dict(is_native=True, use_head=False, qkv_bias=True, mlp_bias=True, image_size=56), {}, "float16",
        dict(minimal=True)),
    # The gated feed-forward block of the giant ones.
    "llama-dinov2-swiglu": ("llama", "dinov2", {}, dict(layerscale_value=0.7, use_swiglu_ffn=True, mlp_ratio=3), {}, "bfloat16", {}),
}
CASES |= {
    # LLaVA-NeXT: a base image and tiles.
    "llama-next": ("llama", "clip", {}, {}, dict(image_grid_pinpoints=GRID), "float16", {}),
    "mistral-next": ("mistral", "siglip", dict(sliding_window=60), {}, dict(image_grid_pinpoints=GRID[:3] + [[84, 84]]), "bfloat16",
        dict(minimal=True, shard="60KB")),
}
PROMPT = "USER: <image>\nwhat is in the picture? ASSISTANT:"


# The images of the prompt, and the samples of the losses; those of a model that cuts images differ in aspect ratio.
IMAGES, SAMPLES = ["b.png"], "samples.jsonl"
NEXT_PROMPT = "USER: <image>\nand <image>\nwhat is in the pictures? ASSISTANT:"
NEXT_IMAGES, NEXT_SAMPLES = ["wide.png", "strip.png"], "samples_next.jsonl"


def checkpoint(name, seed, family, vision, text, tower, llava, dtype, how):
    path = out / name
    torch.manual_seed(seed)
    tok = reference.tokenizer()
    dino = vision in ("dinov2", "registers")
    clsless = vision in ("siglip", "aimv2")
    tower = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7,
                 **(dict(mlp_ratio=2) if dino else dict(intermediate_size=48))) | tower
    text = dict(vocab_size=len(tok), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
                num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=512) | text
    strategy = llava.pop("vision_feature_select_strategy", "full" if clsless else "default")
    image = tok.convert_tokens_to_ids("<image>")
    tiles = "image_grid_pinpoints" in llava
    cfg = (LlavaNextConfig if tiles else LlavaConfig)(vision_config=VISION[vision](**tower).to_dict(), text_config=TEXT[family](**text).to_dict(),
                      image_token_index=image, image_seq_length=16, vision_feature_select_strategy=strategy,
                      **(dict(vision_feature_layer=-2) | llava))
    model = (LlavaNextForConditionalGeneration if tiles else LlavaForConditionalGeneration)(cfg).float().eval()
    with torch.no_grad():
        for key, p in model.named_parameters():  # larger than the init, so that a wrong order of operations shows
            p.add_(torch.randn_like(p) * (0.4 if "embed_tokens" in key or ("language_model" in key and "self_attn" in key) else 0.05))
    square = {"height": 28, "width": 28}
    if vision == "siglip":
        images = SiglipImageProcessor(size=square)
    else:
        images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=square)
    if tiles:
        normal = dict(image_mean=images.image_mean, image_std=images.image_std)
        images = LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=square, image_grid_pinpoints=llava["image_grid_pinpoints"], **normal)
    special = 0 if clsless else 1 + tower.get("num_register_tokens", 0)
    proc = (LlavaNextProcessor if tiles else LlavaProcessor)(image_processor=images, tokenizer=tok, patch_size=7, image_token="<image>",
                          vision_feature_select_strategy=strategy, num_additional_image_tokens=special)
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=how.get("shard", "50GB"))
    proc.save_pretrained(path)
    if how.get("minimal"):
        file = path / "config.json"
        c = json.loads(file.read_text())
        for part, cls in (("text_config", TEXT[family]), ("vision_config", VISION[vision])):
            default = cls().to_dict()
            c[part] = {k: v for k, v in c[part].items() if k == "model_type" or default.get(k) != v}
        for key in how.get("without", []):
            c["text_config"].pop(key, None)
        c["text_config"] |= how.get("keys", {})
        file.write_text(json.dumps(c, indent=2) + "\n")


def call(*args):
    before, sys.argv = sys.argv, ["basic_reference.py", *map(str, args)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            reference.main()
    finally:
        sys.argv = before
    return json.loads(printed.getvalue())


def expected(name):
    path = out / name
    tiles = reference.tiled(path)
    prompt, names, samples = (NEXT_PROMPT, NEXT_IMAGES, NEXT_SAMPLES) if tiles else (PROMPT, IMAGES, SAMPLES)
    losses = call("losses", path, out.parent / samples, "--grads", path / "grads.safetensors")
    model, proc = reference.load(path)
    from PIL import Image
    images = [Image.open(out.parent / "images" / name).convert("RGB") for name in names]
    batch = proc(images=images, text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[0]
        # Not the reference's generate: it runs over its own output once more, where a generated <image> lacks its pixels.
        new = model.generate(**batch, max_new_tokens=32, do_sample=False, output_logits=True, return_dict_in_generate=True)
    start = batch["input_ids"].shape[1]
    top = [step[0].topk(2).values for step in new.logits]
    generated = dict(ids=new.sequences[0, start:].tolist(), gaps=[float(x[0] - x[1]) for x in top])
    save_file({"logits": logits.contiguous()}, path / "logits.safetensors")
    result = dict(losses=losses, generated=generated, prompt=prompt, ids=batch["input_ids"][0].tolist())
    if tiles:
        result |= dict(images=names, samples=samples)
    (path / "reference.json").write_text(json.dumps(result) + "\n")
    print(name, {k: round(losses[k], 4) for k in ("lm", "das", "sds")}, generated["ids"][:8], "least gap", min(generated["gaps"]))
    return min(generated["gaps"]) if len(generated["ids"]) == 32 else 0


for name, case in CASES.items():
    if len(sys.argv) > 3 and name not in sys.argv[3:]:
        continue
    # Until 32 steps run without a near tie: ids behind one are not compared.
    for seed in range(sum(name.encode()), sum(name.encode()) + 40):
        shutil.rmtree(out / name, ignore_errors=True)
        checkpoint(name, seed, *[dict(x) if isinstance(x, dict) else x for x in case])
        if expected(name) > 4e-3:
            break
