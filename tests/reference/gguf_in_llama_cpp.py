"""Answers of llama.cpp to the GGUF files that `basic convert --gguf` writes, beside this program's own.

    pip install llama-cpp-python pillow          # builds llama.cpp
    python tests/reference/gguf_in_llama_cpp.py target/release/basic [CHECKPOINT …] [--real DIR]

Each checkpoint is converted to f32, and both programs answer a prompt about a picture greedily. The picture has the size that
the encoder takes, so that resizing plays no part. The token ids must be equal up to the first step at which this program's two
best logits are nearer than 1e-2: llama.cpp computes GELU by a table of half precision. `--real` names a folder with `smollm2`
(a decoder) and `vision` (a CLIP encoder), which are put together with a random projector, and answered in q8_0 too.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp
from PIL import Image

HERE = Path(__file__).parent.parent / "fixtures"
# Not those with a sliding window that is shorter than the prompts: llama.cpp has none in these families.
FAMILIES = "gemma-clip gemma-siglip llama-siglip mistral-siglip phi3-clip qwen2-siglip qwen3-clip"
PROMPTS = ["USER: <image>\nwhat is in the picture? ASSISTANT:", "a red square. <image> the blue"]
CLOSE = 1e-2


def basic(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def answer(files, image, prompt, count):
    """Token ids that llama.cpp chooses greedily, and the difference of the two best logits at each step."""
    model, mmproj = (str(files / name) for name in ["model.gguf", "mmproj.gguf"])
    one = llama_cpp.GGML_TYPE_F32
    options = dict(n_ctx=1024, n_batch=1024, n_ubatch=1024, n_threads=2, n_gpu_layers=0, type_k=one, type_v=one)
    llama = llama_cpp.Llama(model, flash_attn=False, verbose=False, **options)
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.warmup, params.n_threads = False, False, False, 2
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    vision = mtmd_cpp.mtmd_init_from_file(mmproj.encode(), llama.model, params)
    if vision is None or not mtmd_cpp.mtmd_support_vision(vision):
        sys.exit(f"{mmproj}: llama.cpp takes no pictures with it")
    bitmap = mtmd_cpp.mtmd_helper_bitmap_init_from_file(vision, str(image).encode(), False)
    text = prompt.replace("<image>", mtmd_cpp.mtmd_default_marker().decode()).encode()
    given = mtmd_cpp.mtmd_input_text()
    given.text, given.text_len, given.add_special, given.parse_special = text, len(text), True, True
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    if mtmd_cpp.mtmd_tokenize(vision, chunks, ctypes.byref(given), bitmaps, 1) != 0:
        sys.exit(f"{model}: llama.cpp could not tokenize the prompt")
    past = llama_cpp.llama_pos(0)
    if mtmd_cpp.mtmd_helper_eval_chunks(vision, llama.ctx, chunks, 0, 0, 1024, True, ctypes.byref(past)) != 0:
        sys.exit(f"{model}: llama.cpp could not evaluate the prompt")
    size = llama.n_vocab()
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    ids, gaps = [], []
    for _ in range(count):
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llama.ctx, -1), (size,)).copy()
        second, best = np.sort(logits)[-2:]
        token = int(logits.argmax())
        ids.append(token)
        gaps.append(float(best - second))
        if llama_cpp.llama_vocab_is_eog(vocabulary, token):
            break
        batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
        if llama_cpp.llama_decode(llama.ctx, batch) != 0:
            sys.exit(f"{model}: llama.cpp could not decode")
    mtmd_cpp.mtmd_input_chunks_free(chunks)
    mtmd_cpp.mtmd_bitmap_free(bitmap)
    mtmd_cpp.mtmd_free(vision)
    llama.close()
    return ids, gaps


def compare(binary, checkpoint, images, prompts, count, quant="f32"):
    """Prints how the answers agree; returns the numbers of equal tokens, of close calls and of real differences."""
    side = json.loads((checkpoint / "config.json").read_text())["vision_config"]["image_size"]
    equal = close = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        basic(binary, "convert", checkpoint, folder / "gguf", "--gguf", "--quant", quant)
        for image in images:
            square = folder / "square.png"
            Image.open(image).convert("RGB").resize((side, side)).save(square)
            for prompt in prompts:
                out = basic(binary, "generate", checkpoint, "--image", square, "--prompt", prompt, "--max-new-tokens", count, "--json")
                ours = json.loads(out)
                ids, gaps = answer(folder / "gguf", square, prompt, count)
                same = next((i for i, (a, b) in enumerate(zip(ids, ours["ids"])) if a != b), min(len(ids), len(ours["ids"])))
                equal += same
                if same < max(len(ids), len(ours["ids"])):
                    gap = min(ours["gaps"][same : same + 1] + gaps[same : same + 1])
                    near = gap < CLOSE
                    close, wrong = close + near, wrong + (not near)
                    print(f"  {image.name}: token {same} is {ids[same:same + 1]} in llama.cpp and {ours['ids'][same:same + 1]} here, "
                          f"the two best logits are {gap:.1e} apart")
    print(f"{checkpoint.name} in {quant}: {equal} tokens are equal, {close} close calls, {wrong} differences")
    return equal, close, wrong


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("checkpoints", nargs="*", type=Path)
parser.add_argument("--real", type=Path)
args = parser.parse_args()
binary = str(Path(args.binary).absolute())
checkpoints = args.checkpoints or [HERE / "plain"] + [HERE / "families" / name for name in FAMILIES.split()]
images = [HERE / "images" / name for name in ["a.png", "b.png", "c.png"]]
totals = [compare(binary, checkpoint, images, PROMPTS, 12) for checkpoint in checkpoints]
if args.real:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "real"
        basic(binary, "assemble", "--vision", args.real / "vision", "--llm", args.real / "smollm2", "--out", model)
        prompt = "<|im_start|>user\n<image>\nWhat do you see?<|im_end|>\n<|im_start|>assistant\n"
        plain = "The capital of France is Paris. <image> The capital of Germany is"
        totals.append(compare(binary, model, images[:1], [prompt, plain], 24))
        # Eight bits change logits, so this only shows that the files load and answer.
        print("q8_0 is another model than f32; for comparison:")
        compare(binary, model, images[:1], [plain], 24, "q8_0")
equal, close, wrong = (sum(column) for column in zip(*totals))
print(f"in all: {equal} tokens are equal, {close} close calls, {wrong} differences")
sys.exit(1 if wrong else 0)
