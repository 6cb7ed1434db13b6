//! A mixture of Gaussians.

use crate::KMeans;
use crate::lloyd::{clustering_of, report};
use crate::on_ranks::Rows;
use pauc_kernels::gemm::{Strides, gemm};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::{
    Clusterer, Clustering, Count, NonNegative, Positive, Result, TrainingSpan, component, progress, stop,
};
use rayon::prelude::*;

component! {
    /// A Gaussian mixture with diagonal covariances, fitted by expectation maximization from k-means.
    ///
    /// p(x) = Σ_j π_j N(x; μ_j, diag σ_j²). A sample goes to its most probable component, and centroids are
    /// the means μ. `floor` times the mean variance of the data is added to each variance, so that a
    /// component of a single sample stays finite. The reported objectives are not sums of squares but the
    /// mean negative log-likelihood in nats, before each update and at the end.
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    ///
    /// Source: Dempster, Laird & Rubin 1977.
    pub struct GaussianMixture: Clusterer {
        /// The number of prototypes of each level. A recipe that leaves it out gets numbers that follow its
        /// images and its batch.
        pub k: Vec<Count> = Vec::new(),
        /// The maximum number of iterations.
        pub iterations: Count = Count::lit(50),
        /// Stops when an iteration lowers the mean negative log-likelihood by no more than this.
        pub tolerance: NonNegative = NonNegative::lit(1e-3),
        /// The amount added to each variance, relative to the mean variance of the data.
        pub floor: Positive = Positive::lit(1e-4),
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for GaussianMixture {
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let starts = KMeans::with(self.k.clone()).fit_checked(rows, context)?;
        let all = Rows::of(rows, &context)?.all()?;
        let rows = RowsView::new(&all, rows.cols);
        // Center on the mean of the data, to avoid cancellation between x² and μ².
        let whole = clustering_of(rows, vec![Some(0); rows.rows], 1, Vec::new());
        let center = whole.centroids;
        let mut data = rows.data.to_vec();
        data.par_chunks_mut(rows.cols).for_each(|row| row.iter_mut().zip(&center).for_each(|(v, m)| *v -= m));
        let spread = whole.report.objective[0] / (rows.rows * rows.cols) as f64;
        // Without any spread, the floor only has to be positive.
        let floor = self.floor.get() * if spread > 0.0 { spread } else { 1.0 };
        let centered = RowsView { data: &data, ..rows };
        starts.into_iter().map(|start| self.level(centered, &center, floor, start)).collect()
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        self.k.iter().map(|k| Some(k.get())).collect()
    }
    fn shares_rows(&self) -> bool {
        true
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

impl GaussianMixture {
    fn level(&self, rows: RowsView<'_>, center: &[f32], floor: f64, start: Clustering) -> Result<Clustering> {
        let (k, dim) = (start.k, rows.cols);
        let mut hard = Moments::zero(k, dim);
        for (x, a) in rows.iter().zip(start.assignments.iter().flatten()) {
            hard.add(x, *a as usize);
        }
        let mut mixture = Mixture::default();
        mixture.update(&hard, floor, rows.rows);
        let mut objective: Vec<f64> = Vec::new();
        let task = progress::task("Gaussian mixture", self.iterations.get() as u64);
        loop {
            stop::check()?;
            let step = mixture.expect(rows);
            let nll = -step.log_likelihood / rows.rows as f64;
            let settled = objective.last().is_some_and(|last| last - nll <= self.tolerance.get());
            objective.push(nll);
            if settled || objective.len() > self.iterations.get() {
                let means = mixture.means.chunks_exact(dim).flat_map(|m| m.iter().zip(center));
                let centroids = means.map(|(m, c)| (m + *c as f64) as f32).collect();
                let assignments: Vec<Option<u32>> = step.labels.into_iter().map(Some).collect();
                let report = report(objective, start.report.splits, assignments.iter().copied(), k);
                return Ok(Clustering { k, dim, centroids, assignments, report });
            }
            mixture.update(&step.moments, floor, rows.rows);
            task.advance(1);
        }
    }
}

/// Σ r, Σ r·x and Σ r·x² of each component.
struct Moments {
    weight: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Moments {
    fn zero(k: usize, dim: usize) -> Self {
        Moments { weight: vec![0.0; k], first: vec![0.0; k * dim], second: vec![0.0; k * dim] }
    }

    fn add(&mut self, x: &[f32], c: usize) {
        self.weight[c] += 1.0;
        let first = c * x.len();
        for (l, v) in x.iter().enumerate() {
            self.first[first + l] += *v as f64;
            self.second[first + l] += *v as f64 * *v as f64;
        }
    }

    fn take(&mut self, other: &Moments) {
        for (to, from) in [
            (&mut self.weight, &other.weight),
            (&mut self.first, &other.first),
            (&mut self.second, &other.second),
        ] {
            to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        }
    }
}

/// The result of one pass over the samples.
struct Step {
    log_likelihood: f64,
    labels: Vec<u32>,
    moments: Moments,
}

#[derive(Default)]
struct Mixture {
    ln_weights: Vec<f64>,
    means: Vec<f64>,
    variances: Vec<f64>,
}

/// Rows per task, and the number of tasks whose sums are in memory at once. Fixed, so that the order of
/// summation is.
const TASK: usize = 512;
const WAVE: usize = 8;

impl Mixture {
    fn update(&mut self, moments: &Moments, floor: f64, n: usize) {
        let (k, dim) = (moments.weight.len(), moments.first.len() / moments.weight.len());
        self.means.resize(k * dim, 0.0);
        self.variances.resize(k * dim, floor);
        self.ln_weights.resize(k, 0.0);
        for c in 0..k {
            let weight = moments.weight[c];
            // A component that has lost all samples keeps its parameters.
            self.ln_weights[c] = (weight / n as f64).max(1e-30).ln();
            if weight < 1e-10 {
                continue;
            }
            for l in c * dim..(c + 1) * dim {
                self.means[l] = moments.first[l] / weight;
                self.variances[l] = (moments.second[l] / weight - self.means[l].powi(2)).max(0.0) + floor;
            }
        }
    }

    /// Responsibilities by two matrix products: ln N = x²·(−½/σ²) + x·(μ/σ²) + constant.
    fn expect(&self, rows: RowsView<'_>) -> Step {
        let (k, dim) = (self.ln_weights.len(), rows.cols);
        let factors = LogitFactors::new(self, dim);
        let mut all = Step { log_likelihood: 0.0, labels: Vec::new(), moments: Moments::zero(k, dim) };
        for wave in rows.data.chunks(WAVE * TASK * dim) {
            let steps: Vec<Step> = wave.par_chunks(TASK * dim).map(|x| factors.expect(x)).collect();
            for step in steps {
                all.log_likelihood += step.log_likelihood;
                all.labels.extend(step.labels);
                all.moments.take(&step.moments);
            }
        }
        all
    }
}

/// ln π_c N(x; μ_c, diag σ_c²) = x²·square + x·linear + constant.
struct LogitFactors {
    /// −½/σ², (K, D).
    square: Vec<f32>,
    /// μ/σ², (K, D).
    linear: Vec<f32>,
    /// K.
    constants: Vec<f32>,
}

impl LogitFactors {
    fn new(mixture: &Mixture, dim: usize) -> Self {
        let Mixture { ln_weights, means, variances } = mixture;
        let constant = |(c, ln_weight): (usize, &f64)| {
            let own = c * dim..(c + 1) * dim;
            let terms = means[own.clone()].iter().zip(&variances[own]);
            let sum: f64 = terms.map(|(m, v)| m * m / v + (2.0 * std::f64::consts::PI * v).ln()).sum();
            (ln_weight - 0.5 * sum) as f32
        };
        LogitFactors {
            square: variances.iter().map(|v| (-0.5 / v) as f32).collect(),
            linear: means.iter().zip(variances).map(|(m, v)| (m / v) as f32).collect(),
            constants: ln_weights.iter().enumerate().map(constant).collect(),
        }
    }

    /// Runs the expectation step on some rows.
    fn expect(&self, x: &[f32]) -> Step {
        let k = self.constants.len();
        let dim = self.linear.len() / k;
        let n = x.len() / dim;
        let squares: Vec<f32> = x.iter().map(|v| v * v).collect();
        // (n, K): first logits, then responsibilities.
        let mut logits: Vec<f32> = self.constants.iter().copied().cycle().take(n * k).collect();
        for (data, factors) in [(squares.as_slice(), &self.square), (x, &self.linear)] {
            let (rows, columns) = (Strides::row_major(dim), Strides::transposed(dim));
            let out = (logits.as_mut_slice(), Strides::row_major(k));
            gemm((n, k, dim), 1.0, (data, rows), (factors, columns), 1.0, out);
        }
        let mut step =
            Step { log_likelihood: 0.0, labels: Vec::with_capacity(n), moments: Moments::zero(k, dim) };
        for row in logits.chunks_exact_mut(k) {
            let best = (0..k).fold(0, |best, j| if row[j] > row[best] { j } else { best });
            let largest = row[best];
            row.iter_mut().for_each(|l| *l = (*l - largest).exp());
            let total: f64 = row.iter().map(|p| *p as f64).sum();
            row.iter_mut().for_each(|p| *p = (*p as f64 / total) as f32);
            step.moments.weight.iter_mut().zip(&*row).for_each(|(w, p)| *w += *p as f64);
            step.log_likelihood += largest as f64 + total.ln();
            step.labels.push(best as u32);
        }
        let mut sums = vec![0.0f32; k * dim];
        for (data, to) in [(x, &mut step.moments.first), (&squares, &mut step.moments.second)] {
            let (weights, rows) = (Strides::transposed(k), Strides::row_major(dim));
            let out = (sums.as_mut_slice(), Strides::row_major(dim));
            gemm((k, dim, n), 1.0, (&logits, weights), (data, rows), 0.0, out);
            to.iter_mut().zip(&sums).for_each(|(t, s)| *t = *s as f64);
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{Rounded, assert_within};

    fn data() -> Vec<f32> {
        // Three groups of different width. Column 1 is wide in the second group only.
        (0..360)
            .flat_map(|i| {
                let (g, a) = (i % 3, i as f32);
                let wide = if g == 1 { 2.0 } else { 0.3 };
                [7.0 * g as f32 + 0.5 * (a * 1.3).sin() + 40.0, wide * (a * a * 0.77).sin()]
            })
            .collect()
    }

    fn configured(k: usize, iterations: usize) -> GaussianMixture {
        GaussianMixture {
            k: vec![Count::try_from(k).unwrap()],
            iterations: Count::try_from(iterations).unwrap(),
            tolerance: NonNegative::lit(0.0),
            floor: Positive::lit(1e-4),
            start: TrainingSpan::epochs(0),
            every: TrainingSpan::epochs(1),
        }
    }

    const CONTEXT: FitContext<'static> = FitContext::new(2);

    /// ln π_c N(x; μ_c, diag σ_c²) by definition, with the error of the code's two products and a constant.
    fn logit(mixture: &Mixture, c: usize, x: &[Rounded]) -> Rounded {
        let own = c * x.len()..(c + 1) * x.len();
        let (mut exact, mut constant) = (mixture.ln_weights[c], mixture.ln_weights[c]);
        let mut terms = Vec::new();
        for (x, (m, v)) in x.iter().zip(mixture.means[own.clone()].iter().zip(&mixture.variances[own])) {
            let ln = (2.0 * std::f64::consts::PI * v).ln();
            exact -= ((x.value - m).powi(2) / v + ln) / 2.0;
            constant -= (m * m / v + ln) / 2.0;
            terms.push(*x * *x * Rounded::within(-0.5 / v, 0.0).round());
            terms.push(*x * Rounded::within(m / v, 0.0).round());
        }
        terms.push(Rounded::within(constant, 0.0).round());
        Rounded { value: exact, ..Rounded::sum(terms) }
    }

    /// The responsibilities of a row, and ln p(x). The code subtracts logit `best` before the exponentials,
    /// which are accurate to one unit in the last place.
    fn responsibilities(logits: &[Rounded], best: usize) -> (Vec<Rounded>, Rounded) {
        let term = |(c, l): (usize, &Rounded)| match c == best {
            true => Rounded::exact(1.0),
            false => (*l - logits[best]).exp(1.0),
        };
        let terms: Vec<Rounded> = logits.iter().enumerate().map(term).collect();
        let total = Rounded::sum(terms.iter().copied());
        (terms.iter().map(|t| *t / total).collect(), logits[best] + total.ln())
    }

    /// Compares means and variances with those of weighted samples by definition, with the error of the
    /// code's Σ r·x and Σ r·x².
    fn assert_fitted(mixture: &Mixture, x: &[Vec<Rounded>], r: &[Vec<Rounded>], floor: f64) {
        let dim = x[0].len();
        for (i, (mean, variance)) in mixture.means.iter().zip(&mixture.variances).enumerate() {
            let own = || r.iter().map(|r| r[i / dim]).zip(x.iter().map(|x| x[i % dim]));
            let weight = Rounded::sum(own().map(|(r, _)| r));
            let want = Rounded::dot(own()) / weight;
            assert_within!(*mean, want.value, want.error, "mean {i}");
            let from_mean = own().map(|(r, x)| r.value * (x.value - want.value).powi(2)).sum::<f64>();
            let error = (Rounded::dot(own().map(|(r, x)| (r, x * x))) / weight - want * want).error;
            assert_within!(*variance, from_mean / weight.value + floor, error, "variance {i}");
        }
    }

    /// Compares each expectation and each maximization separately, from the state of the code, so that errors
    /// do not accumulate.
    #[test]
    fn equals_the_definition_step_by_step() {
        let x = data();
        let (rows, n, k) = (RowsView::new(&x, 2), 360, 3);
        let start = &KMeans::with(vec![Count::lit(3)]).fit(rows, CONTEXT).unwrap()[0];
        let got = &configured(3, 6).fit(rows, CONTEXT).unwrap()[0];
        let whole = clustering_of(rows, vec![Some(0); n], 1, vec![]);
        let floor = 1e-4 * whole.report.objective[0] / (2 * n) as f64;
        // Centered on the mean, which rounds each sample once.
        let center = whole.centroids;
        let centered: Vec<f32> = x.iter().enumerate().map(|(i, v)| v - center[i % 2]).collect();
        let exact: Vec<Vec<Rounded>> = x
            .chunks(2)
            .map(|x| x.iter().zip(&center).map(|(v, m)| Rounded::exact(*v) - Rounded::exact(*m)).collect())
            .collect();
        let mut hard = Moments::zero(k, 2);
        let mut r = Vec::new();
        for (x, a) in centered.chunks(2).zip(&start.assignments) {
            hard.add(x, a.unwrap() as usize);
            r.push((0..3).map(|c| Rounded::exact(if *a == Some(c) { 1.0 } else { 0.0 })).collect());
        }
        let mut mixture = Mixture::default();
        mixture.update(&hard, floor, n);
        let last = got.report.objective.len() - 1;
        for (update, objective) in got.report.objective.iter().enumerate() {
            assert_fitted(&mixture, &exact, &r, floor);
            let step = mixture.expect(RowsView::new(&centered, 2));
            let mut total = Rounded::default();
            r.clear();
            for (x, best) in exact.iter().zip(&step.labels) {
                let logits: Vec<Rounded> = (0..k).map(|c| logit(&mixture, c, x)).collect();
                let best = *best as usize;
                for other in &logits {
                    assert!(
                        logits[best].value + logits[best].error >= other.value - other.error,
                        "{logits:?}"
                    );
                }
                let (of_row, ln_p) = responsibilities(&logits, best);
                r.push(of_row);
                total.value -= ln_p.value;
                total.error += ln_p.error;
            }
            assert_within!(*objective, total.value / n as f64, total.error / n as f64);
            if update == last {
                let means = mixture.means.iter().enumerate();
                let means: Vec<f32> = means.map(|(i, m)| (m + f64::from(center[i % 2])) as f32).collect();
                assert_eq!(got.centroids, means);
                assert_eq!(got.assignments, step.labels.into_iter().map(Some).collect::<Vec<_>>());
                return;
            }
            mixture.update(&step.moments, floor, n);
        }
    }

    #[test]
    fn finds_groups_of_different_width_with_any_number_of_threads() {
        let x = data();
        let fit = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| configured(3, 20).fit(RowsView::new(&x, 2), CONTEXT)).unwrap().swap_remove(0)
        };
        let alone = fit(1);
        assert_eq!(alone, fit(2));
        assert_eq!(alone, fit(4));
        let truth: Vec<u32> = (0..360).map(|i| i % 3).collect();
        let agreement = crate::metrics::Agreement::new(&truth, &alone.assignments).unwrap();
        // Measured: 1. One sample in the wrong group would give 0.992.
        assert!(agreement.ari > 0.99, "{}", agreement.ari);
    }

    #[test]
    fn degenerate_samples_stay_finite() {
        for (x, k) in [(vec![1.5; 40], 3), (vec![0.0; 40], 20), ((0..40).map(|i| i as f32).collect(), 20)] {
            let fit = &configured(k, 10).fit(RowsView::new(&x, 2), CONTEXT).unwrap()[0];
            assert!(fit.centroids.iter().all(|v| v.is_finite()));
            assert!(fit.report.objective.iter().all(|v| v.is_finite()));
        }
        assert!(configured(21, 5).fit(RowsView::new(&[0.0; 40], 2), CONTEXT).is_err());
    }
}
