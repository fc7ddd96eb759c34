//! `basic eval --bench` on a few questions of the benchmarks that LLaVA's guide does not have
//! (`tests::benchmarks_beyond_llava`), with a tiny checkpoint.

use std::collections::HashMap;
use std::fs;

use serde_json::{Value, json};
use tests::benchmarks::{LETTER, Place, SHORT, lines, write};
use tests::benchmarks_beyond_llava::{ALL, encoded};
use tests::fixtures::{fixture, number, read_json, read_jsonl, text, tree};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// The benchmarks that have options.
const WITH_OPTIONS: [&str; 7] = ["mmstar", "ai2d", "seed_bench", "realworldqa", "mmmu", "mmvp", "cv-bench"];

/// The scores of a benchmark by the names of its measures, with how many questions each covers.
fn scores(report: &Value, name: &str) -> HashMap<String, (f64, u64)> {
    let benchmarks = report["benchmarks"].as_array().unwrap();
    let found = benchmarks.iter().find(|benchmark| benchmark["name"] == name).unwrap();
    let metric = |m: &Value| (text(&m["name"]).into(), (number(&m["value"]), m["questions"].as_u64().unwrap()));
    found["metrics"].as_array().unwrap().iter().map(metric).collect()
}

/// Replaces the stored answers by others. The questions stay the same, so nothing is asked again.
fn say(place: &Place, name: &str, said: &[&str]) {
    let path = place.out().join(name).join("answers.jsonl");
    let mut all = read_jsonl(&path);
    assert_eq!(all.len(), said.len(), "{name}");
    all.iter_mut().zip(said).for_each(|(line, said)| line["text"] = json!(said));
    write(&path, lines(&all));
}

