//! The weighted sum of terms, evaluated and differentiated at the embeddings.

use crate::recipe::WeightedTerm;
use dfdx::prelude::{NoneTape, Rank0, Tensor};
use pauc_traits::backend::{Backend, Scalar, Value};
use pauc_traits::batch::{BatchGradients, Inputs};
use pauc_traits::component_ron::Term;
use pauc_traits::ops::Matrix;
use pauc_traits::schedule::{Clock, Horizon};
use pauc_traits::term::{Facts, Needs, TermInfo};
use pauc_traits::{Batch, Error, NonNegative, Result, Scheduled, ops};

/// A term of the objective, ready to be evaluated.
#[derive(Clone, Debug)]
pub struct PlannedTerm {
    /// The name in logs: the component's, with `#2`, `#3`, … if it occurs more than once.
    pub name: String,
    /// The term.
    pub term: Term,
    /// Its weight.
    pub weight: Scheduled<NonNegative>,
    /// The first step at which it is active.
    pub from: u64,
    /// Its inputs.
    pub needs: Needs,
    /// Its value before anything is learned.
    pub chance: Option<f64>,
}

/// The result of one term at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct TermValue {
    /// The term's name in logs.
    pub name: String,
    /// Its unweighted value.
    pub value: f64,
    /// Its weight at this step.
    pub weight: f64,
    /// Its chance level.
    pub chance: Option<f64>,
    /// The reason if it had no value on this batch.
    pub skipped: Option<String>,
}

/// The objective of a run.
#[derive(Clone, Debug)]
pub struct Objective {
    /// The terms in the order of the recipe.
    pub terms: Vec<PlannedTerm>,
}

/// The combined inputs of all terms of an objective.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Views that pass through the online network.
    pub online: Vec<usize>,
    /// Whether predictions are read.
    pub predictions: bool,
    /// Views that pass through the momentum network.
    pub momentum: Vec<usize>,
    /// The last of these views, whose keys enter the queue.
    pub newest: Option<usize>,
    /// Whether the queue is read.
    pub queue: bool,
    /// Whether labels are read.
    pub labels: bool,
}

/// The view whose keys enter the queue if no term reads keys.
const NEWEST: usize = 1;

impl Reads {
    /// Returns the union of the inputs of the terms active at a step.
    pub fn at(objective: &Objective, clock: &Clock, has_momentum: bool, has_queue: bool) -> Self {
        Self::of(objective.active(clock), has_momentum, has_queue)
    }

    /// Returns the union of what is read at any step.
    pub(crate) fn ever(objective: &Objective, has_momentum: bool, has_queue: bool) -> Self {
        let mut reads = Self::of(objective.terms.iter(), has_momentum, has_queue);
        if has_queue && !reads.momentum.contains(&NEWEST) {
            reads.momentum.push(NEWEST);
        }
        reads
    }

    fn of<'a>(terms: impl Iterator<Item = &'a PlannedTerm>, has_momentum: bool, has_queue: bool) -> Self {
        let mut reads = Reads { queue: has_queue, ..Reads::default() };
        let add = |list: &mut Vec<usize>, views: &[usize]| {
            list.extend(views);
            list.sort_unstable();
            list.dedup();
        };
        for Needs { queries, predictions, keys, momentum: _, queue: _, prototypes: _, labels } in
            terms.map(|t| t.needs.clone())
        {
            add(&mut reads.online, queries);
            add(&mut reads.online, predictions);
            reads.predictions |= !predictions.is_empty();
            add(if has_momentum { &mut reads.momentum } else { &mut reads.online }, keys);
            reads.labels |= labels;
        }
        // The queue receives the keys of the last view, whether or not a term reads them at this step.
        if has_queue && reads.momentum.is_empty() {
            reads.momentum.push(NEWEST);
        }
        reads.newest = reads.momentum.last().copied();
        reads
    }

    /// Makes views of one size adjacent, so that they pass through a network together.
    pub(crate) fn group_views_by<S: PartialEq>(&mut self, size: impl Fn(usize) -> S) {
        let first_of_size = |view: &usize| (0..*view).find(|v| size(*v) == size(*view)).unwrap_or(*view);
        self.online.sort_by_key(first_of_size);
        self.momentum.sort_by_key(first_of_size);
    }
}

/// The objective's value and gradients on one batch.
pub struct Evaluated<E> {
    /// The weighted sum.
    pub loss: f64,
    /// The active terms.
    pub terms: Vec<TermValue>,
    /// The gradients of the weighted sum.
    pub gradients: BatchGradients<E>,
}

/// Values of terms whose kernels may still be running.
pub struct Pending<E: Scalar, D: Backend<E>> {
    terms: Vec<TermValue>,
    values: Vec<Tensor<Rank0, E, D>>,
}

/// The results of [`Objective::launch`], on the device.
pub struct Launched<E: Scalar, D: Backend<E>> {
    /// The values of the active terms.
    pub values: Pending<E, D>,
    /// The gradients of the weighted sum.
    pub gradients: BatchGradients<E, Matrix<E, D>>,
}

