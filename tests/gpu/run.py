"""What a quarter of an hour on a GPU is used for. `.ci/gpu` packs the binary, its kernels, a profiler and the reference
script into target/gpu; this runs beside them in a copy of the repository, of which it reads tests/fixtures.

    python3 tests/gpu/run.py OUT [--seconds N]

All runs one after the other, most important first: processes beside each other on one GPU wait for each other's
time slices, and nothing gets done. Each step has a time limit, and what it found is written as soon as it is known:
OUT/result.json, OUT/RESULT.md, and the logs in OUT/log.txt.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKED = ROOT / "target" / "gpu"
FIXTURES = ROOT / "tests" / "fixtures"


class Gpu:
    def __init__(self, out, seconds):
        self.out, self.end = Path(out), time.monotonic() + seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="basic-gpu-"))
        self.binary = self.work / "basic"
        self.result = {"sections": {}}
        with open(self.binary, "wb") as file:
            subprocess.run(["xz", "-dc", PACKED / "basic.xz"], stdout=file, check=True)
        self.binary.chmod(0o755)
        self.kernels = self.work / "kernels"
        self.kernels.mkdir()
        packed = PACKED / "kernels.tar.xz"
        if packed.exists():
            subprocess.run(["tar", "xJf", packed, "-C", self.kernels], check=True)
        self.environment = os.environ | {
            "CUDA_PATH": os.environ.get("CUDA_PATH", "/usr/local/cuda"),
            "CUDARC_CUDA_VERSION": "13000",
            "BASIC_KERNEL_CACHE": str(self.kernels),
            "RUST_BACKTRACE": "0",
        }

    def left(self):
        return self.end - time.monotonic()

    def cached(self):
        """Bytes of kernels and tuning that are kept."""
        return sum(path.stat().st_size for path in self.kernels.iterdir())

    def run(self, *command, limit=120, keep=True, **environment):
        """A command's exit code, output and seconds. Code 124: out of time, and the log holds where its threads were at
        half of it and at its end."""
        limit = min(limit, self.left())
        cached = self.cached()
        asked = Path(command[0]) == self.binary and (PACKED / "stacks.so").exists()
        if asked:
            environment = {"LD_PRELOAD": str(PACKED / "stacks.so")} | environment
        start = time.monotonic()
        shown = " ".join(str(part) for part in command)
        if limit < 5:
            return 124, "", "out of time", 0.0
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=self.environment | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except FileNotFoundError as error:
            return 127, "", str(error), 0.0
        # The stacks, then a chance to write what was measured, then the end.
        steps = [(limit / 2, signal.SIGUSR2), (limit / 2, signal.SIGUSR2)] if asked else [(limit, None)]
        steps += [(1.5, signal.SIGTERM), (3, signal.SIGKILL), (None, None)]
        for wait, then in steps:
            try:
                out, error = process.communicate(timeout=wait)
                break
            except subprocess.TimeoutExpired:
                if then is not None:
                    process.send_signal(then)
        code = process.returncode if time.monotonic() - start < limit else 124
        seconds = time.monotonic() - start
        with open(self.out / "log.txt", "a") as log:
            new = (self.cached() - cached) >> 10
            print(f"== {shown}\n== exit code {code}, {seconds:.1f} s, {new} KiB of new kernels", file=log)
            print(f"{out[-20000:]}\n{error[-80000:]}", file=log)
        if keep:
            print(f"   {seconds:6.1f} s  {code:3}  {shown[-110:]}", flush=True)
        return code, out, error, seconds

    def basic(self, *arguments, **more):
        return self.run(self.binary, *arguments, **more)

    def keep(self, section, found):
        self.result["sections"].setdefault(section, []).append(found)
        (self.out / "result.json").write_text(json.dumps(self.result, indent=1) + "\n")
        (self.out / "RESULT.md").write_text(page(self.result))
        print(f"   {section}: " + json.dumps(found)[:300], flush=True)


def last_json(text):
    for start in [i for i, c in enumerate(text) if c == "{" and (i == 0 or text[i - 1] == "\n")]:
        try:
            return json.loads(text[start:])
        except ValueError:
            continue
    return None


def brief(error):
    lines = [line for line in error.strip().splitlines() if line.strip()]
    return " | ".join(lines[-3:])[:600]


# cuBLASLt must be there; nothing waits for its launches; attention copies ahead; the portable bodies; CubeCL's products.
OWN = {"BASIC_CUBLAS": "1"}
UNAWAITED = {"BASIC_CUBLAS": "ahead"}
AHEAD = OWN | {"BASIC_KERNELS": "ahead"}
PORTABLE = OWN | {"BASIC_KERNELS": "portable"}
CUBECL = {"BASIC_CUBLAS": "0"}


def machine(gpu):
    """Driver, NVRTC, NCCL."""
    _, smi, _, _ = gpu.run("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    gpu.result["card"] = smi.strip().split(",")[0]
    gpu.result["date"] = time.strftime("%Y-%m-%d")
    code, devices, error, _ = gpu.basic("devices", "--json")
    gpu.keep("machine", {"gpu": smi.strip(), "devices": last_json(devices), "error": brief(error)})
    return code == 0 and "cuda:0" in devices


def links(gpu):
    """NCCL with one rank on our buffers: values, and what a call costs."""
    # PyTorch brings NCCL along.
    found = [str(path.parent) for root in sys.path if root for path in Path(root).glob("nvidia/nccl/lib/libnccl.so.2")]
    folders = ":".join(found + [os.environ.get("LD_LIBRARY_PATH", "")]).strip(":")
    more = {"LD_LIBRARY_PATH": folders} if folders else {}
    code, out, error, seconds = gpu.basic("devices", "--together", "cuda:0", "--json", limit=40, **more)
    gpu.keep("links", {"code": code, "seconds": round(seconds, 1), "result": last_json(out), "error": brief(error)})


def operations(gpu, dtype, switches, limit):
    """Every operation against committed expectations."""
    # Line by line: where it does not end, the last line says which operation it is in.
    code, out, error, seconds = gpu.basic("devices", "--check", "cuda:0", "--dtype", dtype, limit=limit, **switches)
    lines = [line for line in out.splitlines() if line.startswith(("ok ", "FAILED "))]
    found = {"dtype": dtype, **switches, "code": code, "seconds": round(seconds, 1), "operations": lines}
    gpu.keep("operations", found | ({"error": brief(error)} if code else {}))
    return code == 0


def relative(a, b):
    return abs(a - b) / max(abs(b), 1e-9)


def losses(gpu, name, switches):
    """Losses and gradients of a conformance checkpoint in f32, against PyTorch's committed numbers."""
    cases = json.loads((FIXTURES / "cases.json").read_text())
    case = next(case for case in cases if case["name"] == name)
    grads = gpu.work / f"{name}.safetensors"
    code, out, error, seconds = gpu.basic(
        "losses", FIXTURES / case["checkpoint"], FIXTURES / case["samples"], *case["args"], "--device", "cuda:0",
        "--json", "--grads", grads, limit=40, **switches,
    )
    found = {"case": name, **switches, "seconds": round(seconds, 1)}
    ours = last_json(out)
    if code != 0 or ours is None:
        gpu.keep("losses", found | {"error": brief(error)})
        return
    theirs = json.loads((FIXTURES / "expected" / f"{name}.json").read_text())
    found |= {key: relative(ours[key], theirs[key]) for key in ("lm", "das", "sds", "total")}
    pairs = [(a, b) for row, other in zip(ours["attention"], theirs["attention"]) for a, b in zip(row, other)]
    found["attention"] = max((abs(a - b) for a, b in pairs), default=0.0)
    expected = FIXTURES / "expected" / f"{name}.safetensors"
    if expected.exists():
        from numpy.linalg import norm
        from safetensors.numpy import load_file

        a, b = load_file(grads), load_file(expected)
        found["gradients"] = max(float(norm(a[key] - b[key]) / norm(b[key])) for key in b if norm(b[key]) > 0)
    gpu.keep("losses", found)