#[test]
fn every_benchmark_is_asked_in_its_words_and_scored_by_its_rule() {
    let place = Place::new(BASIC);
    let names = ALL.map(|(name, _)| name);
    let report = place.eval(&names);
    let asked = |name: &str| place.prompts(name);
    assert_eq!(
        asked("mmstar"),
        [
            format!("Which is it?\nA. a cat\nB. a dog\nC. a bird\nD. two\nfish\n{LETTER}"),
            format!("What is odd?\nA. one\nB. two\nC. three\n{LETTER}")
        ]
    );
    assert_eq!(asked("ai2d")[1], format!("What eats the hawk?\nA. mouse\nB. nothing\n{LETTER}"));
    assert_eq!(asked("chartqa")[2], format!("What was the share in 2018?\n{SHORT}"));
    assert_eq!(asked("docvqa")[0], format!("What is the date?\n{SHORT}"));
    assert_eq!(asked("mme")[1], format!("Is it a existence elsewhere?\n{SHORT}"));
    assert_eq!(
        asked("seed_bench")[0],
        format!("How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER}")
    );
    let own = "Please answer directly with only the letter of the correct option and nothing else.";
    assert_eq!(
        asked("realworldqa")[0],
        format!("Which object is closer?\n\nA. The car\nB. The bus\nC. Neither\n{own}")
    );
    assert_eq!(
        asked("mmmu"),
        [
            format!("Who painted <image 1>?\n(A) Monet\n(B) O'Keeffe\n(C) Klee\n\n{LETTER}"),
            format!("Which of these?\n(A) <image 2>\n(B) <image 3>\n\n{LETTER}"),
            format!("What is x in <image 1>?\n{SHORT}"),
        ]
    );
    assert_eq!(asked("mmvp")[2], format!("Is it a cat, or not?\nA. Yes\nB. No\n{LETTER}"));
    assert_eq!(
        asked("cv-bench")[3],
        format!("What about depth? Select from the following choices.\n(A) car, (B) table\n{LETTER}")
    );
    assert_eq!(asked("hallusion_bench")[0], "Is 0 the leading country?");
    assert_eq!(asked("llava-bench-in-the-wild")[1], "Describe it in detail.");
    for (name, questions) in ALL {
        assert_eq!(asked(name).len(), questions, "{name}");
        let hidden = ["docvqa-test", "llava-bench-in-the-wild"].contains(&name);
        assert_eq!(scores(&report, name).is_empty(), hidden, "{name}");
    }
    let sent = read_json(&place.out().join("docvqa-test/docvqa_test.json"));
    assert_eq!(sent, json!([{"questionId": 57344, "answer": place.answers("docvqa-test")[0].1}]));
    let sent = read_jsonl(&place.out().join("llava-bench-in-the-wild/llava-bench-in-the-wild.jsonl"));
    assert_eq!(
        (&sent[1]["question_id"], text(&sent[1]["text"])),
        (&json!(1), &*place.answers("llava-bench-in-the-wild")[1].1)
    );

    say(&place, "mmstar", &["(B)", "It is one"]);
    say(&place, "ai2d", &["It is the leaf", "A"]);
    say(&place, "chartqa", &["4.1", "blue", "50%"]);
    say(&place, "docvqa", &["15 may", "Mr Smit"]);
    // The first three tasks have one pair each: both right, one right, none right.
    let mme: Vec<&str> = (0..28)
        .map(|i| match i {
            0 | 2 | 3 | 5 => "Yes",
            4 => "Hm",
            _ => "No",
        })
        .collect();
    say(&place, "mme", &mme);
    say(&place, "seed_bench", &["A", "D."]);
    say(&place, "realworldqa", &["B. The bus", "2."]);
    say(&place, "mmmu", &["(A) or rather (B)", "A", "so x = 3.429"]);
    say(&place, "mmvp", &["A", "(b)", "Yes", "A"]);
    say(&place, "cv-bench", &["D", "B", "(B)", "A"]);
    say(&place, "hallusion_bench", &["I cannot know.", "No", "No", "Yes"]);
    let report = place.eval(&names);
    let near = |name: &str, measure: &str, value: f64, questions: u64| {
        let scores = scores(&report, name);
        let got = scores.get(measure).unwrap_or_else(|| panic!("{measure} is not in {scores:?}"));
        assert!((got.0 - value).abs() < 1e-9 && got.1 == questions, "{name}, {measure}: {got:?}");
    };
    near("mmstar", "accuracy", 0.5, 2);
    near("mmstar", "accuracy, math", 1.0, 1);
    near("ai2d", "accuracy", 0.5, 2);
    near("chartqa", "relaxed accuracy", 2.0 / 3.0, 3);
    near("chartqa", "relaxed accuracy, human", 1.0, 2);
    near("docvqa", "ANLS, form", 1.0, 1);
    near("docvqa", "ANLS, handwritten", 7.0 / 9.0, 1);
    near("mme", "score, existence", 1.0, 1);
    near("mme", "score, count", 0.25, 1);
    near("mme", "score, position", 0.0, 1);
    near("seed_bench", "accuracy, Instances Counting", 1.0, 1);
    near("seed_bench", "accuracy", 0.5, 2);
    near("realworldqa", "accuracy", 1.0, 2);
    near("mmmu", "accuracy, Art and Design", 1.0, 2);
    near("mmmu", "accuracy", 1.0, 3);
    near("mmvp", "accuracy", 0.75, 4);
    near("mmvp", "pair accuracy", 0.5, 2);
    // 2D: (0.5 + 1) / 2; 3D: 1.
    near("cv-bench", "accuracy", 0.875, 4);
    near("cv-bench", "accuracy, 2D", 0.75, 3);
    near("hallusion_bench", "accuracy", 0.75, 4);
    near("hallusion_bench", "figure accuracy", 1.0, 1);
    near("hallusion_bench", "question pair accuracy", 0.5, 2);
    // Points are shown as points.
    let mut line = place.line(&["mme"], &[]);
    line.retain(|arg| arg != "--json");
    let table = run(BASIC, line);
    let row = table.stdout.lines().find(|line| line.contains("score, count")).unwrap().to_string();
    assert!(row.contains("  50.00 ") && !row.contains('%'), "{row}");
    let record = read_json(&place.out().join("mme/result.json"));
    let perception = record["metrics"].as_array().unwrap().iter().find(|m| m["name"] == "score, perception").unwrap();
    assert_eq!(perception["points"], 2000.0);
    // An evaluation compares with itself, measure by measure.
    let compared = run(BASIC, args!["compare", place.out(), place.out(), "--json"]).json();
    let sets = compared["sets"].as_array().unwrap();
    assert_eq!(sets.len(), ALL.len());
    let mmvp = sets.iter().find(|set| set["name"] == "mmvp").unwrap();
    assert_eq!((&mmvp["measures"][1]["name"], &mmvp["measures"][1]["same"]), (&json!("pair accuracy"), &json!(2)));
}

