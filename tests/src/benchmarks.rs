//! Writes a few questions of every benchmark, in the folders, files and keys of LLaVA's evaluation guide and the
//! official releases. The texts and images are made up.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::{copy_of, read_jsonl, text};
use crate::{args, benchmarks_beyond_llava, run};

/// The request that LLaVA's prompts put after a question.
pub const SHORT: &str = "Answer the question using a single word or phrase.";
/// The request after a question with options.
pub const LETTER: &str = "Answer with the option's letter from the given choices directly.";

/// Writes a file and the folders above it.
pub fn write(path: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a temporary folder can be made");
    fs::write(path, text).expect("a temporary file can be written");
}

/// The rows as JSON lines.
pub fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Writes an image of 28 x 28 pixels that depends on `seed`, in the format of the name's extension.
pub fn picture(path: &Path, seed: u8) {
    fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a temporary folder can be made");
    let picture = RgbImage::from_fn(28, 28, |x, y| {
        let stripe = (x as u8 / 7).wrapping_mul(seed.wrapping_mul(31).wrapping_add(40));
        Rgb([stripe, (y as u8).wrapping_mul(9), seed.wrapping_mul(77)])
    });
    picture.save(path).expect("a picture can be written");
}

/// Ten annotators' answers: `first` from seven of them and `other` from three.
fn ten(first: &str, other: &str) -> Vec<Value> {
    let answer = |i: usize| if i < 7 { first } else { other };
    (0..10).map(|i| json!({"answer": answer(i), "answer_confidence": "yes", "answer_id": i + 1})).collect()
}

/// Writes the folders of all benchmarks, with a few questions each.
pub fn folders(root: &Path) {
    vqav2(root);
    gqa(root);
    vizwiz(root);
    textvqa(root);
    scienceqa(root);
    mmbench(root);
    mmvet(root);
    pope(root, 2);
    benchmarks_beyond_llava::folders(root);
}

fn vqav2(root: &Path) {
    let dir = root.join("vqav2");
    let question = |id: u64, image: &str, text: &str| json!({"question_id": id, "image": image, "text": format!("{text}\n{SHORT}"), "category": "default"});
    let all = [
        question(262144000, "COCO_test2015_000000262144.jpg", "Is the ball flying towards the batter?"),
        question(262144001, "COCO_test2015_000000262144.jpg", "What sport is this?"),
        question(262144002, "COCO_test2015_000000262145.jpg", "How many stripes are there?"),
    ];
    // test-dev is a subset of the test set, in another order.
    write(&dir.join("llava_vqav2_mscoco_test-dev2015.jsonl"), lines(&[all[2].clone(), all[0].clone()]));
    write(&dir.join("llava_vqav2_mscoco_test2015.jsonl"), lines(&all));
    picture(&dir.join("test2015/COCO_test2015_000000262144.jpg"), 1);
    picture(&dir.join("test2015/COCO_test2015_000000262145.jpg"), 2);
    let question = |image: u64, id: u64, text: &str| json!({"image_id": image, "question": text, "question_id": id});
    let questions = [
        question(42, 42000, "What color are the gym shoes?"),
        question(42, 42001, "Is there a red sandal here?"),
        question(73, 73000, "How many wheels?"),
    ];
    let annotation = |image: u64, id: u64, kind: &str, answer: &str, other: &str| {
        json!({"question_type": "what", "multiple_choice_answer": answer, "answers": ten(answer, other), "image_id": image,
            "answer_type": kind, "question_id": id})
    };
    let annotations = [
        annotation(42, 42000, "other", "white", "grey"),
        annotation(42, 42001, "yes/no", "no", "yes"),
        annotation(73, 73000, "number", "2", "two"),
    ];
    let head = json!({"version": "2.0", "year": 2017});
    let whole = json!({"info": head, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "questions": questions, "license": {}});
    write(&dir.join("v2_OpenEnded_mscoco_val2014_questions.json"), whole.to_string());
    let whole = json!({"info": head, "data_type": "mscoco", "data_subtype": "val2014", "annotations": annotations, "license": {}});
    write(&dir.join("v2_mscoco_val2014_annotations.json"), whole.to_string());
    picture(&dir.join("val2014/COCO_val2014_000000000042.jpg"), 3);
    picture(&dir.join("val2014/COCO_val2014_000000000073.jpg"), 4);
}

