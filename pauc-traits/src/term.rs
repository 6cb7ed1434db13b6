//! Terms of an objective: contrastive losses and regularizers.

use crate::backend::{Backend, Scalar, Value};
use crate::registry::Component;
use crate::schedule::Clock;
use crate::{Batch, Result};
use dfdx::prelude::Cpu;

/// The inputs that a term reads from a [`Batch`]. The engine computes only those that some term needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Views whose online embeddings q are read; gradients flow into them.
    pub queries: &'static [usize],
    /// Views whose keys k are read. Keys are momentum embeddings if there is a momentum encoder. Otherwise
    /// they are the online embeddings of that view, with gradient.
    pub keys: &'static [usize],
    /// Views whose predictions are read; gradients flow into them. In a run without a predictor, the
    /// embeddings of the view replace them, so the view also counts as a query.
    pub predictions: &'static [usize],
    /// Whether the keys must come from a momentum encoder.
    pub momentum: bool,
    /// Whether the queue of past keys is read.
    pub queue: bool,
    /// Whether cluster levels are read.
    pub prototypes: bool,
    /// Whether class labels are read.
    pub labels: bool,
}

/// The sizes of a run that a term's chance level and rules depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The number of samples per batch, B.
    pub batch: usize,
    /// The width of the embeddings, D.
    pub dim: usize,
    /// The number of training samples, N.
    pub samples: usize,
    /// Whether there is a momentum encoder.
    pub momentum: bool,
    /// Whether there is a predictor after the projector.
    pub predictor: bool,
    /// The length M of the queue, if there is one.
    pub queue: Option<usize>,
    /// The number of prototypes of each level, `None` if only the fit determines it; empty without a
    /// clusterer.
    pub prototypes: Vec<Option<usize>>,
    /// The number of classes, if there are labels.
    pub classes: Option<usize>,
    /// The largest weight of the term whose rules are checked, divided by the largest weight of the terms that read no
    /// prototypes; 1 if there is no such term. Chance levels do not depend on it.
    pub relative_weight: f64,
}

/// The severity of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The run would do as written, but probably not as intended.
    Warning,
    /// The run would fail.
    Error,
}

/// A problem found by a rule that involves several fields of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its severity.
    pub severity: Severity,
    /// The code that `explain` describes, such as `E0203`.
    pub code: &'static str,
    /// The field at fault, or `None` for the whole component.
    pub field: Option<&'static str>,
    /// What is wrong, with the numbers.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

/// A matrix that belongs to a term: learnable, such as SwAV's prototypes, or remembered, such as DINO's
/// center.
#[derive(Clone, Debug, PartialEq)]
pub struct TermParameter {
    /// Its name within the term.
    pub name: &'static str,
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
    /// Its initial values.
    pub init: Init,
    /// How it changes at an optimizer step.
    pub after: After,
    /// How long it keeps its initial values.
    pub frozen: Option<crate::TrainingSpan>,
}

/// How a [`TermParameter`] changes at an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    /// The optimizer updates it.
    Free,
    /// The optimizer updates it; then its rows are rescaled to unit length.
    UnitRows,
    /// The optimizer updates it without weight decay; then values below the bound are set to the bound.
    AtLeast(f64),
    /// It has no gradient: the term replaces it with [`Batch::remember`].
    Remembered,
}

impl After {
    /// Applies the change that follows the optimizer's update to values in row-major order.
    ///
    /// # Shapes
    /// values (rows, cols)
    pub fn apply(self, values: &mut [f32], cols: usize) {
        match self {
            After::Free | After::Remembered => {}
            After::UnitRows => {
                for row in values.chunks_mut(cols.max(1)) {
                    let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                    row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
                }
            }
            After::AtLeast(bound) => values.iter_mut().for_each(|v| *v = v.max(bound as f32)),
        }
    }
}

/// The initial values of a [`TermParameter`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Independent normal values of the given standard deviation.
    Normal(f64),
    /// The same value everywhere.
    Constant(f64),
}

