//! The gradients of single terms at the embeddings: how strongly each term pulls them, and which terms work
//! against each other.

use crate::objective::TermValue;
use dfdx::prelude::HasShape;
use pauc_traits::backend::{Backend, Scalar};
use pauc_traits::batch::{BatchGradients, Inputs};
use pauc_traits::ops::{self, Matrix};
use pauc_traits::{Error, Result};

/// The gradients of the active terms at the embeddings of a batch.
///
/// A gradient with respect to raw outputs x is multiplied by ‖x‖, row by row. For a term that reads unit embeddings
/// z = x/‖x‖ this is ∂L/∂z within the sphere. For one that reads x it is the gradient in the same units.
///
/// A term may also read predictions, the outputs of the predictor. Their rows are added to those of the embeddings,
/// and the gradient is not passed on through the predictor. So terms that read predictions have no direction in common
/// with terms that do not.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientsByTerm {
    /// The active terms in the order of the recipe.
    pub terms: Vec<TermGradient>,
    /// The norm of the sum of the weighted gradients; NaN if some terms read predictions and others do not.
    pub total: f64,
}

/// The gradient of one term.
#[derive(Clone, Debug, PartialEq)]
pub struct TermGradient {
    /// The term's name in logs.
    pub name: String,
    /// The norm of weight·∂L/∂z over the rows of all views.
    pub norm: f64,
    /// The cosines with the gradients of the preceding terms, in order; NaN if one of the two is zero, or if only one
    /// of the two terms reads predictions.
    pub cosines: Vec<f64>,
}

/// The tensors at which a gradient is not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    embeddings: bool,
    predictions: bool,
}

/// ∂L/∂z of one term before weighting.
struct Direction {
    place: Place,
    /// The rows of all views, then those of all predictions.
    rows: Vec<f64>,
    norm: f64,
}

impl GradientsByTerm {
    /// Compares the gradients of terms, which were evaluated one by one on `inputs`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new<E: Scalar, D: Backend<E>>(
        inputs: &Inputs<E, D>,
        terms: Vec<(TermValue, BatchGradients<E>)>,
    ) -> Result<Self> {
        let lengths = [lengths(&inputs.views)?, lengths(&inputs.predictions)?];
        let mut found: Vec<TermGradient> = Vec::new();
        let mut directions: Vec<Direction> = Vec::new();
        let mut sum: Vec<f64> = Vec::new();
        for (TermValue { name, weight, .. }, gradients) in terms {
            let direction = Direction::of(&gradients, &lengths);
            sum.resize(direction.rows.len(), 0.0);
            sum.iter_mut().zip(&direction.rows).for_each(|(sum, g)| *sum += weight * g);
            let cosines = directions.iter().map(|other| direction.cosine(other)).collect();
            found.push(TermGradient { name, norm: weight * direction.norm, cosines });
            directions.push(direction);
        }
        // Terms without weight or gradient are at no place.
        let pulling = directions.iter().zip(&found).filter(|(_, term)| term.norm != 0.0);
        let mut places = pulling.map(|(direction, _)| direction.place);
        let first = places.next().unwrap_or_default();
        let total = if places.all(|place| place == first) { norm(&sum) } else { f64::NAN };
        Ok(GradientsByTerm { terms: found, total })
    }
}

impl Direction {
    /// Scales the gradient of each row by the row's length: those of the views, then those of the predictions.
    fn of<E: Scalar>(gradients: &BatchGradients<E>, lengths: &[Lengths; 2]) -> Self {
        let mut rows = Vec::new();
        let mut add = |gradients: &[Option<Vec<E>>], lengths: &Lengths| {
            let start = rows.len();
            for (gradients, lengths) in gradients.iter().zip(lengths) {
                let (Some(gradients), Some(lengths)) = (gradients, lengths) else { continue };
                let dim = gradients.len() / lengths.len().max(1);
                for (row, length) in gradients.chunks(dim.max(1)).zip(lengths) {
                    rows.extend(row.iter().map(|g| g.as_f64() * length));
                }
            }
            rows[start..].iter().any(|g| *g != 0.0)
        };
        let embeddings = add(&gradients.views, &lengths[0]);
        let predictions = add(&gradients.predictions, &lengths[1]);
        Direction { place: Place { embeddings, predictions }, norm: norm(&rows), rows }
    }

    /// Returns the cosine with another direction; NaN if they are not comparable.
    fn cosine(&self, other: &Direction) -> f64 {
        if self.place != other.place {
            return f64::NAN;
        }
        let product: f64 = self.rows.iter().zip(&other.rows).map(|(a, b)| a * b).sum();
        // 0/0 is NaN. Rounding must not lead out of the range.
        (product / (self.norm * other.norm)).clamp(-1.0, 1.0)
    }
}

/// The length ‖x‖ of each row, by view; `None` for views that are not computed.
type Lengths = Vec<Option<Vec<f64>>>;

