//! Compares `basic analyze` with transformers (tests/fixtures/lens.json, made by tests/reference/lens_fixtures.py), and
//! tests surveys of data sets, the replacement experiment, and invalid input.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use basic_core::DeviceSpec;
use basic_data::{ImageSource, VisionCache};
use basic_eval::lens::{TokenTexts, content_words};
use basic_models::Checkpoint;
use burn::tensor::DType;
use serde_json::{Value, json};
use tests::fixtures::{copy_of, fixture, number, numbers, read_json, read_jsonl, text};
use tests::{Ran, args, run, tensors};

/// The absolute tolerance of every number, but relative for the lengths of hidden states, which exceed 10.
const CLOSE: f64 = 1e-4;

fn basic(args: Vec<OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

fn image(name: &str) -> std::path::PathBuf {
    fixture("images").join(name)
}

#[track_caller]
fn close(ours: f64, expected: f64, what: &str) {
    let near = (ours - expected).abs() <= CLOSE * expected.abs().max(1.0);
    assert!(near, "{what}: {ours} and not {expected}");
}

#[track_caller]
fn all_close(ours: &Value, expected: &Value, what: &str) {
    let (ours, expected) = (numbers(ours), numbers(expected));
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (index, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        close(*ours, *expected, &format!("{what}, {index}"));
    }
}

/// Asserts that the tokens of every row have the same values in order, and the same ids unless two values are too
/// close.
#[track_caller]
fn same_tokens(ours: &Value, expected: &Value, what: &str) {
    let rows = |value: &Value| value.as_array().unwrap_or_else(|| panic!("{what} is a list")).clone();
    let (ours, expected) = (rows(ours), rows(expected));
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (row, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        let list = rows(expected);
        assert_eq!(ours.as_array().map(Vec::len), Some(list.len()), "{what}, row {row}");
        for (rank, near) in list.iter().enumerate() {
            close(number(&ours[rank][1]), number(&near[1]), &format!("{what}, row {row}, rank {rank}"));
            let apart =
                |other: Option<&Value>| other.is_none_or(|other| (number(&other[1]) - number(&near[1])).abs() > CLOSE);
            // The last rank is skipped, because the next token is not in the fixture.
            if rank + 1 < list.len() && apart(list.get(rank + 1)) && (rank == 0 || apart(list.get(rank - 1))) {
                assert_eq!(ours[rank][0], near[0], "{what}, row {row}, rank {rank}");
            }
        }
    }
}

fn analyze(case: &Value, more: &[&str]) -> Vec<OsString> {
    let mut line =
        args!["analyze", fixture(text(&case["checkpoint"])), "--prompt", text(&case["prompt"]).replace('\n', "\\n")];
    for name in case["images"].as_array().unwrap() {
        line.extend(args!["--image", image(text(name))]);
    }
    line.extend(args!["--k", case["k"].to_string(), "--layer-weights", text(&case["layer_weights"])]);
    line.extend(args!["--top", case["top"].to_string(), "--json"]);
    line.extend(more.iter().map(OsString::from));
    line
}

#[test]
fn every_number_is_that_of_transformers_on_both_cpu_backends() {
    let cases = read_json(&fixture("lens.json"));
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for (case, device) in cases.iter().flat_map(|case| [(case, "cpu"), (case, "ndarray")]) {
        let name = format!("{} on {device}", text(&case["name"]));
        let ours = basic(analyze(case, &["--device", device])).json();
        let ours = &ours["checkpoints"][0];
        close(number(&ours["token_norm"]), number(&case["token_norm"]), &name);
        let expected = case["expected"].as_array().unwrap();
        assert_eq!(ours["images"].as_array().map(Vec::len), Some(expected.len()), "{name}");
        for (number_of_image, (ours, expected)) in ours["images"].as_array().unwrap().iter().zip(expected).enumerate() {
            let name = format!("{name}, image {number_of_image}");
            assert_eq!(ours["text_rows"], expected["text_rows"], "{name}");
            all_close(&ours["attention"], &expected["attention"], &format!("{name}, a"));
            let (layers, wanted) = (ours["layers"].as_array().unwrap(), expected["layers"].as_array().unwrap());
            assert_eq!(layers.len(), wanted.len(), "{name}");
            for (ours, expected) in layers.iter().zip(wanted) {
                assert_eq!(ours["layer"], expected["layer"], "{name}");
                let name = format!("{name}, layer {}", ours["layer"]);
                all_close(&ours["norm"], &expected["norm"], &format!("{name}, length"));
                all_close(&ours["angle"], &expected["angle"], &format!("{name}, angle"));
                match expected["attention"].is_null() {
                    true => assert_eq!(ours["attention"], Value::Null, "{name}: the projector pays no attention"),
                    false => all_close(&ours["attention"], &expected["attention"], &format!("{name}, attention")),
                }
                for kind in ["nearest", "scores", "logits"] {
                    same_tokens(&ours[kind], &expected[kind], &format!("{name}, {kind}"));
                }
                close(number(&ours["end_cosine"]), number(&expected["end_cosine"]), &format!("{name}, end token"));
            }
        }
    }
}

#[test]
fn replaced_prompts_are_answered_as_transformers_answers_the_nearest_tokens() {
    let cases = read_json(&fixture("lens.json"));
    let sure: Vec<&Value> =
        cases.as_array().unwrap().iter().filter(|case| number(&case["smallest_gap"]) > 2e-3).collect();
    assert!(sure.len() >= 3, "the fixtures leave too little to compare");
    for case in sure {
        let tokens = case["tokens"].to_string();
        let more = ["--device", "cpu", "--replace", "--max-new-tokens", tokens.as_str(), "--layers", "0"];
        let ours = basic(analyze(case, &more)).json();
        assert_eq!(ours["checkpoints"][0]["replaced"]["replaced"], case["replaced"], "{}", case["name"]);
    }
}

#[test]
fn the_places_of_the_grid_come_from_the_configuration() {
    let line = |name: &str| {
        let mut line = args!["analyze", fixture(name), "--image", image("a.png"), "--prompt", "<image> what?"];
        line.extend(args!["--layers", "0,2", "--device", "cpu", "--json"]);
        basic(line).json()["checkpoints"][0].clone()
    };
    let plain = line("plain");
    assert_eq!((&plain["grid"]["side"], &plain["grid"]["places"][5]), (&json!(4), &json!([1, 1])));
    let layers: Vec<&Value> =
        plain["images"][0]["layers"].as_array().unwrap().iter().map(|layer| &layer["layer"]).collect();
    assert_eq!(layers, [0, 2]);
    let cls = line("families/llama-dynamic");
    let places = cls["grid"]["places"].as_array().unwrap();
    assert_eq!((places.len(), &places[0], &places[1]), (17, &json!("CLS"), &json!([0, 0])));
    let registers = line("families/llama-registers");
    assert_eq!(registers["grid"]["places"][2], "register 2");
    assert_eq!(registers["images"][0]["attention"].as_array().map(Vec::len), Some(19));
}

#[test]
fn a_pixel_shuffle_has_a_cell_for_each_square_of_patches() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_of("plain", &dir.path().join("model"));
    let mut config = read_json(&model.join("config.json"));
    config["model_type"] = json!("basic_llava");
    config["projector_type"] = json!("pixel_shuffle2_mlp2x_gelu");
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let mut weights = tensors::read(&model.join("model.safetensors"));
    let first = weights.iter_mut().find(|(name, _)| name.ends_with("multi_modal_projector.linear_1.weight")).unwrap().1;
    let [rows, width] = first.shape[..] else { panic!("{:?}", first.shape) };
    first.values = first.values.chunks(width).flat_map(|row| row.repeat(4)).collect();
    first.shape = vec![rows, 4 * width];
    tensors::write(&model.join("model.safetensors"), &weights);
    let line =
        args!["analyze", model, "--image", image("a.png"), "--prompt", "<image> what?", "--device", "cpu", "--json"];
    let ours = basic(line).json()["checkpoints"][0].clone();
    assert_eq!(ours["grid"], json!({"side": 2, "places": [[0, 0], [0, 1], [1, 0], [1, 1]]}));
    assert_eq!(ours["images"][0]["layers"][0]["nearest"].as_array().map(Vec::len), Some(4));
}

