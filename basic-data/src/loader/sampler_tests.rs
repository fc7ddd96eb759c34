//! Which samples a step takes.

use super::Sampler;
use crate::{DataError, DrawOrder, Hint, Sample, Samples};

/// Samples that are known by their hints alone; every third one has an image.
#[derive(Debug)]
struct Hints(usize);

fn hint(index: usize) -> Hint {
    Hint { images: usize::from(index.is_multiple_of(3)), characters: (index * 389) % 1009 }
}

fn length(index: usize, visual: usize) -> usize {
    hint(index).images * visual + hint(index).characters / 4
}

impl Samples for Hints {
    fn len(&self) -> usize {
        self.0
    }

    fn sample(&self, _: usize) -> Result<Sample, DataError> {
        Err(DataError::Empty("hints".into()))
    }

    fn hint(&self, index: usize) -> Result<Hint, DataError> {
        Ok(hint(index))
    }
}

fn epoch(sampler: &mut Sampler, epoch: usize) -> Vec<Vec<usize>> {
    let steps = sampler.steps(1.0);
    (epoch * steps..(epoch + 1) * steps).map(|step| sampler.batch(step)).collect()
}

#[test]
fn grouped_batches_have_images_in_all_samples_or_in_none_and_the_longest_first() {
    let mut sampler = Sampler::new(DrawOrder::Grouped, &Hints(100), 8, 7, 16);
    // 34 with an image and 66 without: 5 + 9 batches.
    assert_eq!((sampler.steps(1.0), sampler.steps(0.5), sampler.steps(2.0)), (14, 7, 28));
    for number in 0..3 {
        let batches = epoch(&mut sampler, number);
        let mut drawn = batches.concat();
        drawn.sort_unstable();
        assert_eq!(drawn, (0..100).collect::<Vec<_>>(), "every sample once an epoch");
        for batch in &batches {
            assert!(batch.iter().all(|index| hint(*index).images == hint(batch[0]).images), "{batch:?}");
            assert!(batch.windows(2).all(|pair| length(pair[0], 16) >= length(pair[1], 16)), "{batch:?}");
        }
        let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [vec![8; 12], vec![2, 2]].concat());
        let longest = batches[..12].iter().flatten().map(|index| length(*index, 16)).max().unwrap();
        assert_eq!(length(batches[0][0], 16), longest, "what does not fit into memory shows at the first step");
        // Images and texts are mixed among each other.
        let kinds: Vec<usize> = batches[..12].iter().map(|batch| hint(batch[0]).images).collect();
        assert!(kinds.windows(2).filter(|pair| pair[0] != pair[1]).count() > 2, "{kinds:?}");
    }
    assert_ne!(epoch(&mut sampler, 0), epoch(&mut sampler, 1));
}

#[test]
fn a_step_is_the_same_whatever_was_drawn_before_and_another_with_another_seed() {
    for order in [DrawOrder::Shuffle, DrawOrder::Grouped, DrawOrder::Sequential] {
        let mut whole = Sampler::new(order, &Hints(50), 6, 3, 16);
        let steps: Vec<Vec<usize>> = (0..40).map(|step| whole.batch(step)).collect();
        for step in [39, 0, 17, 16, 8] {
            assert_eq!(Sampler::new(order, &Hints(50), 6, 3, 16).batch(step), steps[step], "{order:?}");
            assert_eq!(whole.batch(step), steps[step], "{order:?}, going back");
        }
        let other: Vec<Vec<usize>> = {
            let mut other = Sampler::new(order, &Hints(50), 6, 4, 16);
            (0..40).map(|step| other.batch(step)).collect()
        };
        assert_eq!(other == steps, order == DrawOrder::Sequential);
    }
}

#[test]
fn sequential_is_the_order_of_the_data_over_and_over() {
    let mut sampler = Sampler::new(DrawOrder::Sequential, &Hints(5), 2, 9, 16);
    let drawn: Vec<usize> = (0..5).flat_map(|step| sampler.batch(step)).collect();
    assert_eq!(drawn, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    assert_eq!((sampler.steps(1.0), sampler.steps(1.2), sampler.epochs(5)), (3, 3, 2.0));
}

#[test]
fn data_of_one_kind_and_data_smaller_than_a_batch_are_grouped_too() {
    let mut one = Sampler::new(DrawOrder::Grouped, &Hints(1), 4, 0, 16);
    assert_eq!((one.steps(1.0), one.batch(0), one.batch(5)), (1, vec![0], vec![0]));
    let mut three = Sampler::new(DrawOrder::Grouped, &Hints(3), 4, 0, 16);
    assert_eq!((three.steps(1.0), three.batch(0), three.batch(1).len()), (2, vec![0], 2));
}
