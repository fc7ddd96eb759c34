"""Makes tests/fixtures/scorers.json: answers, and what the benchmarks' official scripts make of them.

Needs clones (or their git directories) of the repositories in SOURCES, whose code is read from HEAD and run as it is, but
for VQA's script, whose `print` statements of Python 2 become calls:

    python tests/reference/scorer_fixtures.py --clones DIR

where DIR holds OWNER+NAME/repo or OWNER+NAME for each. Needs pandas and tqdm.
"""

import argparse
import ast
import collections
import json
import pathlib
import pickle
import random
import re
import string
import subprocess
import sys
import tempfile
import types

import pandas as pd

SOURCES = {
    "vqa": ("GT-Vision-Lab/VQA", "PythonEvaluationTools/vqaEvaluation/vqaEval.py"),
    "m4c": ("haotian-liu/LLaVA", "llava/eval/m4c_evaluator.py"),
    "scienceqa": ("haotian-liu/LLaVA", "llava/eval/eval_science_qa.py"),
    "pope": ("haotian-liu/LLaVA", "llava/eval/eval_pope.py"),
    "gqa_conversion": ("haotian-liu/LLaVA", "scripts/convert_gqa_for_eval.py"),
    "gqa": ("PKU-YuanGroup/MoE-LLaVA", "moellava/eval/eval_gqa.py"),
    "mmbench_matching": ("open-compass/VLMEvalKit", "vlmeval/utils/matching_util.py"),
    "mmbench": ("open-compass/VLMEvalKit", "vlmeval/dataset/utils/multiple_choice.py"),
}
OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "scorers.json"
PEOPLE = 10


def git(clones, repository, *args):
    folder = clones / repository.replace("/", "+")
    folder = folder / "repo" if (folder / "repo").is_dir() else folder
    return subprocess.run(["git", "-C", folder, *args], check=True, capture_output=True, text=True).stdout


def script(clones, name):
    repository, path = SOURCES[name]
    return git(clones, repository, "show", f"HEAD:{path}")


def module(name, source):
    made = types.ModuleType(name)
    exec(compile(source, name, "exec"), made.__dict__)
    return made