/// Writes a data set of captions for the fixtures' images.
fn captions(dir: &Path, captions: &[(&str, &str)]) -> std::path::PathBuf {
    let sample = |(name, caption): &(&str, &str)| {
        json!({"id": name, "image": name, "conversations": [
            {"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": caption}]})
    };
    let mut samples: Vec<Value> = captions.iter().map(sample).collect();
    samples.push(json!({"id": "text", "conversations": [
        {"from": "human", "value": "is the grass green?"}, {"from": "gpt", "value": "it is"}]}));
    let path = dir.join("data.json");
    fs::write(&path, Value::from(samples).to_string()).unwrap();
    path
}

fn over(data: &Path, more: &[&str]) -> Vec<OsString> {
    let mut line = args!["analyze", fixture("plain"), "--data", data, "--images", fixture("images"), "--device", "cpu"];
    line.extend(more.iter().map(OsString::from));
    line
}

/// For every patch of an image, its nearest token at the projector's output, in lower case and trimmed, and the cosine;
/// and how many of these tokens are whole words: the byte-level mark for the beginning of a word and three or more
/// letters.
fn nearest(name: &str) -> (Vec<(String, f64)>, usize) {
    let mut line = args!["analyze", fixture("plain"), "--image", image(name), "--prompt", "<image>", "--layers", "0"];
    line.extend(args!["--device", "cpu", "--json"]);
    let reading = basic(line).json()["checkpoints"][0].clone();
    let rows = reading["images"][0]["layers"][0]["nearest"].as_array().unwrap();
    let token = |near: &Value| &reading["tokens"][near[0][0].to_string()];
    let word = |near: &&Value| text(&token(near)["token"]).strip_prefix('Ġ').is_some_and(long);
    let folded = |near: &Value| (text(&token(near)["text"]).trim().to_lowercase(), number(&near[0][1]));
    (rows.iter().map(folded).collect(), rows.iter().filter(word).count())
}

