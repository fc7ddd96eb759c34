//! A benchmark of one's own: a checkpoint answers a file of questions, and a rule that is not exact match scores the answers.
//!
//!     cargo run -p basic-eval --example own_benchmark -- CHECKPOINT QUESTIONS.jsonl
//!
//! QUESTIONS has one JSON object a line: `image` (relative to the file), `text`, `answer`, `category`. The rule here is the
//! share of the true answer's words that the model's answer holds. Without arguments the example asks questions of the
//! embedded world of a model whose projector was never trained, so that it runs anywhere; `examples/shapes.toml` trains one.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use basic_core::DeviceSpec;
use basic_data::shapes::write_dataset;
use basic_data::{ImageBase, VisionCache};
use basic_eval::questions::{EvalOptions, Prediction, answer, read_questions};
use basic_models::Checkpoint;
use burn::tensor::DType;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let checkpoint = match args.next() {
        Some(path) => Checkpoint::open(&path)?,
        None => {
            let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
            Checkpoint::assemble(&assets.join("vision"), &assets.join("llm"), 0)?
        }
    };
    let file = match args.next() {
        Some(path) => path,
        None => {
            write_dataset(&folder.path().join("shapes"), 1, 1, 10, 0)?;
            folder.path().join("shapes/eval.jsonl")
        }
    };

    let questions = read_questions(&file)?;
    // Images lie below the file's folder and nowhere else.
    let images = ImageBase::new(file.parent().unwrap_or(Path::new(".")), None)?;
    let device = DeviceSpec::Auto.open()?;
    let model = checkpoint.load(DType::F32, &device)?;

    let options = EvalOptions { batch_size: 16, max_new_tokens: 16, ..EvalOptions::default() };
    let mut cache = VisionCache::new(256); // MiB of patch features, for images that are asked about again
    let mut progress = |_done: usize| {};
    let predictions = answer(&model, &checkpoint, &questions, &images, &options, &mut cache, &mut progress)?;

    let mut by_category: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for prediction in &predictions {
        let (sum, count) = by_category.entry(&prediction.category).or_default();
        *sum += score(prediction);
        *count += 1;
    }
    for (category, (sum, count)) in &by_category {
        println!("{category:12} {:5.1}%  of {count}", 100.0 * sum / *count as f64);
    }
    let mean = predictions.iter().map(score).sum::<f64>() / predictions.len() as f64;
    println!("{:12} {:5.1}%  of {}", "overall", 100.0 * mean, predictions.len());
    Ok(())
}

/// The rule: the share of the true answer's words that stand in the model's answer, in any order and case.
fn score(prediction: &Prediction) -> f64 {
    let words = |text: &str| -> HashSet<String> { text.split_whitespace().map(str::to_lowercase).collect() };
    let (expected, found) = (words(&prediction.expected), words(&prediction.answer));
    match expected.len() {
        0 => 0.0,
        all => expected.intersection(&found).count() as f64 / all as f64,
    }
}
