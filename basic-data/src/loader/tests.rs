//! What the loader gives, in which order, and what it does about samples that cannot be used.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use basic_core::DeviceSpec;
use basic_models::nn::LossCounts;
use basic_models::processor::{ImageProcessor, Message, PixelValues, Role, Style};
use burn::tensor::DType;

use super::fixture::{Data, Fault, all, checkpoint, config, preparer, sample, start};
use super::{Loader, LoaderError, LoaderPlan, MicroBatch, Preparer, Sampler, StepSamples};
use crate::{DrawOrder, HeldFeatures, LoaderConfig, Sample, TooLong, VisionCache};

/// What the steps hold, to the bit.
fn content(steps: &[StepSamples]) -> Vec<String> {
    let micro = |micro: &MicroBatch| {
        let samples = micro.rows.iter().map(|row| {
            let sample = |sample: &super::Loaded| {
                let pixels = sample.images.iter().map(|image| {
                    let sum = |values: &PixelValues| {
                        values.data.iter().fold(0u64, |sum, x| sum.rotate_left(5) ^ u64::from(x.to_bits()))
                    };
                    image.pixels.as_ref().map(sum)
                });
                format!(
                    "{} {:?} {:?}",
                    sample.index,
                    (&sample.tokens.ids, &sample.tokens.labels),
                    pixels.collect::<Vec<_>>()
                )
            };
            row.iter().map(sample).collect::<Vec<_>>()
        });
        format!("{} {:?} {:?}", micro.replica, micro.counts, samples.collect::<Vec<_>>())
    };
    let step = |step: &StepSamples| {
        format!("{} {:?} {:?}", step.step, step.micro.iter().map(micro).collect::<Vec<_>>(), step.skipped)
    };
    steps.iter().map(step).collect()
}

fn indices(step: &StepSamples) -> Vec<usize> {
    step.micro.iter().flat_map(|micro| micro.rows.iter().flatten().map(|sample| sample.index)).collect()
}

#[test]
fn any_number_of_workers_gives_the_same_samples_in_the_same_order_from_any_step() {
    for order in [DrawOrder::Shuffle, DrawOrder::Grouped] {
        let skipping = || LoaderPlan { skip_broken: true, ..LoaderPlan::new(12, 2) };
        let run = |workers: usize, prefetch: usize, first: usize| {
            let data = Data::new(20, &[(4, Fault::MissingImage), (13, Fault::NoAnswer)]);
            let config = LoaderConfig { order, prefetch, ..config(workers) };
            content(&all(&mut start(data, 4, &config, skipping(), first)))
        };
        let expected = run(0, 0, 0);
        assert_eq!(expected.len(), 12);
        for (workers, prefetch) in [(0, 2), (1, 0), (1, 3), (4, 1), (4, 20)] {
            assert_eq!(run(workers, prefetch, 0), expected, "{workers} workers, {prefetch} steps ahead, {order:?}");
        }
        assert_eq!(run(3, 2, 7), expected[7..]);
        assert!(run(2, 2, 12).is_empty());
    }
}

#[test]
fn no_more_steps_are_read_ahead_than_prefetch_says() {
    let data = Data::new(100, &[]);
    let config = LoaderConfig { prefetch: 2, ..config(4) };
    let preparer = Arc::new(preparer(&config));
    let sampler = Sampler::new(config.order, &data, 5, 5, 4);
    let data = Arc::new(data);
    let mut loader = Loader::start(data.clone(), preparer, sampler, &config, LoaderPlan::new(20, 5), 0).unwrap();
    for step in 0..4 {
        loader.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(data.read.load(Ordering::SeqCst), (step + 3) * 5);
    }
}

#[test]
fn a_broken_sample_ends_the_run_at_its_step_with_its_place() {
    // The context is 2048; `Long` has more tokens.
    for (fault, mention) in [
        (Fault::MissingImage, "none.png"),
        (Fault::NoAnswer, "message 1"),
        (Fault::Long, "tokens long"),
        (Fault::File, "gone"),
        (Fault::Panic, "a defect at 7"),
    ] {
        for workers in [0, 3] {
            let mut loader = start(Data::new(12, &[(7, fault)]), 3, &config(workers), LoaderPlan::new(4, 3), 0);
            assert!(loader.next().unwrap().is_some() && loader.next().unwrap().is_some());
            let error = loader.next().unwrap_err();
            assert_eq!(matches!(error, LoaderError::Panicked { index: 7, .. }), fault == Fault::Panic, "{error}");
            let text = error.to_string();
            assert!(text.contains(mention), "{text}");
            assert!(text.contains("sample 7") || fault == Fault::File, "{text}");
            assert!(loader.next().unwrap().is_none(), "an error is the end");
        }
    }
}

