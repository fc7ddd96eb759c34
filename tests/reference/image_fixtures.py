#!/usr/bin/env python3
"""Makes basic-models/tests/fixtures/processor/{decode/*,decoded.json,sizes.json}: image files of many kinds with their
pixels, and the image processors over many sizes.

    python image_fixtures.py OUT_DIR

decoded.json: per file the pixels as transformers' load_image gives them (Pillow: exif_transpose, convert("RGB")).
sizes.json: images drawn by a formula that the test repeats, so that a photograph's size needs no file; of what
transformers' processors (Pillow backend) make of them, as 8-bit values [3, H, W], an FNV-1a hash and some samples.
"""
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor
from transformers.image_utils import load_image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

out = Path(sys.argv[1])
folder = out / "decode"
folder.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(7)
RGB = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
PHOTO = np.array(Image.fromarray(rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)).resize((24, 16), Image.BICUBIC))


def png(path, width, height, depth, kind, rows, chunks=()):
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    data += b"".join(chunk(n, d) for n, d in chunks)
    data += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9)) + chunk(b"IEND", b"")
    (folder / path).write_bytes(data)


def files():
    image = Image.fromarray(RGB)
    for orientation in range(0, 10):  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f"orientation_{orientation}.png", exif=exif)
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = 6
    little = exif.tobytes()
    image.save(folder / "orientation_6.webp", lossless=True, exif=little)
    Image.fromarray(PHOTO).save(folder / "orientation_6.jpg", quality=95, exif=little)
    exif.endian = ">"
    image.save(folder / "orientation_big_endian.png", exif=exif.tobytes())
    for name, xmp in (("attribute", b'<x tiff:Orientation="8" />'), ("element", b"<tiff:Orientation>5</tiff:Orientation>")):
        Image.fromarray(PHOTO).save(folder / f"xmp_{name}.jpg", quality=95, xmp=xmp)
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(PHOTO).save(folder / "exif_wins.jpg", quality=95, exif=exif, xmp=b'tiff:Orientation="3"')

    deep = rng.integers(0, 65536, (3, 5, 4)).astype(">u2")
    deep[0, :3, 0] = [0, 200, 255]
    for name, kind, channels in (("grey", 0, 1), ("rgb", 2, 3), ("grey_alpha", 4, 2), ("rgb_alpha", 6, 4)):
        png(f"deep_{name}.png", 5, 3, 16, kind, [row[:, :channels].tobytes() for row in deep])
    for depth in (1, 2, 4):
        png(f"grey_{depth}.png", 8, 2, depth, 0, [bytes([0b00011011] * depth), bytes([0b11100100] * depth)])
    palette = rng.integers(0, 256, (4, 3)).astype(np.uint8).tobytes()
    rows = [bytes([0b00011011]), bytes([0b11100100])]
    png("palette_2.png", 4, 2, 2, 3, rows, [(b"PLTE", palette), (b"tRNS", bytes([0, 128]))])
    png("grey_transparent.png", 4, 1, 8, 0, [bytes([0, 7, 200, 255])], [(b"tRNS", bytes([0, 200]))])
    png("rgb_transparent.png", 2, 1, 8, 2, [bytes([9, 8, 7, 1, 2, 3])], [(b"tRNS", bytes([0, 9, 0, 8, 0, 7]))])
    png("alpha.png", 2, 1, 8, 6, [bytes([9, 8, 7, 0, 1, 2, 3, 128])])
    image.convert("L").save(folder / "grey.bmp")
    image.save(folder / "rgb.bmp")
    image.quantize(4).save(folder / "palette.bmp")
    image.quantize(4).save(folder / "transparent.gif", transparency=2)
    Image.fromarray(np.dstack([RGB, RGB[..., 0]])).save(folder / "alpha.webp", lossless=True, exact=True)
    Image.fromarray(PHOTO).convert("L").save(folder / "grey.jpg", quality=95)
    Image.fromarray(PHOTO).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(PHOTO).save(folder / "progressive.jpg", quality=95, progressive=True, subsampling=0)
    Image.fromarray(PHOTO).save(folder / "subsampled.jpg", quality=95, subsampling=2)
    Image.fromarray(PHOTO).save(folder / "lossy.webp", quality=95)
    decoded = {}
    for path in sorted(folder.iterdir()):
        rgb = np.array(load_image(str(path)))
        decoded[path.name] = dict(width=rgb.shape[1], height=rgb.shape[0], rgb=rgb.tobytes().hex())
    (out / "decoded.json").write_text(json.dumps(decoded, indent=0) + "\n")


SIZES = [(1, 1), (2, 1), (1, 37), (1, 500), (700, 1), (3, 2000), (2000, 3), (5, 7), (27, 28), (28, 29), (61, 47), (333, 500),
         (640, 427), (427, 640), (1023, 769), (4032, 3024), (3001, 4003), (6000, 40), (40, 6000)]
raw = dict(do_rescale=False, do_normalize=False)
PROCESSORS = {
    "clip": CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **raw),
    "clip_336": CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, **raw),
    "siglip": SiglipImageProcessor(size={"height": 25, "width": 25}, **raw),
    "siglip_384": SiglipImageProcessor(size={"height": 384, "width": 384}, **raw),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_pad=True, **raw),
    "llava_half": LlavaImageProcessorPil(size={"height": 25, "width": 25}, do_center_crop=False, do_pad=True, image_mean=[0.5] * 3,
                                         image_std=[0.5] * 3, **raw),
}


def drawn(width, height):
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    return ((x * 7 + y * 13 + c * 29) ^ (x * y >> 5)).astype(np.uint8)


def fnv(values):
    hash_ = 0xCBF29CE484222325
    for value in values.tolist():
        hash_ = ((hash_ ^ value) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{hash_:016x}"


def sizes():
    cases = []
    settings = {name: {k: v for k, v in json.loads(p.to_json_string()).items()} for name, p in PROCESSORS.items()}
    for width, height in SIZES:
        image = Image.fromarray(drawn(width, height))
        for name, processor in PROCESSORS.items():
            large = name in ("clip_336", "siglip_384")
            if large and (width, height) not in [(640, 427), (427, 640), (4032, 3024), (1, 37), (61, 47)]:
                continue
            values = np.asarray(processor(image, return_tensors="np").pixel_values[0])
            bytes_ = values.astype(np.uint8).ravel()
            assert (values.ravel() == bytes_).all(), "not 8-bit values"
            samples = bytes_[:: max(1, len(bytes_) // 24)].tolist()
            cases.append(dict(processor=name, width=width, height=height, shape=list(values.shape), hash=fnv(bytes_), samples=samples))
    (out / "sizes.json").write_text(json.dumps(dict(processors=settings, cases=cases)) + "\n")


files()
sizes()
