"""The openai package against a running `basic serve`; .ci/serve runs this. Prints one line for each check."""

import atexit
import base64
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import openai

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
MODEL = FIXTURES / "plain"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. USER: <image>\n{} ASSISTANT:"
)
NO_END = {"2": -100}  # the fixture's end token


def url(image):
    return "data:image/png;base64," + base64.b64encode((FIXTURES / "images" / image).read_bytes()).decode()


def user(question, *images):
    parts = [{"type": "image_url", "image_url": {"url": url(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def generated(binary, prompt, image, tokens):
    """The text that `basic generate` answers greedily."""
    line = [binary, "generate", MODEL, "--image", FIXTURES / "images" / image, "--prompt", prompt.replace("\n", "\\n")]
    line += ["--max-new-tokens", str(tokens), "--json", "--device", "cpu"]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)["text"]


class Server:
    """A server on a free port."""

    def __init__(self, binary, *options):
        line = [binary, "serve", MODEL, "--port", "0", "--device", "cpu", *options]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        for said in self.process.stdout:
            if said.startswith("listening on "):
                self.url = said.split()[2]
                return
        raise SystemExit("the server does not listen")

    def metric(self, name, key):
        request = urllib.request.Request(self.url + "/metrics", headers={"Authorization": f"Bearer {key}"})
        text = urllib.request.urlopen(request).read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))

    def stop(self):
        self.process.terminate()
        assert self.process.wait(60) == 0, "the server ends with 0"


def check(name, holds=True):
    assert holds, name
    print(f"ok: {name}", flush=True)


def fails(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def main(binary):
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("a-key")
        file.flush()
        server = Server(binary, "--api-key-file", file.name, "--max-batch", "4", "--max-queue", "16")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="a-key", max_retries=0, timeout=120)
    chat = client.chat.completions.create

    def greedy(question, image, tokens, **more):
        return chat(model="plain", messages=user(question, image), temperature=0, max_tokens=tokens, **more)

    check("models", [model.id for model in client.models.list()] == ["plain"])
    check("one model", client.models.retrieve("plain").id == "plain")

    # Answers.
    expected = {}
    for image in ["a.png", "b.png", "c.png", "d.png"]:
        for question, tokens in [("what is in the picture?", 24), ("how many?", 9)]:
            expected[question, image, tokens] = generated(binary, VICUNA.format(question), image, tokens).lstrip()
    for asked, text in expected.items():
        answer = greedy(*asked)
        assert answer.choices[0].message.content == text, (asked, answer, text)
    check(f"{len(expected)} answers at temperature 0 are those of basic generate")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = list(expected.items()) * 4
        answers = pool.map(lambda job: greedy(*job[0]).choices[0].message.content == job[1], jobs)
        check(f"so are {len(jobs)} from 8 clients at once", all(answers))
    raw = "USER: <image>\nwhat is it? ASSISTANT:"
    answer = client.completions.create(
        model="plain", prompt=raw, temperature=0, max_tokens=12, logprobs=3, extra_body={"images": [url("b.png")]}
    )
    check("a completion", answer.choices[0].text == generated(binary, raw, "b.png", 12))
    check("its log-probabilities", len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens)
    answer = greedy("what?", "b.png", 6, logprobs=True, top_logprobs=4)
    check("log-probabilities of a chat", [len(e.top_logprobs) for e in answer.choices[0].logprobs.content] == [4] * 6)
    answer = chat(model="plain", messages=user("what?", "a.png", "b.png"), n=3, seed=5, temperature=1.2, max_tokens=16)
    check("three answers about two images", len({choice.message.content for choice in answer.choices}) == 3)

    # Streams.
    whole = greedy("what is in the picture?", "b.png", 24)
    stream = greedy("what is in the picture?", "b.png", 24, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    check("a stream is the answer", text == whole.choices[0].message.content and len(chunks) > 10)
    check("with its usage", chunks[-1].usage == whole.usage)

    # Errors.
    error = fails(openai.NotFoundError, lambda: chat(model="other", messages=user("x")))
    check("an unknown model", error.code == "model_not_found" and error.param == "model")
    error = fails(openai.BadRequestError, lambda: greedy("x", "b.png", 100_000))
    check("more tokens than the context", error.code == "context_length_exceeded" and error.param == "max_tokens")
    tools = [{"type": "function", "function": {"name": "f"}}]
    error = fails(openai.BadRequestError, lambda: chat(model="plain", messages=user("x"), tools=tools))
    check("tools", error.param == "tools")
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = fails(openai.BadRequestError, lambda: chat(model="plain", messages=[{"role": "user", "content": [part]}]))
    check("an image that is none", error.param == "messages[0].content[0].image_url.url")
    wrong = openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0)
    fails(openai.AuthenticationError, lambda: wrong.models.list())
    check("a wrong key")

    # Clients that leave, and a queue that is full.
    long = dict(model="plain", messages=user("go on"), max_tokens=1800, logit_bias=NO_END, stream=True)
    streams = [chat(**long) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
    waiting = concurrent.futures.ThreadPoolExecutor(64)
    jobs = [waiting.submit(greedy, "what?", "b.png", 2) for _ in range(64)]
    settle(server)
    for stream in streams:
        stream.close()
    refused = [job for job in jobs if job.exception() is not None]
    limited = [job for job in refused if isinstance(job.exception(), openai.RateLimitError)]
    check(f"a full queue refuses ({len(refused)} of 64)", refused and limited == refused)
    check("the others are answered", all(job.result().usage.completion_tokens == 2 for job in jobs if job not in refused))
    start = time.time()
    while server.metric("basic_running_sequences", "a-key") and time.time() - start < 60:
        time.sleep(0.05)
    check("closed streams free their places", server.metric("basic_cancelled_sequences_total", "a-key") >= 4)
    server.stop()
    check("the server ends by SIGTERM with 0")


def settle(server):
    """Waits until the queue is full."""
    start = time.time()
    while server.metric("basic_queue_length", "a-key") < 16 and time.time() - start < 60:
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1])
