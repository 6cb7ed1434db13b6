//! Prediction of one view's key by cosine (BYOL, SimSiam).

use crate::{findings, rows};
use pauc_traits::term::{Facts, Finding};
use pauc_traits::{Backend, Batch, ContrastiveLoss, Needs, Result, Scalar, TermInfo, Value, component, ops};

component! {
    /// Points each prediction at the key of the other view, without negatives.
    ///
    /// ```text
    /// L = mean_i (2 − 2·p_i·k_i)
    /// ```
    ///
    /// p is the unit output of the recipe's `predictor`, a head after the projector of the online network
    /// only. No gradient flows through the keys. With a momentum encoder they are its embeddings (BYOL);
    /// without one they are the embeddings of the other online view (SimSiam). In a recipe without a
    /// predictor, p is the unit embedding itself.
    ///
    /// # Shapes
    /// (B, D) views and keys → scalar.
    ///
    /// # Reading
    /// 0 is perfect, 2 is the chance level, and 4 means opposite vectors. A value near 0 from the start means
    /// collapse.
    ///
    /// # Gradient
    /// Only pulls each image to itself: it does not contract clusters on purpose, but nothing in it prevents
    /// that either. The predictor and the constant keys prevent collapse. Without a predictor nothing does,
    /// and `check` warns: combine the term with one that spreads embeddings, such as Uniformity.
    ///
    /// # When to use
    /// Without negatives, and thus with small batches: `two_sided: true` with a momentum encoder as in BYOL,
    /// or without one as in SimSiam. Use a predictor with a narrow hidden layer; batch normalization helps.
    ///
    /// ```text
    /// predictor: Mlp(dims: [64, 128], batch_norm: true),
    /// objective: [(term: CosinePrediction(two_sided: true))],
    /// ```
    ///
    /// # Degenerate batches
    /// Zero rows have cosine 0 to everything: the value is 2.
    ///
    /// Sources: Grill et al. 2020 (BYOL); Chen and He 2021 (SimSiam).
    pub struct CosinePrediction: ContrastiveLoss {
        /// Whether both views predict, with the mean of both losses.
        pub two_sided: bool = false,
    }
}

impl CosinePrediction {
    fn direction<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        (query, key): (usize, usize),
    ) -> Result<Value<E, D>> {
        let cosines = ops::row_dots(batch.prediction(query)?, rows::stop_gradient(batch.key(key)?));
        Ok(ops::mean(cosines) * E::of(-2.0) + E::of(2.0))
    }
}

impl TermInfo for CosinePrediction {
    fn needs(&self) -> Needs {
        if self.two_sided {
            Needs { predictions: &[0, 1], keys: &[0, 1], ..Needs::default() }
        } else {
            Needs { predictions: &[0], keys: &[1], ..Needs::default() }
        }
    }

    fn chance_level(&self, _: &Facts) -> Option<f64> {
        Some(2.0)
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        if facts.predictor {
            return Vec::new();
        }
        let message = "without a predictor, nothing in this term prevents collapse";
        let help = "add `predictor: Mlp(dims: [64, D])`, where D is the width of the projector, or a term that spreads \
                    embeddings";
        vec![findings::warning_of_term(findings::NO_PREDICTOR, message, help)]
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for CosinePrediction {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let forth = self.direction(batch, (0, 1))?;
        if self.two_sided { Ok((forth + self.direction(batch, (1, 0))?) * E::of(0.5)) } else { Ok(forth) }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Data, Flow, Forms};

    const FORMS: Forms =
        Forms { flow: Flow::WithMomentum, forms: &["", "two_sided: true"], ..Forms::of("CosinePrediction") };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("cosine_prediction", 1);
    }

    #[test]
    fn nothing_flows_into_online_keys() {
        let toy = Data::toy(5, 4);
        let outcome = testing::run::<f64>("CosinePrediction()", &toy.clone().without_momentum());
        assert!(outcome.gradients["view1"].iter().all(|g| *g == 0.0));
        let mut fixed = toy;
        fixed.keys = fixed.views.clone();
        let want = testing::run::<f64>("CosinePrediction()", &fixed);
        assert_eq!(outcome.gradients["view0"], want.gradients["view0"]);
    }

    #[test]
    fn predictions_take_precedence_over_embeddings() {
        let plain = Data::toy(5, 4);
        let mut toy = plain.clone().without_momentum();
        toy.predictions = plain.keys.clone();
        for text in ["CosinePrediction()", "CosinePrediction(two_sided: true)"] {
            testing::finite_differences(text, &Data { keys: plain.views.clone(), ..toy.clone() });
        }
        let outcome = testing::run::<f64>("CosinePrediction()", &toy);
        let swapped = Data { views: toy.predictions.clone(), keys: toy.views.clone(), ..plain };
        let want = testing::run::<f64>("CosinePrediction()", &swapped);
        assert_eq!(outcome.value, want.value);
        assert_eq!(outcome.gradients["prediction0"], want.gradients["view0"]);
        assert!(outcome.gradients["view0"].iter().chain(&outcome.gradients["view1"]).all(|g| *g == 0.0));
        let facts = testing::facts(8, 4, &[]);
        let codes = |facts| testing::term("CosinePrediction()").info().check(facts).len();
        assert_eq!(
            (codes(&facts), codes(&pauc_traits::term::Facts { predictor: true, ..facts.clone() })),
            (1, 0)
        );
    }
}
