//! A batch that sequences join and leave: each answer is that of a generation by itself, whatever the others do.

use std::collections::HashMap;
use std::sync::Arc;

use basic_core::DeviceSpec;
use basic_models::config::Tiles;
use basic_models::generate::{
    ContinuousBatch, Finish, GenerateError, GenerationConfig, NextToken, Sampling, Sequence, generate,
};
use basic_models::nn::{InitScheme, seeded_init};
use basic_models::processor::Prompt;
use basic_models::{ImageTokens, Llava, LlavaConfig};
use burn::tensor::{Tensor, TensorData};

/// A small random model, with more keys for its decoder.
fn model(decoder: &str) -> Llava {
    let config = LlavaConfig::from_json(&format!(
        r#"{{"model_type": "llava", "image_token_index": 96,
            "text_config": {{"vocab_size": 97, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3,
                             "num_attention_heads": 4, "max_position_embeddings": 64, {decoder}}},
            "vision_config": {{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}}}}"#
    ))
    .unwrap();
    let device = DeviceSpec::Cpu.open().unwrap();
    seeded_init(config.init(&device), InitScheme::Normal { std: 0.3 }, 5, &device)
}

const GROUPED: &str = r#""num_key_value_heads": 2"#;

/// Rotary angles of another kind for sequences beyond 16 tokens.
const LENGTHS: &str = r#""num_key_value_heads": 2,
    "rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 16,
                     "short_factor": [1.0, 1.0, 1.0], "long_factor": [3.0, 7.0, 15.0]}"#;

fn image(model: &Llava, seed: usize) -> Arc<[f32]> {
    let vision = &model.config().vision_config;
    let n = vision.num_channels * vision.side() * vision.side();
    (0..n).map(|i| ((i * 7 + seed * 131) % 23) as f32 / 11.0 - 1.0).collect()
}

/// A prompt of `before` tokens, the images, and `after` tokens.
fn sequence(model: &Llava, before: usize, images: &[usize], after: usize, new: usize) -> Sequence {
    let m = model.config().visual_tokens();
    let word = |i: usize| ((i * 37 + 5) % 90) as u32;
    let mut ids: Vec<u32> = (0..before).map(word).collect();
    let image_positions = images.iter().map(|_| {
        let start = ids.len();
        ids.extend(std::iter::repeat_n(96, m));
        start..ids.len()
    });
    let image_positions = image_positions.collect();
    ids.extend((0..after).map(|i| word(i + 11 * after)));
    Sequence {
        prompt: Arc::new(Prompt { ids, image_positions, tiles: vec![Tiles::whole(m); images.len()] }),
        pixels: images.iter().map(|seed| image(model, *seed)).collect(),
        config: GenerationConfig::greedy(new, vec![91, 92], 0),
        stream: 0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        logprobs: None,
    }
}

/// The ids and the end of a generation by itself.
fn alone(model: &Llava, sequence: &Sequence) -> (Vec<u32>, Finish) {
    let prompt = ImageTokens::from(Prompt::clone(&sequence.prompt));
    let vision = &model.config().vision_config;
    let shape = [sequence.pixels.len(), vision.num_channels, vision.side(), vision.side()];
    let pixels: Vec<f32> = sequence.pixels.iter().flat_map(|pixels| pixels.iter().copied()).collect();
    let features = (!sequence.pixels.is_empty())
        .then(|| model.encode(Tensor::from_data(TensorData::new(pixels, shape), &model.device())));
    let answer = generate(model, &[prompt], features, &sequence.config).unwrap().remove(0);
    (answer.ids, answer.finish)
}