#[test]
fn broken_samples_are_left_out_of_their_batches_reported_and_counted_once() {
    let faults = [(1, Fault::NoAnswer), (4, Fault::MissingImage), (8, Fault::Long)];
    let plan = LoaderPlan { skip_broken: true, max_skipped: 3, ..LoaderPlan::new(8, 2) };
    let mut loader = start(Data::new(12, &faults), 3, &config(2), plan.clone(), 0);
    let steps = all(&mut loader);
    assert_eq!(
        steps.iter().map(indices).collect::<Vec<_>>()[..4],
        [vec![0, 2], vec![3, 5], vec![6, 7], vec![9, 10, 11]]
    );
    let skipped: Vec<usize> = steps.iter().flat_map(|step| &step.skipped).map(|skipped| skipped.index).collect();
    assert_eq!(skipped, [1, 4, 8, 1, 4, 8], "both epochs leave them out");
    assert!(steps[1].skipped[0].reason.contains("none.png") && steps[1].skipped[0].reason.contains("sample 4"));
    assert_eq!(loader.skipped().iter().copied().collect::<Vec<_>>(), [1, 4, 8]);

    // One more than may be, at the step where it is drawn, whatever the workers had read ahead.
    let strict = LoaderPlan { max_skipped: 2, ..plan.clone() };
    let mut loader = start(Data::new(12, &faults), 3, &config(2), strict.clone(), 0);
    assert!(loader.next().is_ok() && loader.next().is_ok());
    let error = loader.next().unwrap_err();
    assert!(matches!(error, LoaderError::TooManySkipped { skipped: 3, limit: 2, .. }), "{error}");
    assert!(error.to_string().contains("sample 8"), "{error}");

    // A run that resumes counts on.
    let resumed = LoaderPlan { skipped: [1, 4].into(), ..strict };
    assert!(start(Data::new(12, &faults), 3, &config(2), resumed, 2).next().is_err());

    // A file that is gone is no broken sample; neither is a defect of the program.
    for fault in [Fault::File, Fault::Panic] {
        let plan = LoaderPlan { skip_broken: true, ..LoaderPlan::new(4, 2) };
        assert!(start(Data::new(12, &[(1, fault)]), 3, &config(2), plan, 0).next().is_err());
    }
}

#[test]
fn a_step_without_a_sample_left_is_empty() {
    let faults: Vec<_> = (3..6).map(|index| (index, Fault::NoAnswer)).collect();
    let plan = LoaderPlan { skip_broken: true, ..LoaderPlan::new(4, 2) };
    let steps = all(&mut start(Data::new(12, &faults), 3, &config(1), plan, 0));
    assert!(steps[1].micro.is_empty() && steps[1].skipped.len() == 3);
    assert_eq!(steps[1].counts(), LossCounts::default());
    assert_eq!(indices(&steps[2]), [6, 7, 8]);
}

#[test]
fn too_long_samples_are_cut_left_out_or_an_error_as_the_recipe_says() {
    let run = |too_long: TooLong, max_length: Option<usize>, skip_broken: bool| {
        let config = LoaderConfig { too_long, max_length, ..config(1) };
        let plan = LoaderPlan { skip_broken, max_skipped: 0, ..LoaderPlan::new(1, 3) };
        start(Data::new(3, &[(0, Fault::Long)]), 3, &config, plan, 0).next()
    };
    let error = run(TooLong::Error, None, false).unwrap_err().to_string();
    assert!(error.contains("context") && error.contains("too_long"), "{error}");
    let error = run(TooLong::Error, Some(200), false).unwrap_err().to_string();
    assert!(error.contains("loader.max_length is 200"), "{error}");
    // Left out because the recipe says so: not among the broken ones, of which none may be.
    let step = run(TooLong::Skip, None, false).unwrap().unwrap();
    assert_eq!((indices(&step), step.skipped.len(), step.skipped[0].too_long), (vec![1, 2], 1, true));
    assert!(matches!(run(TooLong::Error, None, true), Err(LoaderError::TooManySkipped { .. })));
    let step = run(TooLong::Truncate, Some(200), false).unwrap().unwrap();
    assert_eq!(step.micro[0].rows[0][0].tokens.ids.len(), 200);
    assert!(step.skipped.is_empty());
    let config = LoaderConfig { max_length: Some(1 << 20), ..LoaderConfig::default() };
    let error = Preparer::new(&checkpoint(), Style::vicuna_v1(), &config).unwrap_err();
    assert!(matches!(error, LoaderError::MaxLength { .. }), "{error}");
}

