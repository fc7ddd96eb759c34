"""What a quarter of an hour on a GPU is used for: `.ci/gpu` packs this, the binary, its kernels and the reference script
into target/gpu, and says the command that runs it there.

    python3 tests/gpu/run.py OUT [--sections a,b,...] [--seconds N]

Every section has a time limit, and what it found is written as soon as it is known: OUT/result.json, OUT/RESULT.md, and
the logs in OUT/log.txt.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
        self.lock = threading.Lock()
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

    def cache(self, name):
        """A copy of the kernels for a process beside others."""
        folder = self.work / f"kernels-{name}"
        if not folder.exists():
            shutil.copytree(self.kernels, folder)
        return {"BASIC_KERNEL_CACHE": str(folder)}

    def left(self):
        return self.end - time.monotonic()

    def run(self, *command, limit=120, keep=True, **environment):
        """A command's exit code, output and seconds. Code 124: out of time."""
        limit = min(limit, self.left())
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
        try:
            out, error = process.communicate(timeout=limit)
            code = process.returncode
        except subprocess.TimeoutExpired:
            # First a chance to write what was measured.
            process.terminate()
            try:
                out, error = process.communicate(timeout=3)
            except subprocess.TimeoutExpired:
                process.kill()
                out, error = process.communicate()
            code = 124
        seconds = time.monotonic() - start
        with self.lock, open(self.out / "log.txt", "a") as log:
            print(f"== {shown}\n== exit code {code}, {seconds:.1f} s\n{out[-20000:]}\n{error[-6000:]}", file=log)
        if keep:
            print(f"   {seconds:6.1f} s  {code:3}  {shown[-110:]}", flush=True)
        return code, out, error, seconds

    def basic(self, *arguments, **more):
        return self.run(self.binary, *arguments, **more)

    def keep(self, section, found):
        with self.lock:
            self.result["sections"].setdefault(section, []).append(found)
            text = json.dumps(self.result, indent=1)
            (self.out / "result.json").write_text(text)
            (self.out / "RESULT.md").write_text(page(self.result))


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


def machine(gpu):
    """(a) Driver, NVRTC, NCCL."""
    _, smi, _, _ = gpu.run(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"
    )
    gpu.result["card"] = smi.strip().split(",")[0]
    gpu.result["date"] = time.strftime("%Y-%m-%d")
    _, nvcc, _, _ = gpu.run("sh", "-c", "/usr/local/cuda/bin/nvcc --version | tail -2; ldconfig -p | grep -i nccl; uname -r")
    code, devices, error, _ = gpu.basic("devices")
    gpu.keep("machine", {"smi": smi.strip(), "nvcc": nvcc.strip(), "devices": devices.strip(), "error": error.strip()})
    print(smi.strip(), "\n", devices, error, flush=True)
    return code == 0 and "cuda:0" in devices


def operations(gpu):
    """(b) Every operation against committed expectations."""

    def one(dtype):
        code, out, error, seconds = gpu.basic(
            "devices", "--check", "cuda:0", "--dtype", dtype, "--json", limit=150, **gpu.cache(f"check-{dtype}")
        )
        report = last_json(out)
        if report is None:
            gpu.keep("operations", {"dtype": dtype, "error": f"exit code {code}: {brief(error)}", "seconds": seconds})
            return
        failed = [case for case in report["operations"] if not case["passed"]]
        worst = max((case["difference"] or 0) / case["tolerance"] for case in report["operations"])
        found = {"dtype": dtype, "operations": len(report["operations"]), "seconds": seconds, "worst_of_tolerance": worst}
        gpu.keep("operations", found | {"failed": failed})
        for case in failed:
            print(f"   FAILED {dtype} {case['name']}: {case['difference']} {case['error']}", flush=True)

    return [lambda dtype=dtype: one(dtype) for dtype in ("float32", "bfloat16")]


def relative(a, b):
    return abs(a - b) / max(abs(b), 1e-9)


