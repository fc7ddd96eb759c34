#!/usr/bin/env python3
"""What transformers makes of logits and prompts: the fixtures of generation.

    python generation_fixtures.py warpers OUT.json                 # basic-models/tests/fixtures/generation/warpers.json
    python generation_fixtures.py answers FIXTURES_DIR OUT.json    # tests/fixtures, tests/fixtures/generation.json

`warpers`: random logits of left-padded rows, and what the logits processors that transformers itself puts together for a
generation config leave of them (null: filtered out). `answers`: greedy ids of tests/fixtures/plain under a repetition
penalty, with several images, with several end tokens and with stop strings. Needs torch and transformers."""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
VOCABULARY = 48
PAD = 0
TOKENS = 24
SETTINGS = {
    "nothing": {},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 5},
    "top_k one": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 1000},
    "top_p": {"top_p": 0.8},
    "top_p small": {"top_p": 0.05},
    "min_p": {"min_p": 0.1},
    "min_p one": {"min_p": 1.0},
    "penalty": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.8},
    "temperature, top_k": {"temperature": 0.6, "top_k": 10},
    "temperature, top_p": {"temperature": 1.5, "top_p": 0.6},
    "top_k, top_p": {"top_k": 12, "top_p": 0.7},
    "top_p, min_p": {"top_p": 0.9, "min_p": 0.15},
    "all": {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
}


def short(values):
    """Each f32 in the fewest digits that give it back; null for what was filtered out."""
    return [None if x == -np.inf else float(str(np.float32(x))) for x in values]


def warpers(out):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1, num_key_value_heads=1))
    logits = torch.randn(3, VOCABULARY) * torch.tensor([[1.0], [3.0], [0.2]])
    logits[1, 7] = logits[1, 30]                     # equals, at the edge of a top_k
    logits[2, 3:20] = logits[2, 3]
    ids = torch.randint(1, VOCABULARY, (3, 9))
    lengths = [9, 5, 7]
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        ids[row, :-n] = PAD
        mask[row, -n:] = 1
    ids[0, 4:7] = VOCABULARY + 3                     # an image token beyond the output head
    ids[2, 2:6] = VOCABULARY - 1                     # one within
    cases = []
    for name, settings in SETTINGS.items():
        config = GenerationConfig(**{"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings})
        config._eos_token_tensor = None
        processors = model._get_logits_processor(config, input_ids_seq_length=ids.shape[1], device="cpu",
                                                 model_kwargs={"attention_mask": mask})
        done = processors(ids, logits.clone())
        cases.append(dict(name=name, settings=settings, processors=[type(p).__name__ for p in processors],
                          scores=[short(row) for row in done.tolist()]))
    prompts = [row[-n:].tolist() for row, n in zip(ids, lengths)]
    head = json.dumps(dict(prompts=prompts, logits=[short(row) for row in logits.tolist()]))
    out.write_text(head[:-1] + ', "cases": [\n' + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n")


QUESTION = "USER: <image>\nwhat is in the picture? ASSISTANT:"


def answers(fixtures, out):
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    path = fixtures / "plain"
    model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    processor = LlavaProcessor.from_pretrained(path)
    tokenizer = processor.tokenizer

    def answer(name, images, prompt, tokens, **settings):
        pictures = [Image.open(fixtures / "images" / image).convert("RGB") for image in images]
        batch = processor(images=pictures, text=prompt, return_tensors="pt")
        start = batch["input_ids"].shape[1]
        extra = dict(tokenizer=tokenizer) if "stop_strings" in settings else {}
        with torch.no_grad():
            made = model.generate(**batch, max_new_tokens=tokens, do_sample=False, output_scores=True,
                                  return_dict_in_generate=True, **settings, **extra)
        ids = made.sequences[0, start:].tolist()
        gaps = [float(top[0] - top[1]) for top in (scores[0].topk(2).values for scores in made.scores)]
        assert min(gaps) > 5e-3, f"{name}: the runner-up is too near to compare ids: {gaps}"
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return dict(name=name, images=images, prompt=prompt, tokens=tokens, settings=settings, ids=ids, gaps=gaps, text=text)

    plain = answer("greedy", ["b.png"], QUESTION, TOKENS)
    cases = [plain]
    cases.append(answer("penalty", ["b.png"], QUESTION, 10, repetition_penalty=1.5))
    assert cases[-1]["ids"] != plain["ids"], "the penalty changes nothing"
    cases.append(answer("two images", ["b.png", "c.png"], "<image> and <image>\nwhich is larger? ASSISTANT:", 16))
    cases.append(answer("another end token", ["b.png"], QUESTION, TOKENS, eos_token_id=[2, plain["ids"][6]]))
    assert len(cases[-1]["ids"]) == 7, "the end token was not reached"
    # Over three tokens; at the end of one; the earlier one of two.
    for stops in (["anft("], ["dog"], ["triangles", "(re"]):
        assert all(stop in plain["text"] for stop in stops), stops
        cases.append(answer(f"stop {' or '.join(stops)}", ["b.png"], QUESTION, TOKENS, stop_strings=stops))
        assert len(cases[-1]["ids"]) < TOKENS, stops
    out.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    if sys.argv[1] == "warpers":
        warpers(Path(sys.argv[2]))
    else:
        answers(Path(sys.argv[2]), Path(sys.argv[3]))
