//! The text of recipes: RON options, errors with codes, and values whose type depends on their form.
//!
//! Errors raised here carry a code and, if one is known, a remedy. They pass through serde as text in the format
//! of [`Problem`], which parses them again for display.

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, Visitor};
use std::fmt;

/// Returns RON options for recipes: `Name(field: value)` for components, no `Some(…)` around optional values.
pub fn options() -> ron::Options {
    use ron::extensions::Extensions;
    ron::Options::default()
        .with_default_extension(Extensions::UNWRAP_VARIANT_NEWTYPES | Extensions::IMPLICIT_SOME)
}

/// A recipe error with its code, in a form that passes through serde.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The code that `explain` describes, such as `E0103`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The offending word, if the error is about one.
    pub word: Option<String>,
    /// A replacement for the offending word.
    pub suggestion: Option<String>,
    /// Further help, such as a list of the allowed names.
    pub help: Option<String>,
}

const SEPARATOR: char = '\u{1f}';

/// The codes that this module raises.
pub mod code {
    /// No component has this name.
    pub const UNKNOWN_NAME: &str = "E0102";
    /// A component has no field of this name.
    pub const UNKNOWN_FIELD: &str = "E0103";
    /// A required field is missing.
    pub const MISSING_FIELD: &str = "E0104";
    /// A field is given twice.
    pub const DUPLICATE_FIELD: &str = "E0105";
    /// All of the above.
    pub const ALL: &[&str] = &[UNKNOWN_NAME, UNKNOWN_FIELD, MISSING_FIELD, DUPLICATE_FIELD];
}

impl Problem {
    /// Encodes the problem as a serde error.
    pub fn raise<E: de::Error>(self) -> E {
        let part = |p: Option<String>| p.unwrap_or_default();
        let s = SEPARATOR;
        let Problem { code, message, word, suggestion, help } = self;
        let optional = [word, suggestion, help].map(part).join(&s.to_string());
        E::custom(format!("{s}{code}{s}{message}{s}{optional}{s}"))
    }

    /// Decodes the text of a serde error, if a [`Problem`] raised it.
    pub fn parse(text: &str) -> Option<Problem> {
        let mut parts = text.split(SEPARATOR).skip(1);
        let code = parts.next()?;
        let code = code::ALL.iter().find(|c| **c == code)?;
        let message = parts.next()?.to_string();
        let mut optional = || parts.next().filter(|p| !p.is_empty()).map(str::to_string);
        Some(Problem { code, message, word: optional(), suggestion: optional(), help: optional() })
    }

    /// Converts RON's own error for an unknown name or field.
    pub fn of_ron(error: &ron::Error) -> Option<Problem> {
        match error {
            ron::Error::NoSuchEnumVariant { expected, found, .. } => {
                Some(Self::unknown(code::UNKNOWN_NAME, "unknown name", found, "", expected))
            }
            ron::Error::NoSuchStructField { expected, found, .. } => {
                Some(Self::unknown(code::UNKNOWN_FIELD, "unknown field", found, "", expected))
            }
            _ => None,
        }
    }

    pub(crate) fn unknown(
        code: &'static str,
        what: &str,
        name: &str,
        owner: &str,
        known: &[&str],
    ) -> Problem {
        Problem {
            code,
            message: format!("{what} `{name}`{owner}"),
            word: Some(name.into()),
            suggestion: did_you_mean(name, known.iter().copied()).map(str::to_string),
            help: Some(if known.is_empty() {
                "known: none".into()
            } else {
                format!("known: {}", known.join(", "))
            }),
        }
    }

    /// An unknown field of `owner`.
    pub fn unknown_field(name: &str, owner: &str, known: &[&str]) -> Problem {
        Self::unknown(code::UNKNOWN_FIELD, "unknown field", name, &format!(" of `{owner}`"), known)
    }

    /// A missing field of `owner`.
    pub fn missing_field(name: &str, owner: &str) -> Problem {
        Problem {
            code: code::MISSING_FIELD,
            message: format!("`{owner}` needs the field `{name}`, which has no default"),
            word: None,
            suggestion: None,
            help: Some(format!("write `{owner}({name}: …)`")),
        }
    }

    /// A field of `owner` given twice.
    pub fn duplicate_field(name: &str, owner: &str) -> Problem {
        Problem {
            code: code::DUPLICATE_FIELD,
            message: format!("field `{name}` of `{owner}` is given twice"),
            word: Some(name.into()),
            suggestion: None,
            help: Some("remove one of them".into()),
        }
    }
}

/// An identifier that must be one of a set: a field or a component.
pub struct OneOf<'a> {
    /// A description, for the error of a value that is not an identifier.
    pub expecting: &'a str,
    /// Returns the error for an unknown name, or `None`.
    pub unknown: &'a dyn Fn(&str) -> Option<Problem>,
}

impl<'de> DeserializeSeed<'de> for OneOf<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_identifier(self)
    }
}

impl<'de> Visitor<'de> for OneOf<'_> {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.expecting)
    }
    fn visit_str<E: de::Error>(self, name: &str) -> Result<String, E> {
        match (self.unknown)(name) {
            Some(problem) => Err(problem.raise()),
            None => Ok(name.to_string()),
        }
    }
}

/// The source text of a value, for values whose type depends on their form (a number or a schedule).
#[derive(Debug)]
pub struct Spanned(Box<ron::value::RawValue>);

impl<'de> Deserialize<'de> for Spanned {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Box::<ron::value::RawValue>::deserialize(d).map(Spanned)
    }
}

impl Spanned {
    /// Returns whether the value is `Name` or `Name(…)` rather than a number.
    pub fn starts_with_identifier(&self) -> bool {
        self.0.get_ron().trim_start().starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    }

    /// Returns the text without surrounding whitespace.
    pub fn text(&self) -> &str {
        self.0.get_ron().trim()
    }

    /// Returns whether the value begins with this name.
    pub fn starts_with(&self, name: &str) -> bool {
        let rest = self.0.get_ron().trim_start().strip_prefix(name);
        rest.is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    }

    /// Parses the text. An error keeps its cause, and its position is that of the whole value.
    ///
    /// # Errors
    /// If the text is not a `T`.
    pub fn parse<T, E: de::Error>(&self) -> Result<T, E>
    where
        T: for<'a> Deserialize<'a>,
    {
        let raise = |e: ron::error::SpannedError| match Problem::of_ron(&e.code) {
            Some(problem) => problem.raise(),
            None => E::custom(e.code),
        };
        options().from_str(self.0.get_ron()).map_err(raise)
    }
}

/// Returns the name among `known` that a misspelled `name` probably means.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&lower, &k.to_lowercase()), k))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["temperature", "negatives", "two_sided"];
        assert_eq!(did_you_mean("temperture", known), Some("temperature"));
        assert_eq!(did_you_mean("Negative", known), Some("negatives"));
        assert_eq!(did_you_mean("momentum", known), None);
    }
}