fn gqa(root: &Path) {
    let dir = root.join("gqa");
    let asked = [
        ("201307251", "n161313", "Is it overcast?", "no", "verify"),
        ("201640614", "n235859", "Who is wearing the dress?", "woman", "query"),
    ];
    let question = |(id, image, text, ..): &(&str, &str, &str, &str, &str)| json!({"question_id": id, "image": format!("{image}.jpg"), "text": format!("{text}\n{SHORT}"), "category": "default"});
    write(&dir.join("llava_gqa_testdev_balanced.jsonl"), lines(&asked.iter().map(question).collect::<Vec<_>>()));
    let annotations: serde_json::Map<String, Value> = asked
        .iter()
        .map(|(id, image, text, answer, structural)| {
            let types = json!({"detailed": "weather", "semantic": "global", "structural": structural});
            let entry = json!({"semantic": [], "entailed": [id], "equivalent": [id], "question": text, "imageId": image, "isBalanced": true,
                "groups": {"global": null, "local": null}, "answer": answer, "semanticStr": "", "annotations": {}, "types": types,
                "fullAnswer": answer});
            (id.to_string(), entry)
        })
        .collect();
    write(&dir.join("data/testdev_balanced_questions.json"), Value::Object(annotations).to_string());
    asked
        .iter()
        .zip(5..)
        .for_each(|((_, image, ..), seed)| picture(&dir.join(format!("data/images/{image}.jpg")), seed));
}

fn vizwiz(root: &Path) {
    let dir = root.join("vizwiz");
    let request = format!("When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}");
    let names = ["VizWiz_test_00000000.jpg", "VizWiz_test_00000001.jpg"];
    let asked = [(0, "What is the name of this product?"), (1, "Can you tell me what is in this can please?")];
    let question = |(id, text): &(usize, &str)| json!({"question_id": id, "image": names[*id], "text": format!("{text}\n{request}"), "category": "default"});
    write(&dir.join("llava_test.jsonl"), lines(&asked.iter().map(question).collect::<Vec<_>>()));
    names.iter().zip(7..).for_each(|(name, seed)| picture(&dir.join("test").join(name), seed));
    let annotation = |name: &str, text: &str, kind: &str, answer: &str, other: &str, answerable: u8| json!({"image": name, "question": text, "answers": ten(answer, other), "answer_type": kind, "answerable": answerable});
    let annotations = [
        annotation(
            "VizWiz_val_00000000.jpg",
            "Ok. There is another picture I hope it is a better one.",
            "unanswerable",
            "unanswerable",
            "unsuitable image",
            0,
        ),
        annotation("VizWiz_val_00000001.jpg", "What color is this shirt?", "other", "blue", "light blue", 1),
    ];
    write(&dir.join("val.json"), json!(annotations).to_string());
    picture(&dir.join("val/VizWiz_val_00000000.jpg"), 9);
    picture(&dir.join("val/VizWiz_val_00000001.jpg"), 10);
}

