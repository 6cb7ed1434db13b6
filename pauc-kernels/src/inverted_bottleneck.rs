//! A residual perceptron on rows: y = x + f·s·(W₂·φ(W₁·LN(d) + b₁) + b₂), with GELU or SwiGLU as φ.
//!
//! In a ConvNeXt block, d is the output of the depthwise convolution; in a transformer block, it is x itself.
//!
//! A portion of rows passes through all layers before the next one, so that its hidden values stay in a cache.
//! Portions depend on the shape alone. Sums over rows are taken in parts, in order.

use crate::buffer::{Buffer, scratch};
use crate::gelu::{gelu, gelu_backward};
use crate::layer_norm::{self, add_sums};
use crate::product::{Packed, products_over_rows};
use crate::residual::{Output, OutputGradients};
use crate::simd::Simd;
use crate::swiglu::{swiglu, swiglu_backward};
use crate::threads::{self, Shared};

/// The approximate number of hidden values per portion of rows. A backward pass reads three times as many.
const HIDDEN: usize = 1 << 17;
const HIDDEN_BACKWARD: usize = 1 << 16;

/// The function φ between the two matrices of a perceptron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·Φ(x).
    Gelu,
    /// SiLU(a) ⊙ b, where a and b are the first and the second half of the outputs of W₁.
    SwiGlu,
}

impl Activation {
    /// Returns how many outputs of the first layer make one input of the second.
    fn inputs(self) -> usize {
        match self {
            Activation::Gelu => 1,
            Activation::SwiGlu => 2,
        }
    }
}

