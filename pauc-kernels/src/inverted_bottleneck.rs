//! The perceptron of a ConvNeXt block on rows of pixels: y = x + s·(W₂·GELU(W₁·LN(d) + b₁) + b₂), where d is the
//! output of the block's depthwise convolution.
//!
//! A portion of rows passes through all layers before the next one, so that its hidden values stay in a cache.
//! Portions depend on the shape alone. Sums over rows are taken in parts, in order.

use crate::buffer::{Buffer, Scratch, scratch};
use crate::conv;
use crate::gelu::{gelu, gelu_backward};
use crate::gemm::{Strides, gemm};
use crate::layer_norm::{self, add_sums};
use crate::simd::Simd;
use crate::threads::{self, Shared, portion};

/// The approximate number of hidden values per portion of rows. A backward pass reads three times as many.
const HIDDEN: usize = 1 << 17;
const HIDDEN_BACKWARD: usize = 1 << 16;
/// Columns of a matrix that are transposed at once.
const TILE: usize = 16;
/// Rows of a weight gradient per unit of work.
const BLOCK: usize = 64;

/// The parameters of a block after its depthwise convolution.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// γ and β of the normalization, (width) each.
    pub norm: [&'a [f32]; 2],
    /// Weight (hidden, width) and bias (hidden) of the first layer.
    pub fc1: [&'a [f32]; 2],
    /// Weight (width, hidden) and bias (width) of the second layer.
    pub fc2: [&'a [f32]; 2],
    /// The factor on each channel, (width).
    pub scale: &'a [f32],
    /// Factors on what the block adds to each image, for stochastic depth; 1 without.
    pub paths: Option<Paths<'a>>,
}

/// A factor on all rows of an image.
#[derive(Clone, Copy, Debug)]
pub struct Paths<'a> {
    /// One for each image.
    pub factors: &'a [f32],
    /// The rows of an image.
    pub rows: usize,
}

impl Paths<'_> {
    fn factor(&self, row: usize) -> f32 {
        self.factors[row / self.rows]
    }

    /// y ← x, with the rows of each image multiplied by its factor.
    fn multiply(&self, width: usize, x: &[f32], y: &mut [f32]) {
        let len = self.rows * width;
        for ((x, y), factor) in x.chunks(len).zip(y.chunks_mut(len)).zip(self.factors) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = factor * x);
        }
    }
}

