//! Shared code of the tests of networks: an oracle that tracks its rounding errors.
#![allow(dead_code, clippy::unwrap_used)] // helpers of tests, of which each uses some

use dfdx::prelude::Cpu;
use pauc_testing::Rounded;
use pauc_traits::Param;

/// Converts numbers that are exact in `f32`.
pub fn exact(values: &[f32]) -> Vec<Rounded> {
    values.iter().map(|v| Rounded::exact(*v)).collect()
}

/// Sets parameter n to the values 0.5 sin(0.5 n + 0.37 i), plus one for weights of normalization, as the golden files do.
pub fn set_by_formula(params: &[Param<Cpu>]) {
    for (n, p) in params.iter().enumerate() {
        let base = if p.name.contains("norm") && p.name.ends_with("weight") { 1.0 } else { 0.0 };
        for (i, v) in p.value_mut().iter_mut().enumerate() {
            *v = (base + 0.5 * (0.5 * n as f64 + 0.37 * i as f64).sin()) as f32;
        }
    }
}

/// Asserts that each value is within the rounding error of its oracle.
pub fn close(what: &str, got: &[f32], want: &[Rounded]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(w.admits(*g), "{what}[{i}]: {g} for {w}");
    }
}

/// Linear layers with normalization and ReLU, in double precision, with bounds on the rounding errors of
/// `f32`.
pub struct Perceptron<'a> {
    pub width: usize,
    pub dims: &'a [usize],
    /// Whether batch normalization follows the hidden layers, and the last layer.
    pub norms: [bool; 2],
    pub bias: bool,
    /// Whether ReLU follows the last layer, as it follows the others.
    pub rectified: bool,
}

/// The values that the backward pass of a layer reads.
pub struct Layer {
    x: Vec<Rounded>,
    weight: Vec<Rounded>,
    norm: Option<Norm>,
    /// The values before ReLU.
    y: Vec<Rounded>,
    rectified: bool,
}

struct Norm {
    x_hat: Vec<Rounded>,
    gamma: Vec<Rounded>,
    /// 1/√(variance + ε).
    inverse: Vec<Rounded>,
}

