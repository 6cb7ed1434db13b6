//! A residual branch of attention on the tokens of each image: y = x + f·s·(W·A(x) + b), where A(x) has
//! softmax(q·kᵀ/√d)·v of each head, and q, k and v are linear in LN(x).
//!
//! An image passes through all layers before the next image does. Logits are computed for one tile of queries and all
//! keys at a time, which fit into a cache. Those of all queries are never in memory together, and the backward pass
//! computes them again.
//! Sums over images are taken in order, so results do not depend on the number of threads.

use crate::buffer::{Buffer, scratch};
use crate::layer_norm::{self, add_sums};
use crate::microkernel::Operands;
use crate::product::{Packed, panel, panels, products_over_rows};
use crate::residual::{Output, OutputGradients};
use crate::simd::{CHANNELS, Simd, dispatched};
use crate::threads::{self, Shared};

/// Queries per tile: a multiple of the heights of the microkernel's tiles.
const TILE: usize = 96;
/// Elements that the row loops process at once: two AVX-512 registers.
const LANES: usize = 32;

/// Tokens and heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Tokens of an image.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
}

/// The parameters of the branch.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// γ and β of the normalization, (width) each.
    pub norm: [&'a [f32]; 2],
    /// Weight (3·width, width) and bias (3·width) of q, k and v, in this order.
    pub qkv: [&'a [f32]; 2],
    /// The layer on the outputs of all heads, (width, width).
    pub projection: Output<'a>,
}

/// The gradients of [`Weights`], with the same shapes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Those of [`Weights::norm`].
    pub norm: [&'a mut [f32]; 2],
    /// Those of [`Weights::qkv`].
    pub qkv: [&'a mut [f32]; 2],
    /// Those of [`Weights::projection`].
    pub projection: OutputGradients<'a>,
}

/// The values that [`backward`] needs.
#[derive(Debug)]
pub struct Kept<'a> {
    /// q, k and v of each token, (rows, 3·width).
    pub qkv: &'a mut [f32],
    /// The outputs of all heads, (rows, width).
    pub mixed: &'a mut [f32],
}

/// Scratch memory of [`backward`], which grows to the largest need.
#[derive(Clone, Debug, Default)]
pub struct Work {
    normed: Buffer,
    d_qkv: Buffer,
    sums: Buffer,
    products: Buffer,
    /// The gradient of what the branch adds, if paths have factors.
    added: Buffer,
}

/// The numbers of a pass.
#[derive(Clone, Copy)]
struct Shape {
    simd: Simd,
    images: usize,
    tokens: usize,
    heads: usize,
    width: usize,
    /// Values of a head.
    dim: usize,
    /// Values of a head and tokens, rounded up to whole vectors.
    wide_dim: usize,
    wide_tokens: usize,
}

impl Shape {
    fn new(simd: Simd, w: &Weights<'_>, Heads { tokens, heads }: Heads, values: usize) -> Self {
        let width = w.projection.bias.len();
        let image = tokens * width;
        assert!(
            image > 0 && values.is_multiple_of(image),
            "{values} values are not a whole number of images of {tokens} × {width}"
        );
        assert!(heads > 0 && width.is_multiple_of(heads), "{heads} heads of {width}");
        assert_eq!(w.norm.map(<[f32]>::len), [width; 2], "vectors of width {width}");
        assert_eq!(w.qkv.map(<[f32]>::len), [3 * width * width, 3 * width], "a layer {width} → 3·{width}");
        w.projection.check(width, values / width);
        let dim = width / heads;
        Shape {
            simd,
            images: values / image,
            tokens,
            heads,
            width,
            dim,
            wide_dim: dim.next_multiple_of(CHANNELS),
            wide_tokens: tokens.next_multiple_of(CHANNELS),
        }
    }

    fn rows(&self) -> usize {
        self.images * self.tokens
    }

    /// Returns the range of an image's values, if its rows have `width` values.
    fn of_image(&self, i: usize, width: usize) -> std::ops::Range<usize> {
        i * self.tokens * width..(i + 1) * self.tokens * width
    }

    /// to ← factor · a part of the rows of an image, starting at column `first`, padded with zeros.
    ///
    /// # Shapes
    /// from (tokens, width) → to (tokens, wide_dim)
    fn gather(&self, (from, width): (&[f32], usize), first: usize, factor: f32, to: &mut [f32]) {
        for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(self.wide_dim)) {
            let (to, padding) = to.split_at_mut(self.dim);
            to.iter_mut().zip(&from[first..]).for_each(|(to, from)| *to = factor * from);
            padding.fill(0.0);
        }
    }

    /// to ← the transpose of what [`Shape::gather`] returns, padded with zeros.
    ///
    /// # Shapes
    /// from (tokens, width) → to (dim, wide_tokens)
    fn gather_transposed(&self, (from, width): (&[f32], usize), first: usize, to: &mut [f32]) {
        for (i, to) in to.chunks_exact_mut(self.wide_tokens).enumerate().take(self.dim) {
            let (to, padding) = to.split_at_mut(self.tokens);
            to.iter_mut().zip(from[first + i..].iter().step_by(width)).for_each(|(to, from)| *to = *from);
            padding.fill(0.0);
        }
    }

    /// Copies rows of (tokens, wide_dim) back into columns from `first` on.
    fn scatter(&self, from: &[f32], factor: f32, (to, width): (&mut [f32], usize), first: usize) {
        for (from, to) in from.chunks_exact(self.wide_dim).zip(to.chunks_exact_mut(width)) {
            to[first..first + self.dim].iter_mut().zip(from).for_each(|(to, from)| *to = factor * from);
        }
    }

    /// Returns 1/√d.
    fn temperature(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Returns the tiles of queries.
    fn tiles(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let tokens = self.tokens;
        (0..tokens).step_by(TILE).map(move |first| first..tokens.min(first + TILE))
    }
}

/// A matrix in a slice, from some element on: its rows are `row` apart, and its columns `column`.
#[derive(Clone, Copy)]
struct Matrix<'a>(&'a [f32], usize, usize);

