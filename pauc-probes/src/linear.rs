//! The linear probe: multinomial logistic regression on frozen features.

use crate::lbfgs::{Outcome, Stop, minimize};
use crate::spectrum::{mean, scatter};
use crate::{Labeled, ProbeTime, Space, largest, when};
use faer::linalg::solvers::Llt;
use faer::prelude::Solve;
use faer::{Mat, MatMut, Side};
use pauc_kernels::gemm::{Strides, gemm};
use pauc_traits::probe::{Metric, ProbeContext, ProbesOnDevice, RegressionOnDevice, RowsView, When};
use pauc_traits::{Error, Positive, Probe, Result, TrainingSpan, component, stop};
use rayon::prelude::*;
use std::ops::Range;

component! {
    /// Accuracy on the test split of a multinomial logistic regression fitted to the training split.
    ///
    /// Minimizes mean_i −log softmax(W x̃_i + b)[y_i] + ½·λ·‖W‖² by L-BFGS until no entry of the gradient
    /// exceeds 1e-5, with x̃ = (x − mean)/std by the training split's statistics.
    ///
    /// λ is chosen from a grid. Every fifth sample of each class is held out, λ is the value with the highest
    /// accuracy there (the larger of equals), and the final fit uses the whole training split. The grid is
    /// searched from large to small λ. Each fit starts from the one before and stops at a gradient of 1e-4.
    /// The search ends when two successive values are no better than the best. Without a test split, nothing
    /// is measured.
    ///
    /// Metrics: `linear/lbfgs/standardised`, a fraction; under the same name, `/l2` is the chosen λ, and
    /// `/converged` is 1 if the last fit reached the tolerance.
    pub struct Linear: Probe {
        /// The values of λ to choose from.
        pub l2: Vec<Positive> = GRID.to_vec(),
        /// The vectors classified: `Features` before the projector, or its outputs, `Embeddings`.
        pub space: Space = Space::Features,
        /// How often it runs during training, such as `Epochs(5)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

const GRID: [Positive; 6] = [
    Positive::lit(1.0),
    Positive::lit(0.1),
    Positive::lit(0.01),
    Positive::lit(1e-3),
    Positive::lit(1e-4),
    Positive::lit(1e-5),
];

impl Probe for Linear {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn check(&self) -> Result<()> {
        match self.l2[..] {
            [] => Err(Error::config("Linear: `l2` is empty; give at least one value")),
            _ => Ok(()),
        }
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let Some(splits) = self.space.labeled(context) else { return Ok(Vec::new()) };
        let options = LinearOptions { l2: self.l2.iter().map(|l| l.get()).collect(), ..Default::default() };
        let probe = fitted(context.device, &splits, context.classes, &options)?;
        let name = format!("linear/lbfgs/standardised{}", self.space.suffix());
        Ok(vec![
            Metric::detail(&name, "l2", probe.l2),
            Metric::converged(&name, probe.converged),
            Metric::accuracy(name, probe.accuracy),
        ])
    }
}

/// The options of a linear probe.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearOptions {
    /// The values of λ to choose from, in any order.
    pub l2: Vec<f64>,
    /// The last fit has converged if no entry of the gradient is larger. The fits that choose λ stop at ten
    /// times this tolerance.
    pub tolerance: f64,
    /// The maximum number of iterations of each fit.
    pub iterations: usize,
}

impl Default for LinearOptions {
    fn default() -> Self {
        LinearOptions { l2: GRID.iter().map(|l| l.get()).collect(), tolerance: 1e-5, iterations: 1000 }
    }
}

/// The result of a linear probe.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearProbe {
    /// The fraction of test rows classified correctly.
    pub accuracy: f64,
    /// The chosen λ.
    pub l2: f64,
    /// Iterations of the last fit.
    pub iterations: usize,
    /// Whether the last fit reached the tolerance.
    pub converged: bool,
    /// Each λ that was tried, with its accuracy on the held-out part, in the order of the search.
    pub grid: Vec<(f64, f64)>,
}

