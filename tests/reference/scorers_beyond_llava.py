"""Makes tests/fixtures/scorers_beyond_llava.json: answers to the benchmarks that LLaVA's guide does not have, and what the
benchmarks' scripts make of them.

Needs the repositories in SOURCES as scorer_fixtures.py does, whose code is read from HEAD and run as it is:

    python tests/reference/scorers_beyond_llava.py --clones DIR

Needs pandas, numpy, scikit-learn and tqdm. Where a script asks a GPT model about the answers (HallusionBench), the answers
are read by VLMEvalKit's rule instead. MMMU's script chooses an option at random for an answer that names none; here it
chooses none.
"""

import argparse
import ast
import json
import pathlib
import random
import re
import sys
import tempfile
import types
import typing

import pandas as pd
from scorer_fixtures import git, lines, module, run

SOURCES = {
    "mmstar": ("MMStar-Benchmark/MMStar", "eval/vlmeval/evaluate/mmstar.py"),
    "chartqa": ("google-research/pix2struct", "pix2struct/metrics.py"),
    "docvqa": ("OpenGVLab/InternVL", "internvl_chat/eval/vqa/infographicsvqa_eval.py"),
    "mme": ("OpenGVLab/InternVL", "internvl_chat/eval/mme/calculation.py"),
    "seed_bench": ("haotian-liu/LLaVA", "scripts/convert_seed_for_submission.py"),
    "realworldqa": ("EvolvingLMMs-Lab/lmms-eval", "lmms_eval/tasks/realworldqa/utils.py"),
    "realworldqa_letters": ("EvolvingLMMs-Lab/lmms-eval", "lmms_eval/tasks/_task_utils/mcq_extract.py"),
    "mmmu": ("MMMU-Benchmark/MMMU", "mmmu/utils/eval_utils.py"),
    "mmvp": ("cambrian-mllm/cambrian", "eval/eval/mmvp/mmvp_test.py"),
    "cv_bench_2d": ("cambrian-mllm/cambrian", "eval/eval/ade/ade_test.py"),
    "cv_bench_3d": ("cambrian-mllm/cambrian", "eval/eval/omni/omni_test.py"),
    "cv_bench": ("EvolvingLMMs-Lab/lmms-eval", "lmms_eval/tasks/cv_bench/utils.py"),
    "hallusion_bench": ("tianyi-lab/HallusionBench", "utils.py"),
    "hallusion_bench_yes": ("open-compass/VLMEvalKit", "vlmeval/dataset/utils/yorn.py"),
    "hallusion_bench_marks": ("open-compass/VLMEvalKit", "vlmeval/smp/misc.py"),
}
OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "scorers_beyond_llava.json"


class Scripts:
    def __init__(self, clones):
        self.clones = clones

    def source(self, name):
        repository, path = SOURCES[name]
        return git(self.clones, repository, "show", f"HEAD:{path}")

    def functions(self, name, wanted, given):
        """The functions called `wanted` of a script, whose other names are `given`."""
        tree = ast.parse(self.source(name))
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
        names = dict(given)
        exec(compile(tree, name, "exec"), names)
        return names

    def versions(self):
        version = lambda repository, path: {"repository": repository, "path": path,
                                            "commit": git(self.clones, repository, "rev-parse", "HEAD").strip()}
        return {name: version(*source) for name, source in SOURCES.items()}


def letters(rng, letter, text):
    """An answer that may mean the option."""
    low = letter.lower()
    return rng.choice([letter, low, f"{letter}.", f"({letter})", f"{letter}. {text}", f"The answer is {letter}", f"Option {letter}",
                       f"The answer is ({letter}).", f"Answer: {low}", text, f"{text}.", f"{letter}:", f"It is {letter}", "",
                       f"the answer is: {letter} ", f"{letter}\n{text}", f"  {letter}", f"I would say ({letter}) or maybe not"])


def mmstar(scripts, rng):
    found = {}
    smp = types.ModuleType("vlmeval.smp")
    smp.load = lambda path: found["table"]
    smp.dump = lambda scores, path: found.update(scores=scores)
    smp.get_logger = lambda name: types.SimpleNamespace(info=lambda text: None)
    smp.tqdm = lambda rows: rows
    sys.modules["vlmeval"], sys.modules["vlmeval.smp"] = types.ModuleType("vlmeval"), smp
    score = module("mmstar", scripts.source("mmstar")).MMStar_eval
    tree = ast.parse(scripts.source("mmstar"))
    kinds = ast.literal_eval(next(node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)
                                  and getattr(node.targets[0], "id", "") == "MMStar_score_l2"))
    places = [(kind, part) for kind, parts in kinds.items() for part in parts]
    cases = []
    for _ in range(6):
        rows = []
        for kind, part in places:
            truth = rng.choice("ABCD")
            said = truth if rng.random() < 0.6 else rng.choice("ABCD")
            rows.append({"prediction": letters(rng, said, "a red cat"), "answer": truth, "bench": "", "category": kind,
                         "l2_category": part})
        found["table"] = pd.DataFrame(rows)
        score("x.xlsx")
        # With one question in each part, the score of a part is that of its question.
        for row in rows:
            right = found["scores"][f"{row['category']}({row['l2_category']})"]
            cases.append({"text": row["prediction"], "answer": row["answer"], "right": right})
    return cases


