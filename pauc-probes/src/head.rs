//! A softmax classifier that is trained step by step.

use crate::largest;
use pauc_kernels::gemm::{Strides, gemm};
use pauc_traits::Positive;
use pauc_traits::rng::{Purpose, stream};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// The decay of a learning rate over epochs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Decay {
    /// No decay.
    Constant,
    /// ½·(1 + cos(π·epoch/epochs)).
    Cosine,
    /// Times this factor after 60 % and again after 80 % of the epochs.
    Step(Positive),
}

impl Decay {
    /// Returns the factor on the learning rate in an epoch, counted from 0.
    pub fn factor(self, epoch: u64, epochs: u64) -> f64 {
        match self {
            Decay::Constant => 1.0,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * epoch as f64 / epochs as f64).cos()),
            Decay::Step(factor) => {
                let passed = [3, 4].into_iter().filter(|fifth| 5 * epoch >= fifth * epochs).count();
                factor.get().powi(passed as i32)
            }
        }
    }

    /// Returns the name of the decay in a metric's name.
    pub fn name(self) -> String {
        match self {
            Decay::Constant => "constant".into(),
            Decay::Cosine => "cosine".into(),
            Decay::Step(factor) => format!("step{}", factor.get()),
        }
    }
}

/// μ, the momentum of stochastic gradient descent.
pub(crate) const MOMENTUM: f64 = 0.9;

/// A classifier W x + b for C classes, trained by v ← μv + g + λw, w ← w − η·v on the mean cross-entropy.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    dim: usize,
    classes: usize,
    /// C rows of length D, then C biases.
    weights: Vec<f32>,
    velocity: Vec<f32>,
}

impl Head {
    /// Creates weights from N(0, 0.01²) and biases of 0.
    pub fn new(dim: usize, classes: usize, seed: u64) -> Self {
        let mut rng = stream(seed, Purpose::Probe, 0, 0, 1);
        let mut weights = vec![0.0; classes * (dim + 1)];
        weights[..classes * dim]
            .iter_mut()
            .for_each(|w| *w = (0.01 * rng.sample::<f64, _>(StandardNormal)) as f32);
        Head { dim, classes, velocity: vec![0.0; weights.len()], weights }
    }

    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let (w, b) = self.weights.split_at(self.dim * self.classes);
        let rows = x.len() / self.dim;
        let mut logits: Vec<f32> = std::iter::repeat_n(b, rows).flatten().copied().collect();
        let (left, right) = ((x, Strides::row_major(self.dim)), (w, Strides::transposed(self.dim)));
        let product = (&mut logits[..], Strides::row_major(self.classes));
        gemm((rows, self.classes, self.dim), 1.0, left, right, 1.0, product);
        logits
    }

    /// Returns ∂L/∂logits of L = mean −log softmax, (B, C), and L.
    fn residuals(&self, x: &[f32], labels: &[u32]) -> (Vec<f32>, f64) {
        let mut logits = self.logits(x);
        let share = 1.0 / labels.len() as f64;
        let mut loss = 0.0;
        for (row, label) in logits.chunks_exact_mut(self.classes).zip(labels) {
            let top = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)) as f64;
            let total: f64 = row.iter().map(|v| (*v as f64 - top).exp()).sum();
            loss += share * (top + total.ln() - row[*label as usize] as f64);
            for (c, v) in row.iter_mut().enumerate() {
                let p = (*v as f64 - top).exp() / total;
                *v = (share * (p - f64::from(u8::from(c == *label as usize)))) as f32;
            }
        }
        (logits, loss)
    }

    /// Takes one gradient step, and returns the mean cross-entropy of the batch before it.
    ///
    /// # Shapes
    /// x (N, dim), labels N
    pub fn step(&mut self, x: &[f32], labels: &[u32], lr: f64, weight_decay: f64) -> f64 {
        let (residuals, loss) = self.residuals(x, labels);
        self.descend(x, &residuals, lr, weight_decay);
        loss
    }

    /// As [`Head::step`], and also returns the gradient at x, (B, D), before the step.
    pub fn step_with_gradient(
        &mut self,
        x: &[f32],
        labels: &[u32],
        lr: f64,
        weight_decay: f64,
    ) -> (f64, Vec<f32>) {
        let (residuals, loss) = self.residuals(x, labels);
        let mut gradient = vec![0.0; x.len()];
        let left = (&residuals[..], Strides::row_major(self.classes));
        let right = (&self.weights[..self.dim * self.classes], Strides::row_major(self.dim));
        let product = (&mut gradient[..], Strides::row_major(self.dim));
        gemm((labels.len(), self.dim, self.classes), 1.0, left, right, 0.0, product);
        self.descend(x, &residuals, lr, weight_decay);
        (loss, gradient)
    }

    fn descend(&mut self, x: &[f32], residuals: &[f32], lr: f64, weight_decay: f64) {
        let (dim, classes) = (self.dim, self.classes);
        let rows = x.len() / dim;
        let mut gradient = vec![0.0f32; self.weights.len()];
        let left = (residuals, Strides::transposed(classes));
        let product = (&mut gradient[..], Strides::row_major(dim));
        gemm((classes, dim, rows), 1.0, left, (x, Strides::row_major(dim)), 0.0, product);
        for row in residuals.chunks_exact(classes) {
            gradient[dim * classes..].iter_mut().zip(row).for_each(|(g, r)| *g += r);
        }
        let (lr, decay, momentum) = (lr as f32, weight_decay as f32, MOMENTUM as f32);
        for ((w, v), g) in self.weights.iter_mut().zip(&mut self.velocity).zip(gradient) {
            *v = momentum * *v + g + decay * *w;
            *w -= lr * *v;
        }
    }

    /// Returns the fraction of rows whose largest logit is that of their label. Ties go to the lowest class.
    ///
    /// # Shapes
    /// x (N, dim), labels N
    pub fn accuracy(&self, x: &[f32], labels: &[u32]) -> f64 {
        const ROWS: usize = 1024;
        let mut right = 0;
        for (x, labels) in x.chunks(ROWS * self.dim).zip(labels.chunks(ROWS)) {
            for (row, label) in self.logits(x).chunks_exact(self.classes).zip(labels) {
                right += usize::from(largest(row) == *label as usize);
            }
        }
        right as f64 / labels.len() as f64
    }

    /// Returns whether all weights are finite. They are not if the learning rate was too large.
    pub fn is_finite(&self) -> bool {
        self.weights.iter().all(|w| w.is_finite())
    }
}

