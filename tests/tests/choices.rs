//! `basic eval --choices likelihood`: the likelihood of each choice is that of the training loss, for every decoder family.

use std::fs;
use std::path::{Path, PathBuf};

use basic_core::{DeviceSpec, Objective};
use basic_data::{ImageBase, ImageSource, Sample, StyleChoice, VisionCache, prepare};
use basic_eval::lens::{Lens, LensOptions};
use basic_eval::questions::{EvalOptions, Question, Ranker, rank_choices, read_questions};
use basic_models::nn::Llava;
use basic_models::processor::{LlavaStyle, Message, Role, Style};
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use tests::fixtures::{copy_of, fixture, number, read_json, read_jsonl, text};
use tests::{Ran, args, run};

fn basic(args: Vec<std::ffi::OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

/// Questions whose choices differ in length, and of which some begin alike.
fn questions() -> Vec<Value> {
    let all = ["a dog", "a dog on the grass", "two green triangles and one yellow star", "grass"];
    vec![
        json!({"question_id": 7, "image": "a.png", "text": "what is it?", "answer": all[1], "choices": all, "category": "name"}),
        json!({"image": "b.png", "text": "look at <image> here: what?", "answer": all[0], "choices": all[..2], "category": "name"}),
        json!({"text": "how many?", "answer": "two", "choices": ["one", "two"], "category": "count"}),
    ]
}

fn write(dir: &Path, questions: &[Value]) -> PathBuf {
    let path = dir.join("questions.jsonl");
    let lines: String = questions.iter().map(|question| format!("{question}\n")).collect();
    fs::write(&path, lines).unwrap();
    path
}

#[test]
fn a_choices_log_likelihood_is_minus_its_training_loss_in_every_family() {
    let dir = tempfile::tempdir().unwrap();
    let questions = read_questions(&write(dir.path(), &questions())).unwrap();
    let base = ImageBase::new(&fixture("images"), None).unwrap();
    let device = DeviceSpec::Cpu.open().unwrap();
    let mut checkpoints: Vec<PathBuf> =
        fs::read_dir(fixture("families")).unwrap().map(|entry| entry.unwrap().path()).collect();
    checkpoints.push(fixture("plain"));
    // Their rotary angles change with the length of a sequence (dynamic and longrope), so that cached keys differ from
    // those of the whole, as in generation.
    let lengthwise = ["llama-dynamic", "phi4-clip", "phi4-siglip"];
    checkpoints.retain(|path| !lengthwise.iter().any(|name| path.ends_with(name)));
    assert_eq!(checkpoints.len(), 33);
    for path in checkpoints {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = checkpoint.load(DType::F32, &device).unwrap();
        for conversation in [StyleChoice::Auto, StyleChoice::Named(LlavaStyle::by_name("plain").unwrap())] {
            // A caption's style has no room for a question without an image.
            let asked = if conversation == StyleChoice::Auto { &questions[..] } else { &questions[..1] };
            for batch_size in [1, 3, 32] {
                let options = EvalOptions { batch_size, conversation, ..EvalOptions::default() };
                let cache = &mut VisionCache::new(16);
                let ranker = Ranker::new(&checkpoint, &options).unwrap();
                let found = rank_choices(&ranker, &model, asked, &base, cache, &mut |_| {}).unwrap();
                let style = conversation.resolve(&checkpoint, false).unwrap();
                for (question, ranking) in asked.iter().zip(found) {
                    for (choice, found) in question.choices.iter().zip(&ranking.log_likelihoods) {
                        let (tokens, images) = trained(question, choice, &base, &checkpoint, &style);
                        let wanted = likelihood(&model, &checkpoint, &tokens, &images, &device);
                        // f32 sums in another order, over at most 15 tokens.
                        let near = (found - wanted).abs() < 1e-4 * wanted.abs().max(1.0);
                        assert!(near, "{}, {choice}, {batch_size}: {found} and {wanted}", path.display());
                    }
                }
            }
        }
    }
}

/// A question with this answer as training would see it, and its images.
fn trained(
    question: &Question,
    choice: &str,
    base: &ImageBase,
    checkpoint: &Checkpoint,
    style: &Style,
) -> (ImageTokens, Vec<ImageSource>) {
    let image = question.image.as_ref().map(|name| base.file(name).unwrap().into());
    let text = match image.is_some() && !question.text.contains("<image>") {
        true => format!("<image>\n{}", question.text),
        false => question.text.clone(),
    };
    let sample = Sample {
        file: Path::new("q").into(),
        place: "0".into(),
        images: image.into_iter().collect(),
        messages: vec![Message::new(Role::User, text), Message::new(Role::Assistant, choice)],
        dropped_turns: 0,
    };
    let prepared = prepare(&sample, checkpoint, style).unwrap();
    (prepared.tokens, prepared.images)
}

/// The log-likelihood of the answer by the training loss.
fn likelihood(
    model: &Llava,
    checkpoint: &Checkpoint,
    tokens: &ImageTokens,
    images: &[ImageSource],
    device: &Device,
) -> f64 {
    let tokens = std::slice::from_ref(tokens);
    let mut batch = Batch::collate(tokens, checkpoint.pad_id(), checkpoint.image_shape(), device);
    batch.features = VisionCache::new(16).features(model, checkpoint, images).unwrap();
    let forward = model.forward(&batch, &Objective::llava()).unwrap();
    let loss: f32 = model.lm_loss(&batch, forward.hidden).into_scalar();
    -f64::from(loss) * batch.label_count() as f64
}

/// The row of `table` that each row of `rows` makes the smallest angle with.
fn nearest(rows: &[f32], table: &[f32], width: usize) -> Vec<u32> {
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12)
    };
    let closest = |row: &[f32]| {
        let cosines: Vec<f64> = table.chunks(width).map(|token| cosine(row, token)).collect();
        (0..cosines.len()).max_by(|a, b| cosines[*a].total_cmp(&cosines[*b])).unwrap() as u32
    };
    rows.chunks(width).map(closest).collect()
}

