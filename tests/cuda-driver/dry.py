"""A dry run of the CUDA binary on a machine without a GPU: every kernel is compiled by the real NVRTC and launched on a
driver that counts (driver.c). What a training step launches, copies, waits for and reserves is held against budgets.json.

    python dry.py BINARY CACHE [--write] [--only NAME ...]

--write sets the budgets to what was found, with a tenth of slack; --only runs these budgets alone.
"""

import argparse
import atexit
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
# A step's counts are half the difference between a run of three steps and a run of one. Waits for what lies a thousand
# launches and more behind, after which the device has work to go on with, are counted apart, as `late`.
FEW, MANY = 1, 3
# How far the plan's memory may be from what was counted.
PLAN = 0.1
# Bytes of registers that a thread may spill: a value or two.
SPILL = 32


class Failed(Exception):
    pass


def toolkit():
    """The folder of the CUDA toolkit that pip installed into this interpreter's environment."""
    import nvidia

    for root in nvidia.__path__:
        for folder in sorted(Path(root).glob("cu*"), reverse=True):
            if (folder / "include" / "cuda_bf16.h").is_file():
                return folder
    raise Failed("no CUDA headers in this environment: pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl")


class Dry:
    def __init__(self, binary, cache):
        self.folder = Path(tempfile.mkdtemp(prefix="basic-cuda-dry-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        # A copy: the build may go on meanwhile.
        self.binary = Path(shutil.copy(binary, self.folder))
        self.stats = self.folder / "stats.jsonl"
        driver = self.folder / "libcuda.so"
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", "-w", "-o", driver, HERE / "driver.c", "-lpthread"], check=True
        )
        library = ["-o", self.folder / "libcublasLt.so", HERE / "cublaslt.c"]
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-w", *library], check=True)
        self.environment = os.environ | {
            "CUDA_PATH": str(toolkit()),
            "LD_LIBRARY_PATH": str(self.folder),
            "BASIC_KERNEL_CACHE": str(Path(cache).resolve()),
            # Times on this driver mean nothing: try as little as possible.
            "CUBECL_AUTOTUNE_LEVEL": "minimal",
            "CUDA_STUB_STATS": str(self.stats),
            "RUST_BACKTRACE": "0",
        }

    def run(self, *arguments, expect=0, **environment):
        """Runs the binary; its output, the driver's counts, and the seconds it took."""
        self.stats.unlink(missing_ok=True)
        start = time.monotonic()
        done = subprocess.run(
            [self.binary, *map(str, arguments)],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=3600,
        )
        seconds = time.monotonic() - start
        shown = " ".join(map(str, arguments))
        if expect is not None and done.returncode != expect:
            raise Failed(f"basic {shown}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        if "Compilation Error" in done.stderr + done.stdout:
            raise Failed(f"basic {shown}: a kernel does not compile: {done.stderr[:4000]}")
        refused = [line for line in done.stderr.splitlines() if line.startswith("cublasLt: ") and " by " in line]
        if refused:
            raise Failed(f"basic {shown}: matrices that do not fit each other: {refused[0]}")
        lines = self.stats.read_text().splitlines() if self.stats.exists() else []
        return done, json.loads(lines[-1]) if lines else {}, seconds

    def step(self, *arguments, **environment):
        """What a step of `basic bench` takes, and the peak memory of the run."""
        counts = []
        # The first run compiles and tunes, which would be counted as a step's.
        for steps in (FEW, FEW, MANY):
            done, found, seconds = self.run(
                "bench", "--device", "cuda:0", "--warmup", 1, "--steps", steps, "--json", *arguments, **environment
            )
            counts.append(found)
            print(f"   {steps} steps: {seconds:.0f} s, {found['kernels_compiled']} kernels", flush=True)
        _, few, many = counts
        each = {
            key: (many[key] - few[key]) / (MANY - FEW)
            for key in ("launches", "dtoh", "htod", "syncs", "late", "dtoh_bytes", "htod_bytes")
        }
        each["peak_mib"] = many["peak_mib"]
        each["host_s"] = json.loads(done.stdout)["step_s"]
        kernels = {
            name: (count - few["top"].get(name, 0)) / (MANY - FEW) for name, count in many["top"].items()
        }
        each["kernels"] = {name: count for name, count in kernels.items() if count > 0}
        return each


def planned_mib(dry, plan):
    """What `basic train --plan` says that a step of a preset takes, without its allowance for the runtime, which the
    driver that counts does not have. A sample fills its length, as those of `basic bench` do."""
    folder = dry.folder / "plan"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(plan["config"]))
    shutil.copy(HERE.parent / "fixtures" / "images" / "a.png", folder)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a red circle, " * 400}]
    (folder / "data.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}] * 16))
    (folder / "recipe.toml").write_text(
        f"""stage = "pretrain"
output = "{folder}/out"
[model]
checkpoint = "{folder}/model"
[data]
path = "{folder}/data.json"
[train]
dtype = "bfloat16"
batch_size = 16
micro_batch = {plan["micro_batch"]}
epochs = 1.0
[loader]
max_length = {plan["positions"]}
too_long = "truncate"
"""
    )
    memory = ["--memory", plan["memory"]]
    done, _, _ = dry.run("train", folder / "recipe.toml", "--plan", "--json", "--device", "cuda", *memory)
    memory = json.loads(done.stdout)["memory"]
    return (memory["total"] - memory["runtime"]) / 2**20


def operations(dry, **environment):
    """Every operation compiles and launches, forward and backward, in both types; the zeros that come back are wrong."""
    done, found, seconds = dry.run("devices", "--check", "cuda:0", "--json", expect=1, **environment)
    report = json.loads(done.stdout)
    broken = [case for case in report["operations"] if case["error"]]
    for case in broken:
        print(f"   {case['dtype']} {case['name']}: {case['error']}")
    if broken:
        raise Failed(f"{len(broken)} of {len(report['operations'])} operations do not run")
    if report["failed"] != len(report["operations"]):
        raise Failed("an operation whose results are zeros passed the check")
    print(f"operations: {len(report['operations'])}, {found['kernels_compiled']} kernels, {seconds:.0f} s", flush=True)


def own_kernels(dry, **environment):
    """Kernels of attention for tensor cores and of the optimizer: computed on the CPU, and without registers that spill."""
    folder = Path(tempfile.mkdtemp(dir=dry.folder))
    (folder / "ptx").mkdir()
    # Only what is compiled is in the log.
    fresh = {"BASIC_KERNEL_CACHE": str(folder / "cache"), "CUBECL_DEBUG_LOG": str(folder / "log")}
    fresh |= {"CUDA_STUB_PTX": str(folder / "ptx")}
    dry.run("devices", "--check", "cuda:0", "--dtype", "bfloat16", expect=1, **fresh, **environment)
    done = subprocess.run(
        [sys.executable, HERE / "emulate.py", folder / "log", "--work", folder], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Failed(f"kernels, computed on the CPU: {done.stdout[-4000:]}{done.stderr[-2000:]}")
    print(f"kernels, computed on the CPU {environment or ''}: {done.stdout.strip().splitlines()[-1]}", flush=True)
    ptxas = toolkit() / "bin" / "ptxas"
    if not ptxas.exists():
        raise Failed(f"no {ptxas}: pip install nvidia-cuda-nvcc")
    most = {}
    for path in sorted((folder / "ptx").glob("*_kernel_e_*.ptx")):
        kind = path.name.split("_kernel")[0]
        target = re.search(r"^\.target (\w+)", path.read_text(), re.M)[1]
        command = [ptxas, "-v", f"-arch={target}", path, "-o", folder / "cubin"]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode != 0:
            raise Failed(f"{path.name}: {told.stderr[-2000:]}")
        registers = int(re.search(r"(\d+) registers", told.stderr)[1])
        spilled = int(re.search(r"(\d+) bytes spill stores", told.stderr)[1])
        if spilled > SPILL:
            raise Failed(f"{path.name}: {spilled} bytes of registers spill")
        most[kind] = max(most.get(kind, 0), registers)
    print("   registers at most: " + ", ".join(f"{kind} {count}" for kind, count in sorted(most.items())), flush=True)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def together(dry):
    """What ranks do together, over a stand-in for NCCL that moves real bytes: one device, threads, and processes as
    torchrun launches them. Kernels do nothing here, so that a sum in bf16, which is computed in f32, cannot be right."""
    folder = dry.folder / "nccl"
    folder.mkdir()
    library = ["-o", folder / "libnccl.so.2", HERE / "nccl.c", "-lpthread"]
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-w", *library], check=True)

    done, _, _ = dry.run("devices", "--together", "cuda:0", expect=1)
    if "libnccl.so.2" not in done.stderr or len(done.stderr.strip().splitlines()) != 1:
        raise Failed(f"no NCCL: not one line that says so: {done.stderr[:2000]}")
    print(f"no NCCL: {done.stderr.strip()[:160]}", flush=True)

    environment = {"LD_LIBRARY_PATH": f"{dry.folder}:{folder}", "CUDA_STUB_MEMORY": "1", "CUDA_STUB_DEVICES": "3"}

    def judge(what, ranks, told):
        report = json.loads(told)
        sums = ("sum", "reduce_scatter")
        right = [one for one in report["operations"] if one["passed"]]
        wrong = [one for one in report["operations"] if not one["passed"]]
        known = [one for one in wrong if one["dtype"] == "bf16" and one["operation"] in sums]
        if report["replicas"] != ranks or len(known) != len(wrong) or len(right) < 18:
            raise Failed(f"{what}: {report['replicas']} replicas, wrong: {wrong}")
        print(f"together, {what}: {len(right)} operations give the right values", flush=True)

    done, _, _ = dry.run("devices", "--together", "cuda:0", "--json", expect=None, **environment)
    judge("one device", 1, done.stdout)
    done, _, _ = dry.run("devices", "--together", "cuda:0,cuda:1,cuda:2", "--json", expect=None, **environment)
    judge("three threads", 3, done.stdout)
    for ended in launch(dry, 3, environment, "devices", "--together", "cuda", "--json"):
        if ended.stdout:
            judge("three processes of torchrun", 3, ended.stdout)
    for stage in ("pretrain", "finetune"):
        arguments = ["bench", "--preset", "tiny", "--stage", stage, "--device", "cuda", "--recompute"]
        arguments += ["--steps", "2", "--warmup", "1", "--json"]
        ended = launch(dry, 2, environment | {"CUDA_STUB_NCCL": "1", "CUDA_STUB_ONES": "1"}, *arguments)
        if any(one.returncode != 0 for one in ended):
            raise Failed(f"bench on two ranks: {[one.stderr[-2000:] for one in ended]}")
        counts = [re.search(r"nccl: (.*)", one.stderr) for one in ended]
        if not counts[0] or not counts[1] or counts[0][1] != counts[1][1]:
            raise Failed(f"bench on two ranks: the ranks' operations differ: {[one.stderr[-500:] for one in ended]}")
        print(f"together, three steps of {stage} on two ranks: {counts[0][1]} on each", flush=True)


def launch(dry, ranks, environment, *arguments):
    """Processes with the variables that torchrun sets."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    running = []
    for rank in range(ranks):
        own = dry.environment | environment | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        own["CUDA_STUB_STATS"] = os.devnull
        running.append(
            subprocess.Popen([dry.binary, *arguments], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    ended = []
    for process in running:
        out, error = process.communicate(timeout=1800)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return ended


def refusals(dry):
    """What is missing is said in one line."""
    cases = [
        ({"CUDA_STUB_VERSION": "12010"}, "newer driver", "an old driver"),
        ({"CUDA_STUB_DEVICES": "0"}, "NO_DEVICE", "no device"),
        ({"CUDA_PATH": str(dry.folder)}, "libnvrtc.so", "no toolkit"),
        ({"LD_LIBRARY_PATH": ""}, "libcuda.so", "no driver"),
        ({"CUDA_STUB_MIB": "64"}, "memory", "too little memory"),
        ({"CUDA_STUB_PRODUCT_FAILS": "50", "BASIC_CUBLAS": "ahead"}, "BASIC_CUBLAS=0", "a product that fails"),
    ]
    for environment, said, what in cases:
        done, _, _ = dry.run("bench", "--preset", "tiny", "--device", "cuda:0", expect=1, **environment)
        lines = done.stderr.strip().splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: ") or said not in lines[0]:
            raise Failed(f"{what}: not one line that says '{said}': {done.stderr[:2000]}")
        print(f"{what}: {lines[0][:160]}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("cache")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="*", help="names of budgets.json")
    args = parser.parse_args()
    budgets = json.loads((HERE / "budgets.json").read_text())
    dry = Dry(args.binary, args.cache)
    failed = []
    try:
        if not args.only:
            done, _, _ = dry.run("devices")
            if "cuda:0" not in done.stdout:
                raise Failed(f"basic devices does not list cuda:0: {done.stdout}")
            refusals(dry)
            together(dry)
            operations(dry)
            operations(dry, BASIC_CUBLAS="ahead")
            operations(dry, BASIC_CUBLAS="0", BASIC_KERNELS="portable")
            own_kernels(dry)
            own_kernels(dry, BASIC_KERNELS="ahead")
        for name, budget in budgets.items():
            if args.only and name not in args.only:
                continue
            print(f"{name}: basic bench {' '.join(budget['arguments'])}", flush=True)
            found = dry.step(*budget["arguments"], **budget.get("environment", {}))
            for key, most in budget["at_most"].items():
                if args.write:
                    budget["at_most"][key] = most if key in ("dtoh", "late") else round(found[key] * 1.1)
                elif found[key] > most:
                    failed.append(f"{name}: {key} is {found[key]:.0f}, at most {most} were allowed")
            if "plan" in budget:
                planned = planned_mib(dry, budget["plan"])
                apart = planned / found["peak_mib"] - 1
                print(f"   planned {planned:.0f} MiB, {100 * apart:+.1f}% of what was counted")
                if abs(apart) > PLAN:
                    failed.append(f"{name}: the plan's {planned:.0f} MiB are {100 * apart:+.1f}% apart")
            shown = {key: value for key, value in found.items() if key != "kernels"}
            print("   a step: " + ", ".join(f"{key} {value:.4g}" for key, value in shown.items()))
            for kernel, count in sorted(found["kernels"].items(), key=lambda item: -item[1])[:12]:
                print(f"   {count:8.0f}  {kernel[:100]}")
        if args.write:
            (HERE / "budgets.json").write_text(json.dumps(budgets, indent=2) + "\n")
    except Failed as error:
        failed.append(str(error))
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    print("the dry run failed" if failed else "the dry run passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