fn textvqa(root: &Path) {
    let dir = root.join("textvqa");
    let image = "003a8ae2ef43b901";
    let asked = [
        ("What is the brand of this camera?", "DAKOTA, DIGITAL"),
        ("what does the small white text spell?", "COPENHAGEN"),
    ];
    // Two questions about one image, with the image's id as their id.
    let question = |(text, ocr): &(&str, &str)| json!({"question_id": image, "image": format!("{image}.jpg"), "text": format!("{text}\nReference OCR token: {ocr}\n{SHORT}"), "category": "default"});
    write(&dir.join("llava_textvqa_val_v051_ocr.jsonl"), lines(&asked.iter().map(question).collect::<Vec<_>>()));
    let entry = |(place, (text, _)): (usize, &(&str, &str))| {
        let answers: Vec<&str> = (0..10).map(|i| if i < 8 { "dakota" } else { "dakota digital" }).collect();
        json!({"question": text, "image_id": image, "image_classes": ["Camera"], "flickr_original_url": "", "flickr_300k_url": "",
            "image_width": 28, "image_height": 28, "answers": answers, "question_tokens": [], "question_id": 34602 + place, "set_name": "val"})
    };
    let data: Vec<Value> = asked.iter().enumerate().map(entry).collect();
    let whole = json!({"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data});
    write(&dir.join("TextVQA_0.5.1_val.json"), whole.to_string());
    picture(&dir.join(format!("train_images/{image}.jpg")), 11);
}

fn scienceqa(root: &Path) {
    let dir = root.join("scienceqa");
    let turns = |text: &str, answer: &str| json!([{"from": "human", "value": text}, {"from": "gpt", "value": format!("The answer is {answer}.")}]);
    let questions = json!([
        {"id": "5", "image": "5/image.png", "conversations": turns("Context: N/A\nQuestion: What is the name of the colony shown?\nOptions: (A) Maryland (B) New Hampshire\n\n<image>", "B")},
        {"id": "11", "image": "11/image.png", "conversations": turns("Context: The diagram shows a plant.\nQuestion: Which part is it?\nOptions: (A) leaf (B) stem (C) root\n\n<image>", "A")},
        {"id": "13", "conversations": turns("Context: N/A\nQuestion: Is ice solid?\nOptions: (A) yes (B) no\n", "A")},
    ]);
    write(&dir.join("llava_test_CQM-A.json"), questions.to_string());
    let problem = |choices: &[&str], answer: usize, image: Value, split: &str| {
        json!({"question": "", "choices": choices, "answer": answer, "hint": "", "image": image, "task": "closed choice", "grade": "grade5",
            "subject": "social science", "topic": "us-history", "category": "Colonial America", "skill": "", "lecture": "", "solution": "", "split": split})
    };
    let problems = json!({
        "5": problem(&["Maryland", "New Hampshire"], 1, json!("image.png"), "test"),
        "11": problem(&["leaf", "stem", "root"], 0, json!("image.png"), "test"),
        "13": problem(&["yes", "no"], 0, Value::Null, "test"),
        "1": problem(&["yes", "no"], 0, Value::Null, "train"),
    });
    write(&dir.join("problems.json"), problems.to_string());
    write(
        &dir.join("pid_splits.json"),
        json!({"train": ["1"], "val": [], "test": ["5", "11", "13"], "minitest": []}).to_string(),
    );
    picture(&dir.join("images/test/5/image.png"), 12);
    picture(&dir.join("images/test/11/image.png"), 13);
}

/// A PNG of one colour in base64, for a cell of the table.
const CELL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGM4IScHRAwQCgAfJgQRoo8irwAAAABJRU5ErkJggg==";

fn mmbench(root: &Path) {
    let head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit\n";
    let row = |index: u64, question: &str, hint: &str, options: [&str; 4], answer: &str| {
        let [a, b, c, d] = options;
        format!(
            "{index}\t{question}\t{hint}\t{a}\t{b}\t{c}\t{d}\t{answer}\tidentity_reasoning\t{CELL}\tmade up\tattribute_reasoning\t\tdev\n"
        )
    };
    // Two questions, the second of which has a second rotation of its options.
    let english = [
        row(
            241,
            "Which of the following was a dependent variable?",
            "\"The passage below, with a\nline break.\"",
            ["length", "\"light, or \"\"dark\"\"\"", "nan", ""],
            "B",
        ),
        row(252, "What is it?", "nan", ["cat", "dog", "bird", "fish"], "A"),
        row(1_000_252, "What is it?", "nan", ["fish", "cat", "dog", "bird"], "B"),
    ];
    write(&root.join("mmbench/mmbench_dev_20230712.tsv"), head.to_string() + &english.concat());
    let chinese = [row(252, "这是什么?", "nan", ["猫", "狗", "鸟", "鱼"], "A")];
    write(&root.join("mmbench_cn/mmbench_dev_cn_20231003.tsv"), head.to_string() + &chinese.concat());
}

fn mmvet(root: &Path) {
    let dir = root.join("mm-vet");
    let question = |id: u64, text: &str| json!({"question_id": id, "image": format!("v1_{id}.png"), "text": text, "category": "default"});
    write(
        &dir.join("llava-mm-vet.jsonl"),
        lines(&[question(0, "What is x in the equation?"), question(1, "Can you explain this meme?")]),
    );
    picture(&dir.join("images/v1_0.png"), 14);
    picture(&dir.join("images/v1_1.png"), 15);
}

/// Writes POPE with this many questions per split, half of which have the answer yes.
pub fn pope(root: &Path, questions: u64) {
    let dir = root.join("pope");
    let mut asked = Vec::new();
    for split in ["adversarial", "popular", "random"] {
        let mut labels = Vec::new();
        for i in 0..questions {
            let (image, label) = (format!("COCO_val2014_{:012}.jpg", i % 2), if i % 2 == 0 { "yes" } else { "no" });
            let text = format!("Is there a {split} thing number {i} in the image?");
            labels.push(json!({"question_id": i + 1, "image": image, "text": text, "label": label}));
            let id = asked.len();
            asked.push(
                json!({"question_id": id, "image": image, "text": format!("{text}\n{SHORT}"), "category": split}),
            );
        }
        write(&dir.join(format!("coco/coco_pope_{split}.json")), lines(&labels));
    }
    write(&dir.join("llava_pope_test.jsonl"), lines(&asked));
    picture(&dir.join("val2014/COCO_val2014_000000000000.jpg"), 16);
    picture(&dir.join("val2014/COCO_val2014_000000000001.jpg"), 17);
}

/// A temporary folder with the benchmarks, a model, and a place for the answers.
pub struct Place {
    binary: &'static str,
    dir: TempDir,
}

impl Place {
    /// Writes the benchmarks and the model, for the binary at this path.
    pub fn new(binary: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        copy_of("plain", &dir.path().join("model"));
        folders(&dir.path().join("eval"));
        Self { binary, dir }
    }

    /// The checkpoint's folder.
    pub fn model(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    /// The folder of the benchmarks.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("eval")
    }

    /// The folder for the answers.
    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// The command line that evaluates these benchmarks.
    pub fn line(&self, names: &[&str], more: &[&str]) -> Vec<OsString> {
        let mut line = args!["eval", self.model(), "--bench"];
        line.extend(names.iter().map(OsString::from));
        line.extend(args!["--root", self.root(), "--out", self.out(), "--max-new-tokens", "3", "--json"]);
        if !more.contains(&"--devices") {
            line.extend(args!["--device", "cpu"]);
        }
        line.extend(more.iter().map(OsString::from));
        line
    }

    /// Evaluates these benchmarks and returns the JSON output.
    #[track_caller]
    pub fn eval(&self, names: &[&str]) -> Value {
        run(self.binary, self.line(names, &[])).json()
    }

    /// Evaluates a benchmark, which must be refused with a message that has these words.
    #[track_caller]
    pub fn refused(&self, name: &str, mentions: &[&str]) {
        run(self.binary, self.line(&[name], &[])).refused(1, mentions);
    }

    /// The prompts and answers of a benchmark, in the file's order.
    pub fn answers(&self, name: &str) -> Vec<(String, String)> {
        let lines = read_jsonl(&self.out().join(name).join("answers.jsonl"));
        lines.iter().map(|line| (text(&line["prompt"]).into(), text(&line["text"]).into())).collect()
    }

    /// The prompts of a benchmark, in the file's order.
    pub fn prompts(&self, name: &str) -> Vec<String> {
        self.answers(name).into_iter().map(|(prompt, _)| prompt).collect()
    }
}

/// Changes the text of a file.
pub fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).expect("the file can be read");
    fs::write(path, change(text)).expect("the file can be written");
}