def chartqa(scripts, rng):
    judge = scripts.functions("chartqa", ["relaxed_correctness"], {"Optional": typing.Optional})["relaxed_correctness"]
    texts = ["100", "104.9", "105", "95", "94.9", "0", "0.0", "-3", "-3.1", "50%", "0.5", "52%", "5%%", "1e2", "1_00", "1,000", "1000",
             "Blue", "blue", "dark blue", "Yes", "nan", "inf", "", "%", " 100", "2019", "2100", ".5", "5.", "\u0130", "i\u0307"]
    pairs = [(text, truth) for text in texts for truth in texts if rng.random() < 0.35 or text == truth]
    return [{"text": text, "answer": truth, "right": bool(judge(truth, text))} for text, truth in pairs]


def docvqa(scripts, rng):
    words = ["Tuesday", "15 May", "1,000", "STRASSE", "stra\u00dfe", "a  b\tc", "$ 5.00", "caf\u00e9", "\u0130x", "", "university of california"]
    cases = []
    for _ in range(120):
        truths = rng.sample(words, rng.randint(1, 3))
        text = rng.choice(truths + words[:3])
        for _ in range(rng.randint(0, 4)):
            at = rng.randint(0, len(text))
            text = rng.choice([text[:at] + text[at + 1:], text[:at] + rng.choice("xE \n") + text[at:], text.upper(), text])
        cases.append({"text": text, "answers": truths})
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        truth = [{"questionId": i, "question": "", "answers": case["answers"]} for i, case in enumerate(cases)]
        (folder / "truth.json").write_text(json.dumps({"dataset_name": "docvqa", "data": truth}))
        (folder / "given.json").write_text(json.dumps([{"questionId": i, "answer": case["text"]} for i, case in enumerate(cases)]))
        judge = module("docvqa", scripts.source("docvqa"))
        judge.validate_data(folder / "truth.json", folder / "given.json")
        results = judge.evaluate_method(folder / "truth.json", folder / "given.json",
                                        types.SimpleNamespace(answer_types=False, anls_threshold=0.5))
    for i, case in enumerate(cases):
        case["score"] = results["per_sample_result"][str(i)]["score"]
    return {"cases": cases, "score": results["result"]["score"]}


def mme(scripts, rng):
    source = scripts.source("mme")
    tree = ast.parse(source)
    kinds = ast.literal_eval(next(node.value for node in tree.body if isinstance(node, ast.Assign)
                                  and node.targets[0].id == "eval_type_dict"))
    said = ["Yes", "No", "yes.", "no, there is none", "Not really", "The answer is yes", "Maybe", "YES", " No", "", "Yes, no"]
    tasks = {task: [] for names in kinds.values() for task in names}
    for rows in tasks.values():
        for image in range(rng.randint(3, 6)):
            for truth in rng.sample(["Yes", "No"], 2):
                text = truth if rng.random() < 0.6 else rng.choice(said)
                rows.append({"image": f"{image}.jpg", "answer": truth, "text": text})
        # The script's precision and recall need an answer of each kind.
        rows[0]["text"], rows[1]["text"] = "Yes", "No"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for task, rows in tasks.items():
            text = "".join(f"{row['image']}\tq\t{row['answer']}\t{row['text']}\n" for row in rows)
            (folder / f"{task}.txt").write_text(text)
        out = run(source, folder, "--results_dir", ".")
    scores = {name: float(score) for name, score in re.findall(r"\t (\w+)  score: ([0-9.]+)", out)}
    totals = [float(score) for score in re.findall(r"total score: ([0-9.]+)", out)]
    return {"kinds": kinds, "tasks": tasks, "scores": scores, "totals": dict(zip(["perception", "cognition"], totals))}