#[test]
fn replaced_choices_have_the_likelihood_of_a_text_in_which_the_nearest_tokens_stand() {
    let dir = tempfile::tempdir().unwrap();
    let questions = read_questions(&write(dir.path(), &questions())).unwrap();
    let base = ImageBase::new(&fixture("images"), None).unwrap();
    let device = DeviceSpec::Cpu.open().unwrap();
    for name in ["plain", "families/gemma-clip", "families/llama-registers", "families/qwen3-siglip"] {
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        let model = checkpoint.load(DType::F32, &device).unwrap();
        let style = StyleChoice::Auto.resolve(&checkpoint, false).unwrap();
        let table = model.language_model.table();
        let width = table.dims()[1];
        let table = table.into_data().try_to_vec::<f32>().unwrap();
        let lens = Lens::new(&model, &checkpoint, LensOptions::nearest()).unwrap();
        let options = EvalOptions { batch_size: 3, ..EvalOptions::default() };
        let rank = |ranker: &Ranker<'_>| {
            let cache = &mut VisionCache::new(16);
            let found = rank_choices(ranker, &model, &questions, &base, cache, &mut |_| {}).unwrap();
            found.into_iter().map(|ranking| ranking.log_likelihoods).collect::<Vec<_>>()
        };
        let plain = rank(&Ranker::new(&checkpoint, &options).unwrap());
        let replaced = rank(&Ranker::new(&checkpoint, &options).unwrap().replacing(&lens));
        assert_ne!(plain[..2], replaced[..2], "{name}");
        assert_eq!(plain[2], replaced[2], "{name}: the question without an image");
        for (question, found) in questions[..2].iter().zip(&replaced) {
            for (choice, found) in question.choices.iter().zip(found) {
                let (mut tokens, images) = trained(question, choice, &base, &checkpoint, &style);
                let features = VisionCache::new(16).features(&model, &checkpoint, &images).unwrap().unwrap();
                let v = model.multi_modal_projector.forward(features).into_data().try_to_vec::<f32>().unwrap();
                let places: Vec<usize> = tokens.images.iter().flatten().copied().collect();
                let ids = nearest(&v, &table, width);
                assert_eq!(places.len(), ids.len());
                places.into_iter().zip(ids).for_each(|(place, id)| tokens.ids[place] = id);
                let (ids, labels) = (tokens.ids, tokens.labels);
                let text = ImageTokens { ids, labels, ..ImageTokens::default() };
                let wanted = likelihood(&model, &checkpoint, &text, &[], &device);
                let near = (found - wanted).abs() < 1e-4 * wanted.abs().max(1.0);
                assert!(near, "{name}, {choice}: {found} and {wanted}");
            }
        }
    }
}

