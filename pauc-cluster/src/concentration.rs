//! The concentration of prototypes: how tightly the samples of a prototype lie around it.

use crate::on_ranks::Rows;
use num_traits::Float;
use pauc_kernels::distance::squared_distance;
use pauc_traits::probe::RowsView;
use pauc_traits::{Clustering, Error, Result};
use serde::{Deserialize, Serialize};

/// Which prototypes share a concentration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConcentrationKind {
    /// Each prototype has its own, as in PCL; the mean over a level is the temperature.
    #[default]
    PerPrototype,
    /// The prototypes of a level share the level's mean. Levels differ, and their mean is the temperature.
    PerLevel,
    /// Every concentration is the temperature.
    Constant,
}

impl ConcentrationKind {
    /// Computes φ of the prototypes of all levels, as [`concentration`] defines it for one level.
    ///
    /// `PerLevel` gives each level the mean of the unscaled values of [`concentration`]: levels with more
    /// prototypes are tighter and get a smaller φ.
    ///
    /// # Shapes
    /// features (N, D), clusterings of N samples into K_m → K_m per level
    ///
    /// # Errors
    /// If the numbers of samples or dimensions disagree, or another rank has failed.
    pub fn of_levels(
        self,
        features: &Rows<'_>,
        levels: &[Clustering],
        alpha: f64,
        temperature: f64,
    ) -> Result<Vec<Vec<f32>>> {
        let spreads = levels.iter().map(|c| Spread::new(features, c)).collect::<Result<Vec<_>>>()?;
        let phi = self.of_spreads(&spreads, alpha, temperature);
        Ok(phi.into_iter().map(|level| level.into_iter().map(|v| v as f32).collect()).collect())
    }

    /// [`of_levels`](Self::of_levels), from the spread of each level.
    ///
    /// # Shapes
    /// spreads of K_m prototypes → K_m per level
    pub fn of_spreads<F: Float>(self, levels: &[Spread<F>], alpha: F, temperature: F) -> Vec<Vec<F>> {
        let mean = |phi: &[F]| {
            let total = phi.iter().fold(F::zero(), |a, b| a + *b);
            total / F::from(phi.len().max(1)).unwrap_or_else(F::infinity)
        };
        match self {
            ConcentrationKind::PerPrototype => {
                levels.iter().map(|level| concentration_of(level, alpha, temperature)).collect()
            }
            ConcentrationKind::Constant => {
                levels.iter().map(|level| vec![temperature; level.sizes.len()]).collect()
            }
            ConcentrationKind::PerLevel => {
                let means: Vec<F> = levels.iter().map(|level| mean(&clipped_spreads(level, alpha))).collect();
                let all = mean(&means);
                let scaled = |m: F| if all > F::zero() { m / all * temperature } else { temperature };
                levels.iter().zip(means).map(|(level, m)| vec![scaled(m); level.sizes.len()]).collect()
            }
        }
    }
}

