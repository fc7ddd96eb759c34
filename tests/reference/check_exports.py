"""Reads what `basic data export` wrote with Python's own libraries and compares it with the LLaVA JSON it came from.

    basic data export SOURCE.json --format parquet --out P
    basic data export SOURCE.json --format webdataset --out W
    python tests/reference/check_exports.py SOURCE.json P W

Needs datasets and webdataset. Images are compared as bytes, and the Parquet's must be known as images.
"""

import json
import sys
from pathlib import Path

import webdataset
from datasets import Image, List, load_dataset

source, parquet, archives = map(Path, sys.argv[1:])
samples = json.loads(source.read_text())


def images(sample):
    names = sample.get("image") or []
    return [(source.parent / name).read_bytes() for name in ([names] if isinstance(names, str) else names)]


def turns(conversation):
    return [(turn["from"], turn["value"]) for turn in conversation]


table = load_dataset("parquet", data_files=sorted(map(str, parquet.glob("*.parquet"))), split="train")
assert len(table) == len(samples), (len(table), len(samples))
assert isinstance(table.features["images"].feature, Image), table.features
raw = table.cast_column("images", List(Image(decode=False)))
for row, sample in zip(raw, samples, strict=True):
    assert [image["bytes"] for image in row["images"]] == images(sample), sample["id"]
    assert turns(row["conversations"]) == turns(sample["conversations"]), sample["id"]
    assert row["id"] == str(sample["id"])
decoded = table[0]["images"][0]
print(f"parquet: {len(table)} samples, the first image decodes to {decoded.size}")

urls = sorted(str(path) for path in archives.glob("*.tar*"))
count = 0
for member, sample in zip(webdataset.WebDataset(urls, shardshuffle=False), samples, strict=True):
    assert turns(json.loads(member["json"])["conversations"]) == turns(sample["conversations"]), sample["id"]
    found = [member[key] for key in sorted(member) if key.split(".")[-1] in ("png", "jpg", "webp", "gif", "bmp")]
    assert found == images(sample), sample["id"]
    count += 1
print(f"webdataset: {count} samples in {len(urls)} archives")