fn long(token: &str) -> bool {
    token.chars().count() >= 3 && token.chars().all(char::is_alphabetic)
}

/// The visual embeddings of the images, and the embedding table, row by row.
fn embeddings(names: &[&str]) -> (Vec<Vec<Vec<f32>>>, Vec<Vec<f32>>) {
    let checkpoint = Checkpoint::open(fixture("plain")).unwrap();
    let device = DeviceSpec::Cpu.open().unwrap();
    let model = checkpoint.load(DType::F32, &device).unwrap();
    let embeddings = names.iter().map(|name| {
        let images = [ImageSource::from(image(name))];
        let features = VisionCache::new(16).features(&model, &checkpoint, &images).unwrap().unwrap();
        let v = model.multi_modal_projector.forward(features);
        let width = v.dims()[1];
        let values = v.into_data().try_to_vec::<f32>().unwrap();
        values.chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>()
    });
    let embeddings = embeddings.collect();
    let table = model.language_model.table();
    let width = table.dims()[1];
    let table = table.into_data().try_to_vec::<f32>().unwrap();
    (embeddings, table.chunks(width).map(<[f32]>::to_vec).collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The mean over the captions' words, which are all one token, of the share of other captions' words that are nearer.
fn word_rank(names: &[&str], captions: &[String]) -> f64 {
    let (images, table) = embeddings(names);
    let checkpoint = Checkpoint::open(fixture("plain")).unwrap();
    let mut texts = TokenTexts::new(&checkpoint.tokenizer);
    let words = captions.iter().map(|caption| {
        let words = content_words(caption);
        let ids = (0..table.len() as u32).filter(|id| texts.get(*id).word && words.contains(&texts.get(*id).folded));
        ids.collect::<BTreeSet<u32>>()
    });
    let words: Vec<BTreeSet<u32>> = words.collect();
    let all: BTreeSet<u32> = words.iter().flatten().copied().collect();
    let near = |image: &Vec<Vec<f32>>, id: u32| {
        image.iter().map(|v| cosine(v, &table[id as usize])).sum::<f64>() / image.len() as f64
    };
    let apart = |image: &Vec<Vec<f32>>, id: u32| {
        near(image, id) - images.iter().map(|image| near(image, id)).sum::<f64>() / images.len() as f64
    };
    let mut shares = Vec::new();
    for (image, own) in images.iter().zip(&words) {
        let others: Vec<f64> = all.difference(own).map(|id| apart(image, *id)).collect();
        for id in own.iter().filter(|_| !others.is_empty()) {
            let nearer = others.iter().filter(|other| **other > apart(image, *id)).count();
            shares.push(nearer as f64 / others.len() as f64);
        }
    }
    assert!(shares.len() > 3 && shares.iter().any(|share| *share > 0.0), "{shares:?}");
    shares.iter().sum::<f64>() / shares.len() as f64
}

/// The mean cosine between visual embeddings of different images, pair by pair.
fn between_images(names: &[&str]) -> f64 {
    let (embeddings, _) = embeddings(names);
    let mut cosines = Vec::new();
    for (at, own) in embeddings.iter().enumerate() {
        for other in embeddings[at + 1..].iter().flatten() {
            cosines.extend(own.iter().map(|v| cosine(v, other)));
        }
    }
    cosines.iter().sum::<f64>() / cosines.len() as f64
}

#[test]
fn a_survey_counts_the_nearest_tokens_that_its_rule_takes() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a.png", "b.png", "c.png", "d.png"];
    let (all, whole): (Vec<Vec<(String, f64)>>, Vec<usize>) = names.iter().map(|name| nearest(name)).unzip();
    // Each image's caption has the words that are nearest to the image's own patches.
    let words = |near: &[(String, f64)]| {
        near.iter().filter(|(token, _)| long(token)).map(|(token, _)| token.clone()).collect::<Vec<_>>().join(", ")
            + " 12 of"
    };
    let texts: Vec<String> = all.iter().map(|near| words(near)).collect();
    let samples: Vec<(&str, &str)> = names.iter().copied().zip(texts.iter().map(String::as_str)).collect();
    let data = captions(dir.path(), &samples);
    let survey = basic(over(&data, &["--json"])).json()["checkpoints"][0].clone();
    assert_eq!((&survey["images"], &survey["visual_tokens"], &survey["k"]), (&json!(4), &json!(16), &json!(2)));
    assert_eq!(survey["layers"].as_array().map(Vec::len), Some(5));
    let first = &survey["layers"][0];
    // These are the only stop words among the fixture's words.
    let stop = ["the", "what", "there", "are", "and", "one", "picture"];
    let hits = all.iter().flatten().filter(|(token, _)| long(token) && !stop.contains(&token.as_str())).count();
    assert!(hits > 0, "the fixture's patches are nearest to no word: {all:?}");
    close(number(&first["meaningful"]), hits as f64 / 64.0, "share");
    close(number(&first["per_image"]), hits as f64 / 4.0, "count");
    close(number(&first["similarity"]), all.iter().flatten().map(|(_, s)| s).sum::<f64>() / 64.0, "similarity");
    assert!(
        number(&first["low"]) <= number(&first["meaningful"])
            && number(&first["chance"]) <= number(&first["meaningful"])
    );
    let ends = all.iter().flatten().filter(|(token, _)| token == "</s>").count();
    close(number(&first["end_share"]), ends as f64 / 64.0, "end token");

    let strict = basic(over(&data, &["--json", "--min-similarity", "2"])).json();
    assert_eq!(strict["checkpoints"][0]["layers"][0]["meaningful"], 0.0);
    let loose = basic(over(&data, &["--json", "--meaningful", "word"])).json();
    let share = whole.iter().sum::<usize>() as f64 / 64.0;
    assert!(share > 0.0, "the fixture's patches are nearest to no whole word");
    close(number(&loose["checkpoints"][0]["layers"][0]["meaningful"]), share, "whole words");
    assert_eq!(loose["checkpoints"][0]["layers"][0]["chance"], Value::Null);
    let one = basic(over(&data, &["--json", "--limit", "1", "--layers", "0,4"])).json();
    assert_eq!(one["checkpoints"][0]["images"], 1);
    assert_eq!(one["checkpoints"][0]["layers"][0]["chance"], Value::Null, "a single caption cannot be swapped");
    assert_eq!(one["checkpoints"][0]["layers"][1]["layer"], 4);
}

#[test]
fn a_survey_says_what_images_have_in_common_and_how_near_they_are_to_their_words() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a.png", "b.png", "c.png", "d.png"];
    // With one supervising layer, V^ is what it puts out.
    let texts = ["a red dog", "green grass and a dog", "what is on the picture", "a yellow star"].map(String::from);
    let samples: Vec<(&str, &str)> = names.iter().copied().zip(texts.iter().map(String::as_str)).collect();
    let data = captions(dir.path(), &samples);
    let one = basic(over(&data, &["--json", "--k", "1"])).json()["checkpoints"][0].clone();
    let first = &one["layers"][0];
    close(number(&first["anisotropy"]["cosine"]), between_images(&names), "anisotropy");
    close(number(&first["word_rank"]["mean"]), word_rank(&names, &texts), "rank of the captions' words");
    close(
        number(&one["target_word_rank"]["mean"]),
        number(&one["layers"][1]["word_rank"]["mean"]),
        "rank of the captions' words by V^",
    );
    let [target, output] = [&one["target_anisotropy"], &one["layers"][1]["anisotropy"]];
    close(number(&target["cosine"]), number(&output["cosine"]), "anisotropy of V^");
    assert_ne!(output["cosine"], first["anisotropy"]["cosine"]);
    for dimension in 0..3 {
        let [(at, added), (other, theirs)] =
            [target, output].map(|found| &found["dimensions"][dimension]).map(|pair| (&pair[0], number(&pair[1])));
        assert_eq!(at, other);
        close(added, theirs, "what a dimension adds");
    }
}

