//! The Kozachenko–Leonenko entropy estimator as a regularizer.

use crate::{findings, rows};
use dfdx::prelude::*;
use pauc_traits::term::{Facts, Finding};
use pauc_traits::{Backend, Batch, Needs, Regularizer, Result, Scalar, TermInfo, Value, component, ops};

component! {
    /// Pushes each embedding away from its nearest neighbor in the batch.
    ///
    /// ```text
    /// L = −mean_i log(min_{j≠i} ‖z_i − z_j‖ + 1e-8)
    /// ```
    ///
    /// It reads the unit embeddings of view 0.
    ///
    /// # Shapes
    /// (B, D) → scalar.
    ///
    /// # Reading
    /// Lower is more even. It estimates the negative entropy of the embeddings up to constants that depend on
    /// B and D, so it has no chance level. Equal rows give 18.4 = −ln 1e-8.
    ///
    /// # Gradient
    /// Acts on the nearest pairs only, with size 1/distance; it does the opposite of contracting clusters.
    /// Two equal rows get no gradient, since its direction is undefined.
    ///
    /// # When to use
    /// With a small weight, beside a term that pulls embeddings together, to keep them evenly spread, as in
    /// DINOv2.
    ///
    /// ```text
    /// (term: KoLeo(), weight: 0.1)
    /// ```
    ///
    /// # Degenerate batches
    /// With one sample there is no neighbor: the term is skipped.
    ///
    /// Source: Sablayrolles et al. 2019.
    pub struct KoLeo: Regularizer {}
}

/// Returns the nearest other row of each row by inner product, which for unit rows is the nearest by
/// distance. Ties go to the first. Zero rows are as far from every row as an orthogonal unit row.
fn nearest(similarities: &[f64], n: usize) -> Vec<usize> {
    let best = |i: usize| {
        let others = (0..n).filter(|j| *j != i);
        others.fold((usize::MAX, f64::NEG_INFINITY), |best, j| {
            let s = similarities[i * n + j];
            if best.0 == usize::MAX || s > best.1 { (j, s) } else { best }
        })
    };
    (0..n).map(|i| best(i).0).collect()
}

impl TermInfo for KoLeo {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], ..Needs::default() }
    }

    fn chance_level(&self, _: &Facts) -> Option<f64> {
        None
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        findings::at_least_two(facts)
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for KoLeo {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let n = batch.size();
        if n < 2 {
            return Ok(batch.skip("one sample has no neighbor"));
        }
        let z = batch.z(0)?;
        let plain = rows::stop_gradient(z.with_empty_tape());
        let similarities = ops::to_host(&ops::dot_rows(plain.clone(), plain))?;
        let similarities: Vec<f64> = similarities.into_iter().map(E::as_f64).collect();
        let neighbors = rows::gather(z.with_empty_tape(), &nearest(&similarities, n));
        let squared = (z - neighbors).square().sum::<(usize,), Axis<1>>();
        let distances = (squared + E::of(1e-16)).sqrt();
        Ok(ops::mean((distances + E::of(1e-8)).ln()) * E::of(-1.0))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("ko_leo", 1);
    }
}
