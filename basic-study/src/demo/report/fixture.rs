//! A made-up summary and its images, for this module's tests.

use std::collections::BTreeMap;
use std::path::Path;

use crate::demo::summary::{Arm, Best, Conclusion, CurvePoint, Details, Run, SampleAnswer, Setting, Stage, Summary};

/// Question kinds with a made-up majority score.
const KINDS: [(&str, f64); 6] =
    [("colour", 0.16), ("count", 0.31), ("existence", 0.5), ("place", 0.14), ("relation", 0.5), ("shape", 0.2)];

/// Two settings, both arms, `seeds` seeds. `gains` is BASIC's advantage in accuracy, one a setting.
pub(super) fn summary(seeds: u64, gains: [f64; 2]) -> Summary {
    let setting = |index: usize, name: &str, description: &str, captions| Setting {
        name: name.to_owned(),
        description: description.to_owned(),
        captions,
        conversations: Some(512),
        eval_questions: 1152,
        lambda_das: 0.05,
        lambda_sds: 0.3,
        arms: [("llava", 0.0), ("basic", gains[index])]
            .into_iter()
            .map(|(name, gain)| Arm {
                name: name.to_owned(),
                runs: (1..=seeds).map(|seed| run(seed, name, gain)).collect(),
            })
            .collect(),
    };
    let settings = vec![
        setting(0, "few", "24 captioned images: the projector can learn them by heart.", 24),
        setting(1, "many", "4,096 captioned images: more than the projector can learn by heart.", 4096),
    ];
    Summary {
        version: "0.1.0".to_owned(),
        revision: Some("3f2a91c".to_owned()),
        device: "cpu".to_owned(),
        workers: 2,
        seconds: 492.0,
        seeds: seeds as usize,
        conclusion: Conclusion::of(&settings, seeds as usize),
        settings,
        majority: KINDS.into_iter().map(|(kind, score)| (kind.to_owned(), score)).collect(),
    }
}

/// The same as without `--full`: the first setting after pretrain, and nothing but answers.
pub(super) fn short(seeds: u64, gain: f64) -> Summary {
    let mut summary = summary(seeds, [gain, 0.0]);
    summary.settings.truncate(1);
    summary.settings[0].conversations = None;
    for run in summary.settings[0].arms.iter_mut().flat_map(|arm| &mut arm.runs) {
        (run.best, run.finetune, run.pretrain.details) = (None, None, None);
    }
    summary
}

/// Writes the images that [`summary`]'s samples name.
pub(super) fn write_images(root: &Path) {
    for index in 0..4_u32 {
        let picture = image::RgbImage::from_fn(64, 64, |x, y| {
            let (dx, dy) = (x as i32 - 20 - 8 * index as i32, y as i32 - 30);
            let noise = (noise(u64::from(x * 64 + y + index * 4096)) * 24.0) as u8;
            let inside = dx * dx + dy * dy < 150 || (x > 40 && y > 44 && x < 56 && y < 60);
            let [r, g, b] = if inside { [200, 60 * index as u8, 40] } else { [70, 74, 80] };
            image::Rgb([r + noise, g + noise, b + noise])
        });
        let path = root.join(image_name(index));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture.save(path).unwrap();
    }
}

fn image_name(index: u32) -> String {
    format!("images/eval-{index:04}.png")
}

/// A number in -0.5..0.5 that depends on `key` alone (the finalizer of splitmix64).
fn noise(key: u64) -> f64 {
    let mut bits = key.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
}

fn run(seed: u64, arm: &str, gain: f64) -> Run {
    let wobble = |key: u64| 0.02 * noise(seed * 100 + key);
    let accuracy = 0.58 + gain + wobble(1);
    Run {
        seed,
        pretrain: stage(seed, arm, accuracy, 160),
        best: Some(Best {
            step: 80 + 20 * seed as usize,
            validation_accuracy: accuracy + 0.03,
            accuracy: accuracy + 0.02,
        }),
        finetune: Some(stage(seed, arm, accuracy + 0.15 - gain * 0.9 + wobble(2), 240)),
    }
}

fn stage(seed: u64, arm: &str, accuracy: f64, steps: usize) -> Stage {
    let basic = arm == "basic";
    let norms: &[(&str, f64)] =
        if basic { &[("lm", 0.412), ("das", 1.94), ("sds", 0.00023)] } else { &[("lm", 0.398)] };
    Stage {
        steps,
        accuracy,
        per_kind: KINDS
            .iter()
            .enumerate()
            .map(|(index, (kind, score))| {
                ((*kind).to_owned(), accuracy + (score - 0.3) / 2.0 + 0.03 * noise(seed + index as u64))
            })
            .collect(),
        details: Some(Details {
            caption_loss: 0.83 - if basic { 0.05 } else { 0.0 } + 0.02 * noise(seed),
            grounded: if basic { 0.48 } else { 0.23 },
            grounded_chance: 0.14,
            v_norm: if basic { 1.62 } else { 2.31 } + 0.1 * noise(seed),
            token_norm: 1.05,
            gradient_norms: norms.iter().map(|(name, norm)| ((*name).to_owned(), *norm)).collect::<BTreeMap<_, _>>(),
            step_seconds: if basic { 0.142 } else { 0.117 } + 0.002 * noise(seed),
            curve: (1..=steps).map(|step| point(step, seed, basic)).collect(),
        }),
        samples: samples(basic),
    }
}

fn point(step: usize, seed: u64, basic: bool) -> CurvePoint {
    let at = step as f64;
    let jitter = |size: f64| size * noise(at as u64 * 31 + seed * 7919);
    let lm = 0.55 + 3.4 * (-at / if basic { 22.0 } else { 28.0 }).exp() + jitter(0.25);
    let (das, sds) = if basic {
        (0.2 + 1.3 * (-at / 35.0).exp() + jitter(0.1), (0.08 + 6.0 * (-at / 18.0).exp()) * (1.0 + jitter(0.3)))
    } else {
        (0.0, 0.0)
    };
    CurvePoint { step, lm, das, sds, total: lm + 0.05 * das + 0.3 * sds }
}

fn samples(basic: bool) -> Vec<SampleAnswer> {
    let asked = [
        ("what colour is the circle at middle left ?", "red", "orange", "colour"),
        ("how many objects are there ?", "2", "2", "count"),
        ("where is the small square ?", "bottom right", "middle right", "place"),
    ];
    let questions = (0..4).flat_map(|index| asked.map(|question| (index, question)));
    let answered = questions.map(|(index, (question, expected, wrong, kind))| SampleAnswer {
        image: image_name(index),
        question: question.to_owned(),
        expected: expected.to_owned(),
        answer: if basic || index % 2 == 0 { expected } else { wrong }.to_owned(),
        kind: kind.to_owned(),
    });
    answered.collect()
}
