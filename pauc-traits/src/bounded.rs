//! Numbers with a restricted range, so that a bad value is rejected where it is written.

use serde::{Deserialize, Serialize};

macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $rule:literal, |$v:ident| $test:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// Builds the number from a literal in code.
            ///
            /// # Panics
            /// If the value is out of range; in a constant, that is a compile-time error.
            #[allow(clippy::manual_range_contains)] // the rule reads as it is printed
            pub const fn lit($v: f64) -> Self {
                assert!($test, $rule);
                $name($v)
            }

            /// Returns the value.
            pub const fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = String;
            #[allow(clippy::manual_range_contains)]
            fn try_from($v: f64) -> Result<Self, String> {
                if $test { Ok($name($v)) } else { Err(format!(concat!("must be ", $rule, ", got {}"), $v)) }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let number: f64 = text.parse().map_err(|_| format!(concat!("must be ", $rule, ", got `{}`"), text))?;
                number.try_into()
            }
        }

        impl From<$name> for f64 {
            fn from(v: $name) -> f64 {
                v.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

bounded!(
    /// A finite number greater than zero: temperatures, learning rates.
    Positive, "a finite number greater than 0", |v| v > 0.0 && v < f64::INFINITY
);
bounded!(
    /// A finite number of at least zero: weights of terms, weight decay.
    NonNegative, "a finite number of at least 0", |v| v >= 0.0 && v < f64::INFINITY
);
bounded!(
    /// A number between zero and one, both included: probabilities, momenta.
    UnitInterval, "between 0 and 1", |v| v >= 0.0 && v <= 1.0
);
bounded!(
    /// The probability of leaving something out.
    DropRate, "at least 0 and less than 1", |v| v >= 0.0 && v < 1.0
);
bounded!(
    /// A factor that is applied again and again without making anything larger.
    DecayFactor, "greater than 0 and at most 1", |v| v > 0.0 && v <= 1.0
);
bounded!(
    /// Any finite number.
    Finite, "a finite number", |v| v > f64::NEG_INFINITY && v < f64::INFINITY
);

/// A whole number of at least one: batch sizes, widths, cluster counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "usize", into = "usize")]
pub struct Count(usize);

impl Count {
    /// Builds the number from a literal in code.
    ///
    /// # Panics
    /// If the value is zero; in a constant, that is a compile-time error.
    pub const fn lit(v: usize) -> Self {
        assert!(v > 0, "a whole number of at least 1");
        Count(v)
    }

    /// Returns the value.
    pub const fn get(self) -> usize {
        self.0
    }
}

impl std::str::FromStr for Count {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let rule = || format!("must be a whole number of at least 1, got `{text}`");
        text.parse::<usize>().map_err(|_| rule())?.try_into()
    }
}

impl TryFrom<usize> for Count {
    type Error = String;
    fn try_from(v: usize) -> Result<Self, String> {
        if v > 0 { Ok(Count(v)) } else { Err("must be a whole number of at least 1, got 0".to_string()) }
    }
}

impl From<Count> for usize {
    fn from(v: Count) -> usize {
        v.0
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_refused_with_the_value() {
        assert_eq!(Positive::try_from(-0.2).unwrap_err(), "must be a finite number greater than 0, got -0.2");
        assert!(Positive::try_from(f64::NAN).is_err());
        assert!(Positive::try_from(f64::INFINITY).is_err());
        assert!(NonNegative::try_from(0.0).is_ok());
        assert!(NonNegative::try_from(-1e-9).is_err());
        assert!(UnitInterval::try_from(1.0).is_ok());
        assert!(UnitInterval::try_from(1.0 + 1e-9).is_err());
        assert!(DropRate::try_from(0.0).is_ok() && DropRate::try_from(1.0).is_err());
        assert!(DecayFactor::try_from(1.0).is_ok() && DecayFactor::try_from(0.0).is_err());
        assert!(Finite::try_from(f64::NAN).is_err());
        assert!(Count::try_from(0).is_err());
    }

    #[test]
    fn numbers_round_trip_through_ron() {
        let p: Positive = ron::from_str("0.2").unwrap();
        assert_eq!(ron::to_string(&p).unwrap(), "0.2");
        assert!(ron::from_str::<Count>("-3").is_err());
    }

    #[test]
    fn numbers_are_read_from_arguments() {
        assert_eq!("0.5".parse(), Positive::try_from(0.5));
        assert_eq!("x".parse::<Positive>().unwrap_err(), "must be a finite number greater than 0, got `x`");
        assert_eq!("12".parse(), Ok(Count::lit(12)));
        for wrong in ["0", "-1", "1.5", ""] {
            assert!(wrong.parse::<Count>().unwrap_err().contains("whole number of at least 1"), "{wrong}");
        }
    }
}
