//! Self-distillation with centering and sharpening (DINO).

use super::local_views::LocalViews;
use crate::rows;
use dfdx::prelude::*;
use pauc_traits::ops::{self, Matrix};
use pauc_traits::term::{After, Facts, FieldValue, Init, TermParameter};
use pauc_traits::{
    Backend, Batch, Clock, ContrastiveLoss, Count, Needs, Positive, Result, Scalar, Scheduled, TermInfo,
    TrainingSpan, UnitInterval, Value, component,
};

component! {
    /// Predicts the momentum branch's distribution over learned prototypes from the other view.
    ///
    /// ```text
    /// L = mean over both directions, mean_i −Σ_j P_ij log softmax(q_i·Cᵀ/τ_s)_j
    /// P = softmax((k·Cᵀ − c)/τ_t),   c ← m·c + (1 − m)·mean over the batch and both views of k·Cᵀ
    /// ```
    ///
    /// The learnable matrix C with unit rows corresponds to DINO's weight-normalized last layer. The center c
    /// starts at zero, is updated after use, and is kept in checkpoints. One thing differs from the source:
    /// the momentum branch reads the same C instead of a moving average of it. No gradient flows through P.
    ///
    /// With `local_views: n`, views 2 to n+1 also predict: each P is predicted from all other views, and the loss is
    /// the mean over those. These views may be smaller than the first two, as in DINO's multi-crop.
    ///
    /// # Shapes
    /// 2 + `local_views` views (B, D), keys (B, D), prototypes (K, D) → scalar.
    ///
    /// # Reading
    /// The chance level is ln K. The value cannot fall below the mean entropy of P; near it, the student has
    /// caught up with the teacher.
    ///
    /// # Gradient
    /// Uses no negatives. Contracts samples toward the learned prototypes. The low τ_t sharpens P, and the
    /// center keeps one prototype from attracting all samples; both are needed.
    ///
    /// # When to use
    /// With a momentum encoder, if there is no clusterer or batches are too small for equal shares. Raise
    /// `teacher_temperature` from 0.04 over the first epochs. A value that falls to 0 at once means collapse.
    ///
    /// ```text
    /// (term: SelfDistillation(prototypes: 1024, teacher_temperature: Linear(from: 0.04, to: 0.07, over: Epochs(30))))
    /// ```
    ///
    /// # Degenerate batches
    /// With `centre_momentum: None`, a single sample is its own center: P is uniform.
    ///
    /// Source: Caron et al. 2021 (DINO).
    pub struct SelfDistillation: ContrastiveLoss {
        /// The number K of learnable prototypes.
        pub prototypes: Count = Count::lit(1024),
        /// The temperature τ_s of the online branch.
        pub student_temperature: Scheduled<Positive> = Positive::lit(0.1).into(),
        /// The temperature τ_t of the momentum branch.
        pub teacher_temperature: Scheduled<Positive> = Positive::lit(0.04).into(),
        /// The momentum m of the running center; None: the center is the mean of the current keys of each
        /// view.
        pub centre_momentum: Option<UnitInterval> = Some(UnitInterval::lit(0.9)),
        /// How long the prototypes keep their initial values.
        pub freeze: TrainingSpan = TrainingSpan::epochs(1),
        /// The number of further views that predict P, at most 14; the momentum branch does not see them.
        #[added_in("0.3")]
        pub local_views: LocalViews = LocalViews::NONE,
    }
}