def seed_bench(scripts, rng):
    kinds = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    questions = []
    for i in range(60):
        kind = rng.choice(list(kinds.values()))
        truth = rng.choice("ABCD")
        text = truth if rng.random() < 0.5 else letters(rng, truth, "a red cat")
        questions.append({"question_id": str(i), "question_type_id": kind, "data_type": "video" if kind == 10 else "image",
                          "answer": truth, "text": text})
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "truth.json").write_text(json.dumps({"questions": questions, "question_type": kinds}))
        lines(folder / "answers.jsonl", [{"question_id": int(q["question_id"]), "text": q["text"]} for q in questions])
        out = run(scripts.source("seed_bench").replace(":.2f}", ":.10f}"), folder, "--annotation-file", "truth.json",
                  "--result-file", "answers.jsonl", "--result-upload-file", "out.jsonl")
    accuracy = float(re.search(r"^image accuracy: ([0-9.]+)%", out, re.M).group(1)) / 100
    return {"cases": [q for q in questions if q["data_type"] == "image"], "accuracy": accuracy}


def realworldqa(scripts, rng):
    sys.modules["lmms_eval.tasks._task_utils.mcq_extract"] = module("mcq_extract", scripts.source("realworldqa_letters"))
    for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils"):
        sys.modules[name] = types.ModuleType(name)
    judge = scripts.functions("realworldqa", ["realworldqa_process_results"], {})["realworldqa_process_results"]
    truths = ["0", "3", "Yes", "No", "Downhill", "35 mph", "No."]
    cases = []
    for _ in range(80):
        truth = rng.choice(truths)
        text = rng.choice([truth, truth.lower(), truth.upper(), truth + ".", f" {truth}..", f"{truth} .", "about " + truth, rng.choice(truths)])
        cases.append({"text": text, "answer": truth, "right": judge({"answer": truth}, [text])["exact_match"]})
    return cases


def mmmu(scripts, rng):
    judge = module("mmmu", scripts.source("mmmu"))
    judge.random = types.SimpleNamespace(choice=lambda options: None)
    texts = [["$6", "$7", "$8", "$9"], ["a red cat", "a dog", "the dog house"], ["increase", "decrease"]]
    chosen = []
    for _ in range(120):
        options = rng.choice(texts)
        index = dict(zip("ABCD", options))
        first, second = rng.choice(list(index.items())), rng.choice(list(index.items()))
        text = rng.choice([letters(rng, *first), f"({first[0]}) and not ({second[0]})", f"{first[0]} , {second[0]} !",
                           f"it seems to me that it must be {first[1]} here", f"it is {first[1]}, though some may say {second[1].upper()}",
                           f"'{first[0]}'.", f"A good answer is {second[0]} because of all that", f"{first[0]}; {second[0]}"])
        answer = judge.parse_multi_choice_response(text, list(index), index)
        chosen.append({"text": text, "options": options, "chosen": answer})
    truths = [["2.5"], ["1234.5", "1,234"], ["red"], ["x"], ["0.13"], ["24/7", "3.429"], ["-5"], ["6e3"], ["New York"], ["0.12"]]
    said = ["2.5", "The answer is 2.50.", "so 1,234.5", "$1,234", "It is a red fox.", "x", "it is x then", "thus x = 0.125", "0.13",
            "therefore -5", "6e3 units", "6000", "final answer new york city", "24/7", "nothing", "", ".", "is .", "a = b = 2.5 m",
            "first line is 7\nso the result is 3.429", "about 12 or 2.675", "xenon", "NaN", "inf", "1.5e3, 2.5", "so so 2.5,3", "0.375=0.38",
            "The result is :", "thus -5,000", "--5", "12x 2.5x", "1,234,567 and 0.1249"]
    open_cases = []
    for text in said:
        for truth in truths:
            gold = truth if len(truth) > 1 else truth[0]
            open_cases.append({"text": text, "answers": truth, "right": judge.eval_open(gold, judge.parse_open_response(text))})
    return {"chosen": chosen, "open": open_cases}


def cambrian(scripts, name, rows):
    """Runs one of Cambrian's scripts; returns its printed summary and the indices of the wrong answers."""
    judge = module(name, scripts.source(name))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        lines(folder / "answers.jsonl", rows)
        found = {}
        judge.add_data_to_csv = lambda path, data: found.update(data)
        judge.print = lambda *text: None
        judge.compute_metrics(str(folder / "answers.jsonl"), str(folder / "wrong" / "wrong.jsonl"), "")
        wrong = [json.loads(line)["place"] for line in (folder / "wrong" / "wrong.jsonl").read_text().splitlines()]
    return found, set(wrong)


