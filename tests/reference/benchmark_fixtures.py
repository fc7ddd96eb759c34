"""Benchmarks' tables in Parquet as Hugging Face's datasets library writes them: tests/fixtures/benchmarks, which the tests
and the fuzzing targets copy. The texts are made up; the columns are those of the tables on the hub.

    python tests/reference/benchmark_fixtures.py tests/fixtures

Written with datasets 5.2.0 and pyarrow 26.0.1.
"""

import sys
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value

TEXT = Value("string")
LETTER_ONLY = "Please answer directly with only the letter of the correct option and nothing else."


def write(path, features, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)


def main(fixtures):
    out = fixtures / "benchmarks"

    # With their bytes, as `push_to_hub` embeds them.
    def image(name):
        return {"bytes": (fixtures / "images" / f"{name}.png").read_bytes(), "path": f"{name}.png"}

    rows = [
        {"question": "Which part makes food?", "options": ["root", "leaf", "stem", "flower"], "answer": "1", "image": image("a")},
        {"question": "What eats the hawk?", "options": ["mouse", "nothing"], "answer": "1", "image": image("b")},
    ]
    write(out / "ai2d/data/test-00000-of-00001.parquet",
          {"question": TEXT, "options": List(TEXT), "answer": TEXT, "image": Image()}, rows)

    rows = [
        {"image": image("a"), "question": f"Which object is closer?\n\nA. The car\nB. The bus\nC. Neither\n{LETTER_ONLY}", "answer": "B"},
        {"image": image("c"), "question": "How many lanes are there? Please answer directly with a single word or number.", "answer": "2"},
    ]
    write(out / "realworldqa/data/test-00000-of-00002.parquet", {"image": Image(), "question": TEXT, "answer": TEXT}, rows[:1])
    write(out / "realworldqa/data/test-00001-of-00002.parquet", {"image": Image(), "question": TEXT, "answer": TEXT}, rows[1:])

    def mmmu(subject, number, question, options, answer, kind):
        return {"id": f"validation_{subject}_{number}", "question": question, "options": options, "explanation": "", "image_1": image("d"),
                "image_2": None, "img_type": "['Diagrams']", "answer": answer, "topic_difficulty": "Easy", "question_type": kind,
                "subfield": "made up"}

    features = {name: TEXT for name in ("id", "question", "options", "explanation")}
    features |= {"image_1": Image(), "image_2": Image()}
    features |= {name: TEXT for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield")}
    rows = [mmmu("Art", 1, "Who painted <image 1>?", "['Monet', \"O'Keeffe\", 'Klee']", "B", "multiple-choice"),
            mmmu("Art", 2, "Which of these?", "['<image 2>', '<image 3>']", "A", "multiple-choice")]
    write(out / "mmmu/Art/validation-00000-of-00001.parquet", features, rows)
    rows = [mmmu("Math", 1, "What is x in <image 1>?", "[]", "['24/7', '3.429']", "open")]
    write(out / "mmmu/Math/validation-00000-of-00001.parquet", features, rows)

    def cv_bench(index, kind, task, choices, answer, source):
        letters = ", ".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices))
        question = f"What about {task.lower()}?"
        return {"idx": index, "type": kind, "task": task, "image": image("b"), "question": question, "choices": choices, "answer": answer,
                "prompt": f"{question} Select from the following choices.\n{letters}", "filename": f"img/{kind}/{index}.png",
                "source": source}

    features = {"idx": Value("int64"), "type": TEXT, "task": TEXT, "image": Image(), "question": TEXT, "choices": List(TEXT)}
    features |= {name: TEXT for name in ("answer", "prompt", "filename", "source")}
    rows = [cv_bench(0, "2D", "Count", ["3", "1", "0", "2"], "(D)", "ADE20K"), cv_bench(1, "2D", "Relation", ["left", "right"], "(A)", "ADE20K"),
            cv_bench(2, "2D", "Count", ["5", "4"], "(B)", "COCO")]
    write(out / "cv-bench/test_2d.parquet", features, rows)
    write(out / "cv-bench/test_3d.parquet", features, [cv_bench(3, "3D", "Depth", ["car", "table"], "(A)", "Omni3D")])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
