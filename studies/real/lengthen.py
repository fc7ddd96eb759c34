"""Makes the visual embeddings of a checkpoint longer or shorter, without turning them, and says what the losses are then.

    python3 studies/real/lengthen.py BASIC CHECKPOINT SAMPLES [--by 0.1 1 8] [--target refinement]

BASIC is the binary, CHECKPOINT a LLaVA directory whose projector ends in linear_2, SAMPLES a file as `basic losses` reads it.
Needs safetensors and torch. docs/evidence.md has what came out.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("samples")
    parser.add_argument("--by", type=float, nargs="*", default=[0.1, 0.25, 0.5, 1, 2, 4, 8])
    parser.add_argument("--target", default="refined", help="as `basic losses` has it")
    args = parser.parse_args()
    tensors = load_file(args.checkpoint / "model.safetensors")
    last = [name for name in tensors if "projector" in name and "linear_2" in name]
    if not last:
        parser.error(f"{args.checkpoint}: no linear_2 in a projector")
    with tempfile.TemporaryDirectory() as folder:
        for file in args.checkpoint.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy(file, folder)
        print("| length | lm | das | sds |\n|---|---|---|---|")
        for by in args.by:
            changed = tensors | {name: tensors[name] * by for name in last}
            save_file(changed, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            command = [args.binary, "losses", folder, args.samples, "--target", args.target, "--json"]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"| x {by:g} | {found['lm']:.2f} | {found['das']:.3f} | {found['sds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
