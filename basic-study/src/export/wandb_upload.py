"""Uploads this run to Weights & Biases:

    pip install wandb && python upload.py --project PROJECT

With WANDB_MODE=offline nothing is sent; `wandb sync` does that later.
"""

import argparse
import json
from pathlib import Path

import wandb

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--project", required=True)
parser.add_argument("--entity")
args = parser.parse_args()
here = Path(__file__).parent
about = json.loads((here / "config.json").read_text())
with wandb.init(project=args.project, entity=args.entity, name=about["name"], config=about["config"]) as run:
    for line in (here / "history.jsonl").open():
        values = json.loads(line)
        run.log(values, step=values.pop("_step"))