/// C ← A·B, or C + A·B if `add`, where rows of B and C have `width` values, a multiple of [`CHANNELS`].
///
/// # Shapes
/// A (rows, depth), B (depth, width), C (rows, width)
///
/// # Panics
/// If a matrix exceeds its slice.
fn product(
    simd: Simd,
    (rows, depth, width): (usize, usize, usize),
    Matrix(a, a_row, a_column): Matrix<'_>,
    b: &[f32],
    add: bool,
    c: &mut [f32],
) {
    assert!(width.is_multiple_of(CHANNELS) && rows > 0 && depth > 0, "{rows} × {depth} × {width}");
    assert!((rows - 1) * a_row + (depth - 1) * a_column < a.len(), "A exceeds {} values", a.len());
    assert!(depth * width <= b.len() && rows * width <= c.len(), "B or C exceeds its values");
    for (start, columns) in panels(simd, width) {
        let o = Operands {
            a: a.as_ptr(),
            a_row,
            a_step: a_column,
            b: b[start..].as_ptr(),
            b_step: width,
            c: c[start..].as_mut_ptr(),
            c_row: width,
        };
        // SAFETY: in bounds by the assertions. C is borrowed mutably, so it overlaps neither A nor B.
        unsafe { panel(simd, columns, rows, depth, o, add) };
    }
}

// Compilers turn indices over fixed lanes into vector registers.
#[allow(clippy::needless_range_loop)]
mod body {
    use super::LANES;
    use crate::softmax::exp;

    #[inline(always)]
    pub fn softmax(row: &mut [f32]) {
        let (mut tops, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
        let mut chunks = row.chunks_exact(LANES);
        for chunk in &mut chunks {
            for l in 0..LANES {
                tops[l] = if chunk[l] > tops[l] { chunk[l] } else { tops[l] };
            }
        }
        let top = chunks.remainder().iter().chain(&tops).copied().fold(f32::NEG_INFINITY, f32::max);
        let mut chunks = row.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for l in 0..LANES {
                chunk[l] = exp(chunk[l] - top);
                sums[l] += chunk[l];
            }
        }
        let mut sum: f32 = sums.iter().sum();
        for v in chunks.into_remainder() {
            *v = exp(*v - top);
            sum += *v;
        }
        let inverse = 1.0 / sum;
        row.iter_mut().for_each(|v| *v *= inverse);
    }