def generation(gpu, switches):
    """Greedy tokens against PyTorch's."""
    cases = json.loads((FIXTURES / "generation.json").read_text())
    case = next(case for case in cases if case["name"] == "greedy")
    images = [part for image in case["images"] for part in ("--image", FIXTURES / "images" / image)]
    code, out, error, seconds = gpu.basic(
        "generate", FIXTURES / "plain", *images, "--prompt", case["prompt"].replace("\n", "\\n"),
        "--max-new-tokens", case["tokens"], "--greedy", "--device", "cuda:0", "--json", limit=40, **switches,
    )
    found = {**switches, "seconds": round(seconds, 1)}
    ours = last_json(out)
    if code != 0 or ours is None:
        gpu.keep("generation", found | {"error": brief(error)})
        return
    pairs = list(zip(ours["ids"], case["ids"]))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    gpu.keep("generation", found | {"tokens": len(case["ids"]), "same": same, "gap there": (case["gaps"] + [None])[same]})


def recipe(run):
    """The recipe of tests/tests/training_reference.rs, on the GPU."""
    text = f"""
stage = "{run["stage"]}"
seed = {run["seed"]}
device = "cuda:0"
[model]
checkpoint = "{FIXTURES / "plain"}"
[data]
path = "{FIXTURES / "training" / run["data"]}.json"
images = "{FIXTURES / "images"}"
conversation = "{run["style"]}"
[objective]
lambda_das = {run["lambda_das"]}
lambda_sds = {run["lambda_sds"]}
[optimizer]
weight_decay = {run["weight_decay"]}
[schedule]
kind = "cosine"
warmup_ratio = {run["warmup"] / 100}
[train]
batch_size = {run["batch_size"]}
micro_batch = {run["micro_batch"]}
steps = 20
[loader]
order = "shuffle"
[parts.projector]
mode = "full"
lr = {run["lr"]["multi_modal_projector"]}
"""
    if "language_model" in run["lr"]:
        lora = f'mode = "lora"\nadapters = "{FIXTURES / "adapters" / run.get("adapters", "")}"'
        mode = lora if "adapters" in run else 'mode = "full"'
        text += f'[parts.decoder]\n{mode}\nlr = {run["lr"]["language_model"]}\n'
    return text


