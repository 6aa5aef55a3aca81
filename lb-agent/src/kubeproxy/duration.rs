//! Durations as Go writes them.

use std::time::Duration;

use super::{ConfigError, bad};

/// Reads a field; `0s` is zero.
pub(super) fn duration(field: &'static str, text: &str) -> Result<Duration, ConfigError> {
    match go_duration(text) {
        Some(found) => Ok(found),
        None => bad(field, text, "is not a duration, or negative", "write for example 30s, 100ms or 1h30m"),
    }
}

/// Reads `1h30m`, `1.5s`, `100ms`, `0`. `None` = it is none, or negative.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, behind) =
            rest.split_at_checked(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?)?;
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at_checked(end)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = next;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        let read = |text| go_duration(text).map(|d| d.as_millis());
        assert_eq!(
            [read("1h30m"), read("1.5s"), read("100ms"), read("0"), read("2m0s")],
            [Some(5_400_000), Some(1500), Some(100), Some(0), Some(120_000)]
        );
        assert_eq!([read(""), read("5"), read("-1s"), read("s"), read("1x"), read("1..5s")], [None; 6]);
    }
}