#[test]
fn options_are_ranked_beside_the_answers_and_ranking_goes_on_where_it_was_stopped() {
    let place = Place::new(BASIC);
    let names = [&WITH_OPTIONS[..], &["mmbench", "scienceqa", "chartqa"]].concat();
    let line = place.line(&names, &["--choices", "likelihood"]);
    let report = run(BASIC, line.clone()).json();
    let whole = tree(&place.out());
    for (name, ranked) in
        names.iter().zip([Some(2), Some(2), Some(2), Some(1), Some(1), Some(4), Some(4), Some(2), Some(0), None])
    {
        let scores = scores(&report, name);
        let found = scores.get("accuracy by likelihood").map(|(_, questions)| *questions);
        let file = place.out().join(name).join("likelihoods.jsonl");
        match ranked {
            Some(count @ 1..) => {
                assert_eq!(found, Some(count), "{name}");
                assert_eq!(scores["accuracy by likelihood, by length"].1, count, "{name}");
                assert_eq!(read_jsonl(&file).len() as u64, count, "{name}");
            }
            _ => assert!(found.is_none() && !file.exists(), "{name}: {found:?}"),
        }
    }
    // The likelihoods are those of `basic eval --choices likelihood` on a file of the same questions.
    let judged = read_jsonl(&place.out().join("mmvp/judged.jsonl"));
    let ranked = read_jsonl(&place.out().join("mmvp/likelihoods.jsonl"));
    let options = |i: usize| if i < 2 { ["Open", "Closed"] } else { ["Yes", "No"] };
    let questions: Vec<Value> = (0..4)
        .map(|i| {
            let (image, text) = (format!("MMVP Images/{}.jpg", i + 1), text(&ranked[i]["prompt"]));
            let truth = options(i)[[0, 1, 1, 0][i]];
            json!({"question_id": i, "image": image, "text": text, "choices": options(i), "answer": truth})
        })
        .collect();
    let data = place.root().join("mmvp/data.jsonl");
    write(&data, lines(&questions));
    let out = place.root().join("mmvp/out.jsonl");
    run(
        BASIC,
        args!["eval", place.model(), data, "--choices", "likelihood", "--device", "cpu", "--out", out, "--json"],
    )
    .json();
    for ((alone, line), judged) in read_jsonl(&out).iter().zip(&ranked).zip(&judged) {
        assert_eq!(alone["log_likelihoods"], line["log_likelihoods"]);
        assert_eq!(judged["by_likelihood"]["answer"], alone["answer"]);
        assert_eq!(number(&judged["by_likelihood"]["score"]) == 1.0, alone["correct"] == true);
    }

    // Half of the likelihoods are lost: the rest is computed again, to the same files.
    let file = place.out().join("cv-bench/likelihoods.jsonl");
    let kept: String = fs::read_to_string(&file).unwrap().lines().take(2).map(|line| format!("{line}\n")).collect();
    fs::write(&file, kept + "{\"question_id\": 3, \"prom").unwrap();
    assert_eq!(run(BASIC, line.clone()).json(), report);
    assert!(tree(&place.out()) == whole, "the files differ");
    // Likelihoods of other options are refused.
    let other = fs::read_to_string(&file).unwrap().replacen("\"log_likelihoods\":[", "\"log_likelihoods\":[-1.0,", 1);
    fs::write(&file, other).unwrap();
    run(BASIC, line).refused(1, &["likelihoods.jsonl", "question 0", "5 likelihoods, but 4 options", "--fresh"]);
    run(BASIC, place.line(&["chartqa", "mme"], &["--choices", "likelihood"]))
        .refused(1, &["chartqa, mme", "no question has options"]);
}