#[test]
fn questions_about_one_image_are_one_image_of_a_survey() {
    let dir = tempfile::tempdir().unwrap();
    let (near, _) = nearest("b.png");
    let words: Vec<&str> = near.iter().map(|(token, _)| token.as_str()).filter(|token| long(token)).collect();
    let data = dir.path().join("questions.jsonl");
    let first = |more: Value, answer: &str| {
        let mut question = json!({"image": "b.png", "text": "what?", "answer": answer, "category": "k"});
        question.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        question.to_string()
    };
    let share = |questions: &[String]| {
        fs::write(&data, questions.join("\n")).unwrap();
        let survey = basic(over(&data, &["--layers", "0", "--json"])).json()["checkpoints"][0].clone();
        assert_eq!((&survey["images"], &survey["samples"]), (&json!(1), &json!(1)));
        number(&survey["layers"][0]["meaningful"])
    };
    assert!(words.len() > 1, "too few words to tell one question from two: {words:?}");
    let (head, tail) = words.split_at(words.len() / 2);
    // Without a caption the answers to both questions count; with a caption only the caption does.
    let whole = share(&[first(json!({}), &head.join(" ")), first(json!({}), &tail.join(" "))]);
    assert!(whole > share(&[first(json!({}), tail[0])]), "{words:?}");
    assert_eq!(whole, share(&[first(json!({"caption": words.join(" ")}), "x")]));
    assert_eq!(share(&[first(json!({"caption": "nothing of it"}), &words.join(" "))]), 0.0);
}