impl SelfDistillation {
    /// Returns the distribution P of a view's keys over the prototypes, and the mean scores of the keys.
    fn targets<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        key: usize,
        running: Option<&Matrix<E, D>>,
    ) -> Result<(Matrix<E, D>, Vec<E>)> {
        let teacher = E::of(self.teacher_temperature.at(batch.clock()));
        let prototypes: Matrix<E, D> = rows::stop_gradient(batch.parameter("prototypes")?.with_empty_tape());
        let scores = ops::dot_rows(batch.momentum_key(key)?, prototypes);
        let shape = *scores.shape();
        let mean = scores.clone().sum::<(usize,), Axis<0>>() / E::of(shape.0 as f64);
        let current = mean.as_vec();
        let centre = running.map_or(mean, |c| c.clone().reshape_like(&(shape.1,)));
        let targets = ((scores - centre.broadcast_like::<_, Axis<0>>(&shape)) / teacher).softmax::<Axis<1>>();
        Ok((targets, current))
    }

    /// Returns the cross-entropy between targets and what a view predicts.
    fn prediction<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        view: usize,
        targets: Matrix<E, D>,
    ) -> Result<Value<E, D>> {
        let student = E::of(self.student_temperature.at(batch.clock()));
        let logits = ops::dot_rows(batch.z(view)?, batch.parameter("prototypes")?) / student;
        Ok(rows::soft_cross_entropy(logits, targets))
    }
}

impl TermInfo for SelfDistillation {
    fn needs(&self) -> Needs {
        Needs { queries: self.local_views.queries(), keys: &[0, 1], momentum: true, ..Needs::default() }
    }

    fn chance_level(&self, _: &Facts) -> Option<f64> {
        Some((self.prototypes.get() as f64).ln())
    }

    fn parameters(&self, facts: &Facts) -> Vec<TermParameter> {
        let mut all = vec![TermParameter {
            name: "prototypes",
            rows: self.prototypes.get(),
            cols: facts.dim,
            init: Init::Normal(1.0 / (facts.dim.max(1) as f64).sqrt()),
            after: After::UnitRows,
            frozen: Some(self.freeze),
        }];
        if self.centre_momentum.is_some() {
            let (rows, cols, init, after) =
                (1, self.prototypes.get(), Init::Constant(0.0), After::Remembered);
            all.push(TermParameter { name: "centre", rows, cols, init, after, frozen: None });
        }
        all
    }

