//! Formats numbers for readers: with a typographic minus, grouped thousands, and only as many digits as are meaningful.

use basic_eval::statistics::Spread;

/// The text for a quantity that was not measured.
pub(crate) const MISSING: &str = "–";

/// A plus-minus sign between no-break spaces, so that no line breaks beside it.
pub(crate) const PLUS_MINUS: &str = "\u{a0}±\u{a0}";

/// `value` with `decimals` digits after the point; `NaN` or `inf` if it is not finite.
pub(crate) fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let digits = format!("{:.decimals$}", value.abs());
    if value < 0.0 && !is_zero(&digits) { format!("−{digits}") } else { digits }
}

/// Like [`fixed`], with a plus sign before positive values.
pub(crate) fn signed(value: f64, decimals: usize) -> String {
    let text = fixed(value, decimals);
    if value > 0.0 && value.is_finite() && !is_zero(&text) { format!("+{text}") } else { text }
}

/// `mean ± deviation` with `decimals` digits; only the mean if there is no deviation.
pub(crate) fn spread(spread: &Spread, decimals: usize) -> String {
    with_deviation(fixed(spread.mean, decimals), spread, |deviation| fixed(deviation, decimals))
}

/// Like [`spread`], with a plus sign before positive means.
pub(crate) fn signed_spread(spread: &Spread, decimals: usize) -> String {
    with_deviation(signed(spread.mean, decimals), spread, |deviation| fixed(deviation, decimals))
}

/// `mean ± deviation` with three significant digits of the mean, but at most three digits after the point:
/// `2.31 ± 0.05`, `0.142 ± 0.002`, and below 0.01 `2.3e-4 ± 1e-5`.
pub(crate) fn significant_spread(value: &Spread) -> String {
    let size = value.mean.abs();
    if size > 0.0 && size < 0.01 {
        // The deviation of equal values may be rounding noise such as 1e-20, which is written as 0.
        let written =
            |deviation: f64| if deviation < size * 1e-6 { "0".to_owned() } else { format!("{deviation:.0e}") };
        return with_deviation(format!("{:.1e}", value.mean), value, written);
    }
    let decimals = match size {
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ => 3,
    };
    spread(value, decimals)
}

/// `1,152` for 1152.
pub(crate) fn thousands(value: usize) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `8 min 12 s` for 492 seconds; `1 h 2 min` above an hour.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "n/a".to_owned();
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) if seconds < 10.0 => format!("{seconds:.1} s"),
        (0, 0, rest) => format!("{rest} s"),
        (0, minutes, rest) => format!("{minutes} min {rest} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A setting's value without trailing zeros: `0.05`, `1`.
pub(crate) fn knob(value: f64) -> String {
    format!("{value}")
}

fn with_deviation(mean: String, spread: &Spread, write: impl Fn(f64) -> String) -> String {
    match spread.deviation {
        Some(deviation) => format!("{mean}{PLUS_MINUS}{}", write(deviation)),
        None => mean,
    }
}

fn is_zero(digits: &str) -> bool {
    digits.chars().all(|digit| matches!(digit, '0' | '.'))
}