#[test]
fn labels_are_those_of_the_scenes_beside_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let world = dir.path().join("world");
    basic(args!["data", "shapes", "--out", world, "--train", "3", "--validation", "0", "--eval", "1", "--json"]).json();
    let line = |file: &str| {
        args![
            "analyze",
            fixture("plain"),
            "--data",
            world.join(file),
            "--device",
            "cpu",
            "--json",
            "--meaningful",
            "labels"
        ]
    };
    let survey = basic(line("pretrain.json")).json()["checkpoints"][0].clone();
    let first = &survey["layers"][0];
    let counted = number(&first["counted"]);
    assert!(counted > 0.0 && counted < 48.0, "patches of objects alone count: {counted}");
    assert!(number(&first["chance"]) <= 1.0 && number(&first["per_image"]) <= 16.0);
    // A file of questions is read too; its images show the same scenes.
    let questions = basic(line("eval.jsonl")).json();
    assert!(number(&questions["checkpoints"][0]["layers"][0]["counted"]) > 0.0);
    fs::remove_file(world.join("scenes.jsonl")).unwrap();
    basic(line("pretrain.json")).refused(1, &["scenes.jsonl", "labels"]);
}

#[test]
fn the_replacement_over_questions_scores_both_answers() {
    let dir = tempfile::tempdir().unwrap();
    let answers: Vec<Value> = ["a.png", "b.png"]
        .iter()
        .enumerate()
        .map(|(id, name)| json!({"question_id": id, "image": name, "text": "what is it?", "answer": "x", "category": "k"}))
        .collect();
    let lines = |answers: &[Value]| answers.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let data = dir.path().join("questions.jsonl");
    fs::write(&data, lines(&answers)).unwrap();
    let out = dir.path().join("out");
    let run = |out: &Path| {
        let more = ["--replace", "--max-new-tokens", "4", "--json", "--layers", "0", "--out"];
        let mut line = over(&data, &more);
        line.push(out.into());
        basic(line).json()["checkpoints"][0]["replaced"].clone()
    };
    let first = run(&out);
    assert_eq!((&first["questions"], &first["accuracy"]["value"]), (&json!(2), &json!(0.0)));
    // Asks the same questions again, with the model's answers with and without the image as the true ones.
    let told = read_jsonl(&out.join("replaced.jsonl"));
    assert_eq!(told.len(), 2);
    let right = |id: usize, key: &str| {
        let mut question = answers[id].clone();
        question["answer"] = told[id][key].clone();
        question
    };
    fs::write(&data, lines(&[right(0, "answer"), right(1, "replaced")])).unwrap();
    let again = run(&out);
    let same = |id: usize| f64::from(u8::from(told[id]["answer"] == told[id]["replaced"]));
    assert_eq!(number(&again["accuracy"]["value"]), (1.0 + same(1)) / 2.0);
    assert_eq!(number(&again["replaced"]["value"]), (1.0 + same(0)) / 2.0);
    assert_eq!(number(&again["same"]), (same(0) + same(1)) / 2.0);
    assert_eq!(read_json(&out.join("survey.json"))["checkpoints"][0]["images"], 2);
}

