//! Terms of an objective: contrastive losses and regularizers.

use crate::backend::{Backend, Scalar, Value};
use crate::registry::Component;
use crate::{Batch, Result};
use dfdx::prelude::Cpu;

/// What a term reads of a [`Batch`]. The engine computes only what some term of the objective asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Views whose online embeddings q are read; gradients flow into them.
    pub queries: &'static [usize],
    /// Views whose keys k are read: momentum embeddings where there is a momentum encoder, otherwise the online
    /// embeddings of that view, with gradient.
    pub keys: &'static [usize],
    /// Views whose predictions are read; gradients flow into them. Where the run has no predictor, the embeddings of
    /// the view stand in for them, so the view counts as a query too.
    pub predictions: &'static [usize],
    /// Whether the keys have to come from a momentum encoder.
    pub momentum: bool,
    /// Whether the queue of past keys is read.
    pub queue: bool,
    /// Whether cluster levels are read.
    pub prototypes: bool,
    /// Whether class labels are read.
    pub labels: bool,
}

/// The sizes of a run, as far as a term's chance level and rules depend on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Samples in a batch, B.
    pub batch: usize,
    /// Width of the embeddings, D.
    pub dim: usize,
    /// Training samples, N.
    pub samples: usize,
    /// Whether there is a momentum encoder.
    pub momentum: bool,
    /// Whether there is a predictor behind the projector.
    pub predictor: bool,
    /// The queue's length M, if there is one.
    pub queue: Option<usize>,
    /// The prototypes of each level, `None` where only the fit will tell; no clusterer: empty.
    pub prototypes: Vec<Option<usize>>,
    /// The number of classes, if there are labels.
    pub classes: Option<usize>,
}

/// How grave a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The run would do what was asked, but probably not what was meant.
    Warning,
    /// The run could not be carried out.
    Error,
}

/// Something that a rule across several fields of a recipe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// The code that `explain` describes, such as `E0203`.
    pub code: &'static str,
    /// The field of the component at fault, or `None` for the whole component.
    pub field: Option<&'static str>,
    /// What is wrong, with the numbers.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

/// A matrix that belongs to a term: learnable, such as SwAV's prototypes, or remembered, such as DINO's center.
#[derive(Clone, Debug, PartialEq)]
pub struct TermParameter {
    /// Its name within the term.
    pub name: &'static str,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// How it starts.
    pub init: Init,
    /// What happens to it at every optimizer step.
    pub after: After,
    /// How long it stays as it started.
    pub frozen: Option<crate::TrainingSpan>,
}

/// What happens to a [`TermParameter`] at an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    /// The optimizer moves it.
    Free,
    /// The optimizer moves it; then its rows are rescaled to unit length.
    UnitRows,
    /// The optimizer moves it without decaying it; then values below the bound are set to the bound.
    AtLeast(f64),
    /// No gradient reaches it: the term replaces it with [`Batch::remember`].
    Remembered,
}

impl After {
    /// Carries it out on values in row-major order.
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

/// How a [`TermParameter`] starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Independent normal values of the given standard deviation.
    Normal(f64),
    /// The same value everywhere.
    Constant(f64),
}

/// How many candidates a term's softmax compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contrast {
    /// Positives for each query.
    pub positives: usize,
    /// Negatives for each query.
    pub negatives: usize,
}

/// What is known of a term without any tensor.
pub trait TermInfo {
    /// What the term reads.
    fn needs(&self) -> Needs;

    /// The value when the embeddings carry no information about the task: a term that stays there has not learnt.
    /// `None` where there is no such value.
    fn chance_level(&self, facts: &Facts) -> Option<f64>;

    /// What the term's own rules say of a run of these sizes. Missing inputs are found by the engine from
    /// [`TermInfo::needs`] and need no rule here.
    fn check(&self, _facts: &Facts) -> Vec<Finding> {
        Vec::new()
    }

    /// The positives and negatives of each query, for terms that have such.
    fn contrast(&self, _facts: &Facts) -> Option<Contrast> {
        None
    }

    /// The matrices that the term learns or remembers.
    fn parameters(&self, _facts: &Facts) -> Vec<TermParameter> {
        Vec::new()
    }
}

/// A loss that pulls embeddings towards positives and away from other candidates, or towards targets.
///
/// Implement it for every `E` and `D` with plain dfdx operations, and it runs in `f32` and `f64` on every device.
pub trait ContrastiveLoss<E: Scalar, D: Backend<E>>: TermInfo {
    /// The loss of a batch, a scalar on the tape.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] if the batch lacks something that [`TermInfo::needs`] names.
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>>;
}

/// A penalty on how embeddings or prototypes are distributed.
///
/// Implement it for every `E` and `D` with plain dfdx operations, and it runs in `f32` and `f64` on every device.
pub trait Regularizer<E: Scalar, D: Backend<E>>: TermInfo {
    /// The penalty of a batch, a scalar on the tape.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] if the batch lacks something that [`TermInfo::needs`] names.
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>>;
}

/// Traits that hold for a term in every element type and on every device that this build knows.
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
    /// A contrastive loss for every element type and device that this build knows.
    PortableLoss: ContrastiveLoss;
    /// A regularizer for every element type and device that this build knows.
    PortableRegularizer: Regularizer;
}

impl crate::component_ron::Term {
    /// The term's facts.
    pub fn info(&self) -> &dyn TermInfo {
        match self {
            Self::Loss(l) => &*l.value,
            Self::Regularizer(r) => &*r.value,
        }
    }

    /// The term's value on a batch.
    ///
    /// # Errors
    /// As [`ContrastiveLoss::loss`].
    pub fn evaluate<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        match self {
            Self::Loss(l) => D::loss(&*l.value).loss(batch),
            Self::Regularizer(r) => D::regularizer(&*r.value).penalty(batch),
        }
    }
}