impl<E: Scalar, D: Backend<E>> Pending<E, D> {
    /// Returns the weighted sum, and the value of each term.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the term whose value is NaN or infinite.
    pub fn read(mut self) -> Result<(f64, Vec<TermValue>)> {
        for (term, value) in self.terms.iter_mut().zip(&self.values) {
            // The first synchronization: earlier errors of an asynchronous device surface here.
            term.value = ops::to_host(value)?[0].as_f64();
            if !term.value.is_finite() {
                let place = Some(format!("its value is {}", term.value));
                return Err(Error::NonFinite { what: format!("the term {}", term.name), place });
            }
        }
        Ok((self.terms.iter().map(|t| t.weight * t.value).sum(), self.terms))
    }
}

impl Objective {
    /// Plans the terms of a recipe. Terms that read prototypes start with the first clustering or later.
    pub fn plan(terms: &[WeightedTerm], horizon: &Horizon, first_clustering: u64, facts: &Facts) -> Self {
        let mut planned: Vec<PlannedTerm> = Vec::new();
        for t in terms {
            let base = t.term.name();
            let same = planned.iter().filter(|p| p.term.name() == base).count();
            let info: &dyn TermInfo = t.term.info();
            let needs = info.needs();
            let from = t.from.steps(horizon);
            planned.push(PlannedTerm {
                name: if same == 0 { base.to_string() } else { format!("{base}#{}", same + 1) },
                term: t.term.clone(),
                weight: t.weight,
                from: if needs.prototypes { from.max(first_clustering) } else { from },
                needs,
                chance: info.chance_level(facts),
            });
        }
        Objective { terms: planned }
    }

    /// Returns the terms active at a step.
    pub fn active(&self, clock: &Clock) -> impl Iterator<Item = &PlannedTerm> {
        let step = clock.step;
        self.terms.iter().filter(move |t| t.from <= step)
    }

    /// Evaluates the terms active at the batch's clock, and their gradients.
    ///
    /// # Errors
    /// The errors of the terms; [`Error::NonFinite`] naming the term whose value is NaN or infinite.
    pub fn evaluate<E: Scalar, D: Backend<E>>(&self, batch: Batch<E, D>) -> Result<Evaluated<E>> {
        let (sum, pending) = self.sum(&batch)?;
        let gradients = batch.backward(sum)?;
        let (loss, terms) = pending.read()?;
        Ok(Evaluated { loss, terms, gradients })
    }

    /// Does the same without waiting for the device: gradients stay there, and values are read later.
    ///
    /// # Errors
    /// The errors of the terms.
    pub fn launch<E: Scalar, D: Backend<E>>(&self, batch: Batch<E, D>) -> Result<Launched<E, D>> {
        let (sum, values) = self.sum(&batch)?;
        Ok(Launched { values, gradients: batch.backward_on_device(sum)? })
    }

    /// Returns the weighted sum of the terms active at the batch's clock.
    fn sum<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<(Value<E, D>, Pending<E, D>)> {
        let clock = *batch.clock();
        let mut sum: Option<Value<E, D>> = None;
        let (mut terms, mut values) = (Vec::new(), Vec::new());
        for planned in self.active(&clock) {
            let weight = planned.weight.at(&clock);
            batch.enter(&planned.name);
            let value = planned.term.evaluate(batch)?;
            values.push(value.retaped::<NoneTape>());
            terms.push(TermValue {
                name: planned.name.clone(),
                value: f64::NAN,
                weight,
                chance: planned.chance,
                skipped: Some(batch.take_skipped().join("; ")).filter(|s| !s.is_empty()),
            });
            if weight != 0.0 {
                let weighted = value * E::of(weight);
                sum = Some(match sum {
                    Some(sum) => sum + weighted,
                    None => weighted,
                });
            }
        }
        let sum = sum.unwrap_or_else(|| ops::scalar(batch.device(), 0.0).retaped());
        Ok((sum, Pending { terms, values }))
    }

    /// Evaluates each active term for itself, with its gradients before weighting. A value may be NaN or infinite.
    ///
    /// # Errors
    /// The errors of the terms.
    pub fn evaluate_each<E: Scalar, D: Backend<E>>(
        &self,
        device: &D,
        inputs: &Inputs<E, D>,
    ) -> Result<Vec<(TermValue, BatchGradients<E>)>> {
        let each = |planned: &PlannedTerm| {
            let batch = Batch::new(device, inputs.clone())?;
            batch.enter(&planned.name);
            let value = planned.term.evaluate(&batch)?;
            let found = TermValue {
                name: planned.name.clone(),
                value: ops::item(&value),
                weight: planned.weight.at(&inputs.clock),
                chance: planned.chance,
                skipped: Some(batch.take_skipped().join("; ")).filter(|why| !why.is_empty()),
            };
            Ok((found, batch.backward(value)?))
        };
        self.active(&inputs.clock).map(each).collect()
    }
}
