use super::*;
use pauc_testing::inputs::{irregular, irregular_f64};
use pauc_testing::{assert_within, tolerance};
use pauc_traits::probe::Neighbors;

/// 120 rows of 4 values in 3 overlapping classes.
fn overlapping() -> (Vec<f32>, Vec<u32>) {
    let labels: Vec<u32> = (0..120).map(|i| i % 3).collect();
    let raised = |(n, v): (usize, f64)| v + if n % 4 == (n / 4) % 3 { 0.8 } else { 0.0 };
    let values = irregular_f64(480, 0.1).into_iter().enumerate();
    (values.map(|value| raised(value) as f32).collect(), labels)
}

fn fit_all(
    x: &[f32],
    labels: &[u32],
    dim: usize,
    classes: usize,
    l2: f64,
    tolerance: f64,
) -> (Vec<f64>, Outcome) {
    let rows = RowsView::new(x, dim);
    let x = Standardization::of(rows).apply(rows, &(0..rows.rows).collect::<Vec<_>>());
    let part = Part::new(&x, labels, dim, classes);
    let mut weights = vec![0.0; classes * (dim + 1)];
    let stop = Stop { tolerance, iterations: 500 };
    let outcome = part.fit(&mut weights, l2, moments(part).unwrap().as_ref(), stop).unwrap();
    (weights, outcome)
}

// scikit-learn 1.9.1 on the same data, standardized:
//   fit = LogisticRegression(C=1 / (120 * 0.01), tol=1e-10, max_iter=10000).fit(x, y)
//   p = fit.predict_proba(x)
//   loss = -np.log(p[np.arange(120), y]).mean() + 0.5 * 0.01 * (fit.coef_ ** 2).sum()
//   print(loss, fit.coef_.round(6), fit.intercept_.round(6), fit.score(x, y))
#[test]
fn the_optimum_is_that_of_scikit_learn() {
    let want = [
        1.207214, -0.455917, 0.428722, 0.191665, -1.484537, 1.972044, -1.892563, 0.946005, 0.277323,
        -1.516127, 1.463841, -1.13767, 0.295427, -0.266886, -0.028541,
    ];
    let (x, labels) = overlapping();
    let (l2, stop) = (0.01, 1e-6);
    let (weights, outcome) = fit_all(&x, &labels, 4, 3, l2, stop);
    assert!(outcome.converged && outcome.iterations < 50, "{outcome:?}");
    // The exact gradient at the end is at most the tolerance of the search plus the rounding of the gradient.
    // The curvature is at least λ, except for a common shift of all biases, to which the loss is invariant.
    // So ‖Δ‖ ≤ ‖g‖/λ, and the loss is at most ‖g‖²/2λ above its minimum.
    let rows = RowsView::new(&x, 4);
    let standard = Standardization::of(rows).apply(rows, &(0..rows.rows).collect::<Vec<_>>());
    let [of_loss, of_gradient] = rounding(&standard, &labels, 4, 3, &weights, rows.rows);
    let gradient = (want.len() as f64).sqrt() * (stop + of_gradient);
    assert_within!(outcome.value, 0.4966977598911481, of_loss + gradient.powi(2) / (2.0 * l2));
    for (g, w) in weights.iter().zip(want) {
        // The reference is printed with six digits.
        assert_within!(*g, w, gradient / l2 + 0.5e-6);
    }
    let options = LinearOptions { l2: vec![l2], ..Default::default() };
    let probe = linear_probe(rows, &labels, rows, &labels, 3, &options).unwrap();
    // At the optimum, the largest logit of each row leads by 0.034, more than any of these errors.
    assert!(probe.accuracy == 104.0 / 120.0 && probe.converged, "{probe:?}");
}

/// The error bounds of the loss and of the entries of its gradient, if at most `summed` rows are summed in
/// `f32`.
///
/// Weights and rows are rounded, and so are `dim` products and sums and the bias: a logit is off by e.
/// Softmax is in `f64`. So the loss of a row is off by Σ|residual|·e, and a residual by e/2, before it is
/// rounded and multiplied.
fn rounding(x: &[f32], labels: &[u32], dim: usize, classes: usize, w: &[f64], summed: usize) -> [f64; 2] {
    let share = 1.0 / labels.len() as f64;
    let (mut loss, mut off, mut magnitude) = (0.0, vec![0.0; dim + 1], vec![0.0; classes * (dim + 1)]);
    for (row, label) in x.chunks(dim).zip(labels) {
        let row: Vec<f64> = row.iter().map(|v| f64::from(*v)).chain([1.0]).collect();
        let weight = |c: usize, d: usize| if d < dim { w[c * dim + d] } else { w[classes * dim + c] };
        let logit = |c: usize| (0..=dim).map(|d| weight(c, d) * row[d]).sum::<f64>();
        let size = |c: usize| (0..=dim).map(|d| (weight(c, d) * row[d]).abs()).sum::<f64>();
        let e = tolerance::f32(dim + 3, (0..classes).map(size).fold(0.0, f64::max));
        let total: f64 = (0..classes).map(|c| logit(c).exp()).sum();
        (0..=dim).for_each(|d| off[d] += share * e / 2.0 * row[d].abs());
        for c in 0..classes {
            let residual = logit(c).exp() / total - f64::from(c == *label as usize);
            loss += share * residual.abs() * e;
            (0..=dim).for_each(|d| magnitude[c * (dim + 1) + d] += share * (residual * row[d]).abs());
        }
    }
    let entry = |i: usize| off[i % (dim + 1)] + tolerance::f32(summed + 2, magnitude[i]);
    [loss, (0..magnitude.len()).map(entry).fold(0.0, f64::max)]
}