impl Perceptron<'_> {
    /// Returns the outputs, and the values for the backward pass. Parameters are in the order of
    /// `parameters`.
    pub fn forward(&self, x: &[Rounded], parameters: &[Vec<Rounded>]) -> (Vec<Rounded>, Vec<Layer>) {
        let (mut x, mut width, mut parameters) = (x.to_vec(), self.width, parameters.iter());
        let mut layers = Vec::new();
        for (l, out) in self.dims.iter().copied().enumerate() {
            let last = l + 1 == self.dims.len();
            let rows = x.len() / width;
            let weight = parameters.next().unwrap().clone();
            let zeros = vec![Rounded::default(); out];
            let bias = if self.bias { parameters.next().unwrap() } else { &zeros };
            let mut y: Vec<Rounded> = (0..rows * out)
                .map(|n| {
                    let product = |k: usize| x[n / out * width + k] * weight[n % out * width + k];
                    Rounded::sum((0..width).map(product).chain([bias[n % out]]))
                })
                .collect();
            let norm = self.norms[usize::from(last)].then(|| {
                let (gamma, beta) = (parameters.next().unwrap().clone(), parameters.next().unwrap());
                let count = Rounded::exact(rows as f32);
                let (mut x_hat, mut inverse) = (y.clone(), Vec::new());
                for j in 0..out {
                    let column = || (0..rows).map(|i| y[i * out + j]);
                    let mean = Rounded::sum(column()) / count;
                    let squares = column().map(|v| (v - mean) * (v - mean));
                    let variance = Rounded::sum(squares) / count;
                    inverse.push(Rounded::exact(1.0) / (variance + Rounded::exact(1e-5)).sqrt());
                    for i in 0..rows {
                        x_hat[i * out + j] = (y[i * out + j] - mean) * inverse[j];
                    }
                }
                y = (0..rows * out).map(|n| x_hat[n] * gamma[n % out] + beta[n % out]).collect();
                Norm { x_hat, gamma, inverse }
            });
            let rectified = self.rectified || !last;
            let output = y.iter().map(|v| if rectified { v.relu() } else { *v }).collect();
            layers.push(Layer { x, weight, norm, y, rectified });
            (x, width) = (output, out);
        }
        (x, layers)
    }

    /// Accumulates the gradients of the parameters, and returns that of the input.
    pub fn backward(&self, layers: &[Layer], dy: &[Rounded], gradients: &mut [Vec<Rounded>]) -> Vec<Rounded> {
        let mut dy = dy.to_vec();
        let mut end = gradients.len();
        for (l, layer) in layers.iter().enumerate().rev() {
            let out = self.dims[l];
            let width = layer.weight.len() / out;
            let rows = dy.len() / out;
            if layer.rectified {
                let opens = |(d, y): (&Rounded, &Rounded)| match y.value {
                    // Rounding decides whether ReLU is open, so accept either.
                    v if v.abs() <= y.error => Rounded::within(0.5 * d.value, 0.5 * d.value.abs() + d.error),
                    v if v > 0.0 => *d,
                    _ => Rounded::default(),
                };
                dy = dy.iter().zip(&layer.y).map(opens).collect();
            }
            if let Some(norm) = &layer.norm {
                end -= 2;
                let count = Rounded::exact(rows as f32);
                let [dgamma, dbeta] = &mut gradients[end..end + 2] else { unreachable!() };
                for (j, (dgamma, dbeta)) in dgamma.iter_mut().zip(dbeta).enumerate() {
                    let column: Vec<usize> = (0..rows).map(|i| i * out + j).collect();
                    let products = || column.iter().map(|n| dy[*n] * norm.x_hat[*n]);
                    let values = || column.iter().map(|n| dy[*n]);
                    *dgamma = Rounded::sum(products().chain([*dgamma]));
                    *dbeta = Rounded::sum(values().chain([*dbeta]));
                    let (along, mean) = (Rounded::sum(products()) / count, Rounded::sum(values()) / count);
                    let scale = norm.inverse[j] * norm.gamma[j];
                    for n in column {
                        dy[n] = scale * (dy[n] - mean - norm.x_hat[n] * along);
                    }
                }
            }
            if self.bias {
                end -= 1;
                for (j, g) in gradients[end].iter_mut().enumerate() {
                    *g = Rounded::sum((0..rows).map(|i| dy[i * out + j]).chain([*g]));
                }
            }
            end -= 1;
            for (n, g) in gradients[end].iter_mut().enumerate() {
                let product = |i: usize| dy[i * out + n / width] * layer.x[i * width + n % width];
                *g = Rounded::sum((0..rows).map(product).chain([*g]));
            }
            dy = (0..rows * width)
                .map(|n| {
                    let term = |j: usize| (dy[n / width * out + j], layer.weight[j * width + n % width]);
                    Rounded::dot((0..out).map(term))
                })
                .collect();
        }
        dy
    }
}

/// Returns the smallest distance of a value before ReLU from zero, minus its rounding error. If it is
/// positive, every value has the same sign in any precision.
pub fn from_kinks(layers: &[Layer]) -> f64 {
    let values = layers.iter().filter(|l| l.rectified).flat_map(|l| &l.y);
    values.map(|v| v.value.abs() - v.error).fold(f64::INFINITY, f64::min)
}

/// Returns zero gradients for these parameters.
pub fn zeros(parameters: &[Vec<Rounded>]) -> Vec<Vec<Rounded>> {
    parameters.iter().map(|p| vec![Rounded::default(); p.len()]).collect()
}

/// Asserts that gradients of the oracle equal central differences of `f` in double precision.
///
/// The step is too short to reach a kink at a distance of 1e-5. `f` is a weighted sum of at most 40 outputs
/// of size about 1, by some 300 operations. With batch normalization, where deviations are above 0.1, its
/// third derivatives are below a few times 0.1⁻³ per output.
pub fn assert_differences(what: &str, at: &[Rounded], gradient: &[Rounded], f: impl Fn(&[Rounded]) -> f64) {
    const STEP: f64 = 1e-6;
    let tolerance = pauc_testing::tolerance::central_difference(STEP, 1e6, 300, 100.0);
    for (i, g) in gradient.iter().enumerate() {
        let shifted = |by: f64| {
            let mut at = at.to_vec();
            at[i].value += by;
            f(&at)
        };
        let numeric = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
        pauc_testing::assert_within!(g.value, numeric, tolerance, "{what}[{i}]");
    }
}
