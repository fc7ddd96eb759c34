"""lmms-eval's OpenAI client against `basic serve`, on a file of questions, beside `basic eval` on the same file: both scores must
be equal.

    python tests/serve/lmms_eval_task.py BINARY CHECKPOINT QUESTIONS.jsonl [IMAGES]

Writes a task for lmms-eval in a temporary folder (a YAML file, and its functions in Python), which reads the questions as they
are, asks them one by one and scores exact match by the rule of `basic eval`. Needs `pip install lmms-eval`."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

TASK = """task: basic_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.image
doc_to_text: !function functions.text
doc_to_target: answer
process_results: !function functions.score
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0
"""
FUNCTIONS = """import pathlib

from PIL import Image

IMAGES = pathlib.Path({images!r})


def image(doc):
    return [Image.open(IMAGES / doc["image"]).convert("RGB")]


def text(doc):
    return doc["text"]


def plain(text):
    return " ".join(text.lower().split()).rstrip(".").strip()


def score(doc, results):
    return {{"exact": float(plain(results[0]) == plain(doc["answer"]))}}
"""


def main(binary, checkpoint, questions, images=None):
    questions = pathlib.Path(questions).resolve()
    images = pathlib.Path(images).resolve() if images else questions.parent
    line = [binary, "eval", checkpoint, questions, "--images", images, "--device", "cpu", "--max-new-tokens", "16", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        ran = subprocess.run([*map(str, line), "--out", str(folder / "ours")], capture_output=True, text=True)
        if ran.returncode:
            sys.exit(ran.stderr)
        expected = json.loads(ran.stdout)
        task = folder / "task"
        task.mkdir()
        (task / "basic_questions.yaml").write_text(TASK.format(questions=questions))
        (task / "functions.py").write_text(FUNCTIONS.format(images=str(images)))
        line = [binary, "serve", checkpoint, "--port", "0", "--device", "cpu"]
        server = subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, text=True)
        try:
            url = next(line.split()[2] for line in server.stdout if line.startswith("listening on "))
            name = pathlib.Path(checkpoint).resolve().name
            model = f"model_version={name},base_url={url}/v1,api_key=none,num_concurrent=8,timeout=300"
            line = [sys.executable, "-m", "lmms_eval", "--model", "openai", "--model_args", model, "--tasks", "basic_questions",
                    "--include_path", str(task), "--output_path", str(folder / "theirs"), "--batch_size", "1"]
            offline = dict(os.environ, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=str(folder / "home"))
            ran = subprocess.run(line, capture_output=True, text=True, env=offline)
        finally:
            server.terminate()
            server.wait(60)
        found = list((folder / "theirs").rglob("*results.json"))
        if ran.returncode or not found:
            sys.exit(ran.stdout + ran.stderr)
        score = json.loads(found[0].read_text())["results"]["basic_questions"]["exact,none"]
    ours = expected["accuracy"]
    print(f"lmms-eval {score}, basic eval {ours}, {expected.get('questions', '')} questions")
    if abs(score - ours) > 1e-9:
        sys.exit("the scores differ")


if __name__ == "__main__":
    main(*sys.argv[1:])