#[test]
fn eval_ranks_choices_and_keeps_what_compare_and_report_read() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (write(dir.path(), &questions()), dir.path().join("out.jsonl"));
    let line = |more: &[&str]| {
        let mut line = args!["eval", fixture("plain"), data, "--images", fixture("images"), "--out", out];
        line.extend(["--choices", "likelihood", "--device", "cpu"].iter().chain(more).map(Into::into));
        line
    };
    let report = basic(line(&["--json"])).json();
    let lines = read_jsonl(&out);
    assert_eq!((number(&report["questions"]), lines.len()), (3.0, 3));
    for (question, line) in questions().iter().zip(&lines) {
        let sums: Vec<f64> = line["log_likelihoods"].as_array().unwrap().iter().map(number).collect();
        let choices: Vec<&str> = question["choices"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(sums.len(), choices.len());
        let best = (0..sums.len()).reduce(|a, b| if sums[b] > sums[a] { b } else { a }).unwrap();
        assert_eq!((text(&line["answer"]), &line["question_id"]), (choices[best], &question["question_id"]));
        assert_eq!(line["correct"], choices[best] == text(&question["answer"]));
        let truth = choices.iter().position(|choice| *choice == text(&question["answer"])).unwrap();
        let above = sums.iter().filter(|sum| **sum > sums[truth]).count();
        assert_eq!(number(&line["rank"]), above as f64 + 1.0);
    }
    let right = lines.iter().filter(|line| line["correct"] == true).count();
    assert!((number(&report["accuracy"]) - right as f64 / 3.0).abs() < 1e-12);
    assert!((number(&report["chance"]) - (0.25 + 0.5 + 0.5) / 3.0).abs() < 1e-12);
    assert_eq!(number(&report["per_type"]["name"]["questions"]), 2.0);
    // As a table, with the same numbers.
    let table = basic(line(&[]));
    assert_eq!(table.code, Some(0), "{table:#?}");
    assert!(table.stdout.lines().count() == 3 && table.stdout.contains("overall"), "{}", table.stdout);
    let compared = basic(args!["compare", out, out, "--json"]).json();
    assert!(compared.to_string().contains("most likely choice"), "{compared}");
    // From the nearest tokens: other likelihoods, which are recorded as another measure.
    let replaced = basic(line(&["--json", "--replace"])).json();
    assert_eq!(replaced["questions"], report["questions"]);
    assert_ne!(read_jsonl(&out)[0]["log_likelihoods"], lines[0]["log_likelihoods"]);
    let compared = basic(args!["compare", out, out, "--json"]).json();
    assert!(compared.to_string().contains("most likely choice from nearest tokens"), "{compared}");
}

#[test]
fn compare_and_report_find_ranked_choices_in_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model) = (write(dir.path(), &questions()), copy_of("plain", &dir.path().join("model")));
    let eval = |more: &[&str]| {
        let mut line = args!["eval", model, data, "--images", fixture("images"), "--device", "cpu", "--json"];
        line.extend(more.iter().map(Into::into));
        basic(line).json();
    };
    eval(&["--choices", "likelihood"]);
    eval(&["--choices", "likelihood", "--replace"]);
    eval(&["--max-new-tokens", "2"]);
    // Questions whose name ends like that of ranked choices.
    let named = model.join("eval/mine.choices.jsonl");
    fs::copy(&data, &named).unwrap();
    // And others, with answers beside them, whose record has the name that a record of ranked choices would have.
    let answered = model.join("eval/yours.choices.jsonl");
    fs::copy(&data, &answered).unwrap();
    let line =
        args!["eval", model, answered, "--images", fixture("images"), "--device", "cpu", "--max-new-tokens", "2"];
    assert_eq!(basic(line).code, Some(0));
    assert!(model.join("eval/yours.choices.result.json").is_file());
    let compared = basic(args!["compare", model, model, "--json"]).json();
    let stem = data.file_stem().unwrap().to_string_lossy().into_owned();
    let names: Vec<&str> = compared["sets"].as_array().unwrap().iter().map(|set| text(&set["name"])).collect();
    let all = [format!("{stem}.choices"), stem.clone(), format!("{stem}.replaced-choices"), "yours.choices".into()];
    assert_eq!(names, all);
    assert_eq!(compared["sets"][0]["measures"][0]["name"], "most likely choice");
    let page = dir.path().join("page.html");
    assert_eq!(basic(args!["report", model, "--out", page]).code, Some(0));
    let page = fs::read_to_string(page).unwrap();
    assert!(names.iter().all(|name| page.contains(name)) && page.contains("most likely choice from nearest tokens"));
}