/// Fits on the training rows and evaluates on the test rows, as [`Linear`] describes.
///
/// # Shapes
/// train (N, D), labels N, test (M, D), test_labels M
///
/// # Errors
/// If rows and labels do not match, there are no rows, a value is NaN or infinite, or the grid is empty.
///
/// # Examples
///
/// ```
/// use pauc_probes::{LinearOptions, linear_probe};
/// use pauc_traits::probe::RowsView;
///
/// // Two classes that a line separates: class 1 is to the right of class 0.
/// let labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
/// let row = |i: u32| [labels[i as usize] as f32 * 4.0 + (i as f32).sin(), (i as f32).cos()];
/// let train: Vec<f32> = (0..40).flat_map(row).collect();
/// let test = [-0.5, 0.0, 4.5, 0.0, 0.3, 0.9];
/// let probe = linear_probe(
///     RowsView::new(&train, 2),
///     &labels,
///     RowsView::new(&test, 2),
///     &[0, 1, 1],
///     2,
///     &LinearOptions::default(),
/// )?;
/// // The third row is near class 0, but labeled 1.
/// assert_eq!(probe.accuracy, 2.0 / 3.0);
/// assert!(probe.converged);
/// # Ok::<(), pauc_traits::Error>(())
/// ```
pub fn linear_probe(
    train: RowsView<'_>,
    labels: &[u32],
    test: RowsView<'_>,
    test_labels: &[u32],
    classes: usize,
    options: &LinearOptions,
) -> Result<LinearProbe> {
    fitted(None, &Labeled { train, labels, test, test_labels }, classes, options)
}

/// As [`linear_probe`], with losses and gradients on a device, if there is one with enough memory.
fn fitted(
    device: Option<&dyn ProbesOnDevice>,
    splits: &Labeled<'_>,
    classes: usize,
    options: &LinearOptions,
) -> Result<LinearProbe> {
    splits.check("linear probe", classes)?;
    let Labeled { train, labels, test, test_labels } = *splits;
    let mut grid = options.l2.clone();
    grid.sort_by(|a, b| b.total_cmp(a));
    let Some(&strongest) = grid.first() else {
        return Err(Error::config("linear probe: `l2` is empty; give at least one value"));
    };
    let (order, fitted) = hold_out(labels, classes);
    let scale = Standardization::of(train);
    let x = scale.apply(train, &order);
    let labels: Vec<u32> = order.iter().map(|i| labels[*i]).collect();
    let rows = RowsView::new(&x, train.cols);
    let on_device = device.map_or(Ok(None), |device| device.regression(rows, &labels, classes))?;
    let samples = Part { device: on_device.as_deref(), ..Part::new(&x, &labels, train.cols, classes) };
    let (fit, held_out) = (samples.range(0, fitted), samples.range(fitted, train.rows));
    let moments = moments(samples)?;
    let stop = Stop { tolerance: options.tolerance, iterations: options.iterations };

    let mut weights = vec![0.0; classes * (train.cols + 1)];
    let mut best = (strongest, f64::NEG_INFINITY, weights.clone());
    let mut tried = Vec::new();
    let mut worse = 0;
    if grid.len() > 1 && !held_out.labels.is_empty() && fitted > 0 {
        for &l2 in &grid {
            let rough = Stop { tolerance: 10.0 * stop.tolerance, ..stop };
            fit.fit(&mut weights, l2, moments.as_ref(), rough)?;
            let accuracy = held_out.accuracy(&weights)?;
            tried.push((l2, accuracy));
            if accuracy > best.1 {
                best = (l2, accuracy, weights.clone());
                worse = 0;
            } else {
                worse += 1;
            }
            if worse == 2 {
                break;
            }
        }
    }
    let (l2, _, mut weights) = best;
    let outcome = samples.fit(&mut weights, l2, moments.as_ref(), stop)?;
    let every: Vec<usize> = (0..test.rows).collect();
    let test = scale.apply(test, &every);
    Ok(LinearProbe {
        accuracy: Part::new(&test, test_labels, train.cols, classes).accuracy(&weights)?,
        l2,
        iterations: outcome.iterations,
        converged: outcome.converged,
        grid: tried,
    })
}

/// Reorders the training samples so that every fifth of each class is at the end. Returns the order, and the
/// number of samples before those.
pub(crate) fn hold_out(labels: &[u32], classes: usize) -> (Vec<usize>, usize) {
    let mut counts = vec![0usize; classes];
    let is_held_out = |label: &u32| {
        let count = &mut counts[*label as usize];
        *count += 1;
        count.is_multiple_of(5)
    };
    let is_held_out: Vec<bool> = labels.iter().map(is_held_out).collect();
    let (held_out, mut order): (Vec<usize>, Vec<usize>) = (0..labels.len()).partition(|i| is_held_out[*i]);
    let fitted = order.len();
    order.extend(held_out);
    (order, fitted)
}

