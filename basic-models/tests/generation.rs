//! Tests of sampling, streaming, stop strings and sessions, with a small random model and the fixtures' tokenizers.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use basic_core::DeviceSpec;
use basic_models::generate::{
    Answer, Finish, GenerateError, Generated, GenerationConfig, Halt, Sampling, Session, TextOptions, TextStream,
    generate, generate_text, generate_with,
};
use basic_models::nn::{InitScheme, seeded_init};
use basic_models::processor::{TokenIds, Tokenizer};
use basic_models::{ImageTokens, Llava, LlavaConfig};
use burn::tensor::{Tensor, TensorData};

/// "bytelevel", or "llama" for SentencePiece's conventions (`▁` for spaces, `<0xE4>` for bytes).
fn tokenizer(name: &str) -> Tokenizer {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/processor").join(name);
    Tokenizer::load(&dir, &TokenIds::default()).unwrap()
}

const TEXTS: [&str; 9] = [
    "there are two green triangles and one yellow star.",
    "  two spaces  before and  between ",
    "日本語のテキストと漢字。한국어도 있다",
    "emoji 🙂🙃 and a family 👨‍👩‍👧‍👦, a flag 🇩🇪 and e\u{301}",
    "line\nbreaks\r\n\n\ttabs and\u{a0}no-break spaces",
    "it 's , a . test n't ! of ' quotes ' they 've",
    "naïve café – „Zitat“ … 100 %",
    "",
    " ",
];

/// Texts that are long enough for the window of the stream to move several times.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = TEXTS.iter().map(|text| text.to_string()).collect();
    texts.push(TEXTS.join("\n").repeat(4));
    texts.push("漢字🙂".repeat(60));
    texts
}

/// The pieces of text for ids; the last one is what `finish` returns.
fn pieces(tokenizer: &Tokenizer, ids: &[u32], stop: &[String]) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer, stop);
    let mut pieces: Vec<String> = Vec::new();
    for id in ids {
        pieces.push(stream.push(*id).unwrap().into());
        if stream.stopped() {
            break;
        }
    }
    pieces.push(stream.finish().into());
    assert_eq!(stream.into_text(), pieces.concat());
    pieces
}

#[test]
fn streamed_text_is_the_decoded_text_in_whole_characters() {
    for name in ["bytelevel", "llama"] {
        let tokenizer = tokenizer(name);
        for text in texts() {
            let ids = tokenizer.encode(&text, false).unwrap();
            let pieces = pieces(&tokenizer, &ids, &[]);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap(), "{name}");
            assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{name}: {pieces:?}");
            // A run of byte tokens is one piece, because a later one can make all of them invalid.
            let spoken = pieces.iter().filter(|piece| !piece.is_empty()).count();
            let streams = name == "llama" || spoken * 4 >= ids.len();
            assert!(streams, "{name}: {spoken} pieces of {} tokens are no stream", ids.len());
        }
    }
}

#[test]
fn any_ids_stream_as_they_decode() {
    for name in ["bytelevel", "llama"] {
        let tokenizer = tokenizer(name);
        let size = tokenizer.vocab_size() as u32;
        let mut state = 7u32;
        for length in [1, 5, 63, 64, 65, 400] {
            let mut draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) % size
            };
            let ids: Vec<u32> = (0..length).map(|_| draw()).collect();
            assert_eq!(
                pieces(&tokenizer, &ids, &[]).concat(),
                tokenizer.decode(&ids, true).unwrap(),
                "{name}, {length}"
            );
        }
    }
}

#[test]
fn text_ends_before_a_stop_string_however_tokens_cut_it() {
    let stops = |stops: &[&str]| -> Vec<String> { stops.iter().map(|stop| stop.to_string()).collect() };
    for name in ["bytelevel", "llama"] {
        let tokenizer = tokenizer(name);
        for (text, stop, expected) in [
            ("one two three", stops(&["two"]), "one "),
            ("one two three", stops(&["o th", "three"]), "one tw"),
            ("one two three", stops(&["e", "on"]), ""),
            ("ask USER: ask again", stops(&["USER:"]), "ask "),
            ("USUSUSER: again", stops(&["USER:"]), "USUS"),
            ("漢字🙂と", stops(&["🙂"]), "漢字"),
            ("one two", stops(&["two three", "twice", ""]), "one two"),
            ("first line\n\nsecond", stops(&["\n\n"]), "first line"),
        ] {
            let ids = tokenizer.encode(text, false).unwrap();
            let pieces = pieces(&tokenizer, &ids, &stop);
            assert_eq!(pieces.concat(), expected, "{name}: {text:?} until {stop:?}");
        }
    }
}

