//! RON for open sets: `InfoNce(temperature: 0.2)` where `InfoNce` is looked up in the registry.
//!
//! Errors raised here carry a code and, where one is known, a remedy. They travel through serde as text in the
//! form that [`Problem`] defines, and whoever renders them takes them apart again.

use crate::registry::{Entry, Kind, did_you_mean};
use crate::term::{PortableLoss, PortableRegularizer};
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, VariantAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::{fmt, marker::PhantomData, ops::Deref, sync::Arc};

/// RON as recipes are written: `Name(field: value)` for components, no `Some(…)` around optional values.
pub fn options() -> ron::Options {
    use ron::extensions::Extensions;
    ron::Options::default()
        .with_default_extension(Extensions::UNWRAP_VARIANT_NEWTYPES | Extensions::IMPLICIT_SOME)
}

/// A recipe error with its code, as it travels through serde.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The code that `explain` describes, such as `E0103`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The offending word, if it is one.
    pub word: Option<String>,
    /// A replacement for the offending word.
    pub suggestion: Option<String>,
    /// Further help, such as the list of what is allowed.
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
    /// The problem as a serde error.
    pub fn raise<E: de::Error>(self) -> E {
        let part = |p: Option<String>| p.unwrap_or_default();
        let s = SEPARATOR;
        let Problem { code, message, word, suggestion, help } = self;
        let optional = [word, suggestion, help].map(part).join(&s.to_string());
        E::custom(format!("{s}{code}{s}{message}{s}{optional}{s}"))
    }

    /// Takes a serde error's text apart, if a [`Problem`] raised it.
    pub fn parse(text: &str) -> Option<Problem> {
        let mut parts = text.split(SEPARATOR).skip(1);
        let code = parts.next()?;
        let code = code::ALL.iter().find(|c| **c == code)?;
        let message = parts.next()?.to_string();
        let mut optional = || parts.next().filter(|p| !p.is_empty()).map(str::to_string);
        Some(Problem { code, message, word: optional(), suggestion: optional(), help: optional() })
    }

    /// The problem behind an error of RON's own, if a name or a field is not one of those that are known.
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

    fn unknown(code: &'static str, what: &str, name: &str, owner: &str, known: &[&str]) -> Problem {
        Problem {
            code,
            message: format!("{what} `{name}`{owner}"),
            word: Some(name.into()),
            suggestion: did_you_mean(name, known.iter().copied()).map(str::to_string),
            help: Some(if known.is_empty() {
                "there are none".into()
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

/// An identifier that has to be one of a set: a field or a component.
pub struct OneOf<'a> {
    /// What it is, for the error of a value that is no identifier at all.
    pub expecting: &'a str,
    /// Builds the error for a name that `known` does not hold.
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

/// A set of components that one name is looked up in: the entries of a kind, or those of both kinds of terms.
pub trait OpenSet: Sized + 'static {
    /// What users call a member.
    const NAME: &'static str;
    /// All names, sorted.
    fn names() -> Vec<&'static str>;
    /// Reads the fields of the component called `name`, which is one of [`OpenSet::names`].
    ///
    /// # Errors
    /// If a field is unknown, missing, given twice, or has a value that it cannot have.
    fn build<'de, D: Deserializer<'de>>(name: &str, fields: D) -> Result<Self, D::Error>;
}

/// Deserializes a member of an [`OpenSet`] from `Name(field: value, …)`.
///
/// # Errors
/// If the name is unknown, or as [`OpenSet::build`].
pub fn deserialize<'de, S: OpenSet, D: Deserializer<'de>>(d: D) -> Result<S, D::Error> {
    struct Member<S>(PhantomData<S>);
    impl<'de, S: OpenSet> Visitor<'de> for Member<S> {
        type Value = S;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a {} such as {}(…)", S::NAME, S::names().first().unwrap_or(&"Name"))
        }
        fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<S, A::Error> {
            let names = S::names();
            let unknown = |name: &str| {
                (!names.contains(&name)).then(|| {
                    Problem::unknown(code::UNKNOWN_NAME, &format!("unknown {}", S::NAME), name, "", &names)
                })
            };
            let (name, fields) = access.variant_seed(OneOf { expecting: S::NAME, unknown: &unknown })?;
            fields.newtype_variant_seed(Fields::<S>(&name, PhantomData))
        }
    }
    struct Fields<'a, S>(&'a str, PhantomData<S>);
    impl<'de, S: OpenSet> DeserializeSeed<'de> for Fields<'_, S> {
        type Value = S;
        fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<S, D::Error> {
            S::build(self.0, d)
        }
    }
    d.deserialize_enum(S::NAME, &[], Member::<S>(PhantomData))
}