def training(gpu, name, switches):
    """The same twenty steps as PyTorch's, in f32."""
    run = json.loads((FIXTURES / "training" / "runs.json").read_text())[name]
    path, out = gpu.work / f"{name}.toml", gpu.work / f"out-{name}"
    path.write_text(recipe(run))
    code, _, error, seconds = gpu.basic("train", path, "--out", out, limit=45, **switches)
    found = {"run": name, **switches, "seconds": round(seconds, 1)}
    if code != 0:
        gpu.keep("training", found | {"error": brief(error)})
        return
    ours = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    theirs = json.loads((FIXTURES / "training" / f"{name}.losses.json").read_text())
    found["steps"] = min(len(ours), len(theirs))
    for key in ("lm", "das", "sds", "total", "grad_norm"):
        found[key] = max(relative(a[key], b[key]) for a, b in zip(ours, theirs))
    gpu.keep("training", found)


def rates(gpu, only, switches, limit):
    """What operations of a 7B step reach."""
    command = ["devices", "--rates", "cuda:0"] + (["--only", only] if only else [])
    code, out, error, seconds = gpu.basic(*command, limit=limit, **switches)
    print(out, flush=True)
    lines = [line for line in out.splitlines() if "TFLOP/s" in line]
    found = {"engine": "basic", **switches, "code": code, "seconds": round(seconds, 1), "lines": lines}
    gpu.keep("rates", found | ({"error": brief(error)} if code else {}))


def their_rates(gpu):
    """The same in PyTorch."""
    code, out, error, seconds = gpu.run(sys.executable, ROOT / "tests/gpu/torch_rates.py", limit=40)
    gpu.keep("rates", {"seconds": round(seconds, 1), **(last_json(out) or {"error": brief(error)})})