/// The mean of each column, and the inverse of its standard deviation. Constant columns become 0.
pub(crate) struct Standardization {
    mean: Vec<f64>,
    inverse: Vec<f64>,
}

impl Standardization {
    pub(crate) fn of(rows: RowsView<'_>) -> Self {
        let mean = mean(rows);
        let mut variance = vec![0.0; rows.cols];
        for row in rows.iter() {
            variance.iter_mut().zip(row).zip(&mean).for_each(|((s, v), m)| *s += (*v as f64 - m).powi(2));
        }
        let inverse = |(s, m): (&f64, &f64)| {
            let deviation = (s / rows.rows as f64).sqrt();
            // Deviations below the resolution of f32 are rounding errors.
            if deviation > 1e-7 * m.abs() { 1.0 / deviation } else { 0.0 }
        };
        Standardization { inverse: variance.iter().zip(&mean).map(inverse).collect(), mean }
    }

    pub(crate) fn apply(&self, rows: RowsView<'_>, order: &[usize]) -> Vec<f32> {
        let mut x = vec![0.0; order.len() * rows.cols];
        x.par_chunks_mut(rows.cols).zip(order).for_each(|(x, i)| {
            for ((x, v), (m, s)) in x.iter_mut().zip(rows.row(*i)).zip(self.mean.iter().zip(&self.inverse)) {
                *x = ((*v as f64 - m) * s) as f32;
            }
        });
        x
    }
}

/// Computes E[x̃x̃ᵀ] for the preconditioner; `None` if the matrix would cost more than it saves.
fn moments(part: Part<'_>) -> Result<Option<Mat<f64>>> {
    let (rows, dim) = (RowsView::new(part.x, part.dim), part.dim);
    if dim > 2048 {
        return Ok(None);
    }
    let sums = match part.device {
        Some(device) => {
            let sums = device.scatter()?;
            Mat::from_fn(dim, dim, |i, j| sums[i * dim + j])
        }
        None => scatter(rows, &vec![0.0; dim]),
    };
    Ok(Some(sums * (1.0 / rows.rows as f64)))
}

/// Standardized rows with labels.
#[derive(Clone, Copy)]
struct Part<'a> {
    x: &'a [f32],
    labels: &'a [u32],
    dim: usize,
    classes: usize,
    /// A device whose rows include these, from row `start` on.
    device: Option<&'a dyn RegressionOnDevice>,
    start: usize,
}

// A fixed partition: at most PARTS sums of gradients, over tiles of TILE rows that stay in the L2 cache.
const PARTS: usize = 16;
const TILE: usize = 128;

