"""Reads a run's event files with TensorBoard's own reader and compares them with metrics.jsonl and eval.jsonl.

    pip install tensorboard
    python tests/reference/read_events.py RUN

Every number of metrics.jsonl must be a scalar at its step (in f32, as event files keep them), and no other step may be
there: what a resumed run did again, TensorBoard must have dropped.
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def numbers(record, path=""):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{path}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key != "step":
            yield path + key, value


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def main(run):
    files = sorted((run / "tensorboard").iterdir())
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags["scalars"]}
    steps_of = [tag for tag in scalars if not tag.startswith("eval/")]
    steps = [json.loads(line) for line in open(run / "metrics.jsonl")]
    compared = 0
    for record in steps:
        for key, value in numbers(record):
            # Tags carry a heading before the key.
            tag = next(t for t in steps_of if t == key or t.split("/", 1)[-1] == key)
            found = scalars[tag][record["step"]]
            assert found == f32(value), (tag, record["step"], found, value)
            compared += 1
    for tag in steps_of:
        extra = set(scalars[tag]) - {record["step"] for record in steps}
        assert not extra, (tag, extra)
    texts = [tag for tag in tags["tensors"]]
    for tag in texts:
        for event in events.Tensors(tag):
            assert event.tensor_proto.string_val[0].decode()
    evaluations = run / "eval.jsonl"
    if evaluations.exists():
        for line in open(evaluations):
            record = json.loads(line)
            for key, value in numbers(record):
                assert scalars[f"eval/{key}"][record["step"]] == f32(value), key
                compared += 1
            texts_at = {event.step for event in events.Tensors("eval/predictions")}
            assert record["step"] in texts_at
    print(f"{len(files)} event files, {len(steps)} steps, {compared} numbers equal; texts: {texts}")
    print("tags:", " ".join(sorted(scalars)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