def run(source, folder, *args):
    """The standard output of a script run in `folder`."""
    path = folder / "script.py"
    path.write_text(source)
    return subprocess.run([sys.executable, path, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(rng):
    """Answers with what the normalizations care about."""
    words = ["red", "The", "a", "An", "two", "None", "TEN", "dont", "whos", "y'allll", "somebody'd", "Im", "it's", "1,000",
             "3.5", "U.S.A.", ".5", "1,,000", "cat's", "x-ray", "blue/green", "(left)", "50%", "\u0663,\u0664", "No.", "$5",
             "caf\u00e9", "o'clock", "oclock", "couldnt've", "zero", "\u00bd.", "10:30", "a.b", "#7", "\u0130stanbul"]
    marks = list(";/[]\"{}()=+\\_-><@`,?!.") + [" ", "  ", "\n", "\t", ", ", " -", "? ", "'s"]
    out = ["", " ", ".", "." * 40, "a", "yes", "Yes", "yes.", "1,000.5", "no -way", "A man's hat,red"]
    while len(out) < 150:
        parts = []
        for _ in range(rng.randint(1, 4)):
            parts += [rng.choice(words), rng.choice(marks)]
        out.append("".join(parts if rng.random() < 0.5 else parts[:-1]))
    return out


def judged(rng):
    """An answer and what ten people said, most of them variants of a few answers."""
    families = [["two", "2", "Two.", "the 2", "two "], ["yes", "Yes", "yes.", "yes\n", "Yes!"],
                ["blue/green", "blue green", "blue-green", "bluegreen"], ["don't", "dont", "do not", "Dont"],
                ["1,000", "1000", "1,000.", "one thousand"], ["McDonald's", "mcdonalds", "mcdonald 's", "the McDonald's"]]
    out = []
    for number in range(60):
        family = rng.choice(families)
        other = rng.choice(families)
        if number % 6 == 0:
            people = [rng.choice(family)] * PEOPLE
        else:
            people = [rng.choice(family if rng.random() < 0.6 else other) for _ in range(PEOPLE)]
        out.append({"answer": rng.choice(family + other[:1]), "people": people})
    return out


def vqa(clones, cases, normal):
    source = re.sub(r"(?m)^(\s*)print (.*)$", r"\1print(\2)", script(clones, "vqa"))
    evaluator = module("vqaEval", source).VQAEval
    class Answers:
        def __init__(self, qa):
            self.qa = qa
        def getQuesIds(self):
            return list(self.qa)
    people = lambda case: [{"answer": text, "answer_id": i + 1} for i, text in enumerate(case["people"])]
    truth = Answers({i: {"answers": people(c), "question_type": "what", "answer_type": "other"} for i, c in enumerate(cases)})
    given = Answers({i: {"answer": case["answer"]} for i, case in enumerate(cases)})
    judge = evaluator(truth, given, n=10)
    stdout, sys.stdout = sys.stdout, open("/dev/null", "w")
    judge.evaluate()
    sys.stdout = stdout
    for i, case in enumerate(cases):
        case["vqa"] = judge.evalQA[i] / 100
    for entry in normal:
        text = entry["text"].replace("\n", " ").replace("\t", " ").strip()
        entry["vqa"] = judge.processDigitArticle(judge.processPunctuation(text))
    return judge.accuracy["overall"] / 100


def textvqa(clones, cases, normal):
    m4c = module("m4c_evaluator", script(clones, "m4c"))
    m4c.tqdm = lambda rows: rows
    judge = m4c.TextVQAAccuracyEvaluator()
    entry = lambda case: {"pred_answer": case["answer"], "gt_answers": case["people"]}
    for case in cases:
        case["textvqa"] = judge.eval_pred_list([entry(case)])
    for case in normal:
        case["m4c"] = judge.answer_processor(case["text"])
    return judge.eval_pred_list([entry(case) for case in cases])


def scienceqa(clones, rng):
    kinds = ["A", "B", "E", "b", "A. first", "B.second", "C. ", "The answer is B.", "The answer is C", "so The answer is A!",
             "The answer is A. The answer is A.", "The answer is B\n", "", "D", "AB", "Answer: A", "A.", "(A)"]
    cases = [{"text": text, "choices": rng.randint(2, 5)} for text in kinds * 3]
    for case in cases:
        case["answer"] = rng.randrange(case["choices"])
        case["image"] = rng.random() < 0.7
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        ids = [str(i) for i in range(len(cases))]
        (folder / "pid_splits.json").write_text(json.dumps({"test": ids}))
        problems = {i: {"choices": ["x"] * case["choices"], "answer": case["answer"]} for i, case in zip(ids, cases)}
        (folder / "problems.json").write_text(json.dumps(problems))
        prompt = lambda case: "<image>\nq" if case["image"] else "q"
        lines(folder / "answers.jsonl", [{"question_id": i, "text": c["text"], "prompt": prompt(c)} for i, c in zip(ids, cases)])
        run(script(clones, "scienceqa"), folder, "--base-dir", ".", "--result-file", "answers.jsonl", "--output-file", "out",
            "--output-result", "result")
        results = json.loads((folder / "out").read_text())
        parsed = json.loads((folder / "result").read_text())["results"]
    for i, case in zip(ids, cases):
        case["parsed"] = parsed[i]
    right, wrong = ([row for row in results[key] if row["is_multimodal"]] for key in ("correct", "incorrect"))
    return {"cases": cases, "img_accuracy": len(right) / (len(right) + len(wrong))}


def pope(clones, rng):
    said = ["Yes", "No", "yes.", "no", "No, there is none", "There is not. Yes", "Yes. No", "NO", "None", "", "I can't see,no"]
    splits = {}
    for split in ("random", "popular", "adversarial"):
        splits[split] = {"cases": [{"text": rng.choice(said), "label": rng.choice(["yes", "no"])} for _ in range(40)]}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "coco").mkdir()
        questions, answers = [], []
        for split, entry in splits.items():
            lines(folder / "coco" / f"coco_pope_{split}.json", entry["cases"])
            for case in entry["cases"]:
                questions.append({"question_id": len(questions), "category": split})
                answers.append({"question_id": len(answers), "text": case["text"]})
        lines(folder / "questions.jsonl", questions)
        lines(folder / "answers.jsonl", answers)
        out = run(script(clones, "pope"), folder, "--annotation-dir", "coco", "--question-file", "questions.jsonl",
                  "--result-file", "answers.jsonl")
    for part in out.split("Category: ")[1:]:
        value = lambda name: float(re.search(rf"^{name}: (.*)$", part, re.M).group(1))
        names = ["Accuracy", "Precision", "Recall", "F1 score", "Yes ratio"]
        splits[part.split(",")[0]]["rates"] = [value(name) for name in names]
    return splits


def gqa(clones, rng):
    truths = ["yes", "no", "man", "dark red", "left", "u.s."]
    cases = []
    for _ in range(60):
        truth = rng.choice(truths)
        text = rng.choice([truth, truth.title(), truth + ".", truth + "..", truth + ". ", "a " + truth, rng.choice(truths)])
        cases.append({"text": text, "answer": truth, "structural": rng.choice(["query", "verify", "choose"])})
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        question = lambda case: {"isBalanced": True, "answer": case["answer"], "question": "what is it", "imageId": "1",
                                 "types": {"structural": case["structural"], "semantic": "rel"}, "groups": {"global": "thing"},
                                 "semantic": [{"operation": "select", "argument": "x"}]}
        questions = {str(i): question(case) for i, case in enumerate(cases)}
        (folder / "questions.json").write_text(json.dumps(questions))
        lines(folder / "answers.jsonl", [{"question_id": str(i), "text": case["text"]} for i, case in enumerate(cases)])
        run(script(clones, "gqa_conversion"), folder, "--src", "answers.jsonl", "--dst", "predictions.json")
        # Rounded to two digits where it is printed.
        source = script(clones, "gqa").replace("{score:.2f}", "{score:.10f}")
        out = run(source, folder, "--questions", "questions.json", "--predictions", "predictions.json")
    value = lambda name: float(re.search(rf"^{name}: ([0-9.]+)%", out, re.M).group(1)) / 100
    return {"cases": cases, "accuracy": value("Accuracy"), "binary": value("Binary"), "open": value("Open")}


def mmbench(clones, rng):
    logs = types.ModuleType("log")
    logs.get_logger = lambda name: types.SimpleNamespace(info=print, warning=lambda text: None)
    for name in ("vlmeval", "vlmeval.smp", "vlmeval.smp.log"):
        sys.modules[name] = logs
    matching = module("matching_util", script(clones, "mmbench_matching"))
    wanted = ["build_choices", "prefetch_answer", "prefetch_circular_group", "mcq_circular_eval"]
    tree = ast.parse(script(clones, "mmbench"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    folder = tempfile.TemporaryDirectory()
    code = {"pd": pd, "string": string, "can_infer": matching.can_infer, "defaultdict": collections.defaultdict,
            "osp": __import__("os.path").path, "istype": lambda x, kind: int(x) == x, "logger": logs.get_logger(""),
            "load": lambda path: pickle.load(open(path, "rb")), "dump": lambda x, path: pickle.dump(x, open(path, "wb")),
            "get_pred_file_format": lambda: "pkl", "timestr": lambda: pathlib.Path(folder.name).name}
    exec(compile(tree, "multiple_choice", "exec"), code)
    options = [["a red cat", "a dog", "birds", "two birds"], ["left", "right"], ["1", "2", "3"], ["A cat", "The cat", "cat"]]
    rows = []
    for index in range(40):
        texts = list(rng.choice(options))
        truth = rng.randrange(len(texts))
        careful = rng.random() < 0.6
        for turn in range(len(texts)):
            turned = texts[turn:] + texts[:turn]
            letter = "ABCD"[turned.index(texts[truth])]
            right = [letter, f"{letter}.", f"({letter})", f"{letter}. {texts[truth]}", f"The answer is **{letter}**"]
            other = [texts[truth], "A or B", "Cannot determine the answer", "Z", "A", "B", "", "it is a long story of C",
                     "A thing that may well be something else", "The correct answer is D, as A is not"]
            rows.append({"index": index + 1000000 * turn, "choices": turned, "answer": letter,
                         "prediction": rng.choice(right if careful else right + other)})
    table = pd.DataFrame([{**{c: t for c, t in zip("ABCD", row["choices"])}, "question": "q", **row} for row in rows])
    table = table.drop(columns=["choices"])
    for i, row in enumerate(rows):
        row["inferred"] = code["prefetch_answer"](table.iloc[i]) or None
    meta = table[["index", "answer"]]
    hits = code["mcq_circular_eval"](None, table.copy(), meta, 1, str(pathlib.Path(folder.name) / "result.pkl"))
    return {"rows": rows, "hits": {str(i): int(hit) for i, hit in zip(hits["index"], hits["hit"])},
            "accuracy": float(hits["hit"].mean())}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clones", type=pathlib.Path, required=True)
    clones = parser.parse_args().clones
    rng = random.Random(6)
    versions = {name: {"repository": repository, "path": path, "commit": git(clones, repository, "rev-parse", "HEAD").strip()}
                for name, (repository, path) in SOURCES.items()}
    normal = [{"text": text} for text in texts(rng)]
    cases = judged(rng)
    out = {"sources": versions, "normalized": normal, "judged": cases,
           "overall": {"vqa": vqa(clones, cases, normal), "textvqa": textvqa(clones, cases, normal)},
           "scienceqa": scienceqa(clones, rng), "pope": pope(clones, rng), "gqa": gqa(clones, rng),
           "mmbench": mmbench(clones, rng)}
    # An entry a line.
    text = json.dumps(out, ensure_ascii=False)
    OUT.write_text(text.replace("}, {", "},\n{") + "\n")
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
