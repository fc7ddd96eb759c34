"""Attention's kernels for tensor cores and its read-out, and the optimizer's kernels, computed on the CPU and compared with
attention and AdamW written out in float64.

`basic devices --check` on the driver that counts has CubeCL write the kernels' CUDA sources; each is compiled here with
emulate.h in the place of CUDA, and run over odd sizes, packed rows, windows and grouped heads.

    python3 emulate.py LOG [--work DIR]     LOG is what CUBECL_DEBUG_LOG wrote

Needs g++ and numpy.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
# What bfloat16 leaves of a result, relative to its root mean square.
TOLERANCE = 0.03


def kernels(log, module):
    """Name, comptime settings and source of the kernels in the log that come from a module and take bfloat16 first."""
    text = Path(log).read_text(errors="replace")
    found = []
    for part in re.split(rf"(?m)^name: basic_core::ops::cube::{module}::", text)[1:]:
        head, _, rest = part.partition("source:\n```cpp\n")
        source = rest.partition("\n```")[0]
        info = {key: value for key, value in re.findall(r"^        (\w+): (\d+|true|false),$", head, re.M)}
        name = re.search(r"(\w+_kernel_e_bf16\w*)\(", source)
        if name and all(source != other for _, _, other in found):
            found.append((name[1], {**info, "kind": name[1].split("_kernel")[0]}, source))
    return found


def portable(source):
    """The source with CUDA's assembly as calls of emulate.h."""
    source = re.sub(r"#include <(cooperative_groups|cuda)[^>]*>", "", source)
    source = re.sub(r"typedef [^;]* u?int\d+_t;", "", source)
    source = re.sub(r"typedef struct CUtensorMap_st \{.*?\} CUtensorMap;", "", source, flags=re.S)
    source = re.sub(r"extern __shared__ __align__\(\d+\) char (\w+)\[\];", r"char *\1 = shared_memory;", source)

    def call(match):
        body = match[1]
        # The template's strings hold colons: cut after the last string that comes before the operands.
        strings = re.match(r'\s*((?:"(?:[^"\\]|\\.)*"\s*)+)(.*)', body, re.S)
        code = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', strings[1]))
        outs, ins = (re.findall(r'"[^"]*"\(([^()]*)\)', part) for part in (strings[2].split(":") + ["", ""])[1:3])
        if code.startswith("ldmatrix"):
            turned = "true" if ".trans" in code else "false"
            return f"{{ uint32_t *o[4] = {{{', '.join('&' + o for o in outs)}}}; ldmatrix({turned}, o, {ins[0]}); }}"
        if code.startswith("mma.sync"):
            return (
                f"{{ float *d[4] = {{{', '.join('&' + o for o in outs)}}}; uint32_t a[4] = {{{', '.join(ins[:4])}}};"
                f" uint32_t b[2] = {{{', '.join(ins[4:6])}}}; float c[4] = {{{', '.join(ins[6:])}}}; mma(d, a, b, c); }}"
            )
        if code.startswith("ex2"):
            return f"{outs[0]} = exp2f({ins[0]});"
        if code.startswith("cp.async.mbarrier"):
            return ";"
        if code.startswith("cp.async"):
            return f"copied({ins[0]}, {ins[1]}, {ins[2]});"
        raise ValueError(f"unknown assembly: {code}")

    return re.sub(r"asm volatile\((.*?)\);", lambda m: call(m), source, flags=re.S)


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x):
    return widened(bf16(x)).astype(np.float64)


