#!/usr/bin/env python3
"""Adapters between this project and `peft`.

    python tests/reference/adapters_in_peft.py fixtures [--reference BASIC_REFERENCE.py]
        makes tests/fixtures/adapters/{peft,patterns}: adapters that `peft` saved over tests/fixtures/plain, with the
        losses, logits and gradients that transformers and `peft` compute with them
    python tests/reference/adapters_in_peft.py check ADAPTER_DIR MERGED_DIR
        loads ADAPTER_DIR, which `basic train` wrote, with PeftModel.from_pretrained over the base that it names, and
        MERGED_DIR, which `basic merge` made of it, with transformers alone: both must give the same logits, and no
        tensor may be left over or missing

Needs torch, transformers, peft, safetensors, pillow."""
import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

HERE = Path(__file__).resolve().parents[1] / "fixtures"
DECODER = r"(?:.*\.)?language_model\..*\.(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
FIXTURES = {
    # LLaVA's usual case: every linear layer of the decoder, and the projector trained whole.
    "peft": dict(r=2, lora_alpha=6, target_modules=DECODER, modules_to_save=["multi_modal_projector"]),
    # Ranks and alphas of their own, a rank-stabilized scale, the vision encoder too.
    "patterns": dict(r=2, lora_alpha=3, use_rslora=True, target_modules=r".*(?:language_model|vision_tower).*\.(?:q_proj|fc1)",
                     rank_pattern={r"layers.1.self_attn.q_proj": 3}, alpha_pattern={r"vision_tower\..*\.fc1": 5}),
}


def canonical(name):
    for prefix in ("base_model.model.", "model."):
        name = name.removeprefix(prefix)
    return name.replace(".default.", ".").replace(".modules_to_save.", ".").replace(".default", "")


def fixtures(reference):
    samples = [json.loads(line) for line in (HERE / "samples.jsonl").read_text().splitlines()]
    for index, (name, settings) in enumerate(FIXTURES.items()):
        model, processor = reference.load(HERE / "plain")
        config = LoraConfig(**settings)
        torch.manual_seed(index + 1)
        peft = get_peft_model(model, config)
        with torch.no_grad():
            for key, parameter in peft.named_parameters():
                if parameter.requires_grad:  # so that A and B both matter, and a wrong scale shows
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        out = HERE / "adapters" / name
        shutil.rmtree(out, ignore_errors=True)
        peft.save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)
        path = out / "adapter_config.json"
        document = json.loads(path.read_text())
        document["base_model_name_or_path"] = "../../plain"
        path.write_text(json.dumps(document, indent=1) + "\n")

        batch = reference.collate(processor, samples, HERE)
        lm, das, sds, _, _ = reference.basic_terms(peft.base_model.model, batch)
        trained = {canonical(key): p for key, p in peft.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(lm + das + 0.1 * sds, list(trained.values()), allow_unused=True)
        kept = {key: g.contiguous() for key, g in zip(trained, gradients) if g is not None}
        one = reference.collate(processor, samples[:1], HERE)
        with torch.no_grad():
            logits = peft(**{key: value for key, value in one.items() if key != "labels"}).logits[0]
        save_file(dict(logits=logits.contiguous(), **{f"grad.{key}": g for key, g in kept.items()}), out / "expected.safetensors")
        (out / "expected.json").write_text(json.dumps(dict(
            lm=lm.item(), das=das.item(), sds=sds.item(), lambda_das=1.0, lambda_sds=0.1, ids=one["input_ids"][0].tolist())) + "\n")
        print(name, f"lm {lm.item():.6f} das {das.item():.6f} sds {sds.item():.6f};", len(kept), "gradients;",
              sum(p.stat().st_size for p in out.iterdir()), "bytes")


def logits(model, seed=0):
    """Of a batch with an image and text on both sides of it."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(4, config.text_config.vocab_size - 1, (1, 24), generator=generator)
    side = config.vision_config.image_size
    image = torch.full((1, (side // config.vision_config.patch_size) ** 2), config.image_token_id)
    ids = torch.cat([text[:, :5], image, text[:, 5:]], 1)
    pixels = torch.randn(1, 3, side, side, generator=generator)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits


def check(adapters, merged):
    document = json.loads((adapters / "adapter_config.json").read_text())
    base = document["base_model_name_or_path"]
    load = dict(dtype=torch.float32, output_loading_info=True)
    below, _ = LlavaForConditionalGeneration.from_pretrained(base, **load)
    bare = logits(below)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft = PeftModel.from_pretrained(below, adapters)
    said = [str(w.message) for w in caught if "missing" in str(w.message) or "nexpected" in str(w.message)]
    held = set(load_file(adapters / "adapter_model.safetensors"))
    wanted = {key.replace(".default", "").replace(".modules_to_save", "") for key, _ in peft.named_parameters()
              if "lora_" in key or "modules_to_save" in key}
    over = sorted(held ^ wanted)
    whole, info = LlavaForConditionalGeneration.from_pretrained(merged, **load)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    theirs, ours, folded = logits(peft), logits(whole), logits(peft.merge_and_unload())
    apart, moved = float((theirs - ours).abs().max()), float((theirs - bare).abs().max())
    print(f"{len(held)} tensors; peft warns {said or 'of nothing'}; left over or missing {over or 'none'}; merged keys {wrong or 'all matched'}")
    print(f"logits: peft and basic merge apart by {apart:.2e}; peft and its own merge by {float((theirs - folded).abs().max()):.2e}; the adapters move them by {moved:.2e}")
    return not said and not over and not wrong and apart < 1e-4


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    f = commands.add_parser("fixtures")
    f.add_argument("--reference", type=Path, default=Path(__file__).resolve().parent / "basic_reference.py")
    c = commands.add_parser("check")
    c.add_argument("adapters", type=Path)
    c.add_argument("merged", type=Path)
    a = p.parse_args()
    if a.command == "check":
        sys.exit(0 if check(a.adapters, a.merged) else 1)
    spec = importlib.util.spec_from_file_location("basic_reference", a.reference)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    fixtures(reference)


main()
