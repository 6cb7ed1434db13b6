//! Swapped prediction of online cluster codes (SwAV), and the Sinkhorn iteration that computes the codes.

use super::local_views::LocalViews;
use crate::rows::{self, Rows};
use dfdx::prelude::*;
use pauc_traits::ops::{self, Matrix};
use pauc_traits::term::{After, Facts, FieldValue, Init, TermParameter};
use pauc_traits::{
    Backend, Batch, Clock, ContrastiveLoss, Count, Needs, Positive, Result, Scalar, Scheduled, TermInfo,
    TrainingSpan, Value, component,
};

component! {
    /// Predicts the cluster code of one view from the other, with learnable prototypes.
    ///
    /// ```text
    /// L = −½ [ mean_i Σ_j Q⁰_ij log softmax(z¹_i Cᵀ/τ)_j + mean_i Σ_j Q¹_ij log softmax(z⁰_i Cᵀ/τ)_j ]
    /// Q = Sinkhorn(z Cᵀ, ε)
    /// ```
    ///
    /// The codes Q are constants. Each row sums to one, and over the batch all prototypes get the same share.
    /// The prototypes C are learned with the network, rescaled to unit length after each step, and frozen at
    /// first.
    ///
    /// With `local_views: n`, views 2 to n+1 also predict: each code is predicted from all other views, and
    /// the loss is the mean over those. These views may be smaller than the first two, as in SwAV's
    /// `MultiCrop`.
    ///
    /// # Shapes
    /// 2 + `local_views` views (B, D), prototypes (K, D) → scalar.
    ///
    /// # Reading
    /// The chance level is ln K. The value cannot fall below the mean entropy of the codes.
    ///
    /// # Gradient
    /// Contracts samples toward learned prototypes; equal shares prevent collapse.
    ///
    /// # When to use
    /// If an epoch-wise clusterer is too slow, or there are no epochs. Use fewer prototypes than samples per
    /// batch; otherwise equal shares are impossible.
    ///
    /// ```text
    /// (term: SwappedAssignment(prototypes: 512))
    /// ```
    ///
    /// # Degenerate batches
    /// A single sample gets the uniform code.
    ///
    /// Source: Caron et al. 2020 (SwAV).
    pub struct SwappedAssignment: ContrastiveLoss {
        /// The number K of learnable prototypes.
        pub prototypes: Count = Count::lit(512),
        /// The temperature τ of the prediction.
        pub temperature: Scheduled<Positive> = Positive::lit(0.1).into(),
        /// The entropy weight ε of the codes.
        pub epsilon: Scheduled<Positive> = Positive::lit(0.05).into(),
        /// The number of Sinkhorn iterations.
        pub iterations: Count = Count::lit(3),
        /// How long the prototypes keep their initial values.
        pub freeze: TrainingSpan = TrainingSpan::epochs(1),
        /// The number of further views that predict codes, at most 14; they have no codes themselves.
        pub local_views: LocalViews = LocalViews::NONE,
    }
}

/// Computes codes with equal shares: alternately scales every column (prototype) of exp(scores/ε) to the same
/// sum and every row (sample) to sum one.
///
/// Computes in double precision, with the largest score shifted to zero. Entries whose score is more than
/// about 700·ε below the largest become zero.
///
/// # Shapes
/// (B, K) scores, row-major → (B, K) codes; each row sums to one.
///
/// # Panics
/// If `cols` is zero and `scores` is not empty.
pub fn sinkhorn(scores: &[f64], cols: usize, epsilon: f64, iterations: usize) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut q: Vec<f64> = scores.iter().map(|s| ((s - top) / epsilon).exp()).collect();
    for _ in 0..iterations {
        let mut sums = vec![0.0; cols];
        q.chunks_exact(cols).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, v)| *s += v));
        for row in q.chunks_exact_mut(cols) {
            row.iter_mut().zip(&sums).for_each(|(v, s)| *v /= s.max(f64::MIN_POSITIVE));
            let sum = row.iter().sum::<f64>();
            if sum > 0.0 {
                row.iter_mut().for_each(|v| *v /= sum);
            } else {
                // The whole row underflowed, so nothing is known about the sample.
                row.fill(1.0 / cols as f64);
            }
        }
    }
    q
}

impl SwappedAssignment {
    /// Returns the codes of a view as constants, and its scores.
    fn codes<E: Scalar, D: Backend<E>>(&self, scores: &Rows<E, D>, epsilon: f64) -> Result<Matrix<E, D>> {
        let shape = *scores.shape();
        let plain: Vec<f64> = ops::to_host(scores)?.into_iter().map(E::as_f64).collect();
        let codes = sinkhorn(&plain, shape.1, epsilon, self.iterations.get());
        Ok(ops::constant(scores.device(), codes.into_iter().map(E::of).collect(), shape))
    }
}

impl TermInfo for SwappedAssignment {
    fn needs(&self) -> Needs {
        Needs { queries: self.local_views.queries(), ..Needs::default() }
    }

    fn chance_level(&self, _: &Facts) -> Option<f64> {
        Some((self.prototypes.get() as f64).ln())
    }

    fn parameters(&self, facts: &Facts) -> Vec<TermParameter> {
        vec![TermParameter {
            name: "prototypes",
            rows: self.prototypes.get(),
            cols: facts.dim,
            init: Init::Normal(1.0 / (facts.dim.max(1) as f64).sqrt()),
            after: After::UnitRows,
            frozen: Some(self.freeze),
        }]
    }