class Emulated:
    def __init__(self, name, info, source, work, block=(32, 4, 1)):
        self.info, self.work = info, Path(work)
        parameters = re.search(name + r"\((.*?)\)\s*\{", source, re.S)[1]
        self.arguments = [part.split()[-1] for part in parameters.split(",")]
        tensors = [part for part in parameters.split(",") if "__restrict__" in part and "meta" not in part]
        self.tensors = len(tensors)
        # Shapes and strides, and two sizes for each, are of tensors; the optimizer's kernels take bare arrays.
        shaped = "dynamic_meta" in parameters
        self.first = 2 * self.tensors if shaped else 0
        types = [part.strip().split(" ")[0] for part in tensors]
        loads = "\n".join(f'  t[{i}] = loaded((work + "/{i}.bin").c_str());' for i in range(self.tensors))
        pass_on = ", ".join(f"({types[i]} *)t[{i}]" for i in range(self.tensors))
        code = f"""
#include "emulate.h"
#include <string>
{portable(source)}
static char *t[{self.tensors}];
static info_st info;
static void body() {{ {name}({pass_on}, {"nullptr, " if shaped else ""}info); }}
int main(int, char **v) {{
  std::string work = v[1];
{loads}
  char *scalars = loaded((work + "/scalars.bin").c_str());
  memcpy(&info, scalars, sizeof info);
  Dim grid = {{(uint32_t)atoi(v[2]), (uint32_t)atoi(v[3]), (uint32_t)atoi(v[4])}};
  launch(grid, {{{block[0]}, {block[1]}, {block[2]}}}, 200 << 10, body);
  for (int i = 5; v[i]; i += 2) stored((work + "/" + v[i] + ".out").c_str(), t[atoi(v[i])], atoi(v[i + 1]));
}}
"""
        self.usizes = int(re.search(r"scalars_usize\[(\d+)\];", source)[1])
        self.floats = int((re.search(r"scalars_f32\[(\d+)\];", source) or [0, "0"])[1])
        self.static = int((re.search(r"uint32_t static_meta\[(\d+)\];", source) or [0, "0"])[1])
        path = self.work / f"{name}.cpp"
        path.write_text(code)
        self.binary = self.work / name
        subprocess.run(["g++", "-O1", "-w", "-I", HERE, "-o", self.binary, path], check=True)

    def run(self, grid, tensors, outputs, usizes, floats):
        """Tensors as arrays; outputs as places and shapes; what the kernel wrote there."""
        for i, tensor in enumerate(tensors):
            (self.work / f"{i}.bin").write_bytes(tensor.tobytes())
        # The sizes of the tensors come first.
        scalars = np.full(self.usizes, 0x7FFFFFFF, np.uint32)
        scalars[self.first : self.first + len(usizes)] = usizes
        numbers = np.zeros(self.floats, np.float32)
        numbers[: len(floats)] = floats
        static = np.full(self.static, 0x7FFFFFFF, np.uint32)
        (self.work / "scalars.bin").write_bytes(scalars.tobytes() + numbers.tobytes() + static.tobytes())
        sizes = [str(part) for place in outputs for part in (place, tensors[place].nbytes)]
        subprocess.run([self.binary, self.work, *map(str, grid), *sizes], check=True)
        return [
            np.frombuffer((self.work / f"{i}.out").read_bytes(), tensors[i].dtype).reshape(tensors[i].shape)
            for i in outputs
        ]


def reference(q, k, v, first, grad, causal):
    """Output, log-sum-exp and gradients, in float64."""
    b, t, heads, width = q.shape
    keys, kv = k.shape[1:3]
    scale, past = width**-0.5, keys - t
    output, lse = np.zeros_like(q), np.zeros((b, heads, t))
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    p_all = np.zeros((b, heads, t, keys))
    for i in range(b):
        high = past + np.arange(t) if causal else np.full(t, keys - 1)
        low = np.minimum(first[i % len(first)], high)
        seen = (np.arange(keys) >= low[:, None]) & (np.arange(keys) <= high[:, None])
        for h in range(heads):
            g = h // (heads // kv)
            s = np.where(seen, q[i, :, h] @ k[i, :, g].T * scale, -np.inf)
            top = s.max(1, keepdims=True)
            e = np.exp(s - top)
            p = e / e.sum(1, keepdims=True)
            p_all[i, h] = p
            lse[i, h] = (top + np.log(e.sum(1, keepdims=True)))[:, 0]
            output[i, :, h] = p @ v[i, :, g]
            d = grad[i, :, h]
            drop = (d * output[i, :, h]).sum(1, keepdims=True)
            ds = p * (d @ v[i, :, g].T - drop) * scale
            dq[i, :, h] = ds @ k[i, :, g]
            dk[i, :, g] += ds.T @ q[i, :, h]
            dv[i, :, g] += p.T @ d
    return output, lse, dq, dk, dv, p_all


def off(found, expected):
    size = np.sqrt((expected**2).mean())
    return float(np.abs(found - expected).max() / size)


def relative(found, expected):
    """As `off`, but relative to the element where that is larger: an update by a tiny second moment is thousands."""
    size = np.maximum(np.abs(expected), np.sqrt((expected**2).mean()))
    return float((np.abs(found - expected) / size).max())