    #[inline(always)]
    pub fn softmax_backward(p: &[f32], d: &mut [f32]) {
        let mut sums = [0.0f32; LANES];
        let (mut ps, mut ds) = (p.chunks_exact(LANES), d.chunks_exact(LANES));
        for (p, d) in (&mut ps).zip(&mut ds) {
            for l in 0..LANES {
                sums[l] += p[l] * d[l];
            }
        }
        let rest: f32 = ps.remainder().iter().zip(ds.remainder()).map(|(p, d)| p * d).sum();
        let mean = sums.iter().sum::<f32>() + rest;
        d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
    }
}

dispatched! {
    /// row ← softmax(row).
    pub(super) fn softmax(row: &mut [f32])
}
dispatched! {
    /// ∂p ← the gradient of the logits, given that of their softmax p.
    ///
    /// # Shapes
    /// p and ∂p of one length
    pub(super) fn softmax_backward(p: &[f32], d: &mut [f32])
}

/// Splits memory into parts of the given sizes.
fn split<const N: usize>(mut memory: &mut [f32], sizes: [usize; N]) -> [&mut [f32]; N] {
    sizes.map(|size| {
        let (part, rest) = std::mem::take(&mut memory).split_at_mut(size);
        memory = rest;
        part
    })
}

/// weights ← softmax(q·kᵀ) of a tile of queries; the rows have `wide_tokens` values.
fn attend(s: Shape, rows: usize, q: &[f32], k_transposed: &[f32], weights: &mut [f32]) {
    let q = Matrix(q, s.wide_dim, 1);
    product(s.simd, (rows, s.dim, s.wide_tokens), q, k_transposed, false, weights);
    for row in weights.chunks_exact_mut(s.wide_tokens).take(rows) {
        softmax(&mut row[..s.tokens]);
    }
}

/// mixed ← softmax(q·kᵀ/√d)·v of each head of an image.
///
/// # Shapes
/// qkv (tokens, 3·width), mixed (tokens, width)
fn mix(s: Shape, qkv: &[f32], mixed: &mut [f32]) {
    let (of_tokens, of_keys) = (s.tokens * s.wide_dim, s.dim * s.wide_tokens);
    let sizes = [of_tokens, of_keys, of_tokens, TILE * s.wide_tokens, of_tokens];
    let mut memory = scratch(sizes.iter().sum());
    let [q, k_transposed, v, weights, out] = split(&mut memory, sizes);
    for head in 0..s.heads {
        let (from, first) = ((qkv, 3 * s.width), head * s.dim);
        s.gather(from, first, s.temperature(), q);
        s.gather_transposed(from, s.width + first, k_transposed);
        s.gather(from, 2 * s.width + first, 1.0, v);
        for tile in s.tiles() {
            let values = tile.start * s.wide_dim..tile.end * s.wide_dim;
            attend(s, tile.len(), &q[values.clone()], k_transposed, weights);
            let weights = Matrix(weights, s.wide_tokens, 1);
            product(s.simd, (tile.len(), s.tokens, s.wide_dim), weights, v, false, &mut out[values]);
        }
        s.scatter(out, 1.0, (mixed, s.width), first);
    }
}

