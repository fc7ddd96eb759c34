"""Tokens per second and time to first token of `basic serve` under load: 100 streamed requests with an image at 1, 4 and 16
at a time. `python3 tests/serve/load.py BINARY CHECKPOINT IMAGE [TOKENS]`; needs nothing beside Python."""

import base64
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request

REQUESTS = 100


def main(binary, checkpoint, image, tokens=64):
    line = [binary, "serve", checkpoint, "--port", "0", "--max-batch", "16", "--max-queue", "128"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    url = next(line.split()[2] for line in process.stdout if line.startswith("listening on "))
    name = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]
    picture = "data:image/png;base64," + base64.b64encode(pathlib.Path(image).read_bytes()).decode()

    def ask(number):
        # Each question is another one, so that no cache holds more than its beginning.
        parts = [
            {"type": "text", "text": f"Question {number}: what is in the picture?"},
            {"type": "image_url", "image_url": {"url": picture}},
        ]
        body = {"model": name, "messages": [{"role": "user", "content": parts}], "max_tokens": int(tokens),
                "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(
            url + "/v1/chat/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        start, first, count = time.perf_counter(), None, 0
        with urllib.request.urlopen(request, timeout=600) as answer:
            for event in answer:
                if event.startswith(b"data: {"):
                    first = first or time.perf_counter() - start
                    count = (json.loads(event[6:]).get("usage") or {}).get("completion_tokens", count)
        return first, count

    ask(-1)
    print("at a time | tokens/s | time to first token, median and 95th percentile | tokens")
    for clients in (1, 4, 16):
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(ask, range(clients * 1000, clients * 1000 + REQUESTS)))
        seconds = time.perf_counter() - start
        first = sorted(one[0] for one in found)
        count = sum(one[1] for one in found)
        middle, late = statistics.median(first), first[int(0.95 * REQUESTS)]
        print(f"{clients:9} | {count / seconds:8.0f} | {1000 * middle:.0f} ms, {1000 * late:.0f} ms | {count}", flush=True)
    process.terminate()
    process.wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