/// Lets sequences join whenever a row is free, and returns the ids and the end of each.
fn together(batch: &mut ContinuousBatch<'_>, sequences: &[Sequence]) -> Vec<(Vec<u32>, Finish)> {
    let mut answers = vec![(Vec::new(), Finish::Cancelled); sequences.len()];
    let mut rows: HashMap<usize, usize> = HashMap::new();
    let mut next = 0;
    let take = |answers: &mut Vec<(Vec<u32>, Finish)>, index: usize, token: NextToken| {
        answers[index].0.push(token.id);
        token.finish.map(|finish| answers[index].1 = finish).is_some()
    };
    while next < sequences.len() || !rows.is_empty() {
        if next < sequences.len()
            && let Some(joined) = batch.join(sequences[next].clone()).unwrap()
        {
            assert!(!rows.contains_key(&joined.row), "a row is given to one sequence");
            if !take(&mut answers, next, joined.token) {
                rows.insert(joined.row, next);
            }
            next += 1;
        }
        for (row, token) in batch.step().unwrap() {
            let index = rows[&row];
            if take(&mut answers, index, token.unwrap()) {
                rows.remove(&row);
            }
        }
        assert_eq!(batch.active(), rows.len());
    }
    answers
}

fn sequences(model: &Llava) -> Vec<Sequence> {
    vec![
        sequence(model, 3, &[1], 5, 20),
        sequence(model, 9, &[], 2, 7),
        sequence(model, 3, &[1], 5, 20),
        sequence(model, 3, &[2], 5, 11),
        sequence(model, 3, &[1, 2], 4, 30),
        sequence(model, 1, &[], 0, 40),
        sequence(model, 3, &[1, 3], 4, 9),
        sequence(model, 0, &[1], 1, 1),
        sequence(model, 9, &[], 2, 25),
    ]
}

