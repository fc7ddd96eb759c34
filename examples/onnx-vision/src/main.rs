//! A vision encoder from ONNX in the place of BASIC's own: the same features, losses and answer.
//!
//! `build.rs` has turned clip.onnx into Burn code. Here it encodes an image beside the checkpoint's own encoder; then
//! projector and decoder take its features. Fails where anything differs by more than rounding.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use basic_core::{DeviceSpec, Objective};
use basic_models::config::Tiles;
use basic_models::generate::{GenerationConfig, generate};
use basic_models::processor::{tokenize_apart, tokenize_prompt};
use basic_models::{Batch, Checkpoint, Llava};
use burn::tensor::{DType, Tensor, TensorData};

/// What burn-onnx has written.
#[allow(dead_code, missing_docs, clippy::all)]
mod clip {
    include!(concat!(env!("OUT_DIR"), "/model/clip.rs"));
}

const PROMPT: &str = "USER: <image>\nwhat is in the picture? ASSISTANT:";
const ANSWER: &str = " a small red circle";
/// The largest difference that counts as rounding.
const TOLERANCE: f32 = 1e-4;

fn main() -> Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let dir = args.next().unwrap_or_else(|| fixtures.join("plain"));
    let image = args.next().unwrap_or_else(|| fixtures.join("images/b.png"));

    let device = DeviceSpec::Cpu.open()?;
    let checkpoint = Checkpoint::open(&dir)?;
    let llava = checkpoint.load(DType::F32, &device)?;
    let encoder = clip::Model::from_embedded(&device);

    let [channels, height, width] = checkpoint.image_shape();
    let pixels = checkpoint.pixels(&image)?.data;
    let one = Tensor::<4>::from_data(TensorData::new(pixels.clone(), [1, channels, height, width]), &device);
    // Two images in a batch: the graph's first axis is free.
    let two = Tensor::cat(vec![one.clone(), one.clone().flip([3])], 0);
    let hidden = encoder.forward(two.clone());
    let native = llava.encode(two);
    let features = selected(&llava, hidden)?;
    ensure!(
        features.dims() == native.dims(),
        "the ONNX encoder gives {:?} features, {} wants {:?}: was it exported at the feature layer of this checkpoint?",
        features.dims(),
        dir.display(),
        native.dims()
    );
    let project = |features: &Tensor<2>| llava.multi_modal_projector.forward(features.clone());
    let worst = [
        ("features", difference(&features, &native)?),
        ("visual embeddings", difference(&project(&features), &project(&native))?),
    ];
    for (what, off) in worst {
        println!("{what:<18} largest difference {off:.1e}");
        ensure!(off <= TOLERANCE, "the {what} differ by {off:e}, more than {TOLERANCE:e}");
    }

    // One image of the two from here on.
    let rows = checkpoint.config.features();
    let (ours, onnx) = (native.narrow(0, 0, rows), features.narrow(0, 0, rows));
    let own = losses(&checkpoint, &llava, ours.clone())?;
    let theirs = losses(&checkpoint, &llava, onnx.clone())?;
    for (index, name) in ["lm", "das", "sds"].iter().enumerate() {
        println!("{name:<18} own {:.6}, from ONNX {:.6}", own[index], theirs[index]);
        let off = (own[index] - theirs[index]).abs();
        ensure!(off <= TOLERANCE * own[index].abs().max(1.0), "{name} differs by {off:e}");
    }
    let (own, theirs) = (answer(&checkpoint, &llava, ours)?, answer(&checkpoint, &llava, onnx)?);
    println!("answer             own {own:?}, from ONNX {theirs:?}");
    ensure!(own == theirs, "the answers differ");
    Ok(())
}

/// What the projector takes of a hidden state `[N, CLS + patches, width]`: `[N * positions, width]`.
fn selected(llava: &Llava, hidden: Tensor<3>) -> Result<Tensor<2>> {
    let [n, positions, width] = hidden.dims();
    let first = llava.config().dropped(&llava.config().vision_config);
    ensure!(positions > first, "the ONNX encoder gives {positions} positions an image");
    Ok(hidden.narrow(1, first, positions - first).reshape([n * (positions - first), width]))
}

fn difference(a: &Tensor<2>, b: &Tensor<2>) -> Result<f32> {
    Ok((a.clone() - b.clone()).abs().max().into_data().convert::<f32>().try_to_vec::<f32>()?[0])
}

/// lm, das and sds of one sample, its patch features given.
fn losses(checkpoint: &Checkpoint, llava: &Llava, features: Tensor<2>) -> Result<[f32; 3]> {
    let device = llava.device();
    let example = tokenize_apart(&checkpoint.tokenizer, PROMPT, ANSWER, &[Tiles::whole(checkpoint.visual_tokens())])?;
    let mut batch = Batch::collate(&[example.into()], checkpoint.pad_id(), checkpoint.image_shape(), &device);
    batch.features = Some(features);
    let objective = Objective::default();
    let forward = llava.forward(&batch, &objective)?;
    let parts = llava.losses(&batch, forward, &objective);
    let mut values = [0.0; 3];
    for (value, loss) in values.iter_mut().zip([parts.lm, parts.das, parts.sds]) {
        *value = loss.into_data().try_to_vec::<f32>()?[0];
    }
    Ok(values)
}

/// Twelve greedy tokens.
fn answer(checkpoint: &Checkpoint, llava: &Llava, features: Tensor<2>) -> Result<String> {
    let config = GenerationConfig::greedy(12, checkpoint.eos_ids(), checkpoint.pad_id());
    let prompt = tokenize_prompt(&checkpoint.tokenizer, PROMPT, &[Tiles::whole(checkpoint.visual_tokens())])?;
    let generated = generate(llava, &[prompt.into()], Some(features), &config)?;
    let generated = generated.first().context("one prompt has one answer")?;
    Ok(checkpoint.tokenizer.decode(&generated.ids, true)?)
}