def mmvp(scripts, rng):
    rows = []
    for place in range(120):
        options = rng.choice([["Open", "Closed"], ["Yes", "No"], ["1", "2"]])
        truth = rng.randrange(2)
        said = truth if rng.random() < 0.7 else 1 - truth
        text = rng.choice([letters(rng, "AB"[said], options[said])] + ["AB"[said]] * 2)
        rows.append({"place": place, "answer": text, "gt_answer": ["(a)", "(b)"][truth], "text_options": options})
    found, wrong = cambrian(scripts, "mmvp", rows)
    cases = [{"text": row["answer"], "options": row["text_options"], "answer": row["gt_answer"], "right": row["place"] not in wrong}
             for row in rows]
    return {"cases": cases, "accuracy": found["accuracy"] / 100}


def cv_bench(scripts, rng):
    rows = []
    for place in range(150):
        source = rng.choice(["ADE20K", "COCO", "Omni3D", "Omni3D"])
        options = rng.choice([["car", "table"], ["left", "right"], ["3", "1", "2", "0"]])
        truth = rng.randrange(len(options))
        said = truth if rng.random() < 0.6 else rng.randrange(len(options))
        rows.append({"place": place, "answer": letters(rng, "ABCD"[said], "a red " + options[said]), "gt_answer": f"({'ABCD'[truth]})",
                     "options": options, "category": source, "source": source})
    wrong = set()
    for name, sources in [("cv_bench_2d", ["ADE20K", "COCO"]), ("cv_bench_3d", ["Omni3D"])]:
        wrong |= cambrian(scripts, name, [row for row in rows if row["source"] in sources])[1]
    cases = [{"text": row["answer"], "answer": row["gt_answer"], "source": row["source"], "right": row["place"] not in wrong} for row in rows]
    total = scripts.functions("cv_bench", ["cv_bench_default_aggregate_results"],
                              {"defaultdict": __import__("collections").defaultdict, "List": list, "Dict": dict})
    results = [{"source": case["source"], "is_correct": case["right"]} for case in cases]
    return {"cases": cases, "accuracy": total["cv_bench_default_aggregate_results"](results)}


def hallusion_bench(scripts, rng):
    marks = scripts.functions("hallusion_bench_marks", ["process_punctuation"], {})["process_punctuation"]
    says = scripts.functions("hallusion_bench_yes", ["YOrN_Extraction"], {"process_punctuation": marks})["YOrN_Extraction"]
    for name in ("prettytable", "openai"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["prettytable"].PrettyTable = None
    utils = module("hallusion", scripts.source("hallusion_bench"))
    texts = ["Yes", "No", "yes, it is.", "No, they are not", "Yes and no", "It depends", "", "no-one", "Yes!no", "It is 3,000. No", "yes/no",
             "(yes)", "\"No\"", "No.5", "Yes." * 40, "- yes", "yes-"]
    rows = []
    for category, subcategory in [("VD", "illusion"), ("VS", "chart")]:
        for set_id in range(5):
            for figure in range(3):
                for question in range(3):
                    truth = rng.choice("01")
                    text = ["No", "Yes"][int(truth)] if rng.random() < 0.6 else rng.choice(texts)
                    visual = "0" if category == "VS" and figure == 0 else ("1" if figure < 2 else "2")
                    rows.append({"category": category, "subcategory": subcategory, "visual_input": visual, "set_id": str(set_id),
                                 "figure_id": str(figure), "question_id": str(question), "gt_answer": truth, "text": text})
    for row in rows:
        said = says(row["text"])
        row["check"] = "2" if said == "Unknown" else str(int((said == "Yes") == (row["gt_answer"] == "1")))
        row["same"] = rng.choice("01")
    utils.assign_correctness(rows, "check")
    count = lambda found: found["correct"] / found["total"]
    scores = {"accuracy": count(utils.get_eval_all(rows, "check")), "figure accuracy": count(utils.get_eval_fig(rows)),
              "question pair accuracy": count(utils.get_eval_pair_all(rows, "check"))}
    said = [{"text": text, "said": says(text)} for text in texts]
    return {"said": said, "rows": [{key: row[key] for key in row if key not in ("check", "same")} for row in rows], "scores": scores}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clones", type=pathlib.Path, required=True)
    scripts = Scripts(parser.parse_args().clones)
    rng = random.Random(20)
    out = {"sources": scripts.versions()}
    for make in (mmstar, chartqa, docvqa, mme, seed_bench, realworldqa, mmmu, mmvp, cv_bench, hallusion_bench):
        out[make.__name__] = make(scripts, rng)
    # An entry a line.
    OUT.write_text(json.dumps(out, ensure_ascii=False).replace("}, {", "},\n{") + "\n")
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
