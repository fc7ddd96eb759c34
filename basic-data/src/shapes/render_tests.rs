//! Tests of the documented properties of images and rasters.

use std::collections::HashSet;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;

/// The side of a cell in pixels: a third of the image.
const CELL: f32 = 64.0 / 3.0;

#[test]
fn jitter_never_takes_an_object_out_of_its_cell() {
    for (seed, scene) in sample_scenes(Split::Eval, 3_000, 4).iter().enumerate() {
        for (placement, object) in layout(scene, seed as u64).iter().zip(scene.objects()) {
            let cell = [object.place.column(), object.place.row()];
            for (centre, cell) in [placement.centre.0, placement.centre.1].into_iter().zip(cell) {
                assert!(centre - placement.reach() >= cell as f32 * CELL, "{scene:?} {seed}");
                assert!(centre + placement.reach() <= (cell + 1) as f32 * CELL, "{scene:?} {seed}");
            }
        }
        for (pixel, object) in coverage(scene, seed as u64).into_iter().enumerate() {
            if let Some(object) = object {
                let place = scene.objects()[object].place;
                let inside = |at: usize, cell: usize| ((at as f32 + 0.5) / CELL) as usize == cell;
                assert!(inside(pixel / 64, place.row()) && inside(pixel % 64, place.column()));
            }
        }
    }
}

#[test]
fn sizes_are_as_far_apart_as_they_are_documented() {
    for (seed, scene) in sample_scenes(Split::Train, 2_000, 6).iter().enumerate() {
        for (placement, object) in layout(scene, seed as u64).iter().zip(scene.objects()) {
            let across = 2.0 * placement.reach();
            // The documentation says about 8 to 12 and 14 to 20 pixels, with no sizes in between.
            let range = if object.size == Size::Small { 7.7..=12.5 } else { 14.0..=20.6 };
            assert!(range.contains(&across), "{object:?}: {across}");
        }
    }
}

#[test]
fn an_image_shows_its_objects_where_coverage_says() {
    // Objects differ from the dim background (at most 85 + 10, brightened by 1.08, plus noise of 28) on
    // average, though not in every channel or pixel.
    for (seed, scene) in sample_scenes(Split::Eval, 300, 12).iter().enumerate() {
        let image = render(scene, seed as u64);
        assert_eq!(image, render(scene, seed as u64), "the same seed gives the same image");
        let cover = coverage(scene, seed as u64);
        let mean = |wanted: Option<usize>| {
            let mut sum = [0.0_f32; 3];
            let mut count = 0.0;
            for (pixel, _) in image.pixels().zip(&cover).filter(|(_, object)| **object == wanted) {
                count += 1.0;
                sum.iter_mut().zip(pixel.0).for_each(|(sum, value)| *sum += f32::from(value));
            }
            sum.map(|channel| channel / count)
        };
        let background = mean(None);
        assert!(background.iter().all(|&channel| channel < 110.0), "{background:?}");
        for index in 0..scene.objects().len() {
            let object = mean(Some(index));
            let difference: f32 = object.iter().zip(background).map(|(a, b)| (a - b).abs()).sum();
            assert!(difference > 60.0, "{:?}: {object:?} {background:?}", scene.objects()[index]);
        }
    }
}

#[test]
fn patch_truth_is_the_object_that_covers_most_of_the_patch() {
    for side in [1, 4, 6, 8, 13] {
        for (seed, scene) in sample_scenes(Split::Train, 60, 9).iter().enumerate() {
            let cover = coverage(scene, seed as u64);
            let truth = patch_truth(scene, seed as u64, side);
            assert_eq!(truth.len(), side * side);
            for (patch, object) in truth.into_iter().enumerate() {
                let size = 64.0 / side as f64;
                let within = |at: usize, patch: usize| {
                    let centre = at as f64 + 0.5;
                    patch as f64 * size <= centre && centre < (patch + 1) as f64 * size
                };
                let pixels: Vec<Option<usize>> = (0..64 * 64)
                    .filter(|&p| within(p / 64, patch / side) && within(p % 64, patch % side))
                    .map(|p| cover[p])
                    .collect();
                let share = |index| {
                    let covered = pixels.iter().filter(|&&o| o == Some(index)).count();
                    covered as f64 / pixels.len() as f64
                };
                let best = (0..scene.objects().len()).map(share).fold(0.0, f64::max);
                match object {
                    Some(index) => assert!(share(index) == best && best >= 0.1),
                    None => assert!(best < 0.1),
                }
            }
        }
    }
}

#[test]
fn nearly_every_object_has_a_patch_of_a_six_by_six_grid() {
    // Four patches meet in the middle of a cell, so a small star there may cover less than a tenth of each.
    let (mut objects, mut seen) = (0, 0);
    for (seed, scene) in sample_scenes(Split::Validation, 4_000, 10).iter().enumerate() {
        let truth = patch_truth(scene, seed as u64, 6);
        objects += scene.objects().len();
        seen += truth.into_iter().flatten().collect::<HashSet<usize>>().len();
    }
    assert!(seen as f64 > 0.995 * objects as f64, "{seen} of {objects}");
}

#[test]
fn odd_patch_grids_and_noise_levels_do_no_harm() {
    let scene = &sample_scenes(Split::Train, 1, 0)[0];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    assert!(patch_truth(scene, 1, 0).is_empty());
    assert_eq!(patch_truth(scene, 1, 100).len(), 10_000);
    assert_eq!(raster(scene, 6, &mut rng, f64::NAN).len(), 36);
    assert!(raster(scene, 6, &mut rng, 7.0).iter().all(|word| concept_words().contains(word)));
}

#[test]
fn a_raster_without_noise_tells_only_the_truth_and_noise_changes_its_share() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut changed, mut background) = (0.0, 0.0);
    for scene in sample_scenes(Split::Train, 1_000, 13) {
        let truths: Vec<&str> = scene.objects().iter().flat_map(true_words).collect();
        let clean = raster(&scene, 6, &mut rng, 0.0);
        assert!(clean.iter().all(|word| *word == EMPTY || truths.contains(word)));
        // In a scene without objects in the top row, the patches of that row are background in any rendering.
        if scene.objects().iter().all(|o| o.place.row() > 0) {
            let noisy = raster(&scene, 6, &mut rng, RASTER_NOISE);
            changed += noisy[..6].iter().filter(|word| **word != EMPTY).count() as f64;
            background += 6.0;
        }
    }
    // At least 1,000 patches: three standard deviations are below 0.035.
    assert!(background > 1_000.0 && (changed / background - RASTER_NOISE).abs() < 0.035);
}