#[test]
fn a_study_measures_choices_and_captions_of_any_data() {
    let dir = tempfile::tempdir().unwrap();
    let data = write(dir.path(), &questions()[..1]);
    let caption = |image: &str, text: &str| {
        let turns = json!([{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": text}]);
        json!({"id": image, "image": image, "conversations": turns})
    };
    let captions = dir.path().join("captions.json");
    fs::write(&captions, json!([caption("a.png", "a dog"), caption("c.png", "the grass")]).to_string()).unwrap();
    let (checkpoint, images, out) = (fixture("plain"), fixture("images"), dir.path().join("out"));
    let study = dir.path().join("study.toml");
    let text = format!(
        r#"
name = "Choices"
seeds = [0]
keep_checkpoints = true

[[stages]]
name = "pretrain"
measure = ["caption_loss", "v_norm", "choices", "replaced_choices"]

[stages.recipe]
stage = "pretrain"
model.checkpoint = {checkpoint:?}
data = {{ path = {captions:?}, images = {images:?} }}
train = {{ steps = 2, batch_size = 2 }}
optimizer.lr = 1e-3

[evaluation]
captions = {{ data = {captions:?}, images = {images:?} }}
choices = {{ data = {data:?}, images = {images:?} }}

[[factors]]
name = "losses"
baseline = "none"
cells = [{{ name = "none", set = {{ objective.das = false, objective.sds = false }} }}, {{ name = "both" }}]
"#
    );
    fs::write(&study, text).unwrap();
    let ran = basic(args!["ablate", study, "--out", out, "--device", "cpu"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let results = read_json(&out.join("results.json"));
    for row in 0..2 {
        let run = &results["groups"][0]["rows"][row]["runs"][0];
        let values = &run["values"]["pretrain"];
        let trained = out.join("cells").join(tests::fixtures::text(&run["hashes"]["pretrain"])).join("run");
        let line = args!["eval", trained, data, "--images", images, "--choices", "likelihood", "--json"];
        let said = basic(line.clone()).json();
        let replaced = basic(line.into_iter().chain(args!["--replace"]).collect()).json();
        for (key, said) in [("choices.", &said), ("choices.replaced.", &replaced)] {
            for name in ["accuracy", "rank"] {
                assert_eq!(number(&values[format!("{key}{name}")]), number(&said[name]), "{key}{name}");
            }
        }
        let (v, token) = (number(&values["v_norm"]), number(&values["token_norm"]));
        assert!(v > 0.0 && token > 0.0 && number(&values["caption_loss"]) > 0.0, "{values}");
    }
    let table = fs::read_to_string(out.join("table.md")).unwrap();
    for column in ["rank of the true choice", "caption loss", "rank of the true choice from nearest tokens"] {
        assert!(table.contains(column), "{column}: {table}");
    }
}

#[test]
fn choices_that_cannot_be_ranked_are_refused_by_question_before_the_weights_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: Value, mention: &str| {
        let mut all = questions();
        for (key, value) in change.as_object().unwrap() {
            all[0][key] = value.clone();
        }
        let data = write(dir.path(), &all);
        let line = args!["eval", fixture("plain"), data, "--images", fixture("images"), "--choices", "likelihood"];
        let ran = basic(line);
        let place = format!("{}: question 0 (id 7): ", data.display());
        let named = ran.stderr.contains(&place) && ran.stderr.contains(mention);
        assert!(ran.code == Some(1) && named && ran.stderr.lines().count() == 1, "{ran:#?}");
    };
    refused(json!({"choices": []}), "0 entries, expected 2 to 1000");
    refused(json!({"choices": ["a dog on the grass"]}), "1 entries");
    refused(json!({"choices": ["grass", "grass", "a dog on the grass"]}), "the same");
    refused(json!({"answer": "a cat"}), "none of its \"choices\"");
    refused(json!({"choices": ["a dog on the grass", "word ".repeat(4000)]}), "context");
    refused(json!({"choices": ["a dog on the grass", ""]}), "");
}
