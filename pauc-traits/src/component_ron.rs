//! Reads RON with an open set of names: in `InfoNce(temperature: 0.2)`, `InfoNce` is looked up in the
//! registry.

use crate::registry::{Entry, Kind};
pub use crate::ron_text::{OneOf, Problem, Spanned, code, options};
use crate::term::{PortableLoss, PortableRegularizer};
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, VariantAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use std::{fmt, marker::PhantomData, ops::Deref, sync::Arc};

/// Returns whether two values have the same text in a recipe.
pub fn are_written_alike<T: Serialize>(a: &T, b: &T) -> bool {
    let text = |value| options().to_string(value).ok();
    text(a).is_some_and(|a| text(b) == Some(a))
}

/// A set of components in which a name is looked up: the entries of a kind, or those of both kinds of terms.
pub trait OpenSet: Sized + 'static {
    /// The word that users see for a member.
    const NAME: &'static str;
    /// All names, sorted.
    fn names() -> Vec<&'static str>;
    /// Reads the fields of the component called `name`, which is one of [`OpenSet::names`].
    ///
    /// # Errors
    /// If a field is unknown, missing, given twice, or has an invalid value.
    fn build<'de, D: Deserializer<'de>>(name: &str, fields: D) -> Result<Self, D::Error>;
}

/// Deserializes a member of an [`OpenSet`] from `Name(field: value, …)`.
///
/// # Errors
/// If the name is unknown, or the errors of [`OpenSet::build`].
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

/// A component in a recipe: its registry entry, and the value built from the recipe's fields.
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
    /// If the text does not name a component of the kind, or a field is unknown, missing or wrong; with the
    /// position in the text.
    pub fn parse(text: &str) -> Result<Self, ron::error::SpannedError> {
        options().from_str(text)
    }

    /// Returns the name used in recipes.
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
        let entry = entry.ok_or_else(|| de::Error::custom(format!("`{name}` is not registered")))?;
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
    /// If the text does not name a term, or a field is unknown, missing or wrong; with the position in the
    /// text.
    pub fn parse(text: &str) -> Result<Self, ron::error::SpannedError> {
        options().from_str(text)
    }

    /// Returns the name used in recipes.
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