#[test]
fn a_cut_keeps_images_whole_and_a_target_or_is_an_error() {
    let visual = preparer(&config(0)).visual_tokens();
    let cut = |max_length: usize| {
        let config = LoaderConfig { max_length: Some(max_length), too_long: TooLong::Truncate, ..config(0) };
        // A text, an answer, and then an image with its answer.
        let turns = ["is it?", "it is the dog", "<image>\nand here?", "the dog"];
        let role = |i: usize| if i.is_multiple_of(2) { Role::User } else { Role::Assistant };
        let messages = turns.iter().enumerate().map(|(i, text)| Message::new(role(i), *text)).collect();
        preparer(&config).prepare(&Sample { messages, ..sample(0, None) })
    };
    let whole = cut(200).unwrap();
    let (length, image) = (whole.tokens.ids.len(), whole.tokens.images[0].clone());
    assert_eq!(image.len(), visual);
    let (start, end) = (image[0], image[visual - 1] + 1);
    for max_length in [length, length - 1, end + 1, end] {
        let kept = cut(max_length).unwrap();
        assert_eq!((kept.tokens.ids.len(), kept.images.len()), (max_length, 1));
        assert_eq!(kept.tokens.labels[..], whole.tokens.labels[..max_length]);
    }
    for max_length in [end - 1, start + 1, start] {
        let kept = cut(max_length).unwrap();
        assert_eq!((kept.tokens.ids.len(), kept.images.len(), kept.tokens.images.len()), (start, 0, 0));
        assert!(kept.tokens.targets() > 0);
    }
    let first = whole.tokens.labels.iter().position(|label| *label >= 0).unwrap();
    assert_eq!(cut(first + 1).unwrap().tokens.targets(), 1);
    let error = cut(first).unwrap_err().to_string();
    assert!(error.contains("none of the") && error.contains("max_length"), "{error}");
}

#[test]
fn dropping_the_loader_stops_its_workers() {
    let data = Data { slow: Duration::from_millis(30), ..Data::new(1000, &[]) };
    let config = LoaderConfig { prefetch: 100, ..config(3) };
    let preparer = Arc::new(preparer(&config));
    let sampler = Sampler::new(config.order, &data, 10, 5, 4);
    let data = Arc::new(data);
    let mut loader = Loader::start(data.clone(), preparer, sampler, &config, LoaderPlan::new(100, 10), 0).unwrap();
    let step = loader.next().unwrap().unwrap();
    assert!(step.waited > Duration::from_millis(50), "three workers read ten samples of 30 ms: {:?}", step.waited);
    let before = Instant::now();
    drop(loader);
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    let read = data.read.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((data.read.load(Ordering::SeqCst), Arc::strong_count(&data)), (read, 1), "every worker is gone");
}

#[test]
fn replicas_share_a_step_and_know_the_counts_of_all() {
    let steps = |replicas: usize, packing: bool| {
        let plan = LoaderPlan { replicas, ..LoaderPlan::new(3, 2) };
        all(&mut start(Data::new(30, &[]), 10, &LoaderConfig { packing, ..config(2) }, plan, 0))
    };
    for packing in [false, true] {
        for (one, four) in steps(1, packing).iter().zip(steps(4, packing)) {
            let sorted = |step: &StepSamples| {
                let mut all = indices(step);
                all.sort_unstable();
                all
            };
            assert_eq!(sorted(one), sorted(&four));
            assert_eq!((one.counts(), one.tokens(), one.samples()), (four.counts(), four.tokens(), four.samples()));
            let shares: Vec<usize> = (0..4).map(|replica| four.of(replica).map(MicroBatch::samples).sum()).collect();
            assert!(shares.iter().all(|samples| (2..=3).contains(samples)), "{shares:?}");
            assert!(four.micro.iter().all(|micro| micro.rows.len() <= 2));
        }
    }
}

#[test]
fn packed_rows_are_within_the_length_and_count_as_their_batch_does() {
    let config = LoaderConfig { packing: true, max_length: Some(420), ..config(1) };
    let steps = all(&mut start(Data::new(24, &[]), 12, &config, LoaderPlan::new(2, 3), 0));
    let preparer = preparer(&config);
    let device = DeviceSpec::Cpu.open().unwrap();
    for step in &steps {
        let rows = step.micro.iter().flat_map(|micro| &micro.rows);
        assert!(rows.clone().all(|row| row.iter().map(|sample| sample.tokens.ids.len()).sum::<usize>() <= 420));
        assert!(rows.count() < 12, "something is packed");
        assert_eq!(step.samples(), 12);
        for micro in &step.micro {
            let batch = micro.batch(&preparer, &device).unwrap();
            assert_eq!(LossCounts::of(&batch), micro.counts);
            assert_eq!(batch.lengths.iter().sum::<usize>(), micro.tokens);
            assert_eq!(batch.layout.images.len(), batch.pixels.map_or(0, |pixels| pixels.dims()[0]));
        }
    }
}

