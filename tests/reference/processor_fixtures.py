#!/usr/bin/env python3
"""Makes basic-models/tests/fixtures/processor from transformers: what the processor's tests compare with.

    python tests/reference/processor_fixtures.py OUT_DIR

Images are drawn from a fixed seed; pixel values are those of transformers' image processors (Pillow backend), ids and
texts those of its fast tokenizers, rendered templates those of its apply_chat_template. The masks of llama.json are
computed by the rule of LLaVA's training code (preprocess_v1): per round, what follows "ASSISTANT:" bears the loss.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AddedToken, CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

import basic_reference  # beside this file

out = Path(sys.argv[1])

IMAGES = {"odd": (61, 47), "wide": (97, 31), "tall": (23, 90), "tiny": (5, 3), "exact": (28, 28), "large": (113, 77), "columns_first": (35, 155)}  # w, h


def picture(rng, width, height):
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 120 * np.sin(x / (3 + 4 * c) + y / (7 + c) + c) * np.cos(y / (4 + c)) for c in range(3)]
    channels[0] += (x + y) % 2 * 60  # aliases unless the filter averages
    noise = rng.normal(0, 12 if width * height < 5000 else 0, (height, width, 3))
    return np.clip(np.stack(channels, -1) + noise, 0, 255).astype(np.uint8)


def images():
    rng = np.random.default_rng(0)
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in IMAGES.items():
        Image.fromarray(picture(rng, width, height)).save(folder / f"{name}.png", optimize=True)
    base = picture(rng, 30, 22)
    alpha = rng.integers(0, 256, (22, 30, 1)).astype(np.uint8)
    Image.fromarray(np.concatenate([base, alpha], -1)).save(folder / "alpha.png", optimize=True)
    Image.fromarray(base[..., 0]).save(folder / "grey.png", optimize=True)
    Image.fromarray(base).quantize(16).save(folder / "palette.png", optimize=True)
    Image.fromarray(base).quantize(16).save(folder / "palette.gif")
    Image.fromarray(picture(rng, 64, 48)).save(folder / "photo.jpg", quality=92)
    processors_ = {
        "clip": CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        "pad": CLIPImageProcessor(size={"shortest_edge": 15}, crop_size={"height": 24, "width": 27}),
        "bilinear": CLIPImageProcessor(size={"height": 20, "width": 31}, resample=2, do_center_crop=False, do_normalize=False),
        "plain": CLIPImageProcessor(do_resize=False, crop_size=12, do_rescale=False, image_mean=[100.0, 110.0, 120.0], image_std=[50.0] * 3),
        "siglip": SiglipImageProcessor(size={"height": 25, "width": 25}),
    }
    wanted = {"clip": [*(f"{n}.png" for n in IMAGES), "alpha.png", "grey.png", "palette.png", "palette.gif"],
              "pad": ["odd.png", "wide.png", "tiny.png"], "bilinear": ["odd.png", "large.png"], "plain": ["odd.png"], "siglip": ["large.png"]}
    tensors = {}
    for name, processor in processors_.items():
        (out / name).mkdir(exist_ok=True)
        processor.save_pretrained(out / name)
        for file in wanted[name]:
            image = Image.open(folder / file).convert("RGB")
            tensors[f"{name}/{file}"] = processor(image, return_tensors="pt").pixel_values[0].contiguous()
    rgb = np.array(Image.open(folder / "photo.jpg").convert("RGB"))
    tensors["rgb/photo.jpg"] = torch.from_numpy(rgb.copy())
    save_file(tensors, out / "pixel_values.safetensors")


TEXTS = ["a small red circle", " two  spaces, and a tab\t.", "USER: <image>\nwhat is in the picture? ASSISTANT: a dog.</s>", "",
         "naïve café – 漢字 🙂👍🏽 é", "it 's here , is n't it ? yes !", "<s>begun</s><pad>", "a\n\n b", "<image><image>x"]


def record(tok):
    cases = []
    for text in TEXTS:
        ids = tok(text).input_ids
        cases.append(dict(text=text, ids=ids, bare=tok(text, add_special_tokens=False).input_ids,
                          decoded=tok.decode(ids), skipped=tok.decode(ids, skip_special_tokens=True)))
    return cases


def llama_like():
    """Llama 1 and 2 in small: SentencePiece's scheme with a prefix space, byte fallback and <s> put in front."""
    corpus = ["A chat between a curious user and an artificial intelligence assistant . USER: what is in the picture? ASSISTANT: a small red circle",
              "USER: where is the dog? ASSISTANT: the dog sits on the grass."] * 4
    pieces = [w for line in corpus for w in line.split(" ")]
    alphabet = sorted({c for w in pieces for c in w} | {"▁", ","})
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(pieces, trainers.BpeTrainer(vocab_size=120, initial_alphabet=alphabet, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *sorted(state["vocab"], key=state["vocab"].get)]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m) for m in state["merges"]],
                               byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tok.normalizer = trained.normalizer
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>")
    fast.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    return fast


SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")
DIALOGUES = [["<image>\nwhat is in the picture?", "a dog."],
             ["<image>\nwhat is it?", "a red circle", "where?", "on the grass, left"],
             ["<image>\nwhat?", "a dog", "where is it?", "👍 the grass", "why? 漢", "the  dog sits, é."]]


def llava_mask(tok, turns):
    """LLaVA's rule: round by round, from the tokens of "USER: .. ASSISTANT:" on, through </s>."""
    text, ids, labels = SYSTEM + " ", [tok.bos_token_id], [-100]
    whole = text + "".join(f"USER: {q} ASSISTANT: {a}</s>" for q, a in zip(turns[::2], turns[1::2]))
    for q, a in zip(turns[::2], turns[1::2]):
        prompt = tok(f"{text}USER: {q} ASSISTANT:", add_special_tokens=False).input_ids
        round_ = tok(f"{text}USER: {q} ASSISTANT: {a}</s>", add_special_tokens=False).input_ids
        ids += round_
        labels += [-100] * len(prompt) + round_[len(prompt):]
        text = ""
    assert ids == tok(whole).input_ids, "LLaVA's 'tokenization mismatch'"
    return dict(turns=turns, text=whole, ids=ids, labels=labels)


TEMPLATES = {  # as llava-1.5-7b-hf writes it; and ChatML with strings
    "llava": "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
             "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
             "{# Render all text next #}{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
             "{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
             "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
             "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "chatml": "{{ bos_token }}\n{%- for message in messages %}\n    {%- if loop.first and message['role'] != 'system' %}\n"
              "{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}\n    {%- endif %}\n"
              "    {{- '<|im_start|>' + message.role + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n"
              "{% if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
}


def rendered(tok):
    out_ = []
    for name, template in TEMPLATES.items():
        for turns in DIALOGUES:
            messages = []
            for i, text in enumerate(turns):
                has_image, text_only = "<image>" in text, text.replace("<image>\n", "")
                parts = [{"type": "image"}] * has_image + [{"type": "text", "text": text_only}]
                messages.append(dict(role="assistant" if i % 2 else "user", content=parts if name == "llava" else text))
            apply = lambda m, **k: tok.apply_chat_template(m, chat_template=template, tokenize=False, **k)
            out_.append(dict(name=name, template=template, turns=turns, text=apply(messages),
                             prompt=apply(messages[:-1], add_generation_prompt=True)))
    return out_


def texts():
    folder = out / "bytelevel"
    tok = basic_reference.tokenizer()
    tok.save_pretrained(folder)
    processor = LlavaProcessor(image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), tokenizer=tok,
                               patch_size=7, image_token="<image>", vision_feature_select_strategy="default", num_additional_image_tokens=1)
    prompt = "USER: <image>\nand <image> here ASSISTANT:"
    pictures = [Image.open(out / "images" / f"{n}.png").convert("RGB") for n in ("odd", "tall")]
    expanded = processor(images=pictures, text=prompt).input_ids[0]
    dump = lambda path, value: path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    dump(out / "bytelevel.json", dict(cases=record(tok), prompt=prompt, expanded=list(map(int, expanded)), rendered=rendered(tok)))
    llama = llama_like()
    llama.save_pretrained(out / "llama")
    dump(out / "llama.json", dict(cases=record(llama), masks=[llava_mask(llama, d) for d in DIALOGUES]))


images()
texts()