def losses(gpu):
    """(d) Losses and gradients of the conformance checkpoints in f32, against PyTorch's committed numbers."""

    def one(case):
        name = case["name"]
        grads = gpu.work / f"{name}.safetensors"
        code, out, error, seconds = gpu.basic(
            "losses", FIXTURES / case["checkpoint"], FIXTURES / case["samples"], *case["args"], "--device", "cuda:0",
            "--json", "--grads", grads, limit=150, **gpu.cache("losses-" + name),
        )
        ours = last_json(out)
        if code != 0 or ours is None:
            gpu.keep("losses", {"case": name, "error": brief(error), "seconds": seconds})
            return
        theirs = json.loads((FIXTURES / "expected" / f"{name}.json").read_text())
        found = {key: relative(ours[key], theirs[key]) for key in ("lm", "das", "sds", "total")}
        pairs = [(a, b) for row, other in zip(ours["attention"], theirs["attention"]) for a, b in zip(row, other)]
        found["attention"] = max(abs(a - b) for a, b in pairs) if pairs else 0.0
        expected = FIXTURES / "expected" / f"{name}.safetensors"
        if expected.exists():
            import numpy
            from safetensors.numpy import load_file

            a, b = load_file(grads), load_file(expected)
            norms = [
                float(numpy.linalg.norm(a[key] - b[key]) / numpy.linalg.norm(b[key]))
                for key in b
                if numpy.linalg.norm(b[key]) > 0
            ]
            found["gradients"] = max(norms)
        gpu.keep("losses", {"case": name, "seconds": seconds, **found})

    cases = json.loads((FIXTURES / "cases.json").read_text())
    chosen = ["plain-default", "sharded-mixed", "transformers4-default"]
    return [lambda case=case: one(case) for case in cases if case["name"] in chosen]


def generation(gpu):
    """(c) Greedy tokens against PyTorch's."""
    cases = json.loads((FIXTURES / "generation.json").read_text())
    case = next(case for case in cases if case["name"] == "greedy")

    def one():
        images = [part for image in case["images"] for part in ("--image", FIXTURES / "images" / image)]
        code, out, error, seconds = gpu.basic(
            "generate", FIXTURES / "plain", *images, "--prompt", case["prompt"].replace("\n", "\\n"),
            "--max-new-tokens", case["tokens"], "--greedy", "--device", "cuda:0", "--json", limit=150,
            **gpu.cache("generate"),
        )
        ours = last_json(out)
        found = {"seconds": seconds}
        if code != 0 or ours is None:
            found["error"] = brief(error)
        else:
            same = 0
            for a, b in zip(ours["ids"], case["ids"]):
                if a != b:
                    break
                same += 1
            found |= {"tokens": len(case["ids"]), "same": same, "gap_there": (case["gaps"] + [None])[same]}
        gpu.keep("generation", found)

    return [one]


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


def training(gpu):
    """(c) The same twenty steps as PyTorch's, in f32."""
    runs = json.loads((FIXTURES / "training" / "runs.json").read_text())

    def one(name, run):
        path, out = gpu.work / f"{name}.toml", gpu.work / f"out-{name}"
        path.write_text(recipe(run))
        code, _, error, seconds = gpu.basic("train", path, "--out", out, limit=150, **gpu.cache("train-" + name))
        found = {"run": name, "seconds": seconds}
        if code != 0:
            gpu.keep("training", found | {"error": brief(error)})
            return
        ours = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        theirs = json.loads((FIXTURES / "training" / f"{name}.losses.json").read_text())
        found["steps"] = min(len(ours), len(theirs))
        for key in ("lm", "das", "sds", "total", "grad_norm"):
            found[key] = max(relative(a[key], b[key]) for a, b in zip(ours, theirs))
        gpu.keep("training", found)

    return [lambda name=name: one(name, runs[name]) for name in ("pretrain", "finetune", "lora")]


def pool(gpu, jobs):
    with ThreadPoolExecutor(6) as executor:
        for job in [executor.submit(job) for job in jobs]:
            error = job.exception()
            if error is not None:
                print(f"   a check broke: {error!r}", flush=True)