/// The numbers of candidates in a term's softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contrast {
    /// The number of positives per query.
    pub positives: usize,
    /// The number of negatives per query.
    pub negatives: usize,
}

/// Properties of a term that do not depend on tensors.
pub trait TermInfo {
    /// Returns the inputs that the term reads.
    fn needs(&self) -> Needs;

    /// Returns the value of the term when the embeddings carry no information about the task, or `None` if
    /// there is no such value. A term that stays there has not learned.
    fn chance_level(&self, facts: &Facts) -> Option<f64>;

    /// Applies the term's own rules to a run of these sizes. The engine reports missing inputs from
    /// [`TermInfo::needs`]; they need no rule here.
    fn check(&self, _facts: &Facts) -> Vec<Finding> {
        Vec::new()
    }

    /// Returns the number of positives and negatives per query, for terms that have them.
    fn contrast(&self, _facts: &Facts) -> Option<Contrast> {
        None
    }

    /// Returns the matrices that the term learns or remembers.
    fn parameters(&self, _facts: &Facts) -> Vec<TermParameter> {
        Vec::new()
    }

    /// Returns the temperature by which the term divides cosines at a step, and the field that sets it; `None`
    /// (the default) for a term without one. A learnable temperature is the initial one.
    fn temperature(&self, _clock: &Clock) -> Option<FieldValue> {
        None
    }
}

/// The value of a component's field at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FieldValue {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
}

/// A loss that pulls embeddings toward positives and away from other candidates, or toward targets.
///
/// Implement it for every `E` and `D` with plain dfdx operations; it then runs in `f32` and `f64` on every
/// device.
pub trait ContrastiveLoss<E: Scalar, D: Backend<E>>: TermInfo {
    /// Computes the loss of a batch, a scalar on the tape.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] if the batch lacks an input that [`TermInfo::needs`] names.
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>>;
}

/// A penalty on how embeddings or prototypes are distributed.
///
/// Implement it for every `E` and `D` with plain dfdx operations; it then runs in `f32` and `f64` on every
/// device.
pub trait Regularizer<E: Scalar, D: Backend<E>>: TermInfo {
    /// Computes the penalty of a batch, a scalar on the tape.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] if the batch lacks an input that [`TermInfo::needs`] names.
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>>;
}

/// Declares traits of terms that work for every element type and device of this build.
macro_rules! portable {
    ($($(#[$doc:meta])* $name:ident: $on:ident;)*) => { $(
        #[cfg(not(feature = "cuda"))]
        $(#[$doc])*
        pub trait $name: Component + $on<f32, Cpu> + $on<f64, Cpu> {}
        #[cfg(not(feature = "cuda"))]
        impl<T: Component + $on<f32, Cpu> + $on<f64, Cpu>> $name for T {}
        #[cfg(feature = "cuda")]
        $(#[$doc])*
        pub trait $name: Component + $on<f32, Cpu> + $on<f64, Cpu> + $on<f32, dfdx::prelude::Cuda> {}
        #[cfg(feature = "cuda")]
        impl<T: Component + $on<f32, Cpu> + $on<f64, Cpu> + $on<f32, dfdx::prelude::Cuda>> $name for T {}
    )* };
}

portable! {
    /// A contrastive loss for every element type and device of this build.
    PortableLoss: ContrastiveLoss;
    /// A regularizer for every element type and device of this build.
    PortableRegularizer: Regularizer;
}

impl crate::component_ron::Term {
    /// Returns the properties of the term.
    pub fn info(&self) -> &dyn TermInfo {
        match self {
            Self::Loss(l) => &*l.value,
            Self::Regularizer(r) => &*r.value,
        }
    }

    /// Computes the value of the term on a batch.
    ///
    /// # Errors
    /// The errors of [`ContrastiveLoss::loss`].
    pub fn evaluate<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        match self {
            Self::Loss(l) => D::loss(&*l.value).loss(batch),
            Self::Regularizer(r) => D::regularizer(&*r.value).penalty(batch),
        }
    }
}
