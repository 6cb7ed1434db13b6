//! The kinds of components. A new kind needs one line here and a trait.

use crate::registry::{Entry, Kind, Listing};
use crate::{backend, clusterer, dataset, probe, term};
use pauc_traits::private::inventory;

macro_rules! kinds {
    ($($(#[$doc:meta])* $alias:ident = $object:ty, $name:literal, $plural:literal;)*) => {
        /// The trait object of each kind, under the name that [`component!`](crate::component!) uses.
        pub mod kind {
            use super::*;
            $($(#[$doc])* pub type $alias = $object;)*
        }
        $(
            inventory::collect!(Entry<$object>);
            impl Kind for $object {
                const NAME: &'static str = $name;
                const PLURAL: &'static str = $plural;
                fn entries() -> Vec<&'static Entry<Self>> {
                    let mut all: Vec<_> = inventory::iter::<Entry<$object>>.into_iter().collect();
                    all.sort_by_key(|e| e.name);
                    all
                }
            }
        )*
        /// Returns every registered component, sorted by kind and name.
        pub fn catalog() -> Vec<Listing> {
            let mut all = Vec::new();
            $(all.extend(<$object>::entries().into_iter().map(|e| Listing {
                kind: $name, name: e.name, doc: e.doc, fields: e.fields, origin: e.origin,
            }));)*
            all
        }
        /// The names of the kinds, in the order of a recipe.
        pub const KINDS: &[&str] = &[$($name),*];

        /// Returns the plural of a kind, or the word itself if it is not a kind.
        pub fn plural(kind: &str) -> &str {
            match kind {
                $($name => $plural,)*
                other => other,
            }
        }
    };
}

kinds! {
    /// A dataset.
    Dataset = dyn dataset::Dataset, "dataset", "datasets";
    /// One step of a view.
    Augmentation = dyn dataset::Augmentation, "augmentation", "augmentations";
    /// An encoder's configuration.
    Encoder = dyn backend::PortableEncoder, "encoder", "encoders";
    /// A clusterer.
    Clusterer = dyn clusterer::Clusterer, "clusterer", "clusterers";
    /// A contrastive loss.
    ContrastiveLoss = dyn term::PortableLoss, "contrastive loss", "contrastive losses";
    /// A regularizer.
    Regularizer = dyn term::PortableRegularizer, "regularizer", "regularizers";
    /// An optimizer.
    Optimizer = dyn backend::PortableOptimizer, "optimizer", "optimizers";
    /// An evaluation probe.
    Probe = dyn probe::Probe, "probe", "probes";
}
