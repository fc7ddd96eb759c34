//! The date in chat templates (`strftime_now` of transformers), such as SmolLM3's and Mistral Small's.
//!
//! transformers writes today's date. Here a prompt is the same tomorrow, so that a run that resumes goes on with the same
//! samples: the date is [`FIXED`], which Llama 3.2's template writes where there is no clock, unless the environment
//! variable `BASIC_DATE` says another.

use std::fmt::Write;

use chrono::{Local, NaiveDate, NaiveDateTime};
use minijinja::{Error, ErrorKind};

/// The environment variable with the date: `today`, or a date such as `2026-11-29`.
const VARIABLE: &str = "BASIC_DATE";
/// The date without it: 26 July 2024.
const FIXED: &str = "2024-07-26";
/// The most bytes of a format.
const MOST: usize = 256;

/// The date in a format of Python's `strftime`.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    written(format, std::env::var(VARIABLE).as_deref().unwrap_or(FIXED))
}

fn written(format: &str, asked: &str) -> Result<String, Error> {
    let wrong = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    let now =
        now(asked).ok_or_else(|| wrong(format!("{VARIABLE}={asked} is neither today nor a date like {FIXED}")))?;
    let mut text = String::new();
    let done = if format.len() <= MOST { write!(text, "{}", now.format(format)) } else { Err(std::fmt::Error) };
    done.map_err(|_| wrong(format!("strftime_now: {} is no format of a date", crate::outside::excerpt(format))))?;
    Ok(text)
}

fn now(asked: &str) -> Option<NaiveDateTime> {
    match asked {
        "today" => Some(Local::now().naive_local()),
        date => date.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::{FIXED, now, written};

    #[test]
    fn the_date_is_fixed_unless_it_is_asked_for() {
        let fixed = |format: &str| written(format, FIXED);
        assert_eq!(fixed("%d %B %Y").unwrap(), "26 July 2024");
        assert_eq!(fixed("%Y-%m-%d %H:%M, %A the %-d.").unwrap(), "2024-07-26 00:00, Friday the 26.");
        assert_eq!(written("%Y", "2026-11-29").unwrap(), "2026");
        assert!(written("%Y", "soon").unwrap_err().to_string().contains("BASIC_DATE=soon"));
        assert_eq!(now("2026-11-29").unwrap().to_string(), "2026-11-29 00:00:00");
        assert!(now("today").is_some());
        assert_eq!([now(""), now("yesterday"), now("2026-13-01")], [None; 3]);
        let refused = |format: &str| fixed(format).unwrap_err().to_string();
        assert!(refused("%Q").contains("%Q is no format"), "{}", refused("%Q"));
        assert!(refused(&"%Y".repeat(1000)).contains("no format"));
    }
}