#[test]
fn a_table_is_the_same_benchmark_as_tsv_as_parquet_and_as_json_lines() {
    let place = Place::new(BASIC);
    let told = || {
        let report = run(BASIC, place.line(&["ai2d"], &["--fresh", "--choices", "likelihood"])).json();
        (scores(&report, "ai2d"), place.answers("ai2d"))
    };
    let parquet = told();
    let dir = place.root().join("ai2d");
    fs::remove_dir_all(dir.join("data")).unwrap();
    // Numbers of questions differ from no index, which is the place in the table.
    let line = |question: &str, options: [&str; 4], image: &str| {
        let shown: Vec<&str> = options.into_iter().filter(|option| !option.is_empty()).collect();
        json!({"question": question, "options": shown, "answer": "1", "image": image})
    };
    let rows = [
        line("Which part makes food?", ["root", "leaf", "stem", "flower"], &encoded("a.png")),
        line("What eats the hawk?", ["mouse", "nothing", "", ""], "pictures/b.png"),
    ];
    write(&dir.join("AI2D_TEST.jsonl"), lines(&rows));
    write(&dir.join("pictures/b.png"), fs::read(fixture("images/b.png")).unwrap());
    assert_eq!(told(), parquet, "JSON lines");
    let sheet = format!(
        "index\tquestion\tA\tB\tC\tD\tanswer\timage\n0\tWhich part makes food?\troot\tleaf\tstem\tflower\tB\t{}\n1\tWhat eats the hawk?\tmouse\tnothing\t\t\tB\t{}\n",
        encoded("a.png"),
        encoded("b.png")
    );
    write(&dir.join("AI2D_TEST.tsv"), sheet);
    assert_eq!(told(), parquet, "TSV, which comes before the JSON lines");
}

#[test]
fn textvqas_prompts_are_llavas_when_they_are_made_from_the_tokens() {
    let place = Place::new(BASIC);
    place.eval(&["textvqa"]);
    let llavas = place.answers("textvqa");
    let dir = place.root().join("textvqa");
    fs::remove_file(dir.join("llava_textvqa_val_v051_ocr.jsonl")).unwrap();
    place.refused("textvqa", &["TextVQA_Rosetta_OCR_v0.2_val.json: not there", "textvqa.org", "eval.zip"]);
    let tokens = |image: &str| json!({"image_id": image, "ocr_tokens": ["DAKOTA", "DIGITAL"], "ocr_info": []});
    let file = dir.join("TextVQA_Rosetta_OCR_v0.2_val.json");
    write(&file, json!({"data": [tokens("another")]}).to_string());
    place.refused("textvqa", &["question 34602", "image 003a8ae2ef43b901 has no tokens"]);
    write(&file, json!({"data": [tokens("003a8ae2ef43b901")]}).to_string());
    let report = run(BASIC, place.line(&["textvqa"], &["--fresh"])).json();
    let own = place.answers("textvqa");
    assert_eq!(own[0], llavas[0]);
    assert_eq!(own[1].0, llavas[1].0.replace("COPENHAGEN", "DAKOTA, DIGITAL"));
    assert_eq!(scores(&report, "textvqa")["accuracy"].1, 2);
}

#[test]
fn mmstars_table_on_the_hub_keeps_its_questions_and_ranks_the_options_that_are_found_in_them() {
    let place = Place::new(BASIC);
    let dir = place.root().join("mmstar");
    fs::remove_file(dir.join("MMStar.tsv")).unwrap();
    let texts = ["What?\nOptions: A: cat, B: dog", "Which?\nChoices:\n(A) one\n(B) two"];
    let row = |(index, text): (usize, &str)| json!({"index": index, "question": text, "answer": "B", "category": "math", "image": encoded("a.png")});
    let rows: Vec<Value> = texts.into_iter().enumerate().map(row).collect();
    write(&dir.join("MMStar.jsonl"), lines(&rows));
    let report = run(BASIC, place.line(&["mmstar"], &["--choices", "likelihood"])).json();
    assert_eq!(place.prompts("mmstar"), texts.map(|text| format!("{text}\n{LETTER}")));
    let scores = scores(&report, "mmstar");
    assert_eq!((scores["accuracy"].1, scores["accuracy by likelihood"].1), (2, 1));
    assert_eq!(read_jsonl(&place.out().join("mmstar/likelihoods.jsonl"))[0]["prompt"], "What?");
}

