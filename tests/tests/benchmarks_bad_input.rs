//! The errors of `basic eval --bench` for invalid files, and its behaviour for a checkpoint without a chat template.

use std::fs;

use tests::benchmarks::{Place, edit, write};
use tests::fixtures::text;
use tests::run;

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

#[test]
fn annotations_of_another_version_are_named_by_file_and_entry() {
    let place = Place::new(BASIC);
    let root = place.root();
    let without =
        |file: &str, key: &str| edit(&root.join(file), |text| text.replacen(&format!("\"{key}\""), "\"another\"", 1));
    without("vqav2/v2_mscoco_val2014_annotations.json", "answer_type");
    place.refused(
        "vqav2-val",
        &["v2_mscoco_val2014_annotations.json: entry annotations[0]", "missing field `answer_type`", "another version"],
    );
    without("gqa/data/testdev_balanced_questions.json", "structural");
    place.refused("gqa", &["testdev_balanced_questions.json: entry 201307251.types", "missing field `structural`"]);
    without("vizwiz/val.json", "answers");
    place.refused("vizwiz-val", &["val.json: entry [0]", "missing field `answers`"]);
    without("textvqa/TextVQA_0.5.1_val.json", "image_id");
    place.refused("textvqa", &["TextVQA_0.5.1_val.json: entry data[0]", "missing field `image_id`"]);
    without("scienceqa/pid_splits.json", "test");
    place.refused("scienceqa", &["pid_splits.json: test: no such split"]);
    without("pope/coco/coco_pope_popular.json", "label");
    place.refused("pope", &["coco_pope_popular.json:1", "missing field `label`", "another version"]);
    without("mm-vet/llava-mm-vet.jsonl", "text");
    place.refused("mm-vet", &["llava-mm-vet.jsonl:1", "missing field `text`"]);
    edit(&root.join("mmbench/mmbench_dev_20230712.tsv"), |text| text.replacen("question", "query", 1));
    place.refused("mmbench", &["mmbench_dev_20230712.tsv", "column \"question\"", "not there"]);
    edit(&root.join("vqav2/llava_vqav2_mscoco_test2015.jsonl"), |text| text.replace("262144002", "9"));
    place.refused("vqav2", &["test-dev2015.jsonl: question 262144002", "test2015.jsonl", "one version"]);
    place.refused("nope", &["\"nope\"", "vizwiz-val"]);
}

#[test]
fn questions_without_image_asked_twice_and_empty_files_are_named() {
    let place = Place::new(BASIC);
    let root = place.root();
    fs::remove_file(root.join("mm-vet/images/v1_1.png")).unwrap();
    place.refused("mm-vet", &["v1_1.png: not there", "question 1"]);
    edit(&root.join("vizwiz/llava_test.jsonl"), |text| text.replacen("\"image\"", "\"picture\"", 1));
    place.refused("vizwiz", &["llava_test.jsonl:1", "no \"image\""]);
    fs::remove_file(root.join("vqav2/val2014/COCO_val2014_000000000073.jpg")).unwrap();
    place.refused("vqav2-val", &["COCO_val2014_000000000073.jpg: not there", "question 73000"]);
    edit(&root.join("gqa/llava_gqa_testdev_balanced.jsonl"), |text| text.replace("201640614", "201307251"));
    place.refused("gqa", &["llava_gqa_testdev_balanced.jsonl", "question 201307251", "twice", "the 1. and the 2."]);
    edit(&root.join("vizwiz/val.json"), |text| text.replace("val_00000001", "val_00000000"));
    place.refused("vizwiz-val", &["val.json", "VizWiz_val_00000000.jpg", "twice"]);
    edit(&root.join("mmbench_cn/mmbench_dev_cn_20231003.tsv"), |text| {
        let row = text.lines().nth(1).unwrap().to_string();
        format!("{text}{row}\n")
    });
    place.refused("mmbench_cn", &["mmbench_dev_cn_20231003.tsv", "question 252", "twice"]);
    fs::write(root.join("mmbench/mmbench_dev_20230712.tsv"), "").unwrap();
    place.refused("mmbench", &["mmbench_dev_20230712.tsv", "column \"index\""]);
    fs::write(root.join("pope/llava_pope_test.jsonl"), "\n").unwrap();
    place.refused("pope", &["llava_pope_test.jsonl", "is empty"]);
    fs::write(root.join("textvqa/TextVQA_0.5.1_val.json"), "").unwrap();
    place.refused("textvqa", &["TextVQA_0.5.1_val.json", "is empty"]);
    fs::write(root.join("scienceqa/llava_test_CQM-A.json"), "[]").unwrap();
    place.refused("scienceqa", &["llava_test_CQM-A.json", "holds no question"]);
    fs::remove_dir_all(root.join("gqa")).unwrap();
    place.refused("gqa", &["llava_gqa_testdev_balanced.jsonl: not there", "eval.zip"]);
}

#[test]
fn answers_that_belong_to_nothing_asked_are_named() {
    let place = Place::new(BASIC);
    place.eval(&["mm-vet"]);
    let answers = place.out().join("mm-vet/answers.jsonl");
    let whole = fs::read_to_string(&answers).unwrap();
    fs::write(&answers, whole.clone() + "{\"question_id\": 77, \"prompt\": \"what?\", \"text\": \"x\"}\n").unwrap();
    place.refused("mm-vet", &["answers.jsonl:3", "question 77", "not asked", "--fresh"]);
    fs::write(&answers, format!("{{\"question_id\": 0, \"pro\n{whole}")).unwrap();
    place.refused("mm-vet", &["answers.jsonl:1", "no answer", "--fresh"]);
    run(BASIC, place.line(&["mm-vet"], &["--fresh"])).json();
    assert_eq!(fs::read_to_string(&answers).unwrap(), whole);
}

#[test]
fn a_checkpoint_without_template_is_asked_as_vicuna_v1_and_with_one_by_it() {
    let place = Place::new(BASIC);
    let said = |more: &[&str]| {
        let report = run(BASIC, place.line(&["pope"], &[&["--fresh"], more].concat())).json();
        (text(&report["conversation"]).to_string(), place.answers("pope"))
    };
    let without = said(&[]);
    assert_eq!(without.0, "vicuna_v1");
    assert_eq!(said(&["--conversation", "vicuna_v1"]), without);
    let plain = said(&["--conversation", "plain"]);
    assert_eq!(plain.0, "plain");
    assert_ne!(plain.1, without.1);
    run(BASIC, place.line(&["pope"], &["--conversation", "template"])).refused(1, &["model", "chat_template.jinja"]);
    run(BASIC, place.line(&["pope"], &["--conversation", "nope"])).refused(2, &["nope", "vicuna_v1"]);
    let system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.";
    let template = format!(
        "{system}{{% for m in messages %}} {{{{ 'USER' if m.role == 'user' else 'ASSISTANT' }}}}: {{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{{% for c in m.content %}}{{{{ '<image>\\n' if c.type == 'image' else c.text }}}}{{% endfor %}}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}} ASSISTANT:{{% endif %}}"
    );
    write(&place.model().join("chat_template.jinja"), template);
    let with = said(&[]);
    assert_eq!(with.0, "template");
}