CASES = [
    # batch, queries, keys, heads, key heads, window (0: none; negative: packed in samples of so many)
    (1, 64, 64, 1, 1, 0),
    (2, 150, 150, 2, 1, 0),
    (1, 200, 200, 1, 1, -70),
    (1, 200, 200, 2, 2, 70),
    (2, 70, 133, 2, 1, 0),
    (2, 1, 133, 4, 1, 0),
    (1, 197, 197, 1, 1, 0),
]


def first_of(t, past, window):
    if window < 0:
        return np.array([(past + i) // -window * -window for i in range(t)], np.int32)
    return np.array([max(0, past + i + 1 - window) if window else 0 for i in range(t)], np.int32)


# The elements whose squares are summed into one number.
SQUARES_PART = 1 << 14


def optimizer(log, work):
    """How far each kernel of the optimizer is from float64, by name and by the number of elements of all its tensors."""
    random = np.random.default_rng(1)
    for name, info, source in kernels(log, "optimizer"):
        built = Emulated(name, info, source, work, (256, 1, 1))
        vector, squares = int(info["n"]), info["kind"] == "squares"
        # The sums of squares have one tensor more, their result; an update has 4 a parameter, or 5 with a master.
        master = "_m_f32" in name
        each = 1 if squares else 5 if master else 4
        several = (built.tensors - squares) // each
        for scale in (1, 300, 2 * SQUARES_PART // vector + 3):
            counts = [scale + 5 * i for i in range(several)]
            sizes = [count * vector for count in counts]
            grads = [rounded(random.normal(size=n)) for n in sizes]
            told = f"{name}, {several} together, {sum(sizes)} elements"
            if squares:
                parts = [grad[i : i + SQUARES_PART] for grad in grads for i in range(0, len(grad), SQUARES_PART)]
                sums = np.full(len(parts), np.nan, np.float32)
                tensors = [*(bf16(grad) for grad in grads), sums]
                (found,) = built.run((len(parts), 1, 1), tensors, [several], [*counts, len(parts)], [])
                expected = np.array([(part**2).sum() for part in parts])
                yield told, {"sums": float(np.abs(found / expected - 1).max())}
                continue
            scaled, beta1, beta2, keep, rate, root, epsilon = (0.3, 0.9, 0.99, 0.98, 0.02, 3.0, 1e-6)
            floats = [scaled, beta1, beta2, 1 - beta1, 1 - beta2, keep, rate, root, epsilon]
            p, first, second = ([random.normal(size=n).astype(np.float32) for n in sizes] for _ in range(3))
            second = [v**2 for v in second]
            held = p if master else [widened(bf16(x)) for x in p]
            tensors = [*(np.full(n, 0x7FFF, np.uint16) for n in sizes), *held] if master else [bf16(x) for x in p]
            tensors += [*map(bf16, grads), *first, *second]
            found = built.run(
                (-(-sum(counts) // 256), 1, 1), tensors, list(range(len(tensors))), counts, floats
            )
            found = [found[i * several : (i + 1) * several] for i in range(each)]
            result = {}
            for i, grad in enumerate(grads):
                m = beta1 * first[i].astype(float) + (1 - beta1) * scaled * grad
                v = beta2 * second[i].astype(float) + (1 - beta2) * (scaled * grad) ** 2
                updated = keep * held[i].astype(float) - rate * m / (root * np.sqrt(v) + epsilon)
                one = {"m": relative(found[-2][i], m), "v": relative(found[-1][i], v)}
                if master:
                    one["master"] = relative(found[1][i], updated)
                    updated = rounded(found[1][i])
                parameter = np.abs(widened(found[0][i]) - updated) / np.maximum(np.abs(updated), 1e-3)
                one["parameter"] = float(parameter.max())
                result = {key: max(value, result.get(key, 0.0)) for key, value in one.items()}
            yield told, result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--work")
    args = parser.parse_args()
    work = args.work or tempfile.mkdtemp()
    Path(work).mkdir(parents=True, exist_ok=True)
    groups = {}
    for name, info, source in kernels(args.log, "attention"):
        key = (int(info["vectors"]), info.get("causal", "true") == "true", info.get("ahead", "-"))
        groups.setdefault(key, {})[info["kind"]] = (name, info, source)
    failed, ran = [], 0
    random = np.random.default_rng(0)
    for (vectors, causal, ahead), kinds in sorted(groups.items(), key=str):
        if "forward" not in kinds:
            continue
        built = {kind: Emulated(*kinds[kind], work) for kind in ("forward", "query", "key") if kind in kinds}
        width = 8 * vectors
        for b, t, keys, heads, kv, window in CASES:
            if not causal and (window or keys != t):
                continue
            q, k, v, grad = (
                rounded(random.normal(size=shape))
                for shape in ((b, t, heads, width), (b, keys, kv, width), (b, keys, kv, width), (b, t, heads, width))
            )
            q = rounded(2 * q)
            first = first_of(t, keys - t, window)[None]
            output, lse, dq, dk, dv, _ = reference(q, k, v, first, grad, causal)
            sizes, scale = [t, keys, heads, kv, 1], [width**-0.5]
            bits = [bf16(x) for x in (q, k, v)]
            blank = lambda x, dtype=np.uint16: np.full(x.shape, 0x7FFF, dtype)  # NaN where nothing is written
            norms = np.full(lse.shape, np.nan, np.float32)
            grid = (-(-t // 64), heads, b)
            found = built["forward"].run(grid, [*bits, first, blank(output), norms], [4, 5], sizes, scale)
            result = {"output": off(widened(found[0]), output), "lse": off(found[1], lse)}
            if "query" in built:
                dots = np.full(lse.shape, np.nan, np.float32)
                inputs = [*bits, first, found[0].copy(), bf16(grad), found[1].copy(), dots, blank(q)]
                dots, q_grad = built["query"].run(grid, inputs, [7, 8], sizes, scale)
                inputs = [*bits, first, bf16(grad), found[1].copy(), dots.copy(), blank(k), blank(v)]
                k_grad, v_grad = built["key"].run((-(-keys // 64), kv, b), inputs, [7, 8], sizes, scale)
                found = zip(("dq", "dk", "dv"), (q_grad, k_grad, v_grad), (dq, dk, dv))
                result |= {name: off(widened(a), e) for name, a, e in found}
            ran += 1
            fine = all(value < TOLERANCE * (4 if name[0] == "d" else 2) for name, value in result.items())
            line = f"{'ok    ' if fine else 'FAILED'} width {width:3}, causal {causal}, ahead {ahead}, {(b, t, keys, heads, kv, window)}: "
            print(line + ", ".join(f"{name} {value:.1e}" for name, value in result.items()), flush=True)
            if not fine:
                failed.append(line)
    for name, info, source in kernels(args.log, "attention"):
        if info["kind"] != "mass":
            continue
        built, width, readouts = Emulated(name, info, source, work), 8 * int(info["vectors"]), int(info["readouts"])
        for b, t, keys, heads, kv, window in [(2, 150, 150, 6, 3, 90), (1, 70, 133, 1, 1, 0)]:
            n = 67
            q, k = (rounded(random.normal(size=s)) for s in ((b, t, heads, width), (b, keys, kv, width)))
            first = first_of(t, keys - t, window)[None]
            _, lse, _, _, _, p = reference(q, k, k, first, q, True)
            rows = random.integers(0, t, (b, n)).astype(np.int32)
            readout = random.random((b, readouts, n)).astype(np.float32)
            expected = np.stack([readout[i] @ p[i][:, rows[i]].sum(0) for i in range(b)])
            sums = np.full((-(-heads // 4), b, readouts, keys), np.nan, np.float32)
            inputs = [bf16(q), bf16(k), lse.astype(np.float32), first, rows, readout, sums]
            usizes = [t, keys, heads, kv, 1, n, b]
            (found,) = built.run((-(-keys // 64), len(sums), b), inputs, [6], usizes, [width**-0.5])
            apart, ran = off(found.sum(0), expected), ran + 1
            fine = apart < 1e-4
            line = f"{'ok    ' if fine else 'FAILED'} mass, width {width}, {(b, t, keys, heads, kv, window)}: "
            print(line + f"{apart:.1e}", flush=True)
            if not fine:
                failed.append(line)
    for name, result in optimizer(args.log, work):
        ran += 1
        # A parameter is its master in bfloat16 exactly, and without one what bfloat16 leaves of it.
        parameter = 0.0 if "master" in result else 2**-8
        fine = all(value <= (parameter if key == "parameter" else 1e-5) for key, value in result.items())
        line = f"{'ok    ' if fine else 'FAILED'} {name}: "
        print(line + ", ".join(f"{key} {value:.1e}" for key, value in result.items()), flush=True)
        if not fine:
            failed.append(line)
    print(f"{ran - len(failed)} of {ran} are what float64 gives")
    sys.exit(bool(failed) or not ran)


if __name__ == "__main__":
    main()