#[test]
fn wrong_input_is_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let plain = fixture("plain");
    let with = |more: &[&str]| {
        let mut line = args!["analyze", plain, "--image", image("a.png")];
        line.extend(more.iter().map(OsString::from));
        basic(line)
    };
    with(&["--prompt", "what is it?"]).refused(1, &["--prompt", "<image>"]);
    with(&["--prompt", "<image>", "--layers", "0,5"]).refused(1, &["no layer 5", "to 4"]);
    with(&["--prompt", "<image>", "--k", "9"]).refused(1, &["k = 9", "1 to 4"]);
    with(&["--prompt", "<image>", "--meaningful", "caption"]).refused(1, &["--caption"]);
    with(&["--prompt", "<image>", "--meaningful", "labels"]).refused(1, &["--labels"]);
    with(&["--prompt", "<image>", "--meaningful", "truth"]).refused(2, &["caption, labels or word"]);
    with(&["--prompt", "<image>", "--top", "0"]).refused(2, &["--top"]);
    with(&[]).refused(2, &["--prompt"]);
    with(&["--prompt", "<image>", "--compare", "/nowhere"]).refused(1, &["/nowhere"]);
    basic(args!["analyze", plain]).refused(2, &["--image", "--data"]);
    basic(args!["analyze", plain, "--image", image("none.png"), "--prompt", "<image>"]).refused(1, &["none.png"]);
    basic(args!["analyze", plain, "--data", dir.path().join("none.json")]).refused(1, &["none.json"]);

    let data = captions(dir.path(), &[]);
    basic(over(&data, &[])).refused(1, &["data.json", "has an image"]);
    let data = captions(dir.path(), &[("a.png", "a dog"), ("gone.png", "a cat")]);
    basic(over(&data, &[])).refused(1, &["data.json", "gone.png"]);
    let data = captions(dir.path(), &[("a.png", "a dog")]);
    // This checkpoint has no chat template, which the default style does not need.
    basic(over(&data, &["--conversation", "template"])).refused(1, &["chat_template"]);
    basic(over(&data, &["--limit", "1"])).succeeded();
    basic(over(&data, &["--meaningful", "labels"])).refused(1, &["scenes.jsonl"]);
    let questions = dir.path().join("q.jsonl");
    fs::write(&questions, "{\"text\": \"a\", \"answer\": \"b\", \"image\": \"a.png\"}\n{\"text\": 3}\n").unwrap();
    basic(over(&questions, &[])).refused(1, &["q.jsonl:2"]);
}
