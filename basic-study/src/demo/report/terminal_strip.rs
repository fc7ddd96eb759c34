//! The conclusion's picture for the terminal: a row for every seed and one for the mean.

use crate::demo::summary::{Conclusion, PairedSeed};
use crate::pages::numbers;

/// Characters of the scale on each side of zero.
const SIDE: usize = 24;

/// The rows, below a line that names the columns.
pub(super) fn lines(conclusion: &Conclusion) -> Vec<String> {
    let interval = conclusion.difference.interval.filter(|ends| ends.iter().all(|end| end.is_finite()));
    let points = conclusion.seeds.iter().map(PairedSeed::difference).chain(interval.into_iter().flatten());
    let reach =
        points.filter(|points| points.is_finite()).fold(1.0, |reach: f64, points| reach.max(points.abs())).ceil();
    let place = |points: f64| (SIDE as f64 + (points / reach * SIDE as f64).round()) as usize;
    let row = |name: &str, numbers: [f64; 3], marks: &[(usize, char)], bar: Option<[usize; 2]>| {
        let mut scale = vec![' '; 2 * SIDE + 1];
        scale[SIDE] = '|';
        if let Some([low, high]) = bar {
            scale[low..=high].fill('-');
        }
        marks.iter().for_each(|(at, mark)| scale[*at] = *mark);
        let [llava, basic, difference] = numbers;
        format!(
            "{name:>6}{:>8}{:>8}{:>13}   {}",
            numbers::fixed(llava, 1),
            numbers::fixed(basic, 1),
            numbers::signed(difference, 1),
            scale.into_iter().collect::<String>().trim_end()
        )
    };
    let ends = format!("−{reach:<0$.0}0{reach:>+1$.0}", SIDE - 1, SIDE);
    let mut lines = vec![format!("{:>6}{:>8}{:>8}{:>13}   {ends}", "seed", "LLaVA", "BASIC", "difference")];
    for seed in &conclusion.seeds {
        let difference = seed.difference();
        let mark = difference.is_finite().then(|| (place(difference), 'o'));
        lines.push(row(&seed.seed.to_string(), [seed.llava, seed.basic, difference], mark.as_slice(), None));
    }
    let mean = conclusion.difference.mean;
    let bar = interval.map(|ends| ends.map(place));
    let mut marks: Vec<(usize, char)> = bar.into_iter().flat_map(|[low, high]| [(low, '['), (high, ']')]).collect();
    marks.extend(mean.is_finite().then(|| (place(mean), 'O')));
    lines.push(row("mean", [conclusion.llava.mean, conclusion.basic.mean, mean], &marks, bar));
    lines
}