/// A component as a recipe holds it: the registered entry and the value built from the recipe's fields.
pub struct Configured<T: Kind + ?Sized> {
    /// The registry's entry.
    pub entry: &'static Entry<T>,
    /// The component.
    pub value: Arc<T>,
}

impl<T: Kind + ?Sized> Configured<T> {
    /// Reads a component from text, such as `KMeans(k: [100])`.
    ///
    /// # Errors
    /// If the text names no component of the kind, or a field is unknown, missing or wrong; with its place in the text.
    pub fn parse(text: &str) -> Result<Self, ron::error::SpannedError> {
        options().from_str(text)
    }

    /// The name the recipe uses.
    pub fn name(&self) -> &'static str {
        self.entry.name
    }
}

impl<T: Kind + ?Sized> Clone for Configured<T> {
    fn clone(&self) -> Self {
        Configured { entry: self.entry, value: self.value.clone() }
    }
}

impl<T: Kind + ?Sized> fmt::Debug for Configured<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: Kind + ?Sized> Deref for Configured<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Kind + ?Sized> OpenSet for Configured<T> {
    const NAME: &'static str = T::NAME;
    fn names() -> Vec<&'static str> {
        T::entries().iter().map(|e| e.name).collect()
    }
    fn build<'de, D: Deserializer<'de>>(name: &str, fields: D) -> Result<Self, D::Error> {
        let entry = T::entries().into_iter().find(|e| e.name == name);
        let entry = entry.ok_or_else(|| de::Error::custom(format!("`{name}` left the registry")))?;
        let value =
            (entry.build)(&mut <dyn erased_serde::Deserializer>::erase(fields)).map_err(de::Error::custom)?;
        Ok(Configured { entry, value: value.into() })
    }
}

impl<'de, T: Kind + ?Sized> Deserialize<'de> for Configured<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        deserialize(d)
    }
}

impl<T: Kind + ?Sized> Serialize for Configured<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_newtype_variant("Component", 0, self.entry.name, &Erased(&*self.value))
    }
}

struct Erased<'a, T: Kind + ?Sized>(&'a T);
impl<T: Kind + ?Sized> Serialize for Erased<'_, T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        erased_serde::serialize(self.0, s)
    }
}

/// A term of an objective: a contrastive loss or a regularizer, looked up in one namespace.
#[derive(Clone, Debug)]
pub enum Term {
    /// A contrastive loss.
    Loss(Configured<dyn PortableLoss>),
    /// A regularizer.
    Regularizer(Configured<dyn PortableRegularizer>),
}

impl Term {
    /// Reads a term from text, such as `InfoNce(temperature: 0.2)`.
    ///
    /// # Errors
    /// If the text names no term, or a field is unknown, missing or wrong; with its place in the text.
    pub fn parse(text: &str) -> Result<Self, ron::error::SpannedError> {
        options().from_str(text)
    }

    /// The name the recipe uses.
    pub fn name(&self) -> &'static str {
        match self {
            Term::Loss(l) => l.name(),
            Term::Regularizer(r) => r.name(),
        }
    }
}

impl OpenSet for Term {
    const NAME: &'static str = "term";
    fn names() -> Vec<&'static str> {
        let mut names = Configured::<dyn PortableLoss>::names();
        names.extend(Configured::<dyn PortableRegularizer>::names());
        names.sort_unstable();
        names
    }
    fn build<'de, D: Deserializer<'de>>(name: &str, fields: D) -> Result<Self, D::Error> {
        if Configured::<dyn PortableLoss>::names().contains(&name) {
            Configured::build(name, fields).map(Term::Loss)
        } else {
            Configured::build(name, fields).map(Term::Regularizer)
        }
    }
}

impl<'de> Deserialize<'de> for Term {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        deserialize(d)
    }
}

impl Serialize for Term {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Term::Loss(l) => l.serialize(s),
            Term::Regularizer(r) => r.serialize(s),
        }
    }
}

/// A value's own text, for values whose type depends on how they are written (a number or a schedule).
#[derive(Debug)]
pub struct Spanned(Box<ron::value::RawValue>);

impl<'de> Deserialize<'de> for Spanned {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Box::<ron::value::RawValue>::deserialize(d).map(Spanned)
    }
}

impl Spanned {
    /// Whether the value is `Name` or `Name(…)` rather than a number.
    pub fn starts_with_identifier(&self) -> bool {
        self.0.get_ron().trim_start().starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    }

    /// The text as it stands, without the space around it.
    pub fn text(&self) -> &str {
        self.0.get_ron().trim()
    }

    /// Whether the value begins with this name.
    pub fn starts_with(&self, name: &str) -> bool {
        let rest = self.0.get_ron().trim_start().strip_prefix(name);
        rest.is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    }

    /// Parses the text; the error keeps its cause, its position becomes the whole value's.
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