/// Computes the penalized loss in f64 with loops.
fn naive(x: &[f32], labels: &[u32], dim: usize, classes: usize, l2: f64, w: &[f64]) -> f64 {
    let mut loss = 0.0;
    for (row, label) in x.chunks(dim).zip(labels) {
        let logit =
            |c: usize| (0..dim).map(|d| w[c * dim + d] * row[d] as f64).sum::<f64>() + w[classes * dim + c];
        loss += (0..classes).map(|c| logit(c).exp()).sum::<f64>().ln() - logit(*label as usize);
    }
    loss / labels.len() as f64 + 0.5 * l2 * w[..dim * classes].iter().map(|w| w * w).sum::<f64>()
}

#[test]
fn loss_and_gradient_equal_a_loop_and_its_finite_differences_across_tiles() {
    let (dim, classes, rows) = (3, 4, 2 * PARTS * TILE + 41);
    let x = irregular(rows * dim, 0.0);
    let labels: Vec<u32> = (0..rows).map(|i| (i * i % 7 % classes) as u32).collect();
    let weights: Vec<f64> = (0..classes * (dim + 1)).map(|n| (n as f64 * 0.7).sin()).collect();
    let part = Part::new(&x, &labels, dim, classes);
    let mut gradient = vec![0.0; weights.len()];
    let loss = part.loss(&weights, 0.1, &mut gradient).unwrap();
    let loss_at = |w: &[f64]| naive(&x, &labels, dim, classes, 0.1, w);
    let tiles = rows.div_ceil(TILE).div_ceil(PARTS);
    let [of_loss, of_gradient] = rounding(&x, &labels, dim, classes, &weights, tiles * TILE);
    assert_within!(loss, loss_at(&weights), of_loss);
    // The third derivative of log Σ exp along a weight is p·(1 − p)·(1 − 2p)·x³ < 0.1. Losses are below 10.
    let differences = tolerance::central_difference(1e-5, 0.1, rows + 30, 10.0);
    for i in 0..weights.len() {
        let shifted = |by: f64| {
            let mut w = weights.clone();
            w[i] += by;
            loss_at(&w)
        };
        let numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
        assert_within!(gradient[i], numeric, of_gradient + differences, "{i}");
    }
}

#[test]
fn every_fifth_sample_of_each_class_is_held_out() {
    let labels = [[0u32, 1].repeat(6), vec![1, 1, 1, 1]].concat();
    let (order, fitted) = hold_out(&labels, 2);
    assert_eq!(order[fitted..], [8, 9, 15], "the fifth of class 0, the fifth and the tenth of class 1");
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..labels.len()).collect::<Vec<_>>());
}

#[test]
fn separable_classes_are_learned_and_noise_needs_strong_regularization() {
    // The class is the sign of one of 30 noisy columns, with 200 samples, so weak penalties overfit.
    let draw = |n: u64| pauc_traits::rng::stream(1, pauc_traits::rng::Purpose::Probe, 0, n, 0);
    let normal = |n: u64| rand_distr::Distribution::<f32>::sample(&rand_distr::StandardNormal, &mut draw(n));
    let make = |rows: u64, from: u64| -> (Vec<f32>, Vec<u32>) {
        let labels: Vec<u32> = (0..rows).map(|i| (i % 2) as u32).collect();
        let shift = |i: u64, d: u64| if d == 0 { 2.0 * (i % 2) as f32 - 1.0 } else { 0.0 };
        let x =
            (0..rows).flat_map(|i| (0..30).map(move |d| normal(from + i * 30 + d) + shift(i, d))).collect();
        (x, labels)
    };
    let ((x, y), (tx, ty)) = (make(200, 0), make(2000, 1 << 20));
    let run = |l2: Vec<f64>| {
        let options = LinearOptions { l2, ..Default::default() };
        linear_probe(RowsView::new(&x, 30), &y, RowsView::new(&tx, 30), &ty, 2, &options).unwrap()
    };
    let (chosen, weak) = (run(LinearOptions::default().l2), run(vec![1e-5]));
    assert!(chosen.l2 >= 0.01 && chosen.converged, "{chosen:?}");
    // The best possible classifier is right in 84 % of the cases, give or take 6·0.8 % for 2000 draws.
    assert!(chosen.accuracy > 0.75 && chosen.accuracy > weak.accuracy, "{chosen:?} {weak:?}");
}