#[test]
fn a_table_that_changes_or_lacks_something_is_named_with_its_row() {
    let place = Place::new(BASIC);
    let root = place.root();
    let dir = root.join("ai2d");
    fs::copy(root.join("cv-bench/test_3d.parquet"), dir.join("data/test-00000-of-00001.parquet")).unwrap();
    place.refused("ai2d", &["test-00000-of-00001.parquet: row 0", "no list \"options\"", "another version"]);
    fs::write(dir.join("data/test-00000-of-00001.parquet"), "PAR1 and no more").unwrap();
    place.refused("ai2d", &["test-00000-of-00001.parquet", "is no Parquet file, or a damaged one"]);
    fs::remove_dir_all(dir.join("data")).unwrap();
    place.refused("ai2d", &["AI2D_TEST.tsv: not there", "test*.parquet", "AI2D_TEST.jsonl", "lmms-lab/ai2d"]);
    write(
        &dir.join("AI2D_TEST.jsonl"),
        "{\"question\": \"a\", \"options\": [\"b\"], \"answer\": \"1\", \"image\": \"x/y.png\"}\n",
    );
    place.refused("ai2d", &["y.png: not there", "line 1 of", "AI2D_TEST.jsonl"]);
    write(&dir.join("x/y.png"), "");
    place.refused("ai2d", &["AI2D_TEST.jsonl: line 1", "its answer \"1\" is none of its options"]);
    let sheet = root.join("mmstar/MMStar.tsv");
    let whole = fs::read_to_string(&sheet).unwrap();
    fs::write(&sheet, whole.replace("\tMMMU\t", "\tMMMU\t!")).unwrap();
    place.refused("mmstar", &["MMStar.tsv: question 0", "not base64"]);
    fs::write(&sheet, whole.replace("\tAI2D\t0\n", "\tAI2D\t5\n")).unwrap();
    place.refused("mmstar", &["MMStar.tsv: question 1", "that of question 5, which is not in the file"]);
    fs::write(&sheet, whole.replace("\tB\tmath", "\tE\tmath")).unwrap();
    place.refused("mmstar", &["MMStar.tsv: question 0", "its answer \"E\" is the letter of none"]);
}

#[test]
fn wrong_entries_of_the_authors_files_are_named() {
    let place = Place::new(BASIC);
    let root = place.root();
    let change = |file: &str, from: &str, to: &str| {
        let path = root.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    };
    change("chartqa/test/test_human.json", "\"query\"", "\"question\"");
    place.refused("chartqa", &["test_human.json: entry [0]", "missing field `query`"]);
    change("docvqa/val_v1.0_withQT.json", "24580", "49153");
    place.refused("docvqa", &["val_v1.0_withQT.json", "question 49153", "twice"]);
    change("MME/MME_Benchmark_release_version/count/0001.txt", "\tYes", "\tPerhaps");
    place.refused("mme", &["count/0001.txt:1", "Yes or No"]);
    write(&root.join("MME/MME_Benchmark_release_version/count/0001.txt"), "Is it?\tYes\n");
    place.refused("mme", &["image 0001.png of count", "1 questions"]);
    fs::remove_dir_all(root.join("MME/MME_Benchmark_release_version/scene")).unwrap();
    place.refused("mme", &["scene: not there"]);
    change("seed_bench/SEED-Bench.json", "\"answer\":\"A\"", "\"answer\":\"E\"");
    place.refused("seed_bench", &["SEED-Bench.json: question 101669", "none of A to D"]);
    change("mmvp/Questions.csv", "(a) Yes (b) No,(b)", "Yes or No,(b)");
    place.refused("mmvp", &["Questions.csv:4", "no options"]);
    let text = "lndex,Question,Options,Correct Answer\n1,What?,(a) x (b) y,(a)\n";
    write(&root.join("mmvp/Questions.csv"), text);
    place.refused("mmvp", &["Questions.csv", "1 questions, which are no pairs"]);
    change("hallusion_bench/HallusionBench.json", "\"gt_answer\":\"0\"", "\"gt_answer\":\"2\"");
    place.refused("hallusion_bench", &["HallusionBench.json: question VS_chart_0_0_0", "expected 0 or 1"]);
    change("llava-bench-in-the-wild/questions.jsonl", "001.jpg", "002.jpg");
    place.refused("llava-bench-in-the-wild", &["002.jpg: not there"]);
    fs::remove_file(root.join("cv-bench/test_2d.parquet")).unwrap();
    fs::remove_file(root.join("cv-bench/test_3d.parquet")).unwrap();
    place.refused("cv-bench", &["CV-Bench.tsv: not there", "test_2d*.parquet and test_3d*.parquet"]);
}
