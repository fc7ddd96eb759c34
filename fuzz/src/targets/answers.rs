//! Targets for questions, benchmarks and answers.

use std::path::Path;

use super::{Target, seeds};
use crate::mutate::Kind;
use crate::outputs::Leaves;

const QUESTIONS: &str =
    "{\"question_id\":0,\"image\":\"a.png\",\"text\":\"what?\",\"answer\":\"a\",\"category\":\"c\"}\n";
const PREDICTION: &str = "{\"question_id\":0,\"image\":\"a.png\",\"text\":\"what?\",\"expected\":\"a\",\"answer\":\"b\",\"category\":\"c\",\"correct\":false}\n";

/// The images that the questions in `seeds/benchmarks` name.
const PICTURES: [&str; 14] = [
    "bench/vqav2/test2015/1.png",
    "bench/vqav2/test2015/2.png",
    "bench/vqav2/val2014/COCO_val2014_000000000042.jpg",
    "bench/gqa/data/images/n1.png",
    "bench/gqa/data/images/n2.png",
    "bench/vizwiz/test/VizWiz_test_00000000.jpg",
    "bench/vizwiz/val/VizWiz_val_00000000.jpg",
    "bench/textvqa/train_images/003a.jpg",
    "bench/scienceqa/images/test/5/image.png",
    "bench/mm-vet/images/v1_0.png",
    "bench/pope/val2014/COCO_val2014_000000000000.jpg",
    "bench/pope/val2014/COCO_val2014_000000000001.jpg",
    "bench/gqa/data/images/n1.jpg",
    "bench/gqa/data/images/n2.jpg",
];

/// The command line that runs a benchmark.
macro_rules! eval {
    ($name:literal) => {
        &[
            "eval",
            "model",
            "--bench",
            $name,
            "--root",
            "bench",
            "--out",
            "ev",
            "--max-new-tokens",
            "1",
            "--device",
            "cpu",
        ]
    };
}

/// The targets of evaluation.
pub(super) fn targets(fixtures: &Path) -> Vec<Target> {
    let new = |format, name, kind, damaged, line| {
        let target = Target::new(format, name, kind, damaged, line);
        target.with(fixtures.join("images/a.png"), "a.png").with(fixtures.join("plain"), "model")
    };
    let bench = |name, kind, damaged, line| {
        let target = new("benchmarks", name, kind, damaged, line).with(seeds("benchmarks"), "bench");
        PICTURES.iter().fold(target, |target, picture| target.with(fixtures.join("images/a.png"), picture))
    };
    let answered = |name, kind, damaged, line| {
        let made: &[&str] = eval!("vqav2-val");
        Target { format: "predictions", made_by: vec![made, eval!("pope")], ..bench(name, kind, damaged, line) }
    };
    let page = Leaves::File("page.html");
    vec![
        new("JSONL", "questions", Kind::Lines, "q.jsonl", &["eval", "model", "./q.jsonl", "--max-new-tokens", "1"])
            .text("q.jsonl", QUESTIONS.repeat(2)),
        bench("vqav2 questions", Kind::Lines, "bench/vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", eval!("vqav2")),
        bench("vqav2 test questions", Kind::Lines, "bench/vqav2/llava_vqav2_mscoco_test2015.jsonl", eval!("vqav2")),
        bench(
            "vqav2-val questions",
            Kind::Json,
            "bench/vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
            eval!("vqav2-val"),
        ),
        bench(
            "vqav2-val annotations",
            Kind::Json,
            "bench/vqav2/v2_mscoco_val2014_annotations.json",
            eval!("vqav2-val"),
        ),
        bench("gqa questions", Kind::Lines, "bench/gqa/llava_gqa_testdev_balanced.jsonl", eval!("gqa")),
        bench("gqa annotations", Kind::Json, "bench/gqa/data/testdev_balanced_questions.json", eval!("gqa")),
        bench("vizwiz questions", Kind::Lines, "bench/vizwiz/llava_test.jsonl", eval!("vizwiz")),
        bench("vizwiz-val", Kind::Json, "bench/vizwiz/val.json", eval!("vizwiz-val")),
        bench("textvqa questions", Kind::Lines, "bench/textvqa/llava_textvqa_val_v051_ocr.jsonl", eval!("textvqa")),
        bench("textvqa annotations", Kind::Json, "bench/textvqa/TextVQA_0.5.1_val.json", eval!("textvqa")),
        bench("scienceqa questions", Kind::Json, "bench/scienceqa/llava_test_CQM-A.json", eval!("scienceqa")),
        bench("scienceqa problems", Kind::Json, "bench/scienceqa/problems.json", eval!("scienceqa")),
        bench("scienceqa splits", Kind::Json, "bench/scienceqa/pid_splits.json", eval!("scienceqa")),
        bench("mmbench", Kind::Bytes, "bench/mmbench/mmbench_dev_20230712.tsv", eval!("mmbench")),
        bench("mmbench_cn", Kind::Bytes, "bench/mmbench_cn/mmbench_dev_cn_20231003.tsv", eval!("mmbench_cn")),
        bench("mm-vet", Kind::Lines, "bench/mm-vet/llava-mm-vet.jsonl", eval!("mm-vet")),
        bench("pope questions", Kind::Lines, "bench/pope/llava_pope_test.jsonl", eval!("pope")),
        bench("pope labels", Kind::Lines, "bench/pope/coco/coco_pope_random.json", eval!("pope")),
        new(
            "predictions",
            "predictions, reported",
            Kind::Lines,
            "p.predictions.jsonl",
            &["report", "p.predictions.jsonl", "--out", "page.html"],
        )
        .text("p.predictions.jsonl", (0..3).map(|id| PREDICTION.replace(":0,", &format!(":{id},"))).collect::<String>())
        .leaves(page),
        new(
            "predictions",
            "predictions, gone on with",
            Kind::Lines,
            "p.predictions.jsonl",
            &["eval", "model", "./q.jsonl", "--max-new-tokens", "1", "--out", "./p.predictions.jsonl"],
        )
        .text("q.jsonl", QUESTIONS)
        .text("p.predictions.jsonl", PREDICTION),
        answered("answers, gone on with", Kind::Lines, "ev/pope/answers.jsonl", eval!("pope")),
        answered("answers, compared", Kind::Lines, "ev/pope/answers.jsonl", &["compare", "ev", "ev", "--json"]),
        answered("judged.jsonl, compared", Kind::Lines, "ev/vqav2-val/judged.jsonl", &["compare", "ev", "ev"]),
        answered(
            "judged.jsonl, reported",
            Kind::Lines,
            "ev/vqav2-val/judged.jsonl",
            &["report", "ev", "--out", "page.html"],
        )
        .leaves(page),
        answered("result.json, compared", Kind::Json, "ev/pope/result.json", &["compare", "ev", "ev"]),
        answered("result.json, reported", Kind::Json, "ev/pope/result.json", &["report", "ev", "--out", "page.html"])
            .leaves(page),
        answered("made.txt", Kind::Bytes, "ev/pope/made.txt", eval!("pope")),
    ]
}