#[test]
fn images_whose_features_are_held_are_not_decoded_and_features_are_the_same_bits_in_any_company() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let model = checkpoint().load(DType::F32, &device).unwrap();
    let run = |mib: usize, micro_batch: usize| {
        let mut cache = VisionCache::new(mib);
        let plan = LoaderPlan {
            held: vec![HeldFeatures { own: cache.keys(), ..HeldFeatures::default() }],
            ..LoaderPlan::new(4, micro_batch)
        };
        let config = LoaderConfig { prefetch: 0, ..config(1) };
        let preparer = preparer(&config);
        let mut loader = start(Data::new(6, &[]), 6, &config, plan, 0);
        let (mut features, mut decoded) = (Vec::new(), Vec::new());
        while let Some(step) = loader.next().unwrap() {
            let images = || step.micro.iter().flat_map(|micro| micro.rows.iter().flatten().flat_map(|s| &s.images));
            decoded.push(images().filter(|image| image.pixels.is_some()).count());
            for micro in &step.micro {
                let batch = micro.encoded(&preparer, &model, &mut cache).unwrap();
                if let Some(found) = batch.features {
                    features.extend(found.into_data().try_to_vec::<f32>().unwrap());
                }
            }
        }
        (features, decoded)
    };
    let (held, decoded) = run(64, 6);
    assert_eq!(decoded, [6, 0, 0, 0], "each image is decoded once");
    for (mib, micro_batch) in [(0, 6), (64, 1), (0, 1), (0, 2)] {
        let (features, decoded) = run(mib, micro_batch);
        assert!(features == held, "{mib} MiB, {micro_batch} samples together");
        assert_eq!(decoded[1], if mib == 0 { 6 } else { 0 });
    }
}

#[test]
fn images_are_made_ready_for_another_encoder_too_until_its_features_are_held() {
    // Its own mean: other pixel values than the model's encoder takes.
    let mut settings =
        serde_json::json!({ "do_resize": true, "size": { "height": 28, "width": 28 }, "do_rescale": true });
    settings["do_normalize"] = true.into();
    settings["image_mean"] = serde_json::json!([0.1, 0.2, 0.3]);
    settings["image_std"] = serde_json::json!([1.0, 1.0, 1.0]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
    let other = ImageProcessor::load(dir.path()).unwrap();
    let config = config(1);
    let run = |held: Vec<HeldFeatures>, other: Option<&ImageProcessor>| {
        let mut preparer = preparer(&config);
        if let Some(images) = other {
            preparer = preparer.with_other_images(images.clone());
        }
        let data = Arc::new(Data::new(6, &[]));
        let sampler = Sampler::new(config.order, &*data, 6, 5, preparer.visual_tokens());
        let plan = LoaderPlan { held, ..LoaderPlan::new(1, 6) };
        let mut loader = Loader::start(data, Arc::new(preparer), sampler, &config, plan, 0).unwrap();
        let step = loader.next().unwrap().unwrap();
        let images = step.micro.into_iter().flat_map(|micro| micro.rows).flatten().flat_map(|sample| sample.images);
        images.collect::<Vec<_>>()
    };
    let images = run(Vec::new(), Some(&other));
    assert_eq!(images.len(), 6);
    for image in &images {
        assert!(image.pixels.is_some());
        assert_eq!(image.other_pixels.as_ref(), Some(&image.source.process(&other).unwrap()));
        assert_ne!(image.other_pixels, image.pixels);
    }
    assert!(run(Vec::new(), None).iter().all(|image| image.other_pixels.is_none()));
    // Once the other encoder's features of an image are held, only the model's own encoder needs its pixel values.
    let device = DeviceSpec::Cpu.open().unwrap();
    let model = checkpoint().load(DType::F32, &device).unwrap();
    let mut cache = VisionCache::new(64);
    cache.features(&model, &checkpoint(), &[images[0].source.clone()]).unwrap();
    let held = HeldFeatures { other: cache.keys(), ..HeldFeatures::default() };
    for image in run(vec![held], Some(&other)) {
        assert!(image.pixels.is_some());
        assert_eq!(image.other_pixels.is_none(), image.source.name() == images[0].source.name());
    }
}
