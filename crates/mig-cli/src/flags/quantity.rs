//! Sizes, rates and durations as users type them.
//!
//! MB is 10⁶, MiB is 2²⁰, bare numbers are bytes or bytes a second; bare durations are milliseconds. A bare `M` is
//! refused: half of the world means the one, half the other.

use std::{fmt, str::FromStr, time};

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(pub(crate) u64);

/// A time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Duration(pub(crate) time::Duration);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        bytes(text, "").map(Self)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let amount = text.strip_suffix("/s").unwrap_or(text);
        bytes(amount, "/s").map(Self)
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(milliseconds) = text.parse() {
            return Ok(Self(time::Duration::from_millis(milliseconds)));
        }
        humantime::parse_duration(text).map(Self).map_err(|error| {
            format!("{error}; write 10s, 300ms or 1h 30m, bare numbers are milliseconds")
        })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

fn bytes(text: &str, per: &str) -> Result<u64, String> {
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..unit_at], text[unit_at..].trim());
    let factor = factor(unit).map_err(|reason| match reason {
        Reason::Ambiguous(letter) => format!(
            "\"{unit}\" may mean two things: write {letter}B{per} for powers of 1000 or {letter}iB{per} for powers of 1024"
        ),
        Reason::Unknown => format!(
            "unknown unit \"{unit}\": write for example 64KiB{per}, 200MiB{per}, 1GB{per}, or bytes without a unit"
        ),
    })?;
    scaled(number, factor).ok_or_else(|| {
        format!("\"{text}\" is no amount below 2^64: write a number and a unit, like 1.5GiB{per}")
    })
}

enum Reason {
    Ambiguous(String),
    Unknown,
}

fn factor(unit: &str) -> Result<u64, Reason> {
    let lower = unit.to_ascii_lowercase();
    let power = |letter: char| "kmgt".find(letter).map(|at| u32::try_from(at + 1).expect("0 to 3"));
    let mut letters = lower.chars();
    match (letters.next(), letters.as_str()) {
        (None, _) => Ok(1),
        (Some('b'), "") => Ok(1),
        (Some(letter), rest) => match (power(letter), rest) {
            (Some(power), "b") => Ok(1000_u64.pow(power)),
            (Some(power), "ib") => Ok(1024_u64.pow(power)),
            (Some(_), "" | "i") => Err(Reason::Ambiguous(unit[..1].to_ascii_uppercase())),
            _ => Err(Reason::Unknown),
        },
    }
}

/// `number` times `factor`, with fractions, exactly.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let mut total = u128::from(whole) * u128::from(factor);
    if !fraction.is_empty() {
        let digits: u64 = fraction.parse().ok()?;
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        total += u128::from(digits) * u128::from(factor) / scale;
    }
    u64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_what_they_say() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("1KiB", 1 << 10),
            ("1kB", 1000),
            ("64 MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("1.5GB", 1_500_000_000),
            ("2TiB", 2 << 40),
            ("7b", 7),
        ] {
            assert_eq!(text.parse(), Ok(Size(expected)), "{text}");
        }
        assert_eq!("200MiB/s".parse(), Ok(Rate(200 << 20)));
        assert_eq!("1000".parse(), Ok(Rate(1000)));
    }

    #[test]
    fn ambiguity_and_nonsense_are_refused_with_the_right_form() {
        let error = "1G".parse::<Size>().unwrap_err();
        assert!(error.contains("GB") && error.contains("GiB"), "{error}");
        for text in ["", "MiB", "1.2.3MiB", "-1", "1XB", "99999999999999999999", "17179869184GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert!("3 parsecs".parse::<Duration>().unwrap_err().contains("milliseconds"));
    }

    #[test]
    fn bare_durations_are_milliseconds() {
        assert_eq!("300".parse(), Ok(Duration(time::Duration::from_millis(300))));
        assert_eq!("2s".parse(), Ok(Duration(time::Duration::from_secs(2))));
    }
}