/// The parameters of a perceptron.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// γ and β of the normalization, (width) each.
    pub norm: [&'a [f32]; 2],
    /// Weight (joined, width) and bias (joined) of the first layer. `joined` is the hidden width, or twice that
    /// with SwiGLU.
    pub fc1: [&'a [f32]; 2],
    /// The function between the layers.
    pub activation: Activation,
    /// The second layer, (width, hidden).
    pub fc2: Output<'a>,
}

/// The gradients of [`Weights`], with the same shapes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Those of [`Weights::norm`].
    pub norm: [&'a mut [f32]; 2],
    /// Those of [`Weights::fc1`].
    pub fc1: [&'a mut [f32]; 2],
    /// Those of [`Weights::fc2`].
    pub fc2: OutputGradients<'a>,
}

/// Scratch memory of [`backward`], which grows to the largest need.
#[derive(Clone, Debug, Default)]
pub struct Work {
    normed: Buffer,
    activated: Buffer,
    sums: Buffer,
    products: Buffer,
    /// The gradient of what the block adds, if paths have factors.
    added: Buffer,
}

/// The numbers of a pass.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    /// The inputs of the second layer, and the outputs of the first one.
    hidden: usize,
    joined: usize,
    rows: usize,
    /// Rows per portion.
    portion: usize,
}

impl Shape {
    /// A portion has about as many values as `portion`, or 64 rows.
    fn new(w: &Weights<'_>, values: usize, portion: usize) -> Self {
        let (width, joined) = (w.fc2.bias.len(), w.fc1[1].len());
        let hidden = joined / w.activation.inputs();
        assert!(
            width > 0 && hidden > 0 && values.is_multiple_of(width),
            "{values} values are no rows of {width}"
        );
        assert_eq!(w.norm.map(<[f32]>::len), [width; 2], "vectors of a block of width {width}");
        assert_eq!(w.fc1[0].len(), width * joined, "a matrix of {joined} × {width}");
        w.fc2.check(hidden, values / width);
        Shape { width, hidden, joined, rows: values / width, portion: (portion / joined).clamp(64, 256) }
    }

    fn portions(&self) -> usize {
        self.rows.div_ceil(self.portion)
    }

    fn rows_of(&self, i: usize) -> std::ops::Range<usize> {
        i * self.portion..self.rows.min((i + 1) * self.portion)
    }
}

/// Returns the values of some rows.
fn of_rows(rows: &std::ops::Range<usize>, width: usize) -> std::ops::Range<usize> {
    rows.start * width..rows.end * width
}

/// y ← x + f·s·(W₂·φ(W₁·LN(d) + b₁) + b₂). `hidden` keeps the values before φ for [`backward`].
///
/// # Shapes
/// d, x and y (rows, width), hidden (rows, joined)
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn forward(
    simd: Simd,
    w: &Weights<'_>,
    (d, x): (&[f32], &[f32]),
    hidden: Option<&mut [f32]>,
    y: &mut [f32],
) {
    let s = Shape::new(w, d.len(), HIDDEN);
    assert_eq!((x.len(), y.len()), (d.len(), d.len()), "rows of {}", s.width);
    assert!(hidden.as_ref().is_none_or(|h| h.len() == s.rows * s.joined), "hidden rows of {}", s.joined);
    let (hidden, y) = (hidden.map(Shared::new), Shared::new(y));
    let fc1 = Packed::transposed(simd, w.fc1[0], s.width);
    let fc2 = Packed::transposed(simd, w.fc2.weight, s.hidden);
    threads::for_each(s.portions(), |i| {
        let rows = s.rows_of(i);
        let values = of_rows(&rows, s.width);
        let (mut normed, mut joined) = (scratch(values.len()), scratch(rows.len() * s.joined));
        layer_norm::rows(simd, &d[values.clone()], w.norm, &mut normed);
        joined.chunks_exact_mut(s.joined).for_each(|row| row.copy_from_slice(w.fc1[1]));
        fc1.multiply(&normed, true, &mut joined);
        if let Some(hidden) = hidden {
            // SAFETY: portions are different rows.
            unsafe { hidden.part(of_rows(&rows, s.joined)) }.copy_from_slice(&joined);
        }
        // SAFETY: portions are different rows.
        let y = unsafe { y.part(values.clone()) };
        match w.activation {
            Activation::Gelu => {
                gelu(&mut joined);
                w.fc2.apply(&fc2, (&joined, &x[values]), rows.start, y);
            }
            Activation::SwiGlu => {
                let mut activated = scratch(rows.len() * s.hidden);
                let pairs = joined.chunks_exact(s.joined).zip(activated.chunks_exact_mut(s.hidden));
                pairs.for_each(|(x, y)| swiglu(x, y));
                w.fc2.apply(&fc2, (&activated, &x[values]), rows.start, y);
            }
        }
    });
}

/// ∂d ← the gradient of d, given that of y; adds to those of the weights. That of x is ∂y itself. `hidden` is that
/// of [`forward`], and is overwritten.
///
/// # Shapes
/// d, ∂y and ∂d (rows, width), hidden (rows, joined)
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn backward(
    simd: Simd,
    w: &Weights<'_>,
    work: &mut Work,
    (d, hidden, dy): (&[f32], &mut [f32], &[f32]),
    gradients: Gradients<'_>,
    dd: &mut [f32],
) {
    let s = Shape::new(w, d.len(), HIDDEN_BACKWARD);
    assert_eq!((dy.len(), dd.len()), (d.len(), d.len()), "rows of {}", s.width);
    assert_eq!(hidden.len(), s.rows * s.joined, "hidden rows of {}", s.joined);
    let mut added = std::mem::take(&mut work.added);
    let dy = match &w.fc2.paths {
        None => dy,
        Some(paths) => {
            added.grow(dy.len());
            paths.multiply(s.width, dy, &mut added[..dy.len()]);
            &added[..dy.len()]
        }
    };
    // The sums of a portion: the hidden gradient, ∂y, and the gradients of γ and β.
    let sums = s.joined + 3 * s.width;
    work.normed.grow(d.len());
    work.activated.grow(s.rows * s.hidden);
    work.sums.grow(s.portions() * sums);
    backward_rows(simd, w, s, work, (d, &mut *hidden, dy), dd);
    let Gradients { norm: [d_gamma, d_beta], fc1: [d_fc1, d_bias1], fc2 } = gradients;
    let mut of_y = vec![0.0; s.width];
    add_sums(&work.sums[..s.portions() * sums], [d_bias1, &mut of_y, d_gamma, d_beta]);
    let products = &mut work.products;
    let first = products_over_rows(simd, (s.width, s.joined), &work.normed[..d.len()], hidden, products);
    d_fc1.iter_mut().zip(first).for_each(|(d, p)| *d += p);
    let activated = &work.activated[..s.rows * s.hidden];
    let second = products_over_rows(simd, (s.hidden, s.width), activated, dy, products);
    w.fc2.add_gradients(second, &of_y, fc2);
    work.added = added;
}

/// The part of [`backward`] that needs one row at a time. Leaves the gradient of the values before φ in `hidden`, and
/// LN(d), the values after φ and the sums in `work`.
fn backward_rows(
    simd: Simd,
    w: &Weights<'_>,
    s: Shape,
    work: &mut Work,
    (d, hidden, dy): (&[f32], &mut [f32], &[f32]),
    dd: &mut [f32],
) {
    let sums = s.joined + 3 * s.width;
    let (hidden, dd) = (Shared::new(hidden), Shared::new(dd));
    let [normed, activated, all_sums] =
        [&mut work.normed, &mut work.activated, &mut work.sums].map(|buffer| Shared::new(buffer));
    let fc1 = Packed::straight(simd, w.fc1[0], s.width);
    let fc2 = Packed::straight(simd, w.fc2.weight, s.hidden);
    threads::for_each(s.portions(), |i| {
        let rows = s.rows_of(i);
        let (narrow, wide) = (of_rows(&rows, s.width), of_rows(&rows, s.joined));
        // SAFETY: portions are different rows, and have sums of their own.
        let (normed, activated, hidden, dd, sums) = unsafe {
            (
                normed.part(narrow.clone()),
                activated.part(of_rows(&rows, s.hidden)),
                hidden.part(wide),
                dd.part(narrow.clone()),
                all_sums.part(i * sums..(i + 1) * sums),
            )
        };
        let (d, dy) = (&d[narrow.clone()], &dy[narrow]);
        layer_norm::rows(simd, d, w.norm, normed);
        let (mut scaled, mut d_activated) = (scratch(dy.len()), scratch(activated.len()));
        sums.fill(0.0);
        let (of_hidden, rest) = sums.split_at_mut(s.joined);
        let (of_y, of_norm) = rest.split_at_mut(s.width);
        w.fc2.scale_gradient(dy, &mut scaled, of_y);
        fc2.multiply(&scaled, false, &mut d_activated);
        match w.activation {
            Activation::Gelu => gelu_backward(hidden, &d_activated, activated),
            Activation::SwiGlu => {
                let rows = hidden.chunks_exact_mut(s.joined).zip(d_activated.chunks_exact(s.hidden));
                rows.zip(activated.chunks_exact_mut(s.hidden))
                    .for_each(|((x, dy), y)| swiglu_backward(x, dy, y));
            }
        }
        for hidden in hidden.chunks_exact(s.joined) {
            of_hidden.iter_mut().zip(hidden).for_each(|(sum, d)| *sum += d);
        }
        fc1.multiply(hidden, false, dd);
        let (to_gamma, to_beta) = of_norm.split_at_mut(s.width);
        layer_norm::rows_backward(simd, d, w.norm[0], dd, [to_gamma, to_beta]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residual::Paths;
    use pauc_testing::assert_within;
    use pauc_testing::inputs::noise;

    const WIDTH: usize = 6;
    const HIDDEN_WIDTH: usize = 10;
    const FACTORS: [f32; 3] = [1.5, 0.0, 2.0];

    /// All operands, one after the other: d, x, γ, β, W₁, b₁, W₂, b₂, s.
    struct Case {
        rows: usize,
        /// Whether images have [`FACTORS`].
        drops: bool,
        activation: Activation,
        values: Vec<Vec<f32>>,
    }

    impl Case {
        fn new(rows: usize, drops: bool, activation: Activation) -> Self {
            let joined = activation.inputs() * HIDDEN_WIDTH;
            let sizes = [
                rows * WIDTH,
                rows * WIDTH,
                WIDTH,
                WIDTH,
                joined * WIDTH,
                joined,
                WIDTH * HIDDEN_WIDTH,
                WIDTH,
                WIDTH,
            ];
            let values = (0u64..).zip(sizes).map(|(seed, n)| noise(n, seed)).collect();
            Case { rows, drops, activation, values }
        }

        fn weights(&self) -> Weights<'_> {
            let v = |i: usize| &self.values[i][..];
            let paths = Some(Paths { factors: &FACTORS, rows: self.rows / FACTORS.len() });
            let paths = paths.filter(|_| self.drops);
            let fc2 = Output { weight: v(6), bias: v(7), scale: Some(v(8)), paths };
            Weights { norm: [v(2), v(3)], fc1: [v(4), v(5)], activation: self.activation, fc2 }
        }

        fn wide(&self) -> Vec<Vec<f64>> {
            self.values.iter().map(|v| v.iter().map(|v| f64::from(*v)).collect()).collect()
        }
    }

    fn gelu64(x: f64) -> f64 {
        // Φ by the power series of its integral.
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        x * (0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt())
    }

    /// The output by definition, in `f64`.
    fn reference(case: &Case, v: &[Vec<f64>]) -> Vec<f64> {
        let mut y = Vec::new();
        let rows = v[0].len() / WIDTH;
        let dot = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        for (row, (d, x)) in v[0].chunks(WIDTH).zip(v[1].chunks(WIDTH)).enumerate() {
            let factor = if case.drops { f64::from(FACTORS[row / (rows / FACTORS.len())]) } else { 1.0 };
            let mean = d.iter().sum::<f64>() / WIDTH as f64;
            let variance = d.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            let normed: Vec<f64> =
                (0..WIDTH).map(|c| (d[c] - mean) / (variance + 1e-6).sqrt() * v[2][c] + v[3][c]).collect();
            let joined: Vec<f64> =
                v[4].chunks(WIDTH).zip(&v[5]).map(|(w, bias)| dot(w, &normed) + bias).collect();
            let hidden: Vec<f64> = (0..HIDDEN_WIDTH)
                .map(|k| match case.activation {
                    Activation::Gelu => gelu64(joined[k]),
                    Activation::SwiGlu => joined[k] / (1.0 + (-joined[k]).exp()) * joined[HIDDEN_WIDTH + k],
                })
                .collect();
            let second = v[6].chunks(HIDDEN_WIDTH).zip(&v[7]).map(|(w, bias)| dot(w, &hidden) + bias);
            y.extend(second.enumerate().map(|(c, m)| x[c] + factor * v[8][c] * m));
        }
        y
    }

    /// Returns the output, and the gradients of d and of all weights for the output gradient `g`.
    fn run(case: &Case, g: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (w, simd) = (case.weights(), Simd::active());
        let (d, x) = (&case.values[0], &case.values[1]);
        let (mut y, mut hidden) = (vec![0.0; d.len()], vec![0.0; case.rows * w.fc1[1].len()]);
        forward(simd, &w, (d, x), Some(&mut hidden), &mut y);
        let mut alone = y.clone();
        forward(simd, &w, (d, x), None, &mut alone);
        assert_eq!(alone, y);
        let mut all: Vec<Vec<f32>> = case.values.iter().map(|v| vec![0.25; v.len()]).collect();
        let [dd, _, gamma, beta, w1, b1, w2, b2, scale] = &mut all[..] else { unreachable!() };
        let fc2 = OutputGradients { weight: w2, bias: b2, scale: Some(scale) };
        let gradients = Gradients { norm: [gamma, beta], fc1: [w1, b1], fc2 };
        backward(simd, &w, &mut Work::default(), (d, &mut hidden, g), gradients, dd);
        (y, all)
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        check(false, Activation::Gelu);
        check(false, Activation::SwiGlu);
    }

    #[test]
    fn dropped_paths_add_nothing_and_have_no_gradient() {
        check(true, Activation::Gelu);
    }

    fn check(drops: bool, activation: Activation) {
        let case = Case::new(9, drops, activation);
        let g = noise(9 * WIDTH, 20);
        let (y, gradients) = run(&case, &g);
        let wide = case.wide();
        for (i, (got, want)) in y.iter().zip(reference(&case, &wide)).enumerate() {
            // Sums of at most 10 products of numbers below 3, after a division by a deviation above 0.1.
            assert_within!(*got, want, 1e-5, "output {i}");
        }
        let loss =
            |v: &[Vec<f64>]| reference(&case, v).iter().zip(&g).map(|(y, g)| y * f64::from(*g)).sum::<f64>();
        const STEP: f64 = 1e-5;
        for (part, gradient) in gradients.iter().enumerate().filter(|(part, _)| *part != 1) {
            for i in 0..gradient.len() {
                let at = |step: f64| {
                    let mut moved = wide.clone();
                    moved[part][i] += step;
                    loss(&moved)
                };
                let want = (at(STEP) - at(-STEP)) / (2.0 * STEP) + if part == 0 { 0.0 } else { 0.25 };
                // Sums over nine rows of the errors above; the differences are exact to 1e-8.
                assert_within!(gradient[i], want, 1e-4 * want.abs().max(1.0), "gradient {part}, {i}");
            }
        }
    }

    #[test]
    fn without_a_scale_it_is_one() {
        let case = Case::new(9, false, Activation::Gelu);
        let mut w = case.weights();
        w.fc2.scale = None;
        let ones = [1.0; WIDTH];
        let of_ones = Weights { fc2: Output { scale: Some(&ones), ..w.fc2 }, ..w };
        let y = [w, of_ones].map(|w| {
            let mut y = vec![0.0; 9 * WIDTH];
            forward(Simd::active(), &w, (&case.values[0], &case.values[1]), None, &mut y);
            y
        });
        assert_eq!(y[0], y[1]);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let case = Case::new(1500, false, Activation::Gelu);
        let g = noise(1500 * WIDTH, 20);
        let on =
            |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| run(&case, &g));
        let one = on(1);
        for (i, (got, want)) in one.0.iter().zip(reference(&case, &case.wide())).enumerate() {
            assert_within!(*got, want, 1e-5, "output {i}");
        }
        assert!(one.1.iter().flatten().all(|v| v.is_finite()));
        assert!([2, 3, 7].into_iter().all(|n| on(n) == one));
    }
}
