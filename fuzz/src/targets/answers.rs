//! Targets for questions, benchmarks and answers.

use std::path::Path;

use super::{Target, seeds};
use crate::mutate::Kind;
use crate::outputs::Leaves;

const QUESTIONS: &str =
    "{\"question_id\":0,\"image\":\"a.png\",\"text\":\"what?\",\"answer\":\"a\",\"category\":\"c\"}\n";
const PREDICTION: &str = "{\"question_id\":0,\"image\":\"a.png\",\"text\":\"what?\",\"expected\":\"a\",\"answer\":\"b\",\"category\":\"c\",\"correct\":false}\n";

/// The images that the questions in `seeds/benchmarks` name.
const PICTURES: [&str; 35] = [
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
    "bench/chartqa/test/png/1.png",
    "bench/docvqa/documents/1.png",
    "bench/seed_bench/SEED-Bench-image/1",
    "bench/mmvp/MMVP Images/1.jpg",
    "bench/mmvp/MMVP Images/2.jpg",
    "bench/hallusion_bench/VD/ocr/0_0.png",
    "bench/llava-bench-in-the-wild/images/001.jpg",
    "bench/MME/MME_Benchmark_release_version/existence/1.jpg",
    "bench/MME/MME_Benchmark_release_version/count/1.jpg",
    "bench/MME/MME_Benchmark_release_version/position/1.jpg",
    "bench/MME/MME_Benchmark_release_version/color/1.jpg",
    "bench/MME/MME_Benchmark_release_version/OCR/1.jpg",
    "bench/MME/MME_Benchmark_release_version/commonsense_reasoning/1.jpg",
    "bench/MME/MME_Benchmark_release_version/numerical_calculation/1.jpg",
    "bench/MME/MME_Benchmark_release_version/text_translation/1.jpg",
    "bench/MME/MME_Benchmark_release_version/code_reasoning/1.jpg",
    "bench/MME/MME_Benchmark_release_version/posters/1.jpg",
    "bench/MME/MME_Benchmark_release_version/celebrity/1.jpg",
    "bench/MME/MME_Benchmark_release_version/scene/1.jpg",
    "bench/MME/MME_Benchmark_release_version/landmark/1.jpg",
    "bench/MME/MME_Benchmark_release_version/artwork/1.jpg",
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
        let target = target.with(fixtures.join("benchmarks"), "bench");
        PICTURES.iter().fold(target, |target, picture| target.with(fixtures.join("images/a.png"), picture))
    };
    // The options are ranked too, which reads more of a table.
    let ranked: &'static [&'static str] = &[
        "eval",
        "model",
        "--bench",
        "mmstar",
        "--root",
        "bench",
        "--out",
        "ev",
        "--max-new-tokens",
        "1",
        "--choices",
        "likelihood",
        "--device",
        "cpu",
    ];
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
        bench("mmstar", Kind::Bytes, "bench/mmstar/MMStar.tsv", ranked),
        bench("ai2d", Kind::Bytes, "bench/ai2d/data/test-00000-of-00001.parquet", eval!("ai2d")),
        bench("chartqa", Kind::Json, "bench/chartqa/test/test_human.json", eval!("chartqa")),
        bench("docvqa", Kind::Json, "bench/docvqa/val_v1.0_withQT.json", eval!("docvqa")),
        bench("mme", Kind::Bytes, "bench/MME/MME_Benchmark_release_version/count/1.txt", eval!("mme")),
        bench("seed_bench", Kind::Json, "bench/seed_bench/SEED-Bench.json", eval!("seed_bench")),
        bench("realworldqa", Kind::Bytes, "bench/realworldqa/data/test-00000-of-00002.parquet", eval!("realworldqa")),
        bench("mmmu", Kind::Bytes, "bench/mmmu/Art/validation-00000-of-00001.parquet", eval!("mmmu")),
        bench("mmvp", Kind::Bytes, "bench/mmvp/Questions.csv", eval!("mmvp")),
        bench("cv-bench", Kind::Bytes, "bench/cv-bench/test_2d.parquet", eval!("cv-bench")),
        bench("hallusion_bench", Kind::Json, "bench/hallusion_bench/HallusionBench.json", eval!("hallusion_bench")),
        bench(
            "llava-bench-in-the-wild",
            Kind::Lines,
            "bench/llava-bench-in-the-wild/questions.jsonl",
            eval!("llava-bench-in-the-wild"),
        ),
        Target {
            made_by: vec![ranked],
            ..bench("likelihoods, gone on with", Kind::Lines, "ev/mmstar/likelihoods.jsonl", ranked)
        },
        Target {
            made_by: vec![eval!("mme")],
            ..bench("judged.jsonl of pairs, compared", Kind::Lines, "ev/mme/judged.jsonl", &["compare", "ev", "ev"])
        },
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