#[test]
fn constant_columns_and_single_samples_do_no_harm() {
    let x = [1.0f32, 7.0, -1.0, 7.0, 1.0, 7.0];
    let rows = RowsView::new(&x, 2);
    let probe = linear_probe(rows, &[0, 1, 0], rows, &[0, 1, 0], 2, &LinearOptions::default()).unwrap();
    assert_eq!(
        (probe.accuracy, probe.grid.len(), probe.l2),
        (1.0, 0, 1.0),
        "too few samples to hold any out"
    );
    let sample = RowsView::new(&x[..2], 2);
    assert_eq!(linear_probe(sample, &[1], sample, &[1], 2, &LinearOptions::default()).unwrap().accuracy, 1.0);
    let options = LinearOptions { l2: vec![], ..Default::default() };
    assert!(linear_probe(rows, &[0, 1, 0], rows, &[0, 1, 0], 2, &options).is_err());
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (x, labels) = overlapping();
    let (x, labels) = (x.repeat(20), labels.repeat(20));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fit_all(&x, &labels, 4, 3, 0.01, 1e-6))
    };
    assert_eq!(run(1), run(3));
}

/// A device that uses the host's loops, or reports that it has no memory.
struct Lender {
    memory: bool,
    broken: bool,
}

struct Lent {
    x: Vec<f32>,
    labels: Vec<u32>,
    dim: usize,
    classes: usize,
    broken: bool,
}

impl ProbesOnDevice for Lender {
    fn highest(
        &self,
        _: RowsView<'_>,
        _: RowsView<'_>,
        _: Option<&[f32]>,
        _: usize,
    ) -> Result<Option<Vec<Neighbors>>> {
        Ok(None)
    }

    fn regression(
        &self,
        rows: RowsView<'_>,
        labels: &[u32],
        classes: usize,
    ) -> Result<Option<Box<dyn RegressionOnDevice>>> {
        let lent = Lent {
            x: rows.data.to_vec(),
            labels: labels.to_vec(),
            dim: rows.cols,
            classes,
            broken: self.broken,
        };
        Ok(if self.memory { Some(Box::new(lent)) } else { None })
    }
}

impl Lent {
    fn part(&self, rows: Range<usize>) -> Part<'_> {
        Part::new(&self.x, &self.labels, self.dim, self.classes).range(rows.start, rows.end)
    }
}

impl RegressionOnDevice for Lent {
    fn scatter(&self) -> Result<Vec<f64>> {
        let sums = scatter(RowsView::new(&self.x, self.dim), &vec![0.0; self.dim]);
        Ok((0..self.dim * self.dim).map(|i| sums[(i / self.dim, i % self.dim)]).collect())
    }

    fn loss(&self, rows: Range<usize>, weights: &[f32], gradient: &mut [f64]) -> Result<f64> {
        if self.broken { Err(Error::device("broken")) } else { Ok(self.part(rows).sum(weights, gradient)) }
    }

    fn right(&self, rows: Range<usize>, weights: &[f32]) -> Result<usize> {
        let weights: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        let part = self.part(rows);
        Ok((part.accuracy(&weights)? * part.labels.len() as f64).round() as usize)
    }
}

#[test]
fn a_device_is_used_and_its_lack_of_memory_is_not_an_error() {
    let (x, labels) = overlapping();
    let (train, test) = (RowsView::new(&x[..400], 4), RowsView::new(&x[400..], 4));
    let splits = Labeled { train, labels: &labels[..100], test, test_labels: &labels[100..] };
    let fit = |device: Option<&dyn ProbesOnDevice>| fitted(device, &splits, 3, &LinearOptions::default());
    let want = fit(None).unwrap();
    assert!(want.converged && want.grid.len() > 2, "{want:?}");
    for memory in [true, false] {
        assert_eq!(fit(Some(&Lender { memory, broken: false })).unwrap(), want);
    }
    assert!(fit(Some(&Lender { memory: true, broken: true })).unwrap_err().to_string().contains("broken"));
    assert!(fit(Some(&Lender { memory: false, broken: true })).is_ok());
}