/// ∂qkv ← the gradient of [`mix`]'s input, given that of its output.
///
/// # Shapes
/// qkv and ∂qkv (tokens, 3·width), ∂mixed (tokens, width)
fn mix_backward(s: Shape, qkv: &[f32], d_mixed: &[f32], d_qkv: &mut [f32]) {
    let (of_tokens, of_keys, of_tile) = (s.tokens * s.wide_dim, s.dim * s.wide_tokens, TILE * s.wide_tokens);
    let sizes = [of_tokens; 6];
    let transposed = [of_keys, of_keys, of_tile, of_tile];
    let mut memory = scratch(sizes.iter().chain(&transposed).sum());
    let (rows, columns) = memory.split_at_mut(sizes.iter().sum());
    let [q, k, d_out, d_q, d_k, d_v] = split(rows, sizes);
    let [k_transposed, v_transposed, weights, d_weights] = split(columns, transposed);
    for head in 0..s.heads {
        let (from, first) = ((qkv, 3 * s.width), head * s.dim);
        s.gather(from, first, s.temperature(), q);
        s.gather(from, s.width + first, 1.0, k);
        s.gather_transposed(from, s.width + first, k_transposed);
        s.gather_transposed(from, 2 * s.width + first, v_transposed);
        s.gather((d_mixed, s.width), first, 1.0, d_out);
        for tile in s.tiles() {
            let (rows, add) = (tile.len(), tile.start > 0);
            let values = tile.start * s.wide_dim..tile.end * s.wide_dim;
            let (q, d_out) = (&q[values.clone()], &d_out[values.clone()]);
            attend(s, rows, q, k_transposed, weights);
            let by_key = (s.tokens, rows, s.wide_dim);
            product(s.simd, by_key, Matrix(weights, 1, s.wide_tokens), d_out, add, d_v);
            let d_out = Matrix(d_out, s.wide_dim, 1);
            product(s.simd, (rows, s.dim, s.wide_tokens), d_out, v_transposed, false, d_weights);
            let pairs = weights.chunks_exact(s.wide_tokens).zip(d_weights.chunks_exact_mut(s.wide_tokens));
            pairs.take(rows).for_each(|(p, d)| softmax_backward(&p[..s.tokens], &mut d[..s.tokens]));
            let by_query = (rows, s.tokens, s.wide_dim);
            product(s.simd, by_query, Matrix(d_weights, s.wide_tokens, 1), k, false, &mut d_q[values]);
            product(s.simd, by_key, Matrix(d_weights, 1, s.wide_tokens), q, add, d_k);
        }
        let parts = [(&*d_q, s.temperature()), (&*d_k, 1.0), (&*d_v, 1.0)];
        for (part, (d, factor)) in parts.into_iter().enumerate() {
            s.scatter(d, factor, (d_qkv, 3 * s.width), part * s.width + first);
        }
    }
}

/// y ← x + f·s·(W·A(x) + b). `kept` is what [`backward`] needs.
///
/// # Shapes
/// x and y (images · tokens, width)
///
/// # Panics
/// If a slice does not have its shape's length, or the heads do not divide the width.
pub fn forward(simd: Simd, w: &Weights<'_>, heads: Heads, x: &[f32], kept: Option<Kept<'_>>, y: &mut [f32]) {
    let s = Shape::new(simd, w, heads, x.len());
    assert_eq!(y.len(), x.len(), "rows of {}", s.width);
    let kept = kept.map(|Kept { qkv, mixed }| {
        assert_eq!([qkv.len(), mixed.len()], [3 * x.len(), x.len()], "kept rows of {}", s.width);
        (Shared::new(qkv), Shared::new(mixed))
    });
    let y = Shared::new(y);
    let of_qkv = Packed::transposed(simd, w.qkv[0], s.width);
    let projection = Packed::transposed(simd, w.projection.weight, s.width);
    threads::for_each(s.images, |i| {
        let (narrow, wide) = (s.of_image(i, s.width), s.of_image(i, 3 * s.width));
        let sizes = [narrow.len(), wide.len(), narrow.len()];
        let mut memory = scratch(sizes.iter().sum());
        let [normed, mut qkv, mut mixed] = split(&mut memory, sizes);
        if let Some((all_qkv, all_mixed)) = kept {
            // SAFETY: portions are different images.
            (qkv, mixed) = unsafe { (all_qkv.part(wide), all_mixed.part(narrow.clone())) };
        }
        layer_norm::rows(simd, &x[narrow.clone()], w.norm, normed);
        qkv.chunks_exact_mut(3 * s.width).for_each(|row| row.copy_from_slice(w.qkv[1]));
        of_qkv.multiply(normed, true, qkv);
        mix(s, qkv, mixed);
        // SAFETY: portions are different images.
        let y = unsafe { y.part(narrow.clone()) };
        w.projection.apply(&projection, (mixed, &x[narrow]), i * s.tokens, y);
    });
}