/// Computes the concentration φ of each prototype:
/// φ_c = mean_z‖x_z − c‖₂ / ln(Z + α) over its Z samples, distances to the centroid as fitted.
///
/// Prototypes with at most one sample get the largest φ of the others. Then φ is clipped to its 10th and 90th
/// percentile (linear interpolation) and scaled so that its mean is `temperature`. If no prototype has two
/// samples, or none has any spread, all are equal to `temperature`.
///
/// The features are those that were clustered (unit length in a recipe). The centroids must be as fitted,
/// without a later normalization.
///
/// # Shapes
/// features (N, D), clustering of N samples into K → K
///
/// # Errors
/// If the numbers of samples or dimensions disagree.
///
/// Source: Li et al. 2021 (PCL), and the authors' code.
///
/// # Examples
///
/// ```
/// use pauc_cluster::{KMeans, concentration};
/// use pauc_traits::clusterer::{Clusterer, FitContext};
/// use pauc_traits::{Count, probe::RowsView};
///
/// // A wide group around 0, and a narrow one around 10.
/// let rows = RowsView::new(&[-1.0, 0.0, 1.0, 9.9, 10.0, 10.1], 1);
/// let clustering = &KMeans::with(vec![Count::lit(2)]).fit(rows, FitContext::new(0))?[0];
///
/// let phi = concentration(rows, clustering, 10.0, 0.2)?;
/// let of_sample = |i: usize| phi[clustering.assignments[i].unwrap() as usize];
/// assert!(of_sample(0) > of_sample(3));
/// assert!(((phi[0] + phi[1]) / 2.0 - 0.2).abs() < 1e-6);
/// # Ok::<(), pauc_traits::Error>(())
/// ```
pub fn concentration(
    features: RowsView<'_>,
    clustering: &Clustering,
    alpha: f64,
    temperature: f64,
) -> Result<Vec<f32>> {
    let spread = Spread::new(&Rows::alone(features), clustering)?;
    Ok(concentration_of(&spread, alpha, temperature).into_iter().map(|v| v as f32).collect())
}

/// The distances of samples to their centroids, for the K prototypes of a level.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread<F> {
    /// Σ‖x − c‖ over the samples of each prototype.
    pub distances: Vec<F>,
    /// The number of samples of each prototype.
    pub sizes: Vec<usize>,
}

impl Spread<f64> {
    /// Measures a clustering.
    ///
    /// # Shapes
    /// features (N, D), clustering of N samples into K
    ///
    /// # Errors
    /// If the numbers of samples or dimensions disagree, or another rank has failed.
    pub fn new(features: &Rows<'_>, clustering: &Clustering) -> Result<Self> {
        if features.len() != clustering.assignments.len() || features.cols() != clustering.dim {
            return Err(Error::shape(
                "concentration",
                format!(
                    "features are {}×{}, but the clustering is of {}×{}",
                    features.len(),
                    features.cols(),
                    clustering.assignments.len(),
                    clustering.dim
                ),
            ));
        }
        let (mut distances, mut sizes) = (vec![0.0f64; clustering.k], vec![0usize; clustering.k]);
        let own = features.own().iter().zip(&clustering.assignments[features.range()]);
        let sq_dist = own.map(|(x, c)| {
            c.map_or(0.0, |c| {
                squared_distance(x, &clustering.centroids[c as usize * clustering.dim..][..clustering.dim])
            })
        });
        let sq_dist = features.complete(sq_dist.collect())?;
        for (sq_dist, c) in sq_dist.iter().zip(&clustering.assignments) {
            if let Some(c) = c.map(|c| c as usize) {
                distances[c] += (*sq_dist as f64).sqrt();
                sizes[c] += 1;
            }
        }
        Ok(Spread { distances, sizes })
    }
}

/// Computes [`concentration`] from the spread of K prototypes.
///
/// # Shapes
/// → K
pub fn concentration_of<F: Float>(spread: &Spread<F>, alpha: F, temperature: F) -> Vec<F> {
    let mut phi = clipped_spreads(spread, alpha);
    let total = phi.iter().fold(F::zero(), |a, b| a + *b);
    let mean = total / F::from(phi.len()).unwrap_or_else(F::infinity);
    for v in &mut phi {
        *v = if mean > F::zero() { *v / mean * temperature } else { temperature };
    }
    phi
}

/// Returns mean distance / ln(size + α) of each prototype, clipped to the 10th and 90th percentile.
fn clipped_spreads<F: Float>(spread: &Spread<F>, alpha: F) -> Vec<F> {
    let count = |n: usize| F::from(n).unwrap_or_else(F::infinity);
    // `None` for a prototype with at most one sample.
    let own =
        |(sum, size): (&F, &usize)| (*size > 1).then(|| *sum / count(*size) / (count(*size) + alpha).ln());
    let all: Vec<Option<F>> = spread.distances.iter().zip(&spread.sizes).map(own).collect();
    let largest = all.iter().flatten().copied().fold(F::zero(), F::max);
    let mut phi: Vec<F> = all.into_iter().map(|own| own.unwrap_or(largest)).collect();
    let mut sorted = phi.clone();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let tenth = F::one() / count(10);
    let (low, high) = (quantile(&sorted, tenth), quantile(&sorted, F::one() - tenth));
    phi.iter_mut().for_each(|v| *v = v.max(low).min(high));
    phi
}

