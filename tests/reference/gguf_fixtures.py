"""Makes tests/fixtures/gguf with the `gguf` Python package of llama.cpp (PyPI: gguf 0.19.0, numpy):

- blocks.json: values and their bytes in each type, and what the package reads back from the quantized bytes;
- decoder.gguf: a tiny Qwen 2 decoder that the package's writer wrote, with each type that is read, and decoder.json: the
  values of its tensors as the package reads them.

    pip install gguf==0.19.0 && python tests/reference/gguf_fixtures.py
"""

import base64
import json
from pathlib import Path

import gguf
import numpy as np

OUT = Path(__file__).parent.parent / "fixtures" / "gguf"
TYPES = {name: gguf.GGMLQuantizationType[name] for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]}


def text(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def blocks():
    draw = np.random.default_rng(0)
    rows = [draw.standard_normal(64) * scale for scale in [1.0, 1e-3, 50.0]]
    rows.append(np.zeros(64))
    rows.append(np.where(np.arange(64) % 7 == 0, -3.0, 0.25))
    rows.append(np.arange(64) / 8 - 4)  # halves between two steps
    rows.append(np.full(64, 1e-9))
    values = np.array(rows, dtype=np.float32)
    out = {"values": text(values), "rows": len(rows), "columns": 64, "bytes": {}, "read": {}}
    for name, kind in TYPES.items():
        packed = gguf.quants.quantize(values, kind)
        out["bytes"][name] = text(packed)
        out["read"][name] = text(gguf.quants.dequantize(packed.view(np.uint8), kind).astype(np.float32))
    (OUT / "blocks.json").write_text(json.dumps(out) + "\n")


def decoder():
    draw = np.random.default_rng(1)
    width, inner, heads, layers = 32, 64, 2, 2
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["<|endoftext|>", "<|im_end|>"] + letters + ["ab", "abc", "th", "the", "Ġ", "Ġthe", "[PAD34]", "[PAD35]"]
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    types = [control] * 2 + [normal] * (len(tokens) - 4) + [unused] * 2
    writer = gguf.GGUFWriter(OUT / "decoder.gguf", "qwen2")
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1000000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b", "ab c", "t h", "th e", "Ġ the"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    held = {}

    def add(name, shape, kind):
        values = draw.standard_normal(shape).astype(np.float32)
        packed = gguf.quants.quantize(values, TYPES[kind])
        writer.add_tensor(name, packed, raw_dtype=TYPES[kind])
        held[name] = text(gguf.quants.dequantize(packed.view(np.uint8), TYPES[kind]).astype(np.float32))

    add("token_embd.weight", (len(tokens), width), "Q8_0")
    add("output_norm.weight", (width,), "F32")
    kinds = {0: ["Q4_1", "Q4_0", "Q8_0", "F16"], 1: ["BF16", "F32", "Q4_1", "Q4_0"]}
    for layer in range(layers):
        one, two, three, four = kinds[layer]
        name = lambda part: f"blk.{layer}.{part}"
        add(name("attn_norm.weight"), (width,), "F32")
        add(name("attn_q.weight"), (width, width), one)
        add(name("attn_k.weight"), (width // 2, width), two)
        add(name("attn_v.weight"), (width // 2, width), three)
        add(name("attn_output.weight"), (width, width), four)
        for part, rows in [("attn_q", width), ("attn_k", width // 2), ("attn_v", width // 2)]:
            add(name(f"{part}.bias"), (rows,), "F32")
        add(name("ffn_norm.weight"), (width,), "F32")
        add(name("ffn_gate.weight"), (inner, width), one)
        add(name("ffn_up.weight"), (inner, width), two)
        add(name("ffn_down.weight"), (width, inner), three)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (OUT / "decoder.json").write_text(json.dumps(held) + "\n")


OUT.mkdir(parents=True, exist_ok=True)
blocks()
decoder()