/// Replaces ∂y by the gradient of x; adds to those of the weights. `kept` is that of [`forward`].
///
/// # Shapes
/// x and ∂y (images · tokens, width)
///
/// # Panics
/// If a slice does not have its shape's length, or the heads do not divide the width.
pub fn backward(
    simd: Simd,
    w: &Weights<'_>,
    heads: Heads,
    work: &mut Work,
    (x, kept): (&[f32], Kept<'_>),
    gradients: Gradients<'_>,
    dy: &mut [f32],
) {
    let s = Shape::new(simd, w, heads, x.len());
    let Kept { qkv, mixed } = kept;
    assert_eq!([dy.len(), qkv.len(), mixed.len()], [1, 3, 1].map(|n| n * x.len()), "rows of {}", s.width);
    // The sums of an image: the gradients of q, k and v, ∂y, and the gradients of γ and β.
    let sums = 6 * s.width;
    work.normed.grow(x.len());
    work.d_qkv.grow(qkv.len());
    work.sums.grow(s.images * sums);
    work.added.grow(x.len());
    match &w.projection.paths {
        None => threads::copy(dy, &mut work.added[..x.len()], 1 << 16),
        Some(paths) => paths.multiply(s.width, dy, &mut work.added[..x.len()]),
    }
    backward_images(w, s, work, (x, qkv), dy);
    let Gradients { norm: [d_gamma, d_beta], qkv: [d_weight, d_bias], projection } = gradients;
    let mut of_y = vec![0.0; s.width];
    add_sums(&work.sums[..s.images * sums], [d_bias, &mut of_y, d_gamma, d_beta]);
    let (normed, d_qkv) = (&work.normed[..x.len()], &work.d_qkv[..qkv.len()]);
    let products = products_over_rows(simd, (s.width, 3 * s.width), normed, d_qkv, &mut work.products);
    d_weight.iter_mut().zip(products).for_each(|(d, p)| *d += p);
    let added = &work.added[..x.len()];
    let products = products_over_rows(simd, (s.width, s.width), mixed, added, &mut work.products);
    w.projection.add_gradients(products, &of_y, projection);
}

/// The part of [`backward`] that needs one image at a time. Leaves LN(x), the gradients of q, k and v, and the sums in
/// `work`, which has the gradient of what the branch adds.
fn backward_images(w: &Weights<'_>, s: Shape, work: &mut Work, (x, qkv): (&[f32], &[f32]), dy: &mut [f32]) {
    let sums = 6 * s.width;
    let (added, dy) = (&work.added[..s.rows() * s.width], Shared::new(dy));
    let [normed, d_qkv, all_sums] =
        [&mut work.normed, &mut work.d_qkv, &mut work.sums].map(|buffer| Shared::new(buffer));
    let of_qkv = Packed::straight(s.simd, w.qkv[0], s.width);
    let projection = Packed::straight(s.simd, w.projection.weight, s.width);
    threads::for_each(s.images, |i| {
        let (narrow, wide) = (s.of_image(i, s.width), s.of_image(i, 3 * s.width));
        // SAFETY: portions are different images, and have sums of their own.
        let (normed, d_qkv, sums, dy) = unsafe {
            (
                normed.part(narrow.clone()),
                d_qkv.part(wide.clone()),
                all_sums.part(i * sums..(i + 1) * sums),
                dy.part(narrow.clone()),
            )
        };
        let (x, added) = (&x[narrow.clone()], &added[narrow.clone()]);
        let mut memory = scratch(2 * narrow.len());
        let [scaled, d_mixed] = split(&mut memory, [narrow.len(); 2]);
        sums.fill(0.0);
        let [of_qkv_bias, of_y, of_gamma, of_beta] = split(sums, [3, 1, 1, 1].map(|n| n * s.width));
        layer_norm::rows(s.simd, x, w.norm, normed);
        w.projection.scale_gradient(added, scaled, of_y);
        projection.multiply(scaled, false, d_mixed);
        mix_backward(s, &qkv[wide], d_mixed, d_qkv);
        for row in d_qkv.chunks_exact(3 * s.width) {
            of_qkv_bias.iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
        }
        let d_normed = scaled;
        of_qkv.multiply(d_qkv, false, d_normed);
        layer_norm::rows_backward(s.simd, x, w.norm[0], d_normed, [of_gamma, of_beta]);
        dy.iter_mut().zip(&*d_normed).for_each(|(dy, d)| *dy += d);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residual::Paths;
    use pauc_testing::assert_within;
    use pauc_testing::inputs::noise;

    const WIDTH: usize = 6;
    const FACTORS: [f32; 2] = [1.5, 0.0];

    /// All operands, one after the other: x, γ, β, W and b of q, k and v, those of the projection, s.
    struct Case {
        heads: Heads,
        /// Whether images have [`FACTORS`].
        drops: bool,
        values: Vec<Vec<f32>>,
    }

    impl Case {
        fn new(images: usize, tokens: usize, heads: usize, drops: bool) -> Self {
            let square = WIDTH * WIDTH;
            let sizes = [images * tokens * WIDTH, WIDTH, WIDTH, 3 * square, 3 * WIDTH, square, WIDTH, WIDTH];
            let values = (0u64..).zip(sizes).map(|(seed, n)| noise(n, seed)).collect();
            Case { heads: Heads { tokens, heads }, drops, values }
        }

        fn weights(&self) -> Weights<'_> {
            let v = |i: usize| &self.values[i][..];
            let paths = self.drops.then_some(Paths { factors: &FACTORS, rows: self.heads.tokens });
            let projection = Output { weight: v(5), bias: v(6), scale: Some(v(7)), paths };
            Weights { norm: [v(1), v(2)], qkv: [v(3), v(4)], projection }
        }

        fn wide(&self) -> Vec<Vec<f64>> {
            self.values.iter().map(|v| v.iter().map(|v| f64::from(*v)).collect()).collect()
        }

        fn loss(&self, v: &[Vec<f64>], g: &[f32]) -> f64 {
            self.reference(v).iter().zip(g).map(|(y, g)| y * f64::from(*g)).sum()
        }

        /// The output by definition, in `f64`.
        fn reference(&self, v: &[Vec<f64>]) -> Vec<f64> {
            let Heads { tokens, heads } = self.heads;
            let images = v[0].chunks(tokens * WIDTH).enumerate();
            images
                .flat_map(|(i, x)| {
                    let factor = if self.drops { f64::from(FACTORS[i]) } else { 1.0 };
                    let qkv: Vec<f64> =
                        x.chunks(WIDTH).flat_map(|row| linear(&norm(row, v), &v[3], &v[4])).collect();
                    let mixed: Vec<f64> = (0..tokens).flat_map(|t| attended(&qkv, heads, t)).collect();
                    let added = mixed.chunks(WIDTH).flat_map(|row| linear(row, &v[5], &v[6]));
                    let added = added.enumerate().map(|(c, m)| x[c] + factor * v[7][c % WIDTH] * m);
                    added.collect::<Vec<_>>()
                })
                .collect()
        }

        /// Returns the output, and the gradients of all operands for the output gradient `g`.
        fn run(&self, g: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
            let (w, simd, x) = (self.weights(), Simd::active(), &self.values[0]);
            let (mut y, mut qkv, mut mixed) =
                (vec![0.0; x.len()], vec![0.0; 3 * x.len()], vec![0.0; x.len()]);
            forward(simd, &w, self.heads, x, Some(Kept { qkv: &mut qkv, mixed: &mut mixed }), &mut y);
            let mut alone = vec![0.0; x.len()];
            forward(simd, &w, self.heads, x, None, &mut alone);
            assert_eq!(alone, y);
            let mut all: Vec<Vec<f32>> = self.values.iter().map(|v| vec![0.25; v.len()]).collect();
            let [dx, gamma, beta, w1, b1, w2, b2, scale] = &mut all[..] else { unreachable!() };
            dx.copy_from_slice(g);
            let projection = OutputGradients { weight: w2, bias: b2, scale: Some(scale) };
            let gradients = Gradients { norm: [gamma, beta], qkv: [w1, b1], projection };
            let kept = Kept { qkv: &mut qkv, mixed: &mut mixed };
            backward(simd, &w, self.heads, &mut Work::default(), (x, kept), gradients, dx);
            (y, all)
        }
    }

    fn norm(row: &[f64], v: &[Vec<f64>]) -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / WIDTH as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / WIDTH as f64;
        (0..WIDTH).map(|c| (row[c] - mean) / (variance + 1e-6).sqrt() * v[1][c] + v[2][c]).collect()
    }

    fn linear(row: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let rows = weight.chunks(row.len()).zip(bias);
        rows.map(|(w, bias)| w.iter().zip(row).map(|(w, x)| w * x).sum::<f64>() + bias).collect()
    }

    /// Returns the outputs of all heads for one token.
    fn attended(qkv: &[f64], heads: usize, token: usize) -> Vec<f64> {
        let (tokens, dim) = (qkv.len() / (3 * WIDTH), WIDTH / heads);
        let of = |token: usize, part: usize, i: usize| qkv[token * 3 * WIDTH + part * WIDTH + i];
        let mut out = Vec::new();
        for head in 0..heads {
            let columns = head * dim..(head + 1) * dim;
            let logit = |t: usize| columns.clone().map(|i| of(token, 0, i) * of(t, 1, i)).sum::<f64>();
            let weights: Vec<f64> = (0..tokens).map(|t| (logit(t) / (dim as f64).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend(
                columns.clone().map(|i| (0..tokens).map(|t| weights[t] / sum * of(t, 2, i)).sum::<f64>()),
            );
        }
        out
    }

    /// Compares the output and every `every`-th gradient with the definition.
    fn check(case: &Case, every: usize) {
        let g = noise(case.values[0].len(), 20);
        let (y, gradients) = case.run(&g);
        let wide = case.wide();
        for (i, (got, want)) in y.iter().zip(case.reference(&wide)).enumerate() {
            // Sums of few products of numbers below 3, after a division by a deviation above 0.1.
            assert_within!(*got, want, 2e-5, "output {i}");
        }
        const STEP: f64 = 1e-5;
        for (part, gradient) in gradients.iter().enumerate() {
            for i in (0..gradient.len()).step_by(every) {
                let at = |step: f64| {
                    let mut moved = wide.clone();
                    moved[part][i] += step;
                    case.loss(&moved, &g)
                };
                let want = (at(STEP) - at(-STEP)) / (2.0 * STEP) + if part == 0 { 0.0 } else { 0.25 };
                // Sums over all rows of the errors above; the differences are exact to 1e-8.
                assert_within!(gradient[i], want, 2e-4 * want.abs().max(1.0), "gradient {part}, {i}");
            }
        }
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        check(&Case::new(2, 5, 2, false), 1);
        check(&Case::new(3, 1, 1, false), 1);
    }

    #[test]
    fn dropped_paths_add_nothing_and_have_no_gradient() {
        check(&Case::new(2, 4, 3, true), 1);
    }

    #[test]
    fn many_tokens_are_attended_to_in_tiles() {
        check(&Case::new(1, TILE + 7, 2, false), 23);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let case = Case::new(40, 9, 2, false);
        let g = noise(case.values[0].len(), 20);
        let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| case.run(&g));
        let one = on(1);
        assert!(one.1.iter().flatten().all(|v| v.is_finite()));
        assert!([2, 3, 7].into_iter().all(|n| on(n) == one));
    }
}
