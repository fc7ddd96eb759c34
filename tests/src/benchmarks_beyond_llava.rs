//! Writes a few questions of the benchmarks that LLaVA's guide does not have, in the files of their official releases. The
//! texts and images are made up.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::benchmarks::{lines, picture, write};
use crate::fixtures::{fixture, tree};

/// The benchmarks that [`folders`] writes, with the numbers of their questions.
pub const ALL: [(&str, usize); 13] = [
    ("mmstar", 2),
    ("ai2d", 2),
    ("chartqa", 3),
    ("docvqa", 2),
    ("docvqa-test", 1),
    ("mme", 28),
    ("seed_bench", 2),
    ("realworldqa", 2),
    ("mmmu", 3),
    ("mmvp", 4),
    ("cv-bench", 4),
    ("hallusion_bench", 4),
    ("llava-bench-in-the-wild", 2),
];

/// Writes the folders of these benchmarks, with a few questions each.
pub fn folders(root: &Path) {
    // Those that are published as Parquet are written by tests/reference/benchmark_fixtures.py.
    for name in ["ai2d", "realworldqa", "mmmu", "cv-bench"] {
        for (path, bytes) in tree(&fixture(format!("benchmarks/{name}"))) {
            write(&root.join(name).join(path), bytes);
        }
    }
    mmstar(root);
    chartqa(root);
    docvqa(root);
    mme(root);
    seed_bench(root);
    mmvp(root);
    hallusion_bench(root);
    llava_bench(root);
}

/// A fixture's image in base64.
pub fn encoded(name: &str) -> String {
    STANDARD.encode(fs::read(fixture("images").join(name)).expect("the fixture can be read"))
}

fn mmstar(root: &Path) {
    let head = "index\tquestion\tA\tB\tC\tD\tanswer\tcategory\tl2_category\tbench\timage\n";
    let rows = [
        format!(
            "0\tWhich is it?\ta cat\ta dog\ta bird\t\"two\nfish\"\tB\tmath\tgeometry\tMMMU\t{}\n",
            encoded("a.png")
        ),
        "1\tWhat is odd?\tone\ttwo\tthree\tnan\tA\tcoarse perception\timage emotion\tAI2D\t0\n".to_string(),
    ];
    write(&root.join("mmstar/MMStar.tsv"), head.to_string() + &rows.concat());
}

fn chartqa(root: &Path) {
    let dir = root.join("chartqa/test");
    let question = |image: &str, query: &str, label: &str| json!({"imgname": image, "query": query, "label": label});
    let human = [question("1.png", "How many bars?", "4"), question("2.png", "Which is highest?", "Blue")];
    write(&dir.join("test_human.json"), json!(human).to_string());
    let augmented = [question("1.png", "What was the share in 2018?", "52.3")];
    write(&dir.join("test_augmented.json"), json!(augmented).to_string());
    picture(&dir.join("png/1.png"), 21);
    picture(&dir.join("png/2.png"), 22);
}

fn docvqa(root: &Path) {
    let dir = root.join("docvqa");
    let question = |id: u64, text: &str, kind: &str| {
        json!({"questionId": id, "question": text, "question_types": [kind], "image": "documents/a_1.png", "docId": 14465,
            "ucsf_document_id": "a", "ucsf_document_page_no": "1", "data_split": "val"})
    };
    let mut all = [question(49153, "What is the date?", "form"), question(24580, "Who signed?", "handwritten")];
    all[0]["answers"] = json!(["May 15", "15 May"]);
    all[1]["answers"] = json!(["Mr. Smith"]);
    let whole = json!({"dataset_name": "docvqa", "dataset_version": "1.0", "dataset_split": "val", "data": all});
    write(&dir.join("val_v1.0_withQT.json"), whole.to_string());
    let whole = json!({"dataset_name": "docvqa", "dataset_version": "1.0", "dataset_split": "test",
        "data": [question(57344, "What is it?", "others")]});
    write(&dir.join("test_v1.0.json"), whole.to_string());
    picture(&dir.join("documents/a_1.png"), 23);
}

