"""Data sets as Python's libraries write them: tests/fixtures/data, which tests/tests/data.rs reads.

    python tests/reference/data_fixtures.py tests/fixtures

Needs pyarrow, datasets and webdataset. Written with pyarrow 26.0.1, datasets 5.2.0, webdataset 1.0.2.
"""

import io
import json
import sys
from pathlib import Path

import webdataset
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow

TURNS = [
    ["<image>\nwhat is in the picture?", "a small red circle"],
    ["<image>\nwhat is it?", "two green triangles", "how many are there?", "two"],
    ["is the grass green?", "it is"],
]


def conversation(texts):
    return [{"from": ["human", "gpt"][i % 2], "value": text} for i, text in enumerate(texts)]


def chat(texts):
    return [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(texts)]


def pairs(texts):
    # The Cauldron and FineVision: no <image> in the texts.
    plain = [text.replace("<image>\n", "") for text in texts]
    return [{"user": plain[i], "assistant": plain[i + 1], "source": "made up"} for i in range(0, len(plain), 2)]


def main(fixtures):
    out = fixtures / "data"
    out.mkdir(exist_ok=True)
    a, b = fixtures / "images/a.png", fixtures / "images/b.png"

    # With their bytes, as `push_to_hub` embeds them.
    def image(path):
        return {"bytes": path.read_bytes(), "path": path.name}

    # One image or none, LLaVA's turns.
    features = Features({
        "id": Value("string"),
        "image": Image(),
        "conversations": List({"from": Value("string"), "value": Value("string")}),
    })
    rows = {
        "id": ["first", "second", "third"],
        "image": [image(a), image(b), None],
        "conversations": [conversation(turns) for turns in TURNS],
    }
    Dataset.from_dict(rows, features=features).to_parquet(out / "llava.parquet")

    # Lists of images, pairs of texts, several row groups.
    features = Features({
        "images": List(Image()),
        "texts": List({"user": Value("string"), "assistant": Value("string"), "source": Value("string")}),
    })
    rows = {"images": [[image(a)], [image(b)], []], "texts": [pairs(turns) for turns in TURNS]}
    Dataset.from_dict(rows, features=features).to_parquet(out / "cauldron.parquet", batch_size=2)

    # A chat, large types as polars and newer pyarrow write them.
    features = Features({
        "images": List(Image()),
        "messages": List({"role": Value("large_string"), "content": Value("large_string")}),
    })
    rows = {"images": rows["images"], "messages": [chat(turns) for turns in TURNS]}
    Dataset.from_dict(rows, features=features).to_parquet(out / "chat.parquet")

    # Captions; the image is an encoded JPEG without a file.
    jpeg = io.BytesIO()
    Pillow.open(a).convert("RGB").save(jpeg, "JPEG")
    features = Features({"image": Image(), "text": Value("string")})
    rows = {"image": [{"bytes": jpeg.getvalue(), "path": None}], "text": ["a caption"]}
    Dataset.from_dict(rows, features=features).to_parquet(out / "caption.parquet")

    for name in ["llava.tar", "llava.tar.gz"]:
        with webdataset.TarWriter(str(out / name), mtime=0) as sink:
            for index, (path, turns) in enumerate(zip([a, b, None], TURNS)):
                sample = {"__key__": f"{index:06}", "json": {"id": index, "conversations": conversation(turns)}}
                if path:
                    sample["png"] = path.read_bytes()
                sink.write(sample)
    # img2dataset's layout, and twelve images that sort by name as 0, 1, 10, 11, 2.
    with webdataset.TarWriter(str(out / "captions.tar"), mtime=0) as sink:
        record = {"caption": "a caption", "url": "x", "width": 16}
        sink.write({"__key__": "shard/000", "jpg": jpeg.getvalue(), "txt": "a caption", "json": record})
        frames = {f"{i}.png": frame(i) for i in range(12)}
        sink.write({"__key__": "shard/001", "txt": "twelve", **frames})
    (out / "expected.json").write_text(json.dumps(TURNS, indent=1) + "\n")


def frame(side):
    """An image of side + 1 pixels."""
    png = io.BytesIO()
    Pillow.new("RGB", (side + 1, side + 1)).save(png, "PNG")
    return png.getvalue()


main(Path(sys.argv[1]))