fn lengths<E: Scalar, D: Backend<E>>(views: &[Option<Matrix<E, D>>]) -> Result<Lengths> {
    let of = |rows: &Matrix<E, D>| {
        let values = ops::to_host(rows)?;
        let (_, dim) = rows.shape();
        let length = |x: &[E]| x.iter().map(|v| v.as_f64().powi(2)).sum::<f64>().sqrt();
        Ok::<_, Error>(values.chunks((*dim).max(1)).map(length).collect())
    };
    views.iter().map(|rows| rows.as_ref().map(of).transpose()).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::Objective;
    use crate::recipe::WeightedTerm;
    use dfdx::prelude::Cpu;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::component_ron::Term;
    use pauc_traits::schedule::Clock;
    use pauc_traits::term::Facts;
    use pauc_traits::{Batch, NonNegative};

    const ALIGNMENT: &str = "Alignment(level: Instances)";
    const UNIFORMITY: &str = "Uniformity(level: Instances)";

    /// Two views of three samples, in two dimensions.
    type Views = [[f64; 6]; 2];
    const VIEWS: Views = [[2.0, 0.5, -0.3, 1.0, 0.4, -0.8], [1.0, 0.7, -0.9, 0.6, 0.1, -0.5]];

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
            relative_weight: 1.0,
        };
        let terms: Vec<_> = terms.iter().map(weighted).collect();
        Objective::plan(&terms, &Clock::still().horizon, u64::MAX, &facts)
    }

    fn inputs() -> Inputs<f64, Cpu> {
        let dev = Cpu::default();
        let views = VIEWS.map(|v| Some(ops::constant(&dev, v.to_vec(), (3, 2)))).to_vec();
        Inputs { views, ..Inputs::default() }
    }

    fn gradients(inputs: &Inputs<f64, Cpu>, terms: &[(&str, f64)]) -> GradientsByTerm {
        let each = objective(terms).evaluate_each(&Cpu::default(), inputs).unwrap();
        GradientsByTerm::new(inputs, each).unwrap()
    }

    /// The unit rows of a view.
    fn unit(view: &[f64; 6]) -> Vec<[f64; 2]> {
        view.chunks(2).map(|x| [x[0] / x[0].hypot(x[1]), x[1] / x[0].hypot(x[1])]).collect()
    }

    fn square(a: &[f64; 2], b: &[f64; 2]) -> f64 {
        (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)
    }

    /// mean_i ‖z_i − z'_i‖².
    fn alignment(views: &Views) -> f64 {
        let (a, b) = (unit(&views[0]), unit(&views[1]));
        a.iter().zip(&b).map(|(a, b)| square(a, b)).sum::<f64>() / 3.0
    }

    /// log mean_{i<j} exp(−2‖z_i − z_j‖²), mean of both views.
    fn uniformity(views: &Views) -> f64 {
        let of = |view: &[f64; 6]| {
            let z = unit(view);
            let pairs = [(0, 1), (0, 2), (1, 2)].map(|(i, j)| (-2.0 * square(&z[i], &z[j])).exp());
            (pairs.iter().sum::<f64>() / 3.0).ln()
        };
        (of(&views[0]) + of(&views[1])) / 2.0
    }

    const STEP: f64 = 1e-5;

    /// Central differences with respect to x, times ‖x‖.
    fn differences(loss: fn(&Views) -> f64) -> Vec<f64> {
        let moved = |view: usize, i: usize, by: f64| {
            let mut views = VIEWS;
            views[view][i] += by;
            loss(&views)
        };
        let derivative = |view: usize, i: usize| {
            let row = &VIEWS[view][i / 2 * 2..][..2];
            (moved(view, i, STEP) - moved(view, i, -STEP)) / (2.0 * STEP) * row[0].hypot(row[1])
        };
        (0..2).flat_map(|view| (0..6).map(move |i| derivative(view, i))).collect()
    }

    #[test]
    fn norms_and_cosines_are_those_of_finite_differences() {
        let found = gradients(&inputs(), &[(ALIGNMENT, 2.0), (UNIFORMITY, 0.5)]);
        let (a, u) = (differences(alignment), differences(uniformity));
        let product: f64 = a.iter().zip(&u).map(|(a, u)| a * u).sum();
        let sum: Vec<f64> = a.iter().zip(&u).map(|(a, u)| 2.0 * a + 0.5 * u).collect();
        // Third derivatives are below 1000: rows are longer than 0.5, and 1/‖x‖³ is below 8. A value takes a hundred
        // operations and is below 4. Twelve such entries, times lengths up to 2.1, and the largest weight.
        let one = tolerance::central_difference(STEP, 1000.0, 100, 4.0);
        let within = 12.0 * 2.1 * 2.0 * one;
        assert_within!(found.terms[0].norm, 2.0 * norm(&a), within);
        assert_within!(found.terms[1].norm, 0.5 * norm(&u), within);
        assert_within!(found.total, norm(&sum), 2.0 * within);
        // The two norms are larger than 0.5.
        let lengths = norm(&a) * norm(&u);
        assert!(norm(&a) > 0.5 && norm(&u) > 0.5);
        assert_within!(found.terms[1].cosines[0], product / lengths, 4.0 * within);
        assert!(found.terms[0].cosines.is_empty());
    }

    #[test]
    fn the_norm_of_alignment_has_a_closed_form() {
        // ∂/∂z_i of mean ‖z_i − z'_i‖² within the sphere is 2/B·√(1 − c²) long, with c = z_i·z'_i; the same for z'_i.
        let (a, b) = (unit(&VIEWS[0]), unit(&VIEWS[1]));
        let squares = a.iter().zip(&b).map(|(a, b)| 1.0 - (a[0] * b[0] + a[1] * b[1]).powi(2));
        let want = (2.0 / 3.0) * (2.0 * squares.sum::<f64>()).sqrt();
        let found = gradients(&inputs(), &[(ALIGNMENT, 1.0)]);
        // `l2_normalize` adds ε to squared lengths, which are 0.26 or more: three unit rows and a length are off by
        // ε/0.52 each. A hundred operations on numbers below 2; 1 − c² is 0.06 or more, so the root loses less than a
        // digit.
        let shorter = 4.0 * ops::NORM_EPSILON / 0.52 * want;
        assert_within!(found.terms[0].norm, want, shorter + tolerance::f64(100, 20.0));
        assert_eq!(found.total, found.terms[0].norm);
    }

    #[test]
    fn gradients_of_terms_add_up_to_that_of_the_objective() {
        let terms = [(ALIGNMENT, 2.0), (UNIFORMITY, 0.5), ("VicReg()", 0.1)];
        let found = gradients(&inputs(), &terms);
        let batch = Batch::new(&Cpu::default(), inputs()).unwrap();
        let whole = objective(&terms).evaluate(batch).unwrap().gradients;
        let whole = Direction::of(&whole, &[lengths(&inputs().views).unwrap(), Vec::new()]);
        // Three gradients, each from at most a hundred operations.
        let sum: f64 = found.terms.iter().map(|t| t.norm).sum();
        assert_within!(found.total, whole.norm, tolerance::f64(300, sum));
        // ‖Σg‖² = Σᵢⱼ cos(gᵢ, gⱼ)‖gᵢ‖‖gⱼ‖
        let mut squared = 0.0;
        for (i, a) in found.terms.iter().enumerate() {
            squared += a.norm.powi(2);
            squared +=
                a.cosines.iter().zip(&found.terms[..i]).map(|(c, b)| 2.0 * c * a.norm * b.norm).sum::<f64>();
        }
        assert_within!(squared, whole.norm.powi(2), tolerance::f64(600, sum.powi(2)));
    }

    #[test]
    fn equal_terms_agree_and_a_zero_gradient_has_no_direction() {
        let zero = "VicReg(invariance: 0, variance: 0, covariance: 0)";
        let found = gradients(&inputs(), &[("Dcl()", 1.0), ("Dcl()", 3.0), (zero, 1.0)]);
        let [once, thrice, none] = &found.terms[..] else { panic!("{found:?}") };
        assert_eq!(thrice.name, "Dcl#2");
        // The two gradients have the same bits: 12 numbers in an inner product and in two norms.
        assert_within!(thrice.cosines[0], 1.0, tolerance::f64(2 * 12 + 4, 1.0));
        assert_within!(thrice.norm / once.norm, 3.0, tolerance::f64(2, 3.0));
        assert_within!(found.total / once.norm, 4.0, tolerance::f64(2 * 12 + 4, 4.0));
        assert!(none.norm == 0.0 && none.cosines.iter().all(|c| c.is_nan()));
    }

    #[test]
    fn a_term_without_weight_has_a_direction_but_no_norm() {
        let found = gradients(&inputs(), &[(ALIGNMENT, 1.0), (UNIFORMITY, 0.0)]);
        let weighted = gradients(&inputs(), &[(ALIGNMENT, 1.0), (UNIFORMITY, 1.0)]);
        assert_eq!((found.terms[1].norm, found.total), (0.0, found.terms[0].norm));
        assert_eq!(found.terms[1].cosines, weighted.terms[1].cosines);
    }

    #[test]
    fn terms_behind_the_predictor_are_compared_only_with_each_other() {
        let predictions = inputs().views;
        let inputs = Inputs { predictions, ..inputs() };
        let found =
            gradients(&inputs, &[(ALIGNMENT, 1.0), ("CosinePrediction()", 1.0), ("CosinePrediction()", 2.0)]);
        let [_, first, second] = &found.terms[..] else { panic!("{found:?}") };
        assert!(first.norm > 0.0 && first.cosines[0].is_nan() && second.cosines[0].is_nan());
        assert_within!(second.cosines[1], 1.0, tolerance::f64(2 * 24 + 4, 1.0));
        assert!(found.total.is_nan());
        // Without weight, alignment takes no part in the sum.
        let found = gradients(&inputs, &[(ALIGNMENT, 0.0), ("CosinePrediction()", 1.0)]);
        assert_eq!(found.total, found.terms[1].norm);
    }
}
