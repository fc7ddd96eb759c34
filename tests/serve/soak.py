"""Mixed good, bad and cut-off requests against `basic serve` for some time: every good one must be answered rightly, and
the memory must not grow. .ci/serve runs this; it needs nothing beside Python."""

import atexit
import base64
import json
import pathlib
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
IMAGES = {path.name: base64.b64encode(path.read_bytes()).decode() for path in (FIXTURES / "images").glob("?.png")}


def body(image, tokens, **more):
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGES[image]}"}},
        {"type": "text", "text": "what is in the picture?"},
    ]
    messages = [{"role": "user", "content": parts}]
    return {"model": "plain", "messages": messages, "max_tokens": tokens, "temperature": 0, **more}


class Soak:
    def __init__(self, binary):
        line = [binary, "serve", FIXTURES / "plain", "--port", "0", "--device", "cpu", "--max-batch", "4"]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        self.url = next(line.split()[2] for line in self.process.stdout if line.startswith("listening on "))
        self.address = (self.url.split("//")[1].split(":")[0], int(self.url.rsplit(":", 1)[1]))
        self.over = time.time()
        self.counts = {"good": 0, "bad": 0, "cut": 0}
        self.failures = []

    def post(self, data):
        request = urllib.request.Request(
            self.url + "/v1/chat/completions", data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def good(self, random):
        image, tokens = random.choice(sorted(IMAGES)), random.choice([1, 5, 20])
        answer = self.post(json.dumps(body(image, tokens)).encode())
        return answer["choices"][0]["message"]["content"] == self.expected[image, tokens]

    def bad(self, random):
        bodies = [
            b"{", b"[]", b'{"model": 3}', json.dumps(body("a.png", 10**7)).encode(),
            json.dumps(body("a.png", 3, model="other")).encode(), json.dumps(body("a.png", 3, tools=[{}])).encode(),
            json.dumps(body("a.png", 3)).replace(IMAGES["a.png"], IMAGES["a.png"][:-40]).encode(),
        ]
        try:
            self.post(random.choice(bodies))
        except urllib.error.HTTPError as error:
            return error.code in (400, 404) and "message" in json.load(error)["error"]
        return False

    def cut(self, random):
        data = json.dumps(body(random.choice(sorted(IMAGES)), 500, stream=random.random() < 0.5, logit_bias={"2": -100})).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        request = head % len(data) + data
        with socket.create_connection(self.address) as connection:
            connection.sendall(request[: random.choice([10, 100, len(request) // 2, len(request), len(request)])])
            time.sleep(random.random() * 0.05)
        return True

    def client(self, seed):
        draw = random.Random(seed)
        while time.time() < self.over and not self.failures:
            kind = draw.choice(["good", "good", "bad", "cut"])
            try:
                right = getattr(self, kind)(draw)
            except OSError as error:
                right = f"{error!r}"
            if right is not True:
                self.failures.append((kind, right))
            self.counts[kind] += 1

    def memory(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024

    def run(self, seconds):
        self.expected = {
            (image, tokens): self.post(json.dumps(body(image, tokens)).encode())["choices"][0]["message"]["content"]
            for image in IMAGES for tokens in (1, 5, 20)
        }
        self.over = time.time() + seconds
        clients = [threading.Thread(target=self.client, args=(seed,)) for seed in range(8)]
        [client.start() for client in clients]
        time.sleep(seconds / 4)
        early = self.memory()
        [client.join() for client in clients]
        late = self.memory()
        self.process.terminate()
        assert self.process.wait(60) == 0
        assert not self.failures, self.failures
        assert late < early * 1.1 + 32, f"memory grew from {early} to {late} MiB"
        print(f"ok: {seconds} s of mixed requests: {self.counts}, {early} MiB after a quarter, {late} MiB at the end")


if __name__ == "__main__":
    Soak(sys.argv[1]).run(float(sys.argv[2]))
