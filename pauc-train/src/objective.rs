//! The weighted sum of terms, evaluated and differentiated at the embeddings.

use crate::recipe::WeightedTerm;
use dfdx::prelude::{HasShape, NoneTape, Rank0, Tensor};
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

/// The gradient of one term at the embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct TermGradient {
    /// The term's name in logs.
    pub name: String,
    /// The norm of weight·∂L/∂z over all views, see [`Objective::gradients_by_term`].
    pub norm: f64,
    /// The cosines with the gradients of the preceding terms, in order; 0 if one of the two is zero.
    pub cosines: Vec<f64>,
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

    /// Returns the gradient of each active term at the embeddings, as norms and pairwise cosines. They show
    /// which terms work against each other.
    ///
    /// Gradients with respect to raw outputs x are multiplied by ‖x‖, row by row. For a term that reads unit
    /// embeddings z = x/‖x‖ this is ∂L/∂z within the sphere; for one that reads x it is the gradient in the
    /// same units. Predictions count as separate rows.
    ///
    /// # Errors
    /// As [`Objective::evaluate`].
    pub fn gradients_by_term<E: Scalar, D: Backend<E>>(
        &self,
        device: &D,
        inputs: &Inputs<E, D>,
    ) -> Result<Vec<TermGradient>> {
        let rows =
            |m: &Option<Matrix<E, D>>| m.as_ref().map(|m| Ok((ops::to_host(m)?, m.shape().1))).transpose();
        let outputs: Vec<_> =
            inputs.views.iter().chain(&inputs.predictions).map(rows).collect::<Result<_>>()?;
        let mut all: Vec<(TermGradient, Vec<f64>)> = Vec::new();
        for (TermValue { name, weight, .. }, gradients) in self.evaluate_each(device, inputs)? {
            let BatchGradients { views, predictions, .. } = gradients;
            let mut gradient = Vec::new();
            for (found, outputs) in views.into_iter().chain(predictions).zip(&outputs) {
                let (Some(found), Some((x, dim))) = (found, outputs) else { continue };
                for (g, x) in found.chunks(*dim).zip(x.chunks(*dim)) {
                    let length = x.iter().map(|v| v.as_f64().powi(2)).sum::<f64>().sqrt();
                    gradient.extend(g.iter().map(|v| v.as_f64() * length));
                }
            }
            let norm = dot(&gradient, &gradient).sqrt();
            let cosine = |(_, other): &(TermGradient, Vec<f64>)| {
                let lengths = norm * dot(other, other).sqrt();
                if lengths > 0.0 { dot(&gradient, other) / lengths } else { 0.0 }
            };
            let cosines = all.iter().map(cosine).collect();
            all.push((TermGradient { name, norm: norm * weight, cosines }, gradient));
        }
        Ok(all.into_iter().map(|(t, _)| t).collect())
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

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::Cpu;
    use pauc_testing::{assert_within, tolerance};

    fn objective(terms: &[(&str, f64)]) -> Objective {
        let weighted = |(term, weight): &(&str, f64)| WeightedTerm {
            term: Term::parse(term).unwrap(),
            weight: NonNegative::try_from(*weight).unwrap().into(),
            from: pauc_traits::TrainingSpan::Steps(0),
        };
        let facts = Facts {
            batch: 3,
            dim: 2,
            samples: 3,
            momentum: false,
            predictor: false,
            queue: None,
            prototypes: Vec::new(),
            classes: None,
        };
        let terms: Vec<_> = terms.iter().map(weighted).collect();
        Objective::plan(&terms, &Clock::still().horizon, u64::MAX, &facts)
    }

    fn inputs() -> Inputs<f64, Cpu> {
        let dev = Cpu::default();
        let m = |v: [f64; 6]| Some(ops::constant(&dev, v.to_vec(), (3, 2)));
        let views = vec![m([2.0, 0.5, -0.3, 1.0, 0.4, -0.8]), m([1.0, 0.7, -0.9, 0.6, 0.1, -0.5])];
        Inputs { views, ..Inputs::default() }
    }

    #[test]
    fn gradients_of_terms_add_up_to_that_of_the_objective() {
        let of = |terms| objective(terms).gradients_by_term(&Cpu::default(), &inputs()).unwrap();
        let both = of(&[("Alignment(level: Instances)", 2.0), ("Uniformity(level: Instances)", 0.5)]);
        let (a, u) = (&both[0], &both[1]);
        assert!(a.cosines.is_empty() && u.cosines.len() == 1 && u.cosines[0].abs() < 1.0);
        // ‖g + h‖² = ‖g‖² + ‖h‖² + 2·cos·‖g‖‖h‖, with the sum from the objective's own backward pass.
        let batch = Batch::new(&Cpu::default(), inputs()).unwrap();
        let all = objective(&[("Alignment(level: Instances)", 2.0), ("Uniformity(level: Instances)", 0.5)]);
        let views = all.evaluate(batch).unwrap().gradients.views;
        let mut sum = 0.0;
        for (g, x) in views.iter().flatten().zip(inputs().views.iter().flatten()) {
            for (g, x) in g.chunks(2).zip(x.as_vec().chunks(2)) {
                sum += dot(g, g) * dot(x, x);
            }
        }
        let want = a.norm.powi(2) + u.norm.powi(2) + 2.0 * u.cosines[0] * a.norm * u.norm;
        // Squares of two gradients, each from at most a hundred operations: six rows of two, unit length,
        // three pairs, and back.
        assert_within!(sum, want, tolerance::f64(100, (a.norm + u.norm).powi(2)));
    }

    #[test]
    fn equal_terms_agree_and_a_zero_gradient_has_no_direction() {
        let of = |terms| objective(terms).gradients_by_term(&Cpu::default(), &inputs()).unwrap();
        let found =
            of(&[("Dcl()", 1.0), ("Dcl()", 3.0), ("VicReg(invariance: 0, variance: 0, covariance: 0)", 1.0)]);
        assert_eq!(found[1].name, "Dcl#2");
        // The two gradients have the same bits: 12 numbers in an inner product and in two norms.
        assert_within!(found[1].cosines[0], 1.0, tolerance::f64(2 * 12 + 4, 1.0));
        assert_within!(found[1].norm / found[0].norm, 3.0, tolerance::f64(2, 3.0));
        assert_eq!((found[2].norm, found[2].cosines.as_slice()), (0.0, &[0.0, 0.0][..]));
    }
}