    fn temperature(&self, clock: &Clock) -> Option<FieldValue> {
        Some(FieldValue { field: "student_temperature", value: self.student_temperature.at(clock) })
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for SelfDistillation {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let running = self.centre_momentum.map(|_| batch.remembered("centre")).transpose()?;
        let (of_second, second) = self.targets(batch, 1, running.as_ref())?;
        let (of_first, first) = self.targets(batch, 0, running.as_ref())?;
        let mut sum =
            self.prediction(batch, 0, of_second.clone())? + self.prediction(batch, 1, of_first.clone())?;
        for view in self.local_views.views() {
            // The loss is linear in the targets, so those of both views are predicted at once.
            sum = sum + self.prediction(batch, view, of_second.clone() + of_first.clone())?;
        }
        if let (Some(m), Some(centre)) = (self.centre_momentum, running) {
            let m = E::of(m.get());
            let share = (E::one() - m) * E::of(0.5);
            let new = centre.as_vec().into_iter().zip(second.into_iter().zip(first));
            batch.remember("centre", new.map(|(c, (a, b))| c * m + (a + b) * share).collect())?;
        }
        Ok(sum * E::of(self.local_views.share()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Condition, Data, Flow, Forms, dot, unit};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms = Forms {
        flow: Flow::Targets,
        forms: &["", "centre_momentum: None"],
        extremes: &[
            "student_temperature: 0.01, teacher_temperature: 0.01",
            "student_temperature: 0.01, teacher_temperature: 0.001",
        ],
        ..Forms::of("SelfDistillation")
    };
    testing::inventory::submit! { FORMS }

    /// The loss in plain loops. Targets come from `fixed`, the student from `data`.
    fn naive(data: &Data, fixed: &Data, running: bool) -> f64 {
        let views = data.views.len();
        let k = data.parameters["prototypes"].len() / data.dim;
        let softmax = |logits: Vec<f64>| {
            let sum: f64 = logits.iter().map(|v| v.exp()).sum();
            logits.into_iter().map(|v| v.exp() / sum).collect::<Vec<_>>()
        };
        let scores = |m: &Option<Vec<f64>>, i: usize, c: &[f64]| -> Vec<f64> {
            let row = unit(m.as_ref().unwrap(), data.dim, i);
            (0..k).map(|j| dot(&row, &c[j * data.dim..(j + 1) * data.dim])).collect()
        };
        let mut sum = 0.0;
        for key in [1, 0] {
            let c = &fixed.parameters["prototypes"];
            let teacher: Vec<Vec<f64>> = (0..data.rows).map(|i| scores(&fixed.keys[key], i, c)).collect();
            let mean = |j| teacher.iter().map(|r| r[j]).sum::<f64>() / data.rows as f64;
            let centre: Vec<f64> =
                if running { fixed.parameters["centre"].clone() } else { (0..k).map(mean).collect() };
            for (i, t) in teacher.iter().enumerate() {
                let p = softmax((0..k).map(|j| (t[j] - centre[j]) / 0.04).collect());
                let c = &data.parameters["prototypes"];
                for view in (0..views).filter(|view| *view != key) {
                    let s = softmax(scores(&data.views[view], i, c).iter().map(|v| v / 0.1).collect());
                    sum -= (0..k).map(|j| p[j] * s[j].ln()).sum::<f64>();
                }
            }
        }
        sum / (2 * (views - 1) * data.rows) as f64
    }

    #[test]
    fn equals_plain_loops_with_constant_targets() {
        for (text, running) in
            [("SelfDistillation()", true), ("SelfDistillation(centre_momentum: None)", false)]
        {
            equals_plain_loops(text, &Data::toy(5, 4), running);
        }
    }

    #[test]
    fn local_views_predict_both_distributions() {
        let mut toy = Data::toy(5, 4);
        toy.views.extend([Some(testing::pattern(5, 4, 1.3)), Some(testing::pattern(5, 4, 2.9))]);
        equals_plain_loops("SelfDistillation(local_views: 2)", &toy, true);
        equals_plain_loops("SelfDistillation(local_views: 2, centre_momentum: None)", &toy, false);
        let info = testing::term("SelfDistillation(local_views: 2)");
        let needs = info.info().needs();
        assert_eq!((needs.queries, needs.keys), (&[0, 1, 2, 3][..], &[0, 1][..]));
    }

    fn equals_plain_loops(text: &str, toy: &Data, running: bool) {
        let outcome = testing::run::<f64>(text, toy);
        let condition = Condition::of(text, toy);
        assert_within!(outcome.value, naive(toy, toy, running), condition.of_value(tolerance::f64));
        testing::differences(&outcome, toy, &condition, |moved| naive(moved, toy, running));
    }

    #[test]
    fn the_centre_follows_the_mean_scores() {
        let toy = Data::toy(5, 4);
        let dev = Cpu::default();
        let batch = Batch::<f64, Cpu>::new(&dev, toy.inputs(&dev)).unwrap();
        let value = testing::term("SelfDistillation(centre_momentum: 0.75)").evaluate(&batch).unwrap();
        let new = batch.backward(value).unwrap().remembered["centre"].clone();
        for (j, new) in new.into_iter().enumerate() {
            let c = &toy.parameters["prototypes"][j * 4..j * 4 + 4];
            let score = |key: usize, i| dot(&unit(toy.keys[key].as_ref().unwrap(), 4, i), c);
            let mean = (0..5).map(|i| score(0, i) + score(1, i)).sum::<f64>() / 10.0;
            let want = 0.75 * toy.parameters["centre"][j] + 0.25 * mean;
            // Inner products of four elements of unit rows, their mean over ten, and the average with the old
            // center.
            assert_within!(new, want, tolerance::f64(2 * 4 + 3 + 10 + 3, 1.0), "{j}");
        }
    }

    #[test]
    fn needs_momentum_keys() {
        let error =
            testing::try_run::<f64>("SelfDistillation()", &Data::toy(5, 4).without_momentum()).unwrap_err();
        assert!(error.to_string().contains("momentum keys"), "{error}");
        let facts = testing::facts(32, 16, &[]);
        assert_eq!(testing::term("SelfDistillation()").info().chance_level(&facts), Some(1024f64.ln()));
        assert_eq!(testing::term("SelfDistillation()").info().parameters(&facts)[0].init, Init::Normal(0.25));
    }
}