def rates(gpu):
    """(e) What the operations of a 7B step reach, ours and PyTorch's."""
    _, out, error, seconds = gpu.run(sys.executable, ROOT / "tests/gpu/torch_rates.py", limit=60)
    theirs = last_json(out) or {"operations": [], "error": brief(error)}
    gpu.keep("rates", {"engine": "pytorch", "seconds": seconds, **theirs})
    for level in ("minimal", "balanced"):
        code, out, error, seconds = gpu.basic(
            "devices", "--rates", "cuda:0", limit=100 if level == "minimal" else 60, CUBECL_AUTOTUNE_LEVEL=level,
            **gpu.cache(f"rates-{level}"),
        )
        print(out, brief(error), flush=True)
        lines = [line for line in out.splitlines() if "TFLOP/s" in line]
        gpu.keep("rates", {"engine": f"basic, autotune {level}", "code": code, "seconds": seconds, "lines": lines, "error": brief(error)})


def bench(gpu, preset, stage, arms, ours=(), theirs=True, steps=5, profile=False, limit=120):
    """(f) Training steps beside PyTorch's."""
    reference = PACKED / "basic_reference.py"
    for arm in arms:
        their_arms = {"basic": ["lean"], "llava": ["llava"]}[arm] if theirs else []
        for their in their_arms:
            code, out, error, seconds = gpu.run(
                sys.executable, reference, "bench", "--preset", preset, "--stage", stage, "--arm", their, "--device",
                "cuda", "--dtype", "bfloat16", "--steps", steps, "--warmup", 2, limit=limit,
            )
            found = last_json(out) or {"error": brief(error)}
            gpu.keep("bench", {"preset": preset, "stage": stage, "arm": their, "engine": "pytorch", **found, "seconds": seconds})
            print(f"   pytorch {preset} {stage} {their}: {found.get('samples_per_s')} samples/s {found.get('error', '')}", flush=True)
        extra = {}
        if profile and (PACKED / "profile.so").exists():
            extra = {
                "CUDA_INJECTION64_PATH": str(PACKED / "profile.so"),
                "BASIC_PROFILE": str(gpu.out / f"profile-{preset}-{stage}-{arm}.txt"),
                "BASIC_PROFILE_LAST": "1.5",
                "BASIC_CUPTI": str(PACKED / "libcupti.so.13"),
            }
        code, out, error, seconds = gpu.basic(
            "bench", "--preset", preset, "--stage", stage, "--arm", arm, "--device", "cuda:0", "--dtype", "bfloat16",
            "--steps", steps, "--warmup", 2, "--json", *ours, limit=limit, CUBECL_AUTOTUNE_LEVEL="minimal", **extra,
        )
        found = last_json(out) or {"error": f"exit code {code}: {brief(error)}"}
        gpu.keep("bench", {"preset": preset, "stage": stage, "arm": arm, "ours": list(ours), **found, "seconds": seconds, "profiled": bool(extra)})
        print(f"   basic {preset} {stage} {arm}: {found.get('samples_per_s')} samples/s {found.get('error', '')}", flush=True)


def page(result):
    lines = [f"# {result.get('card', 'a GPU')}, {result.get('date', '')}", ""]
    for section, found in result["sections"].items():
        lines += [f"## {section}", ""]
        for one in found:
            lines += ["```json", json.dumps(one, indent=1)[:6000], "```", ""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sections", default="check,rates,bench")
    parser.add_argument("--seconds", type=float, default=240)
    args = parser.parse_args()
    gpu = Gpu(args.out, args.seconds)
    sections = args.sections.split(",")
    if not machine(gpu):
        print("no usable device")
        sys.exit(1)
    if "check" in sections:
        pool(gpu, operations(gpu) + losses(gpu) + generation(gpu) + training(gpu))
        for section in ("losses", "generation", "training", "operations"):
            for found in gpu.result["sections"].get(section, []):
                print("  ", section, json.dumps(found)[:400], flush=True)
    if "bench" in sections:
        bench(gpu, "7b", "pretrain", ["basic"], steps=3, profile=True, limit=90)
        bench(gpu, "smollm2", "pretrain", ["basic"], steps=5, profile=True, limit=60)
    if "rates" in sections:
        rates(gpu)
    print(f"done; {gpu.left():.0f} s left", flush=True)


if __name__ == "__main__":
    main()