/// Returns the order of samples in an epoch.
pub(crate) fn shuffled(samples: &[usize], seed: u64, epoch: u64) -> Vec<usize> {
    let mut order = samples.to_vec();
    order.shuffle(&mut stream(seed, Purpose::Probe, epoch, 0, 2));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{Rounded, assert_within, tolerance};

    fn loss(w: &[f64], x: &[f64], labels: &[u32], dim: usize, classes: usize) -> f64 {
        let logit = |row: &[f64], c: usize| {
            (0..dim).map(|d| w[c * dim + d] * row[d]).sum::<f64>() + w[classes * dim + c]
        };
        let cross_entropy = |(row, label): (&[f64], &u32)| {
            (0..classes).map(|c| logit(row, c).exp()).sum::<f64>().ln() - logit(row, *label as usize)
        };
        x.chunks(dim).zip(labels).map(cross_entropy).sum::<f64>() / labels.len() as f64
    }

    fn wide(v: &[f32]) -> Vec<f64> {
        v.iter().map(|v| f64::from(*v)).collect()
    }

    /// Returns ∂loss/∂logits, row by row, and the error of the loss due to rounding of the logits. Softmax
    /// and logarithm are in double precision. To first order, if logits are off by e, p_c is off by p_c·(e_c
    /// − Σ p_j·e_j), and the loss by Σ|p − 1[label]|·e.
    fn residuals(
        w: &[Rounded],
        x: &[f32],
        labels: &[u32],
        dim: usize,
        classes: usize,
    ) -> (Vec<Rounded>, f64) {
        let share = 1.0 / labels.len() as f64;
        let (mut residuals, mut error) = (Vec::new(), 0.0);
        for (row, label) in x.chunks(dim).zip(labels) {
            let product =
                |c: usize| w[c * dim..(c + 1) * dim].iter().zip(row).map(|(w, x)| (*w, (*x).into()));
            let logits: Vec<Rounded> =
                (0..classes).map(|c| Rounded::dot(product(c)) + w[classes * dim + c]).collect();
            let total: f64 = logits.iter().map(|z| z.value.exp()).sum();
            let p = |z: &Rounded| z.value.exp() / total;
            let mean: f64 = logits.iter().map(|z| p(z) * z.error).sum();
            for (c, z) in logits.iter().enumerate() {
                let residual = p(z) - f64::from(u8::from(c == *label as usize));
                let inherited = p(z) * (z.error * (1.0 - 2.0 * p(z)).max(0.0) + mean);
                residuals.push(Rounded::within(share * residual, share * inherited).round());
                error += share * residual.abs() * z.error;
            }
        }
        (residuals, error)
    }

    /// The error bound of central differences of the loss with respect to a factor whose partners are below
    /// `size`. The third derivative is that of a logarithm of Σ exp over a range of twice the size: below
    /// 2³/(6√3) times its cube. The loss takes some 30 operations on terms that sum to less than 10.
    fn differences(step: f64, size: f64) -> f64 {
        tolerance::central_difference(step, size.powi(3), 30, 10.0)
    }

    /// Takes steps with gradients from finite differences of the loss in double precision. The rounding of
    /// single precision is tracked from step to step.
    #[test]
    fn steps_are_those_of_pytorch_sgd_with_differences_as_gradients() {
        let (dim, classes, lr, decay) = (3, 4, 0.7, 0.01);
        let x: Vec<f32> = (0..15).map(|i| (0.9 * i as f32).sin()).collect();
        let labels = [0, 3, 1, 1, 2];
        let mut head = Head::new(dim, classes, 5);
        let mut w: Vec<Rounded> = head.weights.iter().map(|w| Rounded::exact(*w)).collect();
        let mut v = vec![Rounded::default(); w.len()];
        let constant = |value: f64| Rounded::within(value, 0.0).round();
        for _ in 0..4 {
            let values: Vec<f64> = w.iter().map(|w| w.value).collect();
            let before = loss(&values, &wide(&x), &labels, dim, classes);
            let slope = |i: usize| {
                let shifted = |h: f64| {
                    let mut w = values.clone();
                    w[i] += h;
                    loss(&w, &wide(&x), &labels, dim, classes)
                };
                (shifted(1e-5) - shifted(-1e-5)) / 2e-5
            };
            let (residuals, error) = residuals(&w, &x, &labels, dim, classes);
            let gradient = |i: usize| {
                let c = if i < dim * classes { i / dim } else { i - dim * classes };
                let factor = |b: usize| if i < dim * classes { x[b * dim + i % dim] } else { 1.0 };
                let sum =
                    Rounded::dot((0..labels.len()).map(|b| (residuals[b * classes + c], factor(b).into())));
                Rounded::within(slope(i), sum.error + differences(1e-5, 1.0))
            };
            let gradient: Vec<Rounded> = (0..w.len()).map(gradient).collect();
            for ((w, v), g) in w.iter_mut().zip(&mut v).zip(&gradient) {
                *v = constant(0.9) * *v + *g + constant(decay) * *w;
                *w = *w - constant(lr) * *v;
            }
            assert_within!(head.step(&x, &labels, lr, decay), before, error);
        }
        for (g, w) in head.weights.iter().zip(&w) {
            assert!(w.admits(*g), "{g} for {w}");
        }
    }

    #[test]
    fn the_gradient_at_the_features_is_that_of_differences() {
        let (dim, classes) = (3, 4);
        let x: Vec<f32> = (0..15).map(|i| (0.9 * i as f32).sin()).collect();
        let labels = [0, 3, 1, 1, 2];
        let mut head = Head::new(dim, classes, 5);
        for _ in 0..5 {
            head.step(&x, &labels, 1.0, 0.0);
        }
        let w: Vec<Rounded> = head.weights.iter().map(|w| Rounded::exact(*w)).collect();
        let largest = head.weights.iter().fold(0f32, |m, w| m.max(w.abs()));
        let (_, gradient) = head.step_with_gradient(&x, &labels, 1.0, 0.0);
        let (residuals, _) = residuals(&w, &x, &labels, dim, classes);
        for (i, got) in gradient.iter().enumerate() {
            let shifted = |h: f64| {
                let mut x = wide(&x);
                x[i] += h;
                loss(&w.iter().map(|w| w.value).collect::<Vec<_>>(), &x, &labels, dim, classes)
            };
            let want = (shifted(1e-4) - shifted(-1e-4)) / 2e-4;
            let terms = (0..classes).map(|c| (residuals[i / dim * classes + c], w[c * dim + i % dim]));
            let rounding = Rounded::dot(terms).error;
            assert_within!(*got, want, rounding + differences(1e-4, largest.into()), "{i}");
        }
    }

    #[test]
    fn rates_fall_as_in_their_sources() {
        // MoCo's linear classifier: 100 epochs, a tenth at 60 and at 80. PCL's fine-tuning: 20 epochs, a
        // fifth at 12 and 16.
        let factor = |decay: Decay, epochs, epoch| decay.factor(epoch, epochs);
        let step = Decay::Step(Positive::lit(0.1));
        for (epoch, want) in [(0, 1.0), (59, 1.0), (60, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)] {
            assert_within!(factor(step, 100, epoch), want, tolerance::f64(3, want), "{epoch}");
        }
        assert_eq!(
            [11, 12, 15, 16].map(|e| factor(Decay::Step(Positive::lit(0.5)), 20, e)),
            [1.0, 0.5, 0.5, 0.25]
        );
        // The angle π/2 is rounded, and so is the sum of the cosine and 1.
        assert_within!(factor(Decay::Cosine, 100, 50), 0.5, tolerance::f64(4, 1.0));
        assert_eq!(factor(Decay::Cosine, 100, 0), 1.0);
        assert_eq!(factor(Decay::Constant, 10, 9), 1.0);
    }

    #[test]
    fn an_order_has_every_sample_once_and_differs_from_epoch_to_epoch() {
        let samples: Vec<usize> = (10..40).collect();
        let (first, second) = (shuffled(&samples, 1, 0), shuffled(&samples, 1, 1));
        assert!(first != second && first == shuffled(&samples, 1, 0) && first != shuffled(&samples, 2, 0));
        let mut sorted = second;
        sorted.sort_unstable();
        assert_eq!(sorted, samples);
    }
}
