//! Smooths and thins long series of steps for plots.

/// A curve is thinned to about this many points. A plot is not wide enough to show more.
pub(crate) const MOST_POINTS: usize = 300;

/// The window of a running mean is the length of the curve divided by this number.
pub(crate) const SMOOTHING: usize = 32;

/// How many points to each side the running mean of a curve with `points` points covers.
pub(crate) fn half(points: usize) -> usize {
    points / SMOOTHING / 2
}

/// Centred running means over `2 * half + 1` points, or fewer near the ends, thinned to about [`MOST_POINTS`]. The
/// first and the last point are kept.
pub(crate) fn running_mean(points: &[(f64, f64)], half: usize) -> Vec<(f64, f64)> {
    let last = points.len().saturating_sub(1);
    let stride = points.len().div_ceil(MOST_POINTS).max(1);
    (0..points.len())
        .filter(|index| index % stride == 0 || *index == last)
        .map(|index| {
            let window = &points[index.saturating_sub(half)..=(index + half).min(last)];
            (points[index].0, window.iter().map(|(_, value)| value).sum::<f64>() / window.len() as f64)
        })
        .collect()
}

/// The points unchanged or, if there are more than [`MOST_POINTS`], the lowest and the highest of each group of
/// neighbours, so that no spike is lost.
pub(crate) fn extremes(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let size = points.len().div_ceil(MOST_POINTS / 2);
    let bucket = |bucket: &[(f64, f64)]| {
        let place = |better: fn(f64, f64) -> bool| {
            (1..bucket.len()).fold(0, |best, i| if better(bucket[i].1, bucket[best].1) { i } else { best })
        };
        let (low, high) = (place(|a, b| a < b), place(|a, b| a > b));
        let mut both = vec![low.min(high), low.max(high)];
        both.dedup();
        both.into_iter().map(|i| bucket[i]).collect::<Vec<_>>()
    };
    points.chunks(size).flat_map(bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_stays_and_the_points_are_few() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        points[54_321].1 = 1000.0;
        points[54_322].1 = -1000.0;
        let kept = extremes(&points);
        assert!(kept.len() <= MOST_POINTS, "{}", kept.len());
        assert!(kept.contains(&(54_321.0, 1000.0)) && kept.contains(&(54_322.0, -1000.0)));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0), "in the steps' order");
        assert_eq!(extremes(&points[..10]), points[..10]);
    }

    #[test]
    fn a_running_mean_is_flat_to_the_ends() {
        let points: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i + 1), f64::from(i % 2))).collect();
        let mean = running_mean(&points, 50);
        assert!(mean.len() <= MOST_POINTS + 1);
        assert_eq!((mean[0].0, mean.last().unwrap().0), (1.0, 5000.0));
        assert!(mean.iter().all(|(_, value)| (value - 0.5).abs() < 0.02), "of one side alone at the ends");
        assert_eq!(running_mean(&points[..3], 0), points[..3]);
        assert_eq!(running_mean(&[], 3), []);
    }
}