impl<'a> Part<'a> {
    /// Creates a part with rows on the host only.
    fn new(x: &'a [f32], labels: &'a [u32], dim: usize, classes: usize) -> Part<'a> {
        Part { x, labels, dim, classes, device: None, start: 0 }
    }

    fn range(self, from: usize, to: usize) -> Part<'a> {
        let x = &self.x[from * self.dim..to * self.dim];
        Part { x, labels: &self.labels[from..to], start: self.start + from, ..self }
    }

    /// Returns the range of these rows on the device.
    fn numbers(self) -> Range<usize> {
        self.start..self.start + self.labels.len()
    }

    /// Minimizes the penalized loss from `weights` on: C rows of length D, then C biases.
    fn fit(self, weights: &mut [f64], l2: f64, moments: Option<&Mat<f64>>, stop: Stop) -> Result<Outcome> {
        // At uniform predictions, the Hessian is E[x̃x̃ᵀ]/C + λ for every class. As a preconditioner, it
        // removes the correlation of the features.
        let (dim, classes) = (self.dim, self.classes);
        let share = 1.0 / classes as f64;
        let factor = moments.and_then(|m| {
            let mut hessian = m * share;
            (0..dim).for_each(|d| hessian[(d, d)] += l2);
            Llt::new(hessian.as_ref(), Side::Lower).ok()
        });
        let precondition = |v: &mut [f64]| {
            let (w, b) = v.split_at_mut(dim * classes);
            b.iter_mut().for_each(|b| *b /= share);
            match &factor {
                Some(factor) => factor.solve_in_place(MatMut::from_column_major_slice_mut(w, dim, classes)),
                None => w.iter_mut().for_each(|w| *w /= share + l2),
            }
        };
        minimize(weights, |w, g| self.loss(w, l2, g), precondition, stop)
    }

    /// Computes the penalized loss and its gradient.
    fn loss(self, weights: &[f64], l2: f64, gradient: &mut [f64]) -> Result<f64> {
        let split = self.dim * self.classes;
        stop::check()?;
        let single: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
        let loss = match self.device {
            Some(device) => device.loss(self.numbers(), &single, gradient)?,
            None => self.sum(&single, gradient),
        };
        let count = self.labels.len() as f64;
        gradient.iter_mut().for_each(|g| *g /= count);
        gradient[..split].iter_mut().zip(weights).for_each(|(g, w)| *g += l2 * w);
        Ok(loss / count + 0.5 * l2 * weights[..split].iter().map(|w| w * w).sum::<f64>())
    }

    /// Returns the sum of the losses of all rows, and writes the sum of their gradients to `gradient`.
    fn sum(self, weights: &[f32], gradient: &mut [f64]) -> f64 {
        let Part { x, labels, dim, classes, .. } = self;
        let tiles = labels.len().div_ceil(TILE);
        let share = tiles.div_ceil(PARTS).max(1) * TILE;
        let parts = x.par_chunks(share * dim).zip(labels.par_chunks(share));
        let parts: Vec<(f64, Vec<f32>)> =
            parts.map(|(x, labels)| sums((x, labels), weights, dim, classes)).collect();
        gradient.fill(0.0);
        let mut loss = 0.0;
        for (part, sums) in &parts {
            loss += part;
            gradient.iter_mut().zip(sums).for_each(|(g, s)| *g += *s as f64);
        }
        loss
    }

    /// Returns the fraction of rows whose largest logit is that of their label. Ties go to the lowest class.
    fn accuracy(self, weights: &[f64]) -> Result<f64> {
        let single: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
        if let Some(device) = self.device {
            return Ok(device.right(self.numbers(), &single)? as f64 / self.labels.len() as f64);
        }
        let mut logits = vec![0.0f32; TILE * self.classes];
        let mut right = 0;
        for (x, labels) in self.x.chunks(TILE * self.dim).zip(self.labels.chunks(TILE)) {
            logits_of(x, &single, self.dim, self.classes, &mut logits);
            for (row, label) in logits.chunks_exact(self.classes).zip(labels) {
                right += usize::from(largest(row) == *label as usize);
            }
        }
        Ok(right as f64 / self.labels.len() as f64)
    }
}

/// Returns the sums of the losses and of the gradients of some rows.
fn sums((x, labels): (&[f32], &[u32]), weights: &[f32], dim: usize, classes: usize) -> (f64, Vec<f32>) {
    let mut gradient = vec![0.0f32; weights.len()];
    let mut bias = vec![0.0f64; classes];
    let mut loss = 0.0;
    let mut logits = vec![0.0f32; TILE * classes];
    let mut exponentials = Vec::with_capacity(classes);
    for (x, labels) in x.chunks(TILE * dim).zip(labels.chunks(TILE)) {
        logits_of(x, weights, dim, classes, &mut logits);
        for (row, label) in logits.chunks_exact_mut(classes).zip(labels) {
            let top = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)) as f64;
            loss += top - row[*label as usize] as f64;
            exponentials.clear();
            exponentials.extend(row.iter().map(|v| (*v as f64 - top).exp()));
            let total: f64 = exponentials.iter().sum();
            loss += total.ln();
            for (c, (v, e)) in row.iter_mut().zip(&exponentials).enumerate() {
                let residual = e / total - f64::from(c == *label as usize);
                bias[c] += residual;
                *v = residual as f32;
            }
        }
        let residuals = (logits.as_slice(), Strides::transposed(classes));
        let weights = (&mut gradient[..], Strides::row_major(dim));
        gemm((classes, dim, labels.len()), 1.0, residuals, (x, Strides::row_major(dim)), 1.0, weights);
    }
    gradient[dim * classes..].iter_mut().zip(&bias).for_each(|(g, b)| *g = *b as f32);
    (loss, gradient)
}

/// Computes W x + b for a tile of rows.
fn logits_of(x: &[f32], weights: &[f32], dim: usize, classes: usize, logits: &mut [f32]) {
    let (w, b) = weights.split_at(dim * classes);
    let rows = x.len() / dim;
    logits.chunks_exact_mut(classes).take(rows).for_each(|row| row.copy_from_slice(b));
    let (left, right) = ((x, Strides::row_major(dim)), (w, Strides::transposed(dim)));
    gemm((rows, classes, dim), 1.0, left, right, 1.0, (logits, Strides::row_major(classes)));
}

#[cfg(test)]
mod tests;