/// The gradients of [`Weights`], with the same shapes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Those of [`Weights::norm`].
    pub norm: [&'a mut [f32]; 2],
    /// Those of [`Weights::fc1`].
    pub fc1: [&'a mut [f32]; 2],
    /// Those of [`Weights::fc2`].
    pub fc2: [&'a mut [f32]; 2],
    /// That of [`Weights::scale`].
    pub scale: &'a mut [f32],
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

/// Width, hidden width, rows, and rows per portion.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    hidden: usize,
    rows: usize,
    portion: usize,
}

impl Shape {
    /// A portion has about as many values as `portion`, or 64 rows.
    fn new(w: &Weights<'_>, values: usize, portion: usize) -> Self {
        let (width, hidden) = (w.scale.len(), w.fc1[1].len());
        assert!(
            width > 0 && hidden > 0 && values.is_multiple_of(width),
            "{values} values are no rows of {width}"
        );
        let vectors = [w.norm[0].len(), w.norm[1].len(), w.fc2[1].len()];
        assert_eq!(vectors, [width; 3], "vectors of a block of width {width}");
        assert_eq!([w.fc1[0].len(), w.fc2[0].len()], [width * hidden; 2], "matrices of {width} × {hidden}");
        let images = w.paths.is_none_or(|p| p.factors.len() * p.rows == values / width);
        assert!(images, "factors for another number of images");
        Shape { width, hidden, rows: values / width, portion: (portion / hidden).clamp(64, 256) }
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

/// The weight of a linear layer, for products of portions of rows.
enum Matrix<'a> {
    /// (outputs, inputs)
    Original(&'a [f32]),
    /// (inputs, outputs)
    Transposed(Scratch),
}

impl<'a> Matrix<'a> {
    /// Transposes the weight if there are several portions: each of their products packs it, and packs rows in half the
    /// time that it takes for columns.
    fn new(weight: &'a [f32], inputs: usize, portions: usize) -> Self {
        if portions > 2 { Matrix::Transposed(transposed(weight, inputs)) } else { Matrix::Original(weight) }
    }

    /// y ← x·Wᵀ + b, on this thread.
    fn apply(&self, x: &[f32], bias: &[f32], y: &mut [f32]) {
        let outputs = bias.len();
        let rows = y.len() / outputs;
        let inputs = x.len() / rows;
        y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
        let b = match self {
            Matrix::Original(weight) => (*weight, Strides::transposed(inputs)),
            Matrix::Transposed(weight) => (&weight[..], Strides::row_major(outputs)),
        };
        let a = (x, Strides::row_major(inputs));
        gemm((rows, outputs, inputs), 1.0, a, b, 1.0, (y, Strides::row_major(outputs)));
    }
}

/// Returns the transpose of a matrix with `inputs` columns.
fn transposed(weight: &[f32], inputs: usize) -> Scratch {
    let outputs = weight.len() / inputs;
    let mut to = scratch(weight.len());
    let shared = Shared::new(&mut to);
    threads::for_each(inputs.div_ceil(TILE), |tile| {
        let columns = tile * TILE..inputs.min((tile + 1) * TILE);
        // SAFETY: portions are different rows of the transpose.
        let to = unsafe { shared.part(of_rows(&columns, outputs)) };
        for first in (0..outputs).step_by(TILE) {
            let rows = first..outputs.min(first + TILE);
            for (i, to) in columns.clone().zip(to.chunks_exact_mut(outputs)) {
                for (o, to) in rows.clone().zip(&mut to[rows.clone()]) {
                    *to = weight[o * inputs + i];
                }
            }
        }
    });
    to
}

/// ∂x ← ∂y·W, on this thread.
fn linear_input_gradient(dy: &[f32], weight: &[f32], (inputs, outputs): (usize, usize), dx: &mut [f32]) {
    let (a, b) = ((dy, Strides::row_major(outputs)), (weight, Strides::row_major(inputs)));
    gemm((dy.len() / outputs, inputs, outputs), 1.0, a, b, 0.0, (dx, Strides::row_major(inputs)));
}

/// y ← x + s·(W₂·GELU(W₁·LN(d) + b₁) + b₂). `hidden` keeps the values before GELU for [`backward`].
///
/// # Shapes
/// d, x and y (rows, width), hidden (rows, hidden width)
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
    assert!(hidden.as_ref().is_none_or(|h| h.len() == s.rows * s.hidden), "hidden rows of {}", s.hidden);
    let (hidden, y) = (hidden.map(Shared::new), Shared::new(y));
    let [fc1, fc2] =
        [(w.fc1[0], s.width), (w.fc2[0], s.hidden)].map(|(w, n)| Matrix::new(w, n, s.portions()));
    threads::for_each(s.portions(), |i| {
        let rows = s.rows_of(i);
        let values = of_rows(&rows, s.width);
        let (mut normed, mut activated) = (scratch(values.len()), scratch(rows.len() * s.hidden));
        layer_norm::rows(simd, &d[values.clone()], w.norm, &mut normed);
        fc1.apply(&normed, w.fc1[1], &mut activated);
        if let Some(hidden) = hidden {
            // SAFETY: portions are different rows.
            unsafe { hidden.part(of_rows(&rows, s.hidden)) }.copy_from_slice(&activated);
        }
        gelu(&mut activated);
        // SAFETY: portions are different rows.
        let y = unsafe { y.part(values.clone()) };
        fc2.apply(&activated, w.fc2[1], y);
        let pairs = y.chunks_exact_mut(s.width).zip(x[values].chunks_exact(s.width));
        for (row, (y, x)) in rows.zip(pairs) {
            let factor = w.paths.map_or(1.0, |p| p.factor(row));
            for ((y, x), scale) in y.iter_mut().zip(x).zip(w.scale) {
                *y = x + factor * scale * *y;
            }
        }
    });
}

/// ∂d ← the gradient of d, given that of y; adds to those of the weights. That of x is ∂y itself. `hidden` is that
/// of [`forward`], and is overwritten.
///
/// # Shapes
/// d, ∂y and ∂d (rows, width), hidden (rows, hidden width)
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
    assert_eq!(hidden.len(), s.rows * s.hidden, "hidden rows of {}", s.hidden);
    let mut added = std::mem::take(&mut work.added);
    let dy = match &w.paths {
        None => dy,
        Some(paths) => {
            added.grow(dy.len());
            paths.multiply(s.width, dy, &mut added[..dy.len()]);
            &added[..dy.len()]
        }
    };
    // The sums of a portion: the hidden gradient, ∂y, and the gradients of γ and β.
    let sums = s.hidden + 3 * s.width;
    work.normed.grow(d.len());
    work.activated.grow(hidden.len());
    work.sums.grow(s.portions() * sums);
    backward_rows(simd, w, s, work, (d, &mut *hidden, dy), dd);
    let Gradients { norm: [d_gamma, d_beta], fc1: [d_fc1, d_bias1], fc2: [d_fc2, d_bias2], scale: d_scale } =
        gradients;
    let mut of_y = vec![0.0; s.width];
    add_sums(&work.sums[..s.portions() * sums], [d_bias1, &mut of_y, d_gamma, d_beta]);
    let products = &mut work.products;
    let first = products_over_rows((s.width, s.hidden), &work.normed[..d.len()], hidden, products);
    d_fc1.iter_mut().zip(first).for_each(|(d, p)| *d += p);
    let second = products_over_rows((s.hidden, s.width), &work.activated[..hidden.len()], dy, products);
    // y = x + s·m with m = W₂·a + b₂: ∂W₂ = s·∂y·aᵀ, and ∂s = Σ ∂y·m = (∂y·aᵀ)·W₂ + b₂·Σ ∂y.
    let rows = d_fc2.chunks_exact_mut(s.hidden).zip(second.chunks_exact(s.hidden));
    for (j, (d_row, products)) in rows.enumerate() {
        let (scale, weight) = (w.scale[j], &w.fc2[0][j * s.hidden..(j + 1) * s.hidden]);
        d_row.iter_mut().zip(products).for_each(|(d, p)| *d += scale * p);
        let product: f64 = products.iter().zip(weight).map(|(p, w)| f64::from(*p) * f64::from(*w)).sum();
        d_bias2[j] += scale * of_y[j];
        d_scale[j] += (product + f64::from(w.fc2[1][j]) * f64::from(of_y[j])) as f32;
    }
    work.added = added;
}

/// The part of [`backward`] that needs one row at a time. Leaves the hidden gradient in `hidden`, LN(d), GELU of
/// the hidden values and the sums in `work`.
fn backward_rows(
    simd: Simd,
    w: &Weights<'_>,
    s: Shape,
    work: &mut Work,
    (d, hidden, dy): (&[f32], &mut [f32], &[f32]),
    dd: &mut [f32],
) {
    let sums = s.hidden + 3 * s.width;
    let (hidden, dd) = (Shared::new(hidden), Shared::new(dd));
    let [normed, activated, all_sums] =
        [&mut work.normed, &mut work.activated, &mut work.sums].map(|buffer| Shared::new(buffer));
    threads::for_each(s.portions(), |i| {
        let rows = s.rows_of(i);
        let (narrow, wide) = (of_rows(&rows, s.width), of_rows(&rows, s.hidden));
        // SAFETY: portions are different rows, and have sums of their own.
        let (normed, activated, hidden, dd, sums) = unsafe {
            let sums = all_sums.part(i * sums..(i + 1) * sums);
            (
                normed.part(narrow.clone()),
                activated.part(wide.clone()),
                hidden.part(wide),
                dd.part(narrow.clone()),
                sums,
            )
        };
        let (d, dy) = (&d[narrow.clone()], &dy[narrow]);
        layer_norm::rows(simd, d, w.norm, normed);
        let (mut scaled, mut d_activated) = (scratch(dy.len()), scratch(hidden.len()));
        sums.fill(0.0);
        let (of_hidden, rest) = sums.split_at_mut(s.hidden);
        let (of_y, of_norm) = rest.split_at_mut(s.width);
        for (scaled, dy) in scaled.chunks_exact_mut(s.width).zip(dy.chunks_exact(s.width)) {
            for ((scaled, sum), (dy, scale)) in scaled.iter_mut().zip(&mut *of_y).zip(dy.iter().zip(w.scale))
            {
                *scaled = dy * scale;
                *sum += dy;
            }
        }
        linear_input_gradient(&scaled, w.fc2[0], (s.hidden, s.width), &mut d_activated);
        gelu_backward(hidden, &d_activated, activated);
        for hidden in hidden.chunks_exact(s.hidden) {
            of_hidden.iter_mut().zip(hidden).for_each(|(sum, d)| *sum += d);
        }
        linear_input_gradient(hidden, w.fc1[0], (s.width, s.hidden), dd);
        let (to_gamma, to_beta) = of_norm.split_at_mut(s.width);
        layer_norm::rows_backward(simd, d, w.norm[0], dd, [to_gamma, to_beta]);
    });
}

/// Returns ∂yᵀ·x, the gradient of a linear layer's weight. The sum over rows is split into parts, which `work`
/// holds.
///
/// # Shapes
/// x (rows, inputs), ∂y (rows, outputs) → (outputs, inputs)
fn products_over_rows<'a>(
    (inputs, outputs): (usize, usize),
    x: &[f32],
    dy: &[f32],
    work: &'a mut Buffer,
) -> &'a [f32] {
    let (rows, size, blocks) = (x.len() / inputs, inputs * outputs, outputs.div_ceil(BLOCK));
    let parts = conv::parts(size, rows.div_ceil(BLOCK), blocks);
    work.grow(parts * size);
    let sums = Shared::new(&mut work[..parts * size]);
    threads::for_each(parts * blocks, |i| {
        let (rows, first) = (portion(rows, parts, i / blocks), i % blocks * BLOCK);
        let count = BLOCK.min(outputs - first);
        let start = i / blocks * size + first * inputs;
        // SAFETY: portions are different parts and rows of the sums.
        let sums = unsafe { sums.part(start..start + count * inputs) };
        let a = (dy, Strides::transposed(outputs).from(rows.start * outputs + first));
        let b = (x, Strides::row_major(inputs).from(rows.start * inputs));
        gemm((count, inputs, rows.len()), 1.0, a, b, 0.0, (sums, Strides::row_major(inputs)));
    });
    let (total, others) = work.split_at_mut(size);
    let total = Shared::new(total);
    threads::for_each(outputs, |j| {
        let row = j * inputs..(j + 1) * inputs;
        // SAFETY: portions are different rows.
        let total = unsafe { total.part(row.clone()) };
        for part in others[..(parts - 1) * size].chunks_exact(size) {
            total.iter_mut().zip(&part[row.clone()]).for_each(|(t, p)| *t += p);
        }
    });
    &work[..size]
}