    fn temperature(&self, clock: &Clock) -> Option<FieldValue> {
        Some(FieldValue { field: "temperature", value: self.temperature.at(clock) })
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for SwappedAssignment {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let tau = self.temperature.at(batch.clock());
        let prototypes = batch.parameter("prototypes")?;
        let scores = |v| Ok(ops::dot_rows(batch.z(v)?, prototypes.with_empty_tape()));
        let (a, b): (Rows<E, D>, Rows<E, D>) = (scores(0)?, scores(1)?);
        let epsilon = self.epsilon.at(batch.clock());
        let (codes_a, codes_b) = (self.codes(&a, epsilon)?, self.codes(&b, epsilon)?);
        let sum = rows::soft_cross_entropy(a / E::of(tau), codes_b.clone())
            + rows::soft_cross_entropy(b / E::of(tau), codes_a.clone());
        let mut sum = sum;
        for v in self.local_views.views() {
            // The loss is linear in the codes, so both are predicted at once.
            let both = codes_a.clone() + codes_b.clone();
            sum = sum + rows::soft_cross_entropy(scores(v)? / E::of(tau), both);
        }
        Ok(sum * E::of(self.local_views.share()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Condition, Data, Flow, Forms};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms = Forms {
        flow: Flow::Targets,
        extremes: &["temperature: 0.01, epsilon: 0.001"],
        ..Forms::of("SwappedAssignment")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("swapped_assignment", 1);
        let case = testing::golden_file().into_iter().find(|c| c["case"] == "sinkhorn/codes").unwrap();
        let flat = |v: &serde_json::Value| -> Vec<f64> {
            v.as_array()
                .unwrap()
                .iter()
                .flat_map(|r| r.as_array().unwrap())
                .map(|x| x.as_f64().unwrap())
                .collect()
        };
        let codes = sinkhorn(&flat(&case["inputs"]["scores"]), 4, 0.05, 3);
        let want = flat(&case["outputs"]["codes"]);
        // A score over ε, at most 1/ε, is off by some roundings, and so is the weight relative to itself.
        // Each of three rounds divides by a sum over eight rows and by one over four columns: a quotient is
        // off by twice as much.
        let allowed = tolerance::f64(2 * 3 + 3 * (8 + 4 + 2), 2.0 / 0.05);
        codes.iter().zip(&want).for_each(|(a, b)| assert_within!(*a, *b, allowed, "{codes:?}"));
    }

    #[test]
    fn codes_have_equal_shares() {
        let codes = sinkhorn(&testing::pattern(12, 4, 0.3), 4, 0.5, 200);
        for row in codes.chunks(4) {
            // Four quotients by their own sum.
            assert_within!(row.iter().sum::<f64>(), 1.0, tolerance::f64(8, 1.0));
        }
        for j in 0..4 {
            let share: f64 = codes.iter().skip(j).step_by(4).sum();
            // After 200 rounds only rounding is left: the last round divides columns by their sums of twelve,
            // then rows, and each row's sum is off by that of its four columns.
            assert_within!(share, 3.0, tolerance::f64(2 * (12 + 4 + 2), 3.0), "column {j}");
        }
        // Scores far apart neither overflow nor divide by zero.
        let hard = sinkhorn(&[1.0, -1.0, 1.0, -1.0], 2, 1e-4, 3);
        assert!(hard.iter().all(|v| v.is_finite()), "{hard:?}");
    }

    #[test]
    fn local_views_predict_both_codes_in_a_plain_loop() {
        let mut toy = Data::toy(7, 4);
        toy.views.extend([Some(testing::pattern(7, 4, 1.3)), Some(testing::pattern(7, 4, 2.9))]);
        let prototypes = toy.parameters["prototypes"].clone();
        let scores: Vec<Vec<f64>> = toy
            .views
            .iter()
            .map(|v| {
                let z: Vec<f64> = (0..7).flat_map(|i| testing::unit(v.as_ref().unwrap(), 4, i)).collect();
                let row = |z: &[f64]| prototypes.chunks(4).map(|c| testing::dot(z, c)).collect::<Vec<_>>();
                z.chunks(4).flat_map(row).collect()
            })
            .collect();
        let mut want = 0.0;
        for (code, own) in scores.iter().enumerate().take(2) {
            let q = sinkhorn(own, 5, 0.05, 3);
            for view in (0..4).filter(|v| *v != code) {
                for (q, s) in q.chunks(5).zip(scores[view].chunks(5)) {
                    let sum = s.iter().map(|s| (s / 0.1).exp()).sum::<f64>().ln();
                    let row: f64 = q.iter().zip(s).map(|(q, s)| -q * (s / 0.1 - sum)).sum();
                    want += row / 7.0 / 3.0 / 2.0;
                }
            }
        }
        let got = testing::value("SwappedAssignment(local_views: 2)", &toy);
        let text = "SwappedAssignment(local_views: 2, prototypes: 5)";
        assert_within!(got, want, Condition::of(text, &toy).of_value(tolerance::f64));
        let term = testing::term("SwappedAssignment(local_views: 2)");
        assert_eq!(term.info().needs().queries, [0, 1, 2, 3]);
    }

    #[test]
    fn declares_its_prototypes() {
        let facts = testing::facts(32, 16, &[]);
        let term = testing::term("SwappedAssignment(prototypes: 10)");
        let [p] = &term.info().parameters(&facts)[..] else { panic!("one parameter") };
        assert_eq!((p.name, p.rows, p.cols, p.after), ("prototypes", 10, 16, After::UnitRows));
        assert_eq!(p.frozen, Some(TrainingSpan::epochs(1)));
        assert_eq!(term.info().chance_level(&facts), Some(10f64.ln()));
    }
}