def bench(gpu, preset, stage, arm, switches, more=(), steps=3, warmup=2, profile=False, limit=75):
    """Training steps."""
    extra = {}
    if profile:
        extra = {
            "CUDA_INJECTION64_PATH": str(PACKED / "kernel_times.so"),
            "BASIC_PROFILE": str(gpu.out / f"profile-{preset}-{stage}-{arm}.txt"),
            "BASIC_PROFILE_LAST": os.environ.get("BASIC_PROFILE_LAST", "1.5"),
            "BASIC_CUPTI": str(PACKED / "libcupti.so.13"),
        }
    code, out, error, seconds = gpu.basic(
        "bench", "--preset", preset, "--stage", stage, "--arm", arm, "--device", "cuda:0", "--dtype", "bfloat16",
        "--steps", steps, "--warmup", warmup, *more, limit=limit, **switches, **extra,
    )
    found = {"preset": preset, "stage": stage, "arm": arm, **switches, "profiled": profile, "seconds": round(seconds, 1)}
    # Step by step: where it does not end, it is known how far it came.
    gpu.keep("bench", found | {"code": code, "lines": out.splitlines()} | ({"error": brief(error)} if code else {}))


def their_bench(gpu, preset, stage, arm, steps=3, limit=45):
    code, out, error, seconds = gpu.run(
        sys.executable, PACKED / "basic_reference.py", "bench", "--preset", preset, "--stage", stage, "--arm", arm,
        "--device", "cuda", "--dtype", "bfloat16", "--steps", steps, "--warmup", 2, limit=limit,
    )
    gpu.keep("bench", {"preset": preset, "stage": stage, "arm": arm, "seconds": round(seconds, 1), **(last_json(out) or {"error": brief(error)})})


def page(result):
    lines = [f"# {result.get('card', 'A GPU')}, {result.get('date', '')}", "", "Written by tests/gpu/run.py.", ""]
    for section, found in result["sections"].items():
        lines += [f"## {section}", ""]
        for one in found:
            lines += ["```json", json.dumps(one, indent=1)[:8000], "```", ""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", help="the folder of the results")
    parser.add_argument("--seconds", type=float, default=240, help="for all of it")
    parser.add_argument("--recipe", help="print the recipe of this run of tests/fixtures/training and do nothing else")
    args = parser.parse_args()
    if args.recipe:
        print(recipe(json.loads((FIXTURES / "training" / "runs.json").read_text())[args.recipe]))
        return
    if not args.out:
        parser.error("where do the results go?")
    gpu = Gpu(args.out, args.seconds)
    gpu.environment["CUBECL_AUTOTUNE_LEVEL"] = "minimal"
    if not machine(gpu):
        print("no usable device")
        sys.exit(1)
    own = OWN
    operations(gpu, "bfloat16", own, 45)
    operations(gpu, "bfloat16", AHEAD, 30)
    rates(gpu, "attention", AHEAD, 30)
    operations(gpu, "bfloat16", UNAWAITED, 30)
    links(gpu)
    bench(gpu, "7b", "pretrain", "basic", own, limit=60)
    bench(gpu, "7b", "pretrain", "llava", own, limit=40)
    their_bench(gpu, "7b", "pretrain", "lean")
    bench(gpu, "7b", "pretrain", "basic", own, steps=1, warmup=1, profile=True, limit=40)
    rates(gpu, "", own, 40)
    for preset, stage in (("smollm2", "finetune"), ("smollm2", "pretrain"), ("1b", "pretrain"), ("1b", "finetune")):
        bench(gpu, preset, stage, "basic", own, limit=40)
        their_bench(gpu, preset, stage, "lean")
        bench(gpu, preset, stage, "basic", UNAWAITED, limit=40)
    operations(gpu, "float32", own, 45)
    losses(gpu, "plain-default", own)
    generation(gpu, own)
    training(gpu, "pretrain", own)
    their_bench(gpu, "7b", "pretrain", "basic")
    training(gpu, "finetune", own)
    training(gpu, "finetune", UNAWAITED)
    training(gpu, "lora", own)
    bench(gpu, "7b", "pretrain", "basic", PORTABLE, limit=60)
    operations(gpu, "bfloat16", CUBECL, 60)
    rates(gpu, "projection", CUBECL, 60)
    print(f"done; {gpu.left():.0f} s left", flush=True)


if __name__ == "__main__":
    main()
