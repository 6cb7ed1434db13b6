//! Looks up components by name.
//!
//! Every [`component!`](crate::component!) submits one [`Entry`] at link time. This module collects them,
//! sorted by name. The linker's order of entries differs between builds and must not be visible. A plugin
//! crate that the binary never names is not linked, so binaries name theirs (`use pauc as _;`) and call
//! [`assert_linked`] once.

pub use crate::kinds::{KINDS, catalog, kind, plural};
pub use crate::ron_text::did_you_mean;
use std::fmt::Debug;

/// One field of a component, for help texts.
#[derive(Debug)]
pub struct Field {
    /// Its name in a recipe.
    pub name: &'static str,
    /// Its Rust type as written.
    pub ty: &'static str,
    /// Its documentation.
    pub doc: &'static str,
    /// The default in recipe syntax; `None` for a required field.
    pub default: Option<fn() -> String>,
}

impl Field {
    /// Returns its type without module paths, such as `Option<Count>`.
    pub fn type_name(&self) -> String {
        let mut out = String::new();
        // The text between two characters that cannot be part of a path, and the character after it.
        for part in self.ty.replace(' ', "").split_inclusive(['<', '>', ',', '(', ')', '[', ']', ';']) {
            let name = part.rsplit("::").next().unwrap_or(part);
            out.push_str(name);
            if name.ends_with([',', ';']) {
                out.push(' ');
            }
        }
        out
    }
}

/// One registered component.
#[derive(Debug)]
pub struct Entry<T: ?Sized + 'static> {
    /// The name used in recipes.
    pub name: &'static str,
    /// The complete documentation; the first line is the summary.
    pub doc: &'static str,
    /// The fields in declaration order.
    pub fields: &'static [Field],
    /// The crate that registered it.
    pub origin: &'static str,
    /// Reads the component's fields and builds it.
    pub build: BuildFn<T>,
}

/// The function with which an entry builds its component from the fields of a recipe.
pub type BuildFn<T> =
    for<'de> fn(&mut dyn erased_serde::Deserializer<'de>) -> Result<Box<T>, erased_serde::Error>;

impl<T: ?Sized> Entry<T> {
    /// Returns the first line of the documentation.
    pub fn summary(&self) -> &'static str {
        self.doc.trim().lines().next().unwrap_or("")
    }
}

/// Abilities of every component in addition to its job: it can be printed, and written back into a recipe.
pub trait Component: Debug + erased_serde::Serialize + Send + Sync + 'static {}
impl<T: Debug + erased_serde::Serialize + Send + Sync + 'static> Component for T {}

/// A kind of component: a trait object with its own registry.
pub trait Kind: Component {
    /// The name that users see, in lower case: "clusterer".
    const NAME: &'static str;
    /// The plural of the name: "clusterers".
    const PLURAL: &'static str;
    /// Returns all entries, sorted by name.
    fn entries() -> Vec<&'static Entry<Self>>;
}

/// A component of any kind, for `list` and `explain`.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The kind's name.
    pub kind: &'static str,
    /// The component's name.
    pub name: &'static str,
    /// Its documentation.
    pub doc: &'static str,
    /// Its fields.
    pub fields: &'static [Field],
    /// The crate it comes from.
    pub origin: &'static str,
}

impl Listing {
    /// Returns the first line of the documentation.
    pub fn summary(&self) -> &'static str {
        self.doc.trim().lines().next().unwrap_or("")
    }
}

/// An error of the registry.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RegistryError {
    /// No component of a kind was linked.
    #[error(
        "no {0} is registered: the binary does not link the crates that define them; add `use pauc as _;`"
    )]
    Empty(&'static str),
    /// Two components share a name.
    #[error("two components are named `{name}` ({first} and {second}); rename one of them")]
    Duplicate {
        /// The name.
        name: &'static str,
        /// Kind and crate of the first.
        first: String,
        /// Kind and crate of the second.
        second: String,
    },
}

/// Checks that every kind has entries and that all names are unique within their namespace.
///
/// # Errors
/// [`RegistryError::Empty`] for a kind without components, [`RegistryError::Duplicate`] for a name that two
/// components share.
pub fn assert_linked() -> Result<(), RegistryError> {
    check(&catalog())
}

fn check(all: &[Listing]) -> Result<(), RegistryError> {
    if let Some(kind) = KINDS.iter().find(|k| !all.iter().any(|l| l.kind == **k)) {
        return Err(RegistryError::Empty(kind));
    }
    let mut sorted: Vec<&Listing> = all.iter().collect();
    sorted.sort_by_key(|l| l.name);
    // Each kind is a namespace, except that the two kinds of terms share one.
    let space = |l: &Listing| if l.kind == "regularizer" { "contrastive loss" } else { l.kind };
    for (i, a) in sorted.iter().enumerate() {
        for b in sorted[i + 1..].iter().take_while(|b| b.name == a.name) {
            if space(a) == space(b) {
                let place = |l: &Listing| format!("{} in {}", l.kind, l.origin);
                return Err(RegistryError::Duplicate { name: a.name, first: place(a), second: place(b) });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(kind: &'static str, name: &'static str) -> Listing {
        Listing { kind, name, doc: "", fields: &[], origin: "here" }
    }

    fn full() -> Vec<Listing> {
        KINDS.iter().map(|k| listing(k, k)).collect()
    }

    #[test]
    fn types_are_named_without_paths() {
        let named = |ty| Field { name: "x", ty, doc: "", default: None }.type_name();
        assert_eq!(named("$crate :: datasets :: OnError"), "OnError");
        assert_eq!(named("Option < pauc_traits :: Count >"), "Option<Count>");
        assert_eq!(named("(u8, std :: string :: String, f64)"), "(u8, String, f64)");
        assert_eq!(named("Vec<Scheduled<NonNegative>>"), "Vec<Scheduled<NonNegative>>");
    }

    #[test]
    fn an_empty_kind_and_a_shared_name_are_found() {
        assert_eq!(check(&full()), Ok(()));
        assert_eq!(check(&full()[1..]), Err(RegistryError::Empty("dataset")));
        let mut all = full();
        all.push(listing("contrastive loss", "X"));
        all.push(listing("dataset", "X"));
        assert_eq!(check(&all), Ok(()), "namespaces of different kinds are separate");
        all.push(listing("regularizer", "X"));
        assert!(matches!(check(&all), Err(RegistryError::Duplicate { name: "X", .. })));
    }
}