/// Returns the quantile `q`, from 0 to 1, of ascending values, with linear interpolation; NaN without values.
pub fn quantile<F: Float>(sorted: &[F], q: F) -> F {
    let Some(last) = sorted.len().checked_sub(1) else { return F::nan() };
    let position = q * F::from(last).unwrap_or_else(F::nan);
    let below = position.floor().to_usize().unwrap_or(0).min(last);
    let fraction = position - position.floor();
    let (a, b) = (sorted[below], sorted[(below + 1).min(last)]);
    a + (b - a) * fraction
}

/// Scales each row of `dim` values to unit length. A row of zeros is unchanged.
///
/// # Shapes
/// data (N, D), row-major
pub fn unit_rows(data: &mut [f32], dim: usize) {
    for row in data.chunks_exact_mut(dim.max(1)) {
        let length = row.iter().map(|v| *v as f64 * *v as f64).sum::<f64>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|v| *v = (*v as f64 / length) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{sq_dist, widened};
    use pauc_testing::{assert_within, tolerance};
    use serde_json::Value;

    fn numbers(v: &Value) -> Vec<f64> {
        match v {
            Value::Array(items) => items.iter().flat_map(numbers).collect(),
            v => vec![v.as_f64().unwrap()],
        }
    }

    #[test]
    fn agrees_with_the_authors_procedure() {
        let golden: Vec<Value> =
            serde_json::from_str(include_str!("../tests/golden/concentration.json")).unwrap();
        assert_eq!(golden.len(), 2);
        for case in golden {
            let inputs = &case["inputs"];
            let dim = inputs["features"][0].as_array().unwrap().len();
            let (x, c) = (numbers(&inputs["features"]), numbers(&inputs["centroids"]));
            let assignments: Vec<usize> =
                numbers(&inputs["assignments"]).iter().map(|a| *a as usize).collect();
            let k = c.len() / dim;
            let (mut sums, mut sizes) = (vec![0.0; k], vec![0; k]);
            for (i, a) in assignments.iter().enumerate() {
                let sq_dist: f64 = (0..dim).map(|l| (x[i * dim + l] - c[a * dim + l]).powi(2)).sum();
                sums[*a] += sq_dist.sqrt();
                sizes[*a] += 1;
            }
            let spread = Spread { distances: sums.clone(), sizes: sizes.clone() };
            let (alpha, t) =
                (case["config"]["alpha"].as_f64().unwrap(), case["config"]["temperature"].as_f64().unwrap());
            let want = numbers(&case["outputs"]["concentration"]);
            // All terms are positive. A distance has dim + 4 roundings; their mean, the logarithm, the
            // quantile and the scaling by the mean have the rest.
            let operations = dim + assignments.len() + k + 20;
            for (got, want) in concentration_of(&spread, alpha, t).iter().zip(&want) {
                assert_within!(*got, *want, tolerance::f64(operations, *want));
            }
            let clustering = Clustering {
                k,
                dim,
                centroids: c.iter().map(|v| *v as f32).collect(),
                assignments: assignments.iter().map(|a| Some(*a as u32)).collect(),
                report: Default::default(),
            };
            let x: Vec<f32> = x.iter().map(|v| *v as f32).collect();
            let single = concentration(RowsView::new(&x, dim), &clustering, alpha, t).unwrap();
            assert_eq!(single.len(), want.len());
            // A sample and its centroid are rounded to f32, which moves their distance by u·(‖x‖ + ‖c‖), and
            // its square has dim + 2 roundings. The mean distance of a prototype is off by the mean of these
            // errors. Quantiles are monotone, so clipping does not increase the largest relative error of φ.
            // Dividing by the mean of all φ doubles it, and the quotient is rounded.
            let mut off = vec![0.0; k];
            for (x, a) in x.chunks(dim).zip(&assignments) {
                let centroid = widened(&clustering.centroids[a * dim..][..dim]);
                let norms = sq_dist(x, &vec![0.0; dim]).sqrt() + sq_dist(&vec![0.0; dim], &centroid).sqrt();
                off[*a] += tolerance::f32(1, norms) + tolerance::f32(dim + 2, sq_dist(x, &centroid).sqrt());
            }
            let crowded = (0..k).filter(|c| sizes[*c] > 1);
            let relative = crowded.map(|c| off[c] / sums[c]).fold(0.0, f64::max);
            for (got, want) in single.iter().zip(&want) {
                assert_within!(*got, *want, want * (2.0 * relative + tolerance::f32(1, 1.0)));
            }
            assert!(concentration(RowsView::new(&x[dim..], dim), &clustering, alpha, t).is_err());
        }
    }

    #[test]
    fn kinds_of_concentration() {
        // Distance 1 within both prototypes of the first level, and 2 within the only prototype of the
        // second.
        let x = [0.0f32, 2.0, 10.0, 12.0];
        let level = |centroids: &[f32], assignments: &[u32]| Clustering {
            k: centroids.len(),
            dim: 1,
            centroids: centroids.to_vec(),
            assignments: assignments.iter().copied().map(Some).collect(),
            report: Default::default(),
        };
        let levels = [level(&[1.0, 11.0], &[0, 0, 1, 1]), level(&[6.0], &[0; 4])];
        let phi = |kind: ConcentrationKind| {
            kind.of_levels(&Rows::alone(RowsView::new(&x, 1)), &levels, 10.0, 0.2).unwrap()
        };
        assert_eq!(phi(ConcentrationKind::Constant), [vec![0.2; 2], vec![0.2]]);
        assert_eq!(phi(ConcentrationKind::PerPrototype), [vec![0.2; 2], vec![0.2]]);
        let (a, b) = (1.0 / 12f64.ln(), 5.0 / 14f64.ln());
        let want = [a, b].map(|v| (v / ((a + b) / 2.0) * 0.2) as f32);
        assert_eq!(phi(ConcentrationKind::PerLevel), [vec![want[0]; 2], vec![want[1]]]);
        let same = [level(&[1.0], &[0; 3])];
        let none = ConcentrationKind::PerLevel
            .of_levels(&Rows::alone(RowsView::new(&[1.0; 3], 1)), &same, 10.0, 0.2)
            .unwrap();
        assert_eq!(none, [[0.2]], "no spread at all");
    }

    #[test]
    fn without_spread_all_are_the_temperature() {
        let phi = |distances: &[f64], sizes: &[usize]| {
            concentration_of(&Spread { distances: distances.to_vec(), sizes: sizes.to_vec() }, 10.0, 0.2)
        };
        assert_eq!(phi(&[0.0, 0.0, 0.0], &[5, 1, 0]), [0.2; 3]);
        assert_eq!(phi(&[0.3, 0.1], &[1, 1]), [0.2; 2]);
        assert!(phi(&[], &[]).is_empty());
    }

    #[test]
    fn quantiles_interpolate() {
        let v = [1.0, 2.0, 4.0];
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|q| quantile(&v, q)), [1.0, 1.5, 2.0, 3.0, 4.0]);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
        assert!(quantile::<f64>(&[], 0.5).is_nan());
    }

    #[test]
    fn rows_get_unit_length_and_zeros_stay() {
        let mut rows = [3.0, 4.0, 0.0, 0.0, 1e-30, 0.0];
        unit_rows(&mut rows, 2);
        assert_eq!(rows, [0.6, 0.8, 0.0, 0.0, 1.0, 0.0]);
    }
}
