//! Trains from code, step by step: a recipe, a model, a data set, and a loop that is yours.
//!
//!     cargo run -p basic-train --example train -- [OUTPUT]
//!
//! The run is that of `examples/shapes.toml`, with fewer steps, on captions of the embedded world. `basic_train::train::run`
//! does the same as `basic train`, with states, metrics and resume; use [`Trainer`] by itself where the loop is to do
//! something else: another schedule of evaluation, a search, a notebook.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_data::DataSet;
use basic_data::shapes::write_dataset;
use basic_models::Checkpoint;
use basic_train::recipe::Recipe;
use basic_train::train::{Trainer, prepare_model};
use burn::tensor::DType;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("shapes");
    write_dataset(&data, 200, 10, 10, 0)?;

    // A recipe is a TOML file or, as here, the same text from code. Paths may be any LLaVA data and any backbones.
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let recipe: Recipe = toml::from_str(&format!(
        r#"
        stage = "pretrain"
        [model]
        vision = '{assets}/vision'
        llm = '{assets}/llm'
        [data]
        path = '{data}/pretrain.json'
        [objective]
        lambda_das = 0.2
        lambda_sds = 0.05
        [optimizer]
        lr = 4e-3
        [train]
        batch_size = 16
        steps = 40
        "#,
        assets = assets.display(),
        data = data.display(),
    ))?;

    // The model: two backbones and a fresh projector, of which the pretrain stage trains the projector alone.
    let vision = recipe.model.first_vision().ok_or("the recipe names a vision encoder")?;
    let llm = recipe.model.llm.as_deref().ok_or("the recipe names a language model")?;
    let checkpoint = Checkpoint::assemble(vision, llm, recipe.seed)?;
    let device = recipe.device.open()?.autodiff();
    let mut model = prepare_model(&recipe, checkpoint.load(recipe.train.dtype.dtype(), &device)?)?;

    let samples = Arc::new(DataSet::open(&recipe.data, recipe.seed)?);
    let mut trainer = Trainer::new(&recipe, &checkpoint, samples)?;
    while trainer.done() < trainer.steps() {
        let (next, metrics) = trainer.step(model)?;
        model = next;
        // The keys are those of metrics.jsonl (docs/watching.md).
        let line = serde_json::to_value(&metrics)?;
        if trainer.done() % 10 == 0 {
            println!(
                "step {}  lm {:.3}  total {:.3}  lr {:.2e}",
                line["step"],
                number(&line["lm"]),
                number(&line["total"]),
                number(&line["lr"])
            );
        }
    }

    // A Hugging Face LLaVA directory, which transformers loads.
    let out = std::env::args().nth(1).map_or_else(|| folder.path().join("model"), PathBuf::from);
    checkpoint.save(&model, &out, DType::F32, false)?;
    println!("saved {}", out.display());
    Ok(())
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}