#[test]
fn answers_are_those_of_generations_by_themselves() {
    // A window that is shorter than the sequences, and one key head for all queries.
    let models = [
        model(GROUPED),
        model(r#""model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6"#),
        model(r#""num_key_value_heads": 1"#),
        model(LENGTHS),
    ];
    for (index, model) in models.iter().enumerate() {
        let mut sequences = sequences(model);
        // Longer prompts that begin as short ones do.
        sequences.extend([sequence(model, 3, &[1], 12, 9), sequence(model, 9, &[], 11, 9)]);
        let expected: Vec<_> = sequences.iter().map(|sequence| alone(model, sequence)).collect();
        for rows in [1, 2, 4, 16] {
            let mut batch = ContinuousBatch::new(model, rows, 64);
            assert_eq!(together(&mut batch, &sequences), expected, "model {index}, {rows} rows");
            // Once more, with what the caches hold.
            assert_eq!(together(&mut batch, &sequences), expected, "model {index}, {rows} rows, again");
        }
    }
}

#[test]
fn what_a_cache_holds_is_not_computed_again() {
    let model = model(GROUPED);
    let mut batch = ContinuousBatch::new(&model, 3, 64);
    let m = model.config().visual_tokens();
    let first = sequence(&model, 3, &[1], 5, 9);
    let length = first.prompt.ids.len();
    let reused =
        |batch: &mut ContinuousBatch<'_>, sequence: &Sequence| batch.join(sequence.clone()).unwrap().unwrap().reused;
    assert_eq!(reused(&mut batch, &first), 0);
    assert_eq!(reused(&mut batch, &first), length - 1, "from a row that is still answering");
    let other = sequence(&model, 3, &[2], 5, 9);
    assert_eq!(reused(&mut batch, &other), 3, "another image is another prompt from there on");
    assert!(batch.join(first.clone()).unwrap().is_none(), "no row is free");
    (0..3).for_each(|row| batch.leave(row));
    assert_eq!(batch.active(), 0);
    // A second image behind the first, and the first turn with its answer before a second.
    let two = sequence(&model, 3, &[1, 3], 5, 9);
    assert_eq!(reused(&mut batch, &two), 3 + m);
    let ends_with_image = sequence(&model, 3, &[1], 0, 9);
    assert_eq!(reused(&mut batch, &ends_with_image), 3, "an image is held as a whole or not at all");
}

#[test]
fn a_row_that_leaves_changes_nothing_for_the_others() {
    let model = model(GROUPED);
    let all = sequences(&model);
    let mut batch = ContinuousBatch::new(&model, 3, 64);
    let kept = batch.join(all[4].clone()).unwrap().unwrap();
    let gone = batch.join(all[5].clone()).unwrap().unwrap();
    let mut ids = vec![kept.token.id];
    for step in 0.. {
        if step == 3 {
            batch.leave(gone.row);
            batch.join(all[1].clone()).unwrap().unwrap();
        }
        let tokens = batch.step().unwrap();
        let own = tokens.into_iter().find(|(row, _)| *row == kept.row).unwrap().1.unwrap();
        ids.push(own.id);
        if own.finish.is_some() {
            break;
        }
    }
    assert_eq!(ids, alone(&model, &all[4]).0);
}

#[test]
fn sampling_penalties_and_biases_are_each_sequences_own() {
    let model = model(GROUPED);
    let sampled = |stream: u64| {
        let sampling = Some(Sampling { temperature: 1.5, seed: 4, ..Sampling::default() });
        let base = sequence(&model, 3, &[1], 5, 20);
        Sequence { config: GenerationConfig { sampling, eos: Vec::new(), ..base.config }, stream, ..base }
    };
    let mut batch = ContinuousBatch::new(&model, 4, 64);
    let answers = together(&mut batch, &[sampled(0), sampled(1), sequence(&model, 9, &[], 2, 7), sampled(0)]);
    assert_eq!(answers[0], answers[3]);
    assert_ne!(answers[0], answers[1]);
    assert_eq!(answers[0], alone(&model, &sampled(0)));
    let base = Sequence { config: GenerationConfig::greedy(12, Vec::new(), 0), ..sequence(&model, 3, &[], 5, 12) };
    let distinct = |answer: &(Vec<u32>, Finish)| answer.0.iter().collect::<std::collections::HashSet<_>>().len();
    let answers = together(
        &mut batch,
        &[
            Sequence { presence_penalty: 100.0, ..base.clone() },
            Sequence { frequency_penalty: -100.0, ..base.clone() },
            Sequence { logit_bias: vec![(7, 100.0), (4_000_000, 5.0)], ..base.clone() },
            Sequence { logprobs: Some(3), ..base.clone() },
        ],
    );
    assert_eq!((distinct(&answers[0]), distinct(&answers[1]), distinct(&answers[2])), (12, 1, 1));
    assert_eq!(answers[2].0[0], 7);
    let token = batch.join(Sequence { logprobs: Some(3), ..base }).unwrap().unwrap().token;
    let told = token.logprobs.unwrap();
    assert_eq!((told.top.len(), told.top[0]), (3, (token.id, told.chosen)));
}

#[test]
fn what_does_not_fit_is_an_error_and_leaves_the_batch_as_it_was() {
    let model = model(GROUPED);
    let mut batch = ContinuousBatch::new(&model, 2, 40);
    assert_eq!((batch.rows(), batch.context()), (2, 40));
    let good = sequence(&model, 3, &[1], 5, 6);
    let expected = alone(&model, &good);
    let long = sequence(&model, 30, &[], 4, 7);
    assert!(matches!(batch.join(long), Err(GenerateError::TooLong { prompt: 34, new: 7, context: 40 })));
    assert!(matches!(batch.join(sequence(&model, 0, &[], 0, 7)), Err(GenerateError::EmptyPrompt(0))));
    let missing = Sequence { pixels: Vec::new(), ..good.clone() };
    assert!(matches!(batch.join(missing), Err(GenerateError::Features { .. })));
    let short = Sequence { pixels: vec![vec![0.0; 5].into()], ..good.clone() };
    assert!(matches!(batch.join(short), Err(GenerateError::Features { .. })));
    let cold = Sampling { temperature: 0.0, ..Sampling::default() };
    let cold = Sequence { config: GenerationConfig { sampling: Some(cold), ..good.config.clone() }, ..good.clone() };
    assert!(matches!(batch.join(cold), Err(GenerateError::Setting { .. })));
    assert_eq!(together(&mut batch, &[good]), [expected]);
    let broken =
        Sequence { pixels: vec![vec![f32::NAN; image(&model, 0).len()].into()], ..sequence(&model, 3, &[1], 5, 6) };
    assert!(matches!(batch.join(broken), Err(GenerateError::NotFinite { .. })));
    assert_eq!(batch.active(), 0);
}