#[test]
fn a_stop_string_that_is_longer_than_the_window_of_decoded_tokens_ends_the_text() {
    let tokenizer = tokenizer("bytelevel");
    let ids = tokenizer.encode("a", false).unwrap();
    assert_eq!(ids.len(), 1);
    for length in (100..190).chain([400]) {
        let mut stream = TextStream::new(&tokenizer, vec!["a".repeat(length)]);
        for pushed in 1..=length {
            assert_eq!(stream.push(ids[0]).unwrap(), "");
            assert_eq!(stream.stopped(), pushed == length, "{pushed} of {length}");
        }
        assert_eq!(stream.finish(), "");
    }
}

#[test]
fn the_beginning_of_a_stop_string_is_held_back_until_it_is_none() {
    let tokenizer = tokenizer("bytelevel");
    let stop = ["a small cat".to_string()];
    let ids = tokenizer.encode("it is a small dog.", false).unwrap();
    let mut stream = TextStream::new(&tokenizer, &stop);
    let mut sent = String::new();
    for id in ids {
        sent += stream.push(id).unwrap();
        let held = ["a", "a ", "a s", "a sm", "a small", "a small "];
        assert!(!held.iter().any(|held| sent.ends_with(held)), "{sent:?} shows what may be the beginning of the end");
    }
    sent += stream.finish();
    assert_eq!(sent, "it is a small dog.");
}

const IMAGE: u32 = 358;

/// A model with the byte-level tokenizer's vocabulary.
fn model() -> Llava {
    model_with(r#""num_key_value_heads": 2"#)
}

/// The same with other keys for its decoder.
fn model_with(decoder: &str) -> Llava {
    let config = LlavaConfig::from_json(&format!(
        r#"{{"model_type": "llava", "image_token_index": 358,
            "text_config": {{"vocab_size": 359, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3,
                             "num_attention_heads": 4, "max_position_embeddings": 160, {decoder}}},
            "vision_config": {{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}}}}"#
    ))
    .unwrap();
    let device = DeviceSpec::Cpu.open().unwrap();
    seeded_init(config.init(&device), InitScheme::Normal { std: 0.3 }, 5, &device)
}

fn prompt(ids: &[u32]) -> ImageTokens {
    ImageTokens { ids: ids.to_vec(), ..ImageTokens::default() }
}

fn with_image(ids: &[u32]) -> ImageTokens {
    let mut all = vec![1, IMAGE, IMAGE, IMAGE, IMAGE];
    all.extend(ids);
    ImageTokens { ids: all, images: vec![(1..5).collect()], ..ImageTokens::default() }
}

fn features(model: &Llava) -> Tensor<2> {
    let pixels: Vec<f32> = (0..3 * 8 * 8).map(|i| ((i * 7 % 23) as f32) / 11.0 - 1.0).collect();
    model.encode(Tensor::<4>::from_data(TensorData::new(pixels, [1, 3, 8, 8]), &model.device()))
}

fn sampled(seed: u64) -> GenerationConfig {
    let sampling = Sampling { temperature: 1.5, top_k: 50, top_p: 0.95, seed, ..Sampling::default() };
    GenerationConfig { sampling: Some(sampling), ..GenerationConfig::greedy(12, vec![2], 0) }
}

#[test]
fn one_seed_gives_one_sample_whatever_else_is_in_the_batch() {
    let model = model();
    let prompts = [prompt(&[1, 20, 30, 40]), prompt(&[1, 9]), prompt(&[1, 5, 6, 7, 8, 9, 10])];
    let ids = |prompts: &[ImageTokens], seed| -> Vec<Vec<u32>> {
        let all = generate(&model, prompts, None, &sampled(seed)).unwrap();
        all.into_iter().map(|generated| generated.ids).collect()
    };
    let first = ids(&prompts, 3);
    assert_eq!(ids(&prompts, 3), first, "repeatable");
    assert_eq!(ids(&prompts[..1], 3), first[..1], "alone");
    let others = [prompts[0].clone(), prompts[2].clone(), prompts[2].clone()];
    let mixed = ids(&others, 3);
    assert_eq!((&mixed[0], &mixed[2]), (&first[0], &first[2]), "among others");
    assert_ne!(mixed[1], mixed[2], "equal prompts of one batch are different samples");
    assert_ne!(ids(&prompts, 4), first, "another seed");
}

