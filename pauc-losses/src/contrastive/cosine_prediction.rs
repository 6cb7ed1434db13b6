//! Prediction of one view's key by cosine (BYOL, SimSiam).

use crate::rows;
use pauc_traits::term::Facts;
use pauc_traits::{Backend, Batch, ContrastiveLoss, Needs, Result, Scalar, TermInfo, Value, component, ops};

component! {
    /// Points each embedding at the key of the other view, without negatives.
    ///
    /// ```text
    /// L = mean_i (2 − 2·q_i·k_i)
    /// ```
    ///
    /// Nothing flows back through the keys, whether they come from a momentum encoder or are the other online view. q is
    /// the unit embedding itself: there is no predictor network between embedding and loss, unlike in BYOL and SimSiam.
    ///
    /// # Shapes
    /// (B, D) views and keys → scalar.
    ///
    /// # Reading
    /// 0 is perfect, 2 is chance, 4 opposite. A value near 0 from the start is collapse.
    ///
    /// # Gradient
    /// A pull alone. Without a predictor, nothing in this term keeps all embeddings from becoming one: combine it with
    /// a term that spreads, such as Uniformity or Variance.
    ///
    /// ```text
    /// (term: CosinePrediction(two_sided: true)), (term: Uniformity(level: Instances), weight: 0.5)
    /// ```
    ///
    /// Sources: Grill et al. 2020 (BYOL); Chen and He 2021 (SimSiam).
    pub struct CosinePrediction: ContrastiveLoss {
        /// Whether both views predict, and the mean is taken.
        pub two_sided: bool = false,
    }
}

impl CosinePrediction {
    fn direction<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        (query, key): (usize, usize),
    ) -> Result<Value<E, D>> {
        let cosines = ops::row_dots(batch.z(query)?, rows::stop_gradient(batch.key(key)?));
        Ok(ops::mean(cosines) * E::of(-2.0) + E::of(2.0))
    }
}

impl TermInfo for CosinePrediction {
    fn needs(&self) -> Needs {
        if self.two_sided {
            Needs { queries: &[0, 1], keys: &[0, 1], ..Needs::default() }
        } else {
            Needs { queries: &[0], keys: &[1], ..Needs::default() }
        }
    }

    fn chance_level(&self, _: &Facts) -> Option<f64> {
        Some(2.0)
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
    use crate::testing::{self, Data};

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("cosine_prediction", 1);
    }

    #[test]
    fn gradients_and_invariances() {
        for text in ["CosinePrediction()", "CosinePrediction(two_sided: true)"] {
            let toy = Data::toy(5, 4);
            testing::finite_differences(text, &toy);
            testing::permutation_invariant(text, &toy);
            testing::rotation_invariant(text, &toy);
            testing::finite(text);
        }
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
}
