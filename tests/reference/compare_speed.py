#!/usr/bin/env python3
"""Training steps of this project and of the PyTorch reference, alternately in one run: reference, ours, reference, …

    python tests/reference/compare_speed.py --basic target/release/basic [--preset small] [--rounds 5]
        [--stages pretrain finetune] [--arms ARM …] [--reference BASIC_REFERENCE.py]

Needs torch and transformers for the reference. Prints a Markdown table of medians: seconds a step, samples a second,
peak resident memory, the ratios of samples a second, and what the losses add to a step. Run it on an otherwise idle machine."""
import argparse
import json
import statistics
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path


def once(command):
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(command)}:\n{ran.stderr}")
    return json.loads(ran.stdout.strip().splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--reference", default=str(Path(__file__).resolve().parent / "basic_reference.py"))
    p.add_argument("--basic", required=True)
    p.add_argument("--preset", default="small")
    p.add_argument("--threads", default="2")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", default="3")
    p.add_argument("--stages", nargs="+", default=["pretrain", "finetune"])
    p.add_argument("--arms", nargs="+", choices=["llava", "basic", "lean-llava", "lean"],
                   default=["llava", "basic", "lean-llava", "lean"], help="the reference's; ours are llava and basic")
    a = p.parse_args()
    shared = ["--preset", a.preset, "--threads", a.threads, "--steps", a.steps, "--warmup", "1"]
    sides = {("reference", arm): [sys.executable, a.reference, "bench", "--arm", arm] for arm in a.arms}
    sides |= {("ours", arm): [a.basic, "bench", "--json", "--arm", arm] for arm in ("llava", "basic")}
    # Theirs and ours in turn.
    theirs, ours = [key for key in sides if key[0] == "reference"], [key for key in sides if key[0] == "ours"]
    order = [key for pair in zip_longest(theirs, ours) for key in pair if key]
    for stage in a.stages:
        measured = {}
        for _ in range(a.rounds):
            for key in order:
                report = once(sides[key] + shared + ["--stage", stage])
                measured.setdefault(key, []).append((report["step_s"], report["peak_rss_mib"]))
        median = {key: [statistics.median(x) for x in zip(*runs)] for key, runs in measured.items()}
        print(f"\n{stage}, {a.preset}, {a.threads} threads, medians of {a.rounds} alternating runs\n")
        print("| | arm | s a step (least to most) | peak RSS, MiB |\n|---|---|---|---|")
        for key in order:
            steps = [step for step, _ in measured[key]]
            print(f"| {key[0]} | {key[1]} | {median[key][0]:.3f} ({min(steps):.3f} to {max(steps):.3f}) | {median[key][1]:.0f} |")
        print("\n| samples/s, ours against the reference's | ratio |\n|---|---|")
        for ours, theirs in (("llava", "llava"), ("llava", "lean-llava"), ("basic", "basic"), ("basic", "lean")):
            if theirs in a.arms:
                ratio = median["reference", theirs][0] / median["ours", ours][0]
                print(f"| {ours} against {theirs} | {ratio:.2f} |")
        if "basic" in a.arms:
            print(f"| peak RSS, basic against basic | {median['ours', 'basic'][1] / median['reference', 'basic'][1]:.2f} |")
        print("\n| what the losses add to a step | s |\n|---|---|")
        for side, less, more in (("ours", "llava", "basic"), ("reference", "lean-llava", "lean"), ("reference", "llava", "basic")):
            if {(side, less), (side, more)} <= set(median):
                print(f"| {side}, {more} over {less} | {median[side, more][0] - median[side, less][0]:.2f} |")


main()