#[test]
fn greedy_generation_takes_the_most_likely_token_of_a_sampler_that_has_no_choice() {
    let model = model();
    let prompts = [prompt(&[1, 20, 30, 40])];
    let greedy = generate(&model, &prompts, None, &GenerationConfig::greedy(12, vec![], 0)).unwrap();
    let one = Sampling { top_k: 1, ..Sampling::default() };
    let config = GenerationConfig { sampling: Some(one), ..GenerationConfig::greedy(12, vec![], 0) };
    assert_eq!(generate(&model, &prompts, None, &config).unwrap(), greedy);
    assert_eq!(greedy[0].finish, Finish::Length);
}

#[test]
fn a_repetition_penalty_spares_the_padding() {
    let model = model();
    // The pad id is penalized if the prompt contains it, but not where it pads a row.
    let config = GenerationConfig { repetition_penalty: 1.8, ..GenerationConfig::greedy(10, vec![], 20) };
    let prompts = [prompt(&[1, 33]), prompt(&[1, 20, 30, 40, 50, 60])];
    let together = generate(&model, &prompts, None, &config).unwrap();
    for (prompt, together) in prompts.iter().zip(together) {
        let alone = generate(&model, std::slice::from_ref(prompt), None, &config).unwrap().remove(0);
        assert_eq!(together.ids, alone.ids);
    }
}

#[test]
fn a_row_ends_at_any_end_token_and_the_others_go_on() {
    let model = model();
    let prompts = [prompt(&[1, 20, 30, 40]), prompt(&[1, 9])];
    let free = generate(&model, &prompts, None, &GenerationConfig::greedy(10, vec![], 0)).unwrap();
    let end = free[0].ids[5];
    assert!(!free[0].ids[..5].contains(&end) && !free[1].ids.contains(&end), "choose other prompts: {free:?}");
    let ended = generate(&model, &prompts, None, &GenerationConfig::greedy(10, vec![300, end], 0)).unwrap();
    assert_eq!((&ended[0].ids[..], ended[0].finish), (&free[0].ids[..6], Finish::Stop));
    assert_eq!((&ended[1].ids, ended[1].finish), (&free[1].ids, Finish::Length));
}

#[test]
fn an_observer_sees_every_token_and_ends_a_row_or_all() {
    let model = model();
    let prompts = [prompt(&[1, 20, 30, 40]), prompt(&[1, 9])];
    let config = GenerationConfig::greedy(6, vec![], 0);
    let free = generate(&model, &prompts, None, &config).unwrap();
    let run = |decide: &dyn Fn(usize, usize) -> ControlFlow<Halt>| -> (Vec<Generated>, Vec<Vec<u32>>) {
        let mut seen = vec![Vec::new(), Vec::new()];
        let generated = generate_with(&model, &prompts, None, &config, &mut |token| {
            seen[token.row].push(token.id);
            assert_eq!(token.finish, (seen[token.row].len() == 6).then_some(Finish::Length));
            decide(token.row, seen[token.row].len())
        });
        (generated.unwrap(), seen)
    };
    let (all, seen) = run(&|_, _| ControlFlow::Continue(()));
    assert_eq!((&all, &seen[0]), (&free, &free[0].ids));
    let (one, seen) =
        run(&|row, n| if (row, n) == (0, 2) { ControlFlow::Break(Halt::Row) } else { ControlFlow::Continue(()) });
    assert_eq!((one[0].finish, one[0].ids.len(), &one[1]), (Finish::Stop, 2, &free[1]));
    assert_eq!(seen[0].len(), 2);
    let (cut, _) =
        run(&|row, n| if (row, n) == (0, 3) { ControlFlow::Break(Halt::All) } else { ControlFlow::Continue(()) });
    assert_eq!((cut[0].finish, cut[0].ids.len()), (Finish::Cancelled, 3));
    assert_eq!((cut[1].finish, cut[1].ids.len()), (Finish::Cancelled, 2));
}

#[test]
fn pieces_of_all_rows_make_their_texts() {
    let (model, tokenizer) = (model(), tokenizer("bytelevel"));
    let prompts = [prompt(&[1, 20, 30, 40]), prompt(&[1, 9])];
    let config = GenerationConfig::greedy(20, vec![2], 0);
    let ids = generate(&model, &prompts, None, &config).unwrap();
    let whole = tokenizer.decode(&ids[0].ids, true).unwrap();
    let middle: String = whole.chars().filter(char::is_ascii_graphic).take(2).collect();
    let stop = [whole[whole.find(&middle[..1]).unwrap()..].chars().take(3).collect::<String>()];
    let options = TextOptions { tokenizer: &tokenizer, stop: &stop };
    let mut texts = [String::new(), String::new()];
    let mut ends = [None, None];
    let answers = generate_text(&model, &prompts, None, &config, &options, &mut |piece| {
        assert_eq!(ends[piece.row], None, "nothing comes after the last token");
        texts[piece.row] += piece.text;
        ends[piece.row] = piece.finish;
        ControlFlow::Continue(())
    })
    .unwrap();
    for (row, answer) in answers.iter().enumerate() {
        assert_eq!((&answer.text, Some(answer.generated.finish)), (&texts[row], ends[row]));
        assert!(!answer.text.contains(&stop[0]));
    }
    assert_eq!(answers[0].generated.finish, Finish::Stop);
    assert_eq!(answers[0].text, whole[..whole.find(&stop[0]).unwrap()]);
    assert!(answers[0].generated.ids.len() < ids[0].ids.len() || whole.ends_with(&stop[0]));
}