#[cfg(test)]
mod tests {
    use super::*;
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
        values: Vec<Vec<f32>>,
    }

    impl Case {
        fn new(rows: usize, drops: bool) -> Self {
            let sizes = [
                rows * WIDTH,
                rows * WIDTH,
                WIDTH,
                WIDTH,
                HIDDEN_WIDTH * WIDTH,
                HIDDEN_WIDTH,
                WIDTH * HIDDEN_WIDTH,
                WIDTH,
                WIDTH,
            ];
            let values = (0u64..).zip(sizes).map(|(seed, n)| noise(n, seed)).collect();
            Case { rows, drops, values }
        }

        fn weights(&self) -> Weights<'_> {
            let v = |i: usize| &self.values[i][..];
            let paths = Some(Paths { factors: &FACTORS, rows: self.rows / FACTORS.len() });
            let paths = paths.filter(|_| self.drops);
            Weights { norm: [v(2), v(3)], fc1: [v(4), v(5)], fc2: [v(6), v(7)], scale: v(8), paths }
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
    fn reference(v: &[Vec<f64>], drops: bool) -> Vec<f64> {
        let mut y = Vec::new();
        let rows = v[0].len() / WIDTH;
        for (row, (d, x)) in v[0].chunks(WIDTH).zip(v[1].chunks(WIDTH)).enumerate() {
            let factor = if drops { f64::from(FACTORS[row / (rows / FACTORS.len())]) } else { 1.0 };
            let mean = d.iter().sum::<f64>() / WIDTH as f64;
            let variance = d.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            let normed: Vec<f64> =
                (0..WIDTH).map(|c| (d[c] - mean) / (variance + 1e-6).sqrt() * v[2][c] + v[3][c]).collect();
            let dot = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            let hidden: Vec<f64> = (0..HIDDEN_WIDTH)
                .map(|k| gelu64(dot(&v[4][k * WIDTH..(k + 1) * WIDTH], &normed) + v[5][k]))
                .collect();
            y.extend((0..WIDTH).map(|c| {
                x[c] + factor
                    * v[8][c]
                    * (dot(&v[6][c * HIDDEN_WIDTH..(c + 1) * HIDDEN_WIDTH], &hidden) + v[7][c])
            }));
        }
        y
    }

    /// Returns the output, and the gradients of d and of all weights for the output gradient `g`.
    fn run(case: &Case, g: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (w, simd) = (case.weights(), Simd::active());
        let (d, x) = (&case.values[0], &case.values[1]);
        let (mut y, mut hidden) = (vec![0.0; d.len()], vec![0.0; case.rows * HIDDEN_WIDTH]);
        forward(simd, &w, (d, x), Some(&mut hidden), &mut y);
        let mut alone = y.clone();
        forward(simd, &w, (d, x), None, &mut alone);
        assert_eq!(alone, y);
        let mut all: Vec<Vec<f32>> = case.values.iter().map(|v| vec![0.25; v.len()]).collect();
        let [dd, _, gamma, beta, w1, b1, w2, b2, scale] = &mut all[..] else { unreachable!() };
        let gradients = Gradients { norm: [gamma, beta], fc1: [w1, b1], fc2: [w2, b2], scale };
        backward(simd, &w, &mut Work::default(), (d, &mut hidden, g), gradients, dd);
        (y, all)
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        check(false);
    }

    #[test]
    fn dropped_paths_add_nothing_and_have_no_gradient() {
        check(true);
    }

    fn check(drops: bool) {
        let case = Case::new(9, drops);
        let g = noise(9 * WIDTH, 20);
        let (y, gradients) = run(&case, &g);
        let wide = case.wide();
        for (i, (got, want)) in y.iter().zip(reference(&wide, drops)).enumerate() {
            // Sums of at most 10 products of numbers below 3, after a division by a deviation above 0.1.
            assert_within!(*got, want, 1e-5, "output {i}");
        }
        let loss =
            |v: &[Vec<f64>]| reference(v, drops).iter().zip(&g).map(|(y, g)| y * f64::from(*g)).sum::<f64>();
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
    fn bits_do_not_depend_on_the_number_of_threads() {
        let case = Case::new(1500, false);
        let g = noise(1500 * WIDTH, 20);
        let on =
            |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| run(&case, &g));
        let one = on(1);
        // These are enough portions for transposed weights.
        for (i, (got, want)) in one.0.iter().zip(reference(&case.wide(), false)).enumerate() {
            assert_within!(*got, want, 1e-5, "output {i}");
        }
        assert!(one.1.iter().flatten().all(|v| v.is_finite()));
        assert!([2, 3, 7].into_iter().all(|n| on(n) == one));
    }

    #[test]
    fn matrices_are_transposed_in_tiles() {
        let (outputs, inputs) = (37, 21);
        let weight = noise(outputs * inputs, 3);
        let got = transposed(&weight, inputs);
        assert_eq!(got.len(), weight.len());
        for (i, got) in got.iter().enumerate() {
            assert_eq!(*got, weight[i % outputs * inputs + i / outputs], "{i}");
        }
    }

    #[test]
    fn products_over_rows_are_sums_in_parts() {
        let (inputs, outputs, rows) = (5, 70, 1000);
        let (x, dy) = (noise(rows * inputs, 1), noise(rows * outputs, 2));
        let mut work = Buffer::default();
        let got = products_over_rows((inputs, outputs), &x, &dy, &mut work);
        for (i, got) in got.iter().enumerate() {
            let pair = |r: usize| (dy[r * outputs + i / inputs].into(), x[r * inputs + i % inputs].into());
            let want = pauc_testing::Rounded::dot((0..rows).map(pair));
            assert!(want.admits(*got), "{i}: got {got}, expected {want}");
        }
    }
}
