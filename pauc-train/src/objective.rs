//! The weighted sum of terms, evaluated and differentiated at the embeddings.

use crate::recipe::WeightedTerm;
use pauc_traits::backend::{Backend, Scalar, Value};
use pauc_traits::batch::BatchGradients;
use pauc_traits::open_set::Term;
use pauc_traits::schedule::{Clock, Horizon};
use pauc_traits::term::{Facts, Needs, TermInfo};
use pauc_traits::{Batch, Error, NonNegative, Result, Scheduled, ops};

/// A term of the objective, ready to be evaluated.
#[derive(Clone, Debug)]
pub struct PlannedTerm {
    /// The name in logs: the component's, with `#2`, `#3`, … when it stands there more than once.
    pub name: String,
    /// The term.
    pub term: Term,
    /// Its weight.
    pub weight: Scheduled<NonNegative>,
    /// The first step at which it counts.
    pub from: u64,
    /// What it reads.
    pub needs: Needs,
    /// Its value when nothing has been learnt.
    pub chance: Option<f64>,
}

/// What one term gave at one step.
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
    /// Why it had no value on this batch.
    pub skipped: Option<String>,
}

/// The objective of a run.
#[derive(Clone, Debug)]
pub struct Objective {
    /// The terms in the order of the recipe.
    pub terms: Vec<PlannedTerm>,
}

/// The objective's value and gradients on one batch.
pub struct Evaluated<E> {
    /// The weighted sum.
    pub loss: f64,
    /// Term by term, those that are active.
    pub terms: Vec<TermValue>,
    /// The gradients of the weighted sum.
    pub gradients: BatchGradients<E>,
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

    /// The terms that count at a step.
    pub fn active(&self, clock: &Clock) -> impl Iterator<Item = &PlannedTerm> {
        let step = clock.step;
        self.terms.iter().filter(move |t| t.from <= step)
    }

    /// Evaluates the terms active at the batch's clock, and their gradients.
    ///
    /// # Errors
    /// What a term reports; [`Error::NonFinite`] naming the term whose value is not a number.
    pub fn evaluate<E: Scalar, D: Backend<E>>(&self, batch: Batch<E, D>) -> Result<Evaluated<E>> {
        let clock = *batch.clock();
        let mut sum: Option<Value<E, D>> = None;
        let mut terms = Vec::new();
        for planned in self.active(&clock) {
            let weight = planned.weight.at(&clock);
            batch.enter(&planned.name);
            let value = planned.term.evaluate(&batch)?;
            let number = ops::item(&value);
            if !number.is_finite() {
                let place = Some(format!("its value is {number}"));
                return Err(Error::NonFinite { what: format!("the term {}", planned.name), place });
            }
            terms.push(TermValue {
                name: planned.name.clone(),
                value: number,
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
        let loss = terms.iter().map(|t| t.weight * t.value).sum();
        let sum = sum.unwrap_or_else(|| ops::scalar(batch.device(), 0.0).retaped());
        Ok(Evaluated { loss, terms, gradients: batch.backward(sum)? })
    }
}