#[test]
fn a_session_answers_as_a_fresh_generation_and_computes_only_what_is_new() {
    let (model, tokenizer) = (model(), tokenizer("bytelevel"));
    let options = TextOptions { tokenizer: &tokenizer, stop: &[] };
    let config = GenerationConfig::greedy(8, vec![2], 0);
    let mut session = Session::new(&model, Some(features(&model)));
    let turn = |session: &mut Session<'_>, ids: &[u32], shared: usize| -> Answer {
        let prompt = with_image(ids);
        assert_eq!(session.shared(&prompt.ids), shared);
        let mut go_on = |_: basic_models::generate::Piece<'_>| ControlFlow::Continue(());
        let answer = session.answer(&prompt, &config, &options, &mut go_on).unwrap();
        let fresh = generate(&model, &[prompt], Some(features(&model)), &config).unwrap().remove(0);
        assert_eq!((&answer.generated.ids, answer.generated.finish), (&fresh.ids, fresh.finish));
        answer
    };
    let first = turn(&mut session, &[30, 31, 32], 0);
    let mut ids = vec![30, 31, 32];
    ids.extend(&first.generated.ids);
    ids.extend([40, 41, 42, 43]);
    // The image, the first question, and its answer without the last token, which was never an input.
    turn(&mut session, &ids, 5 + 3 + first.generated.ids.len() - 1);
    // A prompt that differs earlier, and then the same one again: its last token is computed anew.
    turn(&mut session, &[30, 31, 99, 32], 5 + 2);
    turn(&mut session, &[30, 31, 99, 32], 5 + 3);
    // Longer than the first capacity of the cache.
    turn(&mut session, &(40..140).collect::<Vec<u32>>(), 5);
}

#[test]
fn a_session_takes_no_keys_of_a_shorter_sequence_where_angles_depend_on_the_length() {
    let scaling = r#""rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 16,
                     "short_factor": [1.0, 1.0, 1.0], "long_factor": [3.0, 7.0, 15.0]}"#;
    let (model, tokenizer) = (model_with(scaling), tokenizer("bytelevel"));
    let (options, config) = (TextOptions { tokenizer: &tokenizer, stop: &[] }, GenerationConfig::greedy(4, vec![2], 0));
    let mut session = Session::new(&model, None);
    // The first turns stay below 16 tokens with their answers; the third does not, and the last one is long from its start.
    for (length, shared) in [(6, 0), (9, 6), (14, 9), (20, 0), (30, 20), (9, 0)] {
        let prompt = prompt(&(40..40 + length).collect::<Vec<u32>>());
        assert_eq!(session.shared(&prompt.ids), shared, "{length}");
        let mut go_on = |_: basic_models::generate::Piece<'_>| ControlFlow::Continue(());
        let answer = session.answer(&prompt, &config, &options, &mut go_on).unwrap();
        let fresh = generate(&model, &[prompt], None, &config).unwrap().remove(0);
        assert_eq!(answer.generated.ids, fresh.ids, "{length}");
    }
}

#[test]
fn images_that_do_not_fit_the_prompts_are_an_error_that_gives_the_numbers() {
    let model = model();
    let config = GenerationConfig::greedy(2, vec![2], 0);
    let none = generate(&model, &[with_image(&[7])], None, &config).unwrap_err();
    assert!(matches!(none, GenerateError::Features { positions: 4, rows: 0 }), "{none}");
    let twice = [with_image(&[7]), with_image(&[8])];
    let few = generate(&model, &twice, Some(features(&model)), &config).unwrap_err();
    assert!(matches!(few, GenerateError::Features { positions: 8, rows: 4 }), "{few}");
    let bad = GenerationConfig { repetition_penalty: -1.0, ..config };
    let error = generate(&model, &[prompt(&[7])], None, &bad).unwrap_err();
    assert!(error.to_string().contains("repetition_penalty is -1"), "{error}");
}