fn mme(root: &Path) {
    let dir = root.join("MME/MME_Benchmark_release_version");
    let together = [
        "existence",
        "count",
        "position",
        "color",
        "OCR",
        "commonsense_reasoning",
        "numerical_calculation",
        "text_translation",
        "code_reasoning",
    ];
    let apart = ["posters", "celebrity", "scene", "landmark", "artwork"];
    let text = |task: &str| {
        format!(
            "Is there a {task}? Please answer yes or no.\tYes\nIs it a {task} elsewhere? Please answer yes or no.\tNo\n"
        )
    };
    for task in together {
        write(&dir.join(task).join("0001.txt"), text(task));
        picture(&dir.join(task).join("0001.png"), 24);
    }
    for task in apart {
        write(&dir.join(task).join("questions_answers_YN/0001.txt"), text(task));
        picture(&dir.join(task).join("images/0001.jpg"), 25);
    }
}

fn seed_bench(root: &Path) {
    let dir = root.join("seed_bench");
    let question = |id: &str, kind: u64, data: &str, answer: &str| {
        json!({"answer": answer, "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four", "data_id": data,
            "data_type": if kind < 10 { "image" } else { "video" }, "question": "How many towels are in the image?",
            "question_id": id, "question_type_id": kind, "segment": []})
    };
    let whole = json!({"question_type": {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10},
        "questions": [question("101669", 5, "1454426_2591111986", "A"), question("101670", 1, "1454426_2591111986", "D"),
            question("104532", 10, "1.webm", "B")]});
    write(&dir.join("SEED-Bench.json"), whole.to_string());
    // The images have no extension.
    picture(&dir.join("SEED-Bench-image/one.png"), 26);
    fs::rename(dir.join("SEED-Bench-image/one.png"), dir.join("SEED-Bench-image/1454426_2591111986"))
        .expect("a temporary file can be renamed");
}

fn mmvp(root: &Path) {
    let dir = root.join("mmvp");
    let rows = [
        "1,Are the butterfly's wings open?,(a) Open (b) Closed,(a)",
        "2,Are the butterfly's wings open?,(a) Open (b) Closed,(b)",
        "3,\"Is it a cat, or not?\",(a) Yes (b) No,(b)",
        "4,\"Is it a cat, or not?\",(a) Yes (b) No,(a)",
    ];
    // As in the authors' file, with the spelling of the first column's name.
    write(&dir.join("Questions.csv"), format!("lndex,Question,Options,Correct Answer\n{}\n", rows.join("\n")));
    (1..=4).for_each(|number| picture(&dir.join(format!("MMVP Images/{number}.jpg")), 30 + number));
}

fn hallusion_bench(root: &Path) {
    let dir = root.join("hallusion_bench");
    let question = |visual: &str, figure: &str, number: &str, truth: &str| {
        let file = (visual != "0").then(|| format!("./VS/chart/0_{figure}.png"));
        json!({"category": "VS", "subcategory": "chart", "visual_input": visual, "set_id": "0", "figure_id": figure,
            "sample_note": "import", "question_id": number, "question": format!("Is {number} the leading country?"),
            "gt_answer_details": "x", "gt_answer": truth, "filename": file})
    };
    let all = [
        question("0", "0", "0", "0"),
        question("0", "0", "1", "1"),
        question("1", "1", "0", "0"),
        question("1", "1", "1", "1"),
    ];
    write(&dir.join("HallusionBench.json"), json!(all).to_string());
    picture(&dir.join("hallusion_bench/VS/chart/0_1.png"), 40);
}

fn llava_bench(root: &Path) {
    let dir = root.join("llava-bench-in-the-wild");
    let question = |id: u64, text: &str, category: &str| json!({"question_id": id, "image": "001.jpg", "text": text, "category": category});
    let all = [question(0, "What is the name of this place?", "conv"), question(1, "Describe it in detail.", "detail")];
    write(&dir.join("questions.jsonl"), lines(&all));
    picture(&dir.join("images/001.jpg"), 41);
}
