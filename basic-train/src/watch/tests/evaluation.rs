//! Tests of the evaluation during a run, with the fixtures' model.

use std::path::Path;

use basic_core::{Basic, Losses, Objective, ObjectiveError};
use basic_data::{DataError, ImageSource, Sample, Samples, prepare};
use basic_models::nn::Llava;
use basic_models::processor::{Message, Role, Style};
use basic_models::{Batch, Checkpoint};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::recipe::Part;
use crate::trainable::set_trainable;
use crate::watch::{EvaluationOptions, evaluate};

/// Samples held in memory.
#[derive(Debug)]
struct HeldOut(Vec<Sample>);

impl Samples for HeldOut {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        Ok(self.0[index].clone())
    }
}

fn held_out() -> HeldOut {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images");
    let sample = |images: &[&str], turns: &[&str]| Sample {
        file: Path::new("held-out.json").into(),
        place: "sample".into(),
        images: images.iter().map(|name| ImageSource::File(root.join(name))).collect(),
        messages: turns
            .iter()
            .enumerate()
            .map(|(i, turn)| Message::new([Role::User, Role::Assistant][i % 2], *turn))
            .collect(),
        dropped_turns: 0,
    };
    HeldOut(vec![
        sample(&["a.png"], &["<image>\nwhat is in the picture?", "a small red circle"]),
        sample(&[], &["is the grass green?", "it is", "and the dog?", "the dog sits on the grass."]),
        sample(&["b.png", "c.png"], &["<image> and <image>: which is larger?", "the first one"]),
        sample(&["d.png"], &["what does <image> show?", "one yellow star"]),
        sample(&["d.png"], &["<image>\ncolour?", "yellow"]),
    ])
}

fn model() -> (Checkpoint, Llava) {
    let checkpoint = Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/plain")).unwrap();
    let model = checkpoint.load(DType::F32, &Device::flex().autodiff()).unwrap();
    (checkpoint, set_trainable(model, &[Part::Projector, Part::Decoder]))
}

fn weights(model: &Llava) -> Vec<(bool, Vec<f32>)> {
    struct Read(Vec<(bool, Vec<f32>)>);
    impl ModuleVisitor for Read {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push((param.is_require_grad(), param.val().try_into_vec_as::<f32>().unwrap()));
        }
    }
    let mut read = Read(Vec::new());
    model.visit(&mut read);
    read.0
}

#[test]
fn losses_are_those_of_one_batch_however_the_samples_are_split_and_the_model_stays_as_it_is() {
    let (checkpoint, model) = model();
    let (data, style, objective) = (held_out(), Style::vicuna_v1(), Objective::default());
    let before = weights(&model);
    let mut tokens = Vec::new();
    for sample in &data.0 {
        let mut prepared = prepare(sample, &checkpoint, &style).unwrap();
        for image in &prepared.images {
            prepared.tokens.pixels.push(image.pixels(&checkpoint).unwrap().data);
        }
        tokens.push(prepared.tokens);
    }
    let batch = Batch::collate(&tokens, checkpoint.pad_id(), checkpoint.image_shape(), &model.device());
    let parts = model.losses(&batch, model.forward(&batch, &objective).unwrap(), &objective);
    let scalar = |t: Tensor<1>| f64::from(t.try_into_scalar::<f32>().unwrap());
    let term = |losses: &Losses, name: &str| scalar(losses.get(name).unwrap().clone());
    let expected = [scalar(parts.lm.clone()), term(&parts, "das"), term(&parts, "sds"), scalar(parts.total())];
    for batch_size in [1, 2, 5] {
        let options = EvaluationOptions { batch_size, predictions: 0, ..EvaluationOptions::default() };
        let found = evaluate(7, &model, &checkpoint, &data, &style, &objective, &options).unwrap();
        let values: Vec<f64> = found.losses.named().map(|(_, value)| *value).chain([found.total]).collect();
        assert_eq!(values.len(), expected.len());
        for (found, expected) in values.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{found} against {expected}");
        }
        assert_eq!((found.step, found.samples, found.tokens), (7, 5, batch.label_count()));
    }
    assert_eq!(weights(&model), before);
}

#[test]
fn samples_are_answered_where_their_last_answers_are() {
    let (checkpoint, model) = model();
    let (data, objective) = (held_out(), Objective::llava());
    let options = EvaluationOptions { samples: 3, predictions: 9, max_new_tokens: 5, ..EvaluationOptions::default() };
    let found = evaluate(1, &model, &checkpoint, &data, &Style::vicuna_v1(), &objective, &options).unwrap();
    assert_eq!((found.samples, found.total), (3, found.losses.lm));
    assert!(found.losses.terms.iter().all(|term| term.value == 0.0));
    let expected: Vec<&str> = found.predictions.iter().map(|p| p.expected.as_str()).collect();
    assert_eq!(expected, ["a small red circle", "the dog sits on the grass.", "the first one"]);
    let second = &found.predictions[1];
    assert!(second.prompt.contains("ASSISTANT: it is</s>USER: and the dog? ASSISTANT:"), "{}", second.prompt);
    assert_eq!(found.predictions[2].images.len(), 2);
    assert!(found.predictions.iter().any(|p| !p.answer.is_empty()), "{:?}", found.predictions);
    let again = evaluate(1, &model, &checkpoint, &data, &Style::vicuna_v1(), &objective, &options).unwrap();
    assert_eq!(again.predictions, found.predictions, "greedy: the same every time");

    // The prompt for a caption consists of the images alone.
    let data = HeldOut(vec![held_out().0.remove(0)]);
    let found = evaluate(1, &model, &checkpoint, &data, &Style::plain(), &objective, &options).unwrap();
    assert_eq!(found.predictions[0].prompt, "<image>");
    assert!(!found.predictions[0].answer.contains('\n'), "{:?}", found.predictions[0]);

    // The length of an answer is limited to the room left in the context.
    let most = checkpoint.config.text_config.context();
    let options =
        EvaluationOptions { samples: 1, predictions: 1, max_new_tokens: most, ..EvaluationOptions::default() };
    assert!(evaluate(1, &model, &checkpoint, &data, &Style::plain(), &objective, &options).is_ok());
}

#[test]
fn a_knob_that_does_not_fit_is_an_error() {
    let (checkpoint, model) = model();
    let objective = Basic { k: Some(99), ..Basic::default() }.into();
    let options = EvaluationOptions::default();
    let error = evaluate(1, &model, &checkpoint, &held_out(), &Style::vicuna_v1(), &objective, &options).unwrap_err();
    let inner = ObjectiveError::Layers { name: "k", value: 99, layers: 4 }.to_string();
    assert!(error.to_string().contains(&inner), "{error}");
}
