//! A recipe for a dataset: from what a survey found, and how fast the machine is.
//!
//! [`rules`] decides; it reads and measures nothing itself. [`machine`] measures the candidates that it names, [`data`]
//! surveys a dataset, and [`text`] writes the recipe with the reasons as comments. [`defaults`] uses the same rules for what
//! any recipe leaves out.

pub mod data;
pub mod defaults;
pub mod machine;
pub mod negatives;
pub mod rules;
pub mod text;

pub use data::Data;
pub use machine::{Machine, Speed};
pub use rules::{Choices, choose};

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What the encoder is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// Embeddings in which similar images are near.
    #[default]
    Embeddings,
    /// Clusters of similar images.
    Clusters,
}

/// The time that a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(Duration);

/// The longest budget, in seconds: a year.
const LONGEST: f64 = 365.0 * 86_400.0;

impl Budget {
    /// Returns the budget in seconds.
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

/// Why a text is not a budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a time such as 10min, 1h, 1h30min or 2d, of at least one second and at most a year")]
pub struct NoBudget;

impl FromStr for Budget {
    type Err = NoBudget;

    fn from_str(text: &str) -> Result<Self, NoBudget> {
        let mut rest = text.trim();
        let mut seconds = 0.0;
        if rest.is_empty() {
            return Err(NoBudget);
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or(NoBudget)?;
            let number: f64 = rest[..end].parse().map_err(|_| NoBudget)?;
            rest = rest[end..].trim_start();
            let end = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
            let unit = match &rest[..end] {
                "s" | "sec" => 1.0,
                "min" | "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return Err(NoBudget),
            };
            seconds += number * unit;
            rest = rest[end..].trim_start();
        }
        let fits = (1.0..=LONGEST).contains(&seconds);
        if fits { Ok(Budget(Duration::from_secs_f64(seconds))) } else { Err(NoBudget) }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&time(self.seconds()))
    }
}

/// Formats a time in seconds, such as `8 s`, `10 min` or `1.5 h`.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 90.0 => (s, "s"),
        s if s < 5400.0 => (s / 60.0, "min"),
        s if s < 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "days"),
    };
    let value = if value < 10.0 { (value * 10.0).round() / 10.0 } else { value.round() };
    format!("{value} {unit}")
}

/// Formats a count with no-break spaces between groups of three digits, such as `1 281 167`.
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push('\u{a0}');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_and_written() {
        for (text, seconds, written) in [
            ("10min", 600.0, "10 min"),
            ("1h", 3600.0, "60 min"),
            ("8h", 28_800.0, "8 h"),
            ("90s", 90.0, "1.5 min"),
            ("1h30min", 5400.0, "1.5 h"),
            ("1 h 30 min", 5400.0, "1.5 h"),
            ("0.5d", 43_200.0, "12 h"),
            ("7d", 604_800.0, "7 days"),
        ] {
            let budget: Budget = text.parse().unwrap();
            assert_eq!((budget.seconds(), budget.to_string()), (seconds, written.into()), "{text}");
        }
        for wrong in ["", "10", "h", "10 minutes", "-1h", "0s", "1e3h", "400d", "1.2.3h", "10min!"] {
            assert_eq!(wrong.parse::<Budget>(), Err(NoBudget), "{wrong}");
        }
    }

    #[test]
    fn counts_have_groups_of_three_digits() {
        let written = [0, 999, 5000, 60_000, 1_281_167].map(|n| count(n).replace('\u{a0}', " "));
        assert_eq!(written, ["0", "999", "5000", "60 000", "1 281 167"]);
    }
}
