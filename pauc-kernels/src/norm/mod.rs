//! Batch normalization, fused with the addition of a residual and with ReLU.
//!
//! ```text
//! out = max(0, scale·y + shift + residual),   scale = γ/√(var + ε),   shift = β − mean·scale
//! ```
//! Each pass reads the maps once. It is a separate pass or, in the functions named `_during`, runs on rows as
//! a convolution completes them. Sums are in `f32` within a portion of rows, around a value of that portion,
//! and in `f64` across portions, in order.

mod rows;

use self::rows::{apply_rows, combine_rows, mask_rows, measure_rows};
use crate::layout::{Layout, Portions, Then};
use crate::simd::{CHANNELS, Simd, dispatch};
use crate::threads::{self, Shared};
use std::ops::Range;

/// Pixels per portion of a sum.
const PIXELS: usize = 512;

/// Returns the portions of rows of a separate pass.
pub(crate) fn portions(l: Layout) -> Portions {
    Portions::of_pixels(l, PIXELS)
}

/// The start of maps that are read. The creator keeps the maps borrowed while it is used.
#[derive(Clone, Copy)]
pub(crate) struct Source(pub *const f32);

// SAFETY: threads only read through the pointer, and several may read `f32` concurrently.
unsafe impl Send for Source {}
// SAFETY: a shared `Source` only gives a copy of the pointer, which is `Send`.
unsafe impl Sync for Source {}

impl Source {
    fn start(self) -> *const f32 {
        self.0
    }
}

/// A normalization's state between forward and backward pass. Vectors have one value per channel, rounded up.
#[derive(Clone, Debug, Default)]
pub struct Norm {
    /// The mean to subtract.
    pub mean: Vec<f32>,
    /// The biased variance of a batch, or the running variance.
    pub variance: Vec<f32>,
    /// 1/√(variance + ε).
    pub inverse: Vec<f32>,
    /// γ/√(variance + ε).
    pub scale: Vec<f32>,
    /// β − mean·scale.
    pub shift: Vec<f32>,
    portions: Vec<f32>,
    sums: [Vec<f64>; 2],
    /// The number of values of a channel in the sums of a backward pass.
    count: f64,
    factors: [Vec<f32>; 3],
}

impl Norm {
    /// Creates a normalization for maps of `pitch` channels.
    ///
    /// # Panics
    /// If `pitch` is not a multiple of [`CHANNELS`].
    pub fn new(pitch: usize) -> Self {
        assert!(pitch.is_multiple_of(CHANNELS));
        let zeros = || vec![0.0; pitch];
        Norm {
            mean: zeros(),
            variance: zeros(),
            inverse: zeros(),
            scale: zeros(),
            shift: zeros(),
            portions: Vec::new(),
            sums: [vec![0.0; pitch], vec![0.0; pitch]],
            count: 0.0,
            factors: [zeros(), zeros(), zeros()],
        }
    }

    /// Computes mean and variance of a batch.
    ///
    /// # Shapes
    /// y: at least `l.len()` values; one statistic for each of `l.pitch` channels
    ///
    /// # Panics
    /// If the slice is shorter than its layout, or the layout has another pitch.
    pub fn measure(&mut self, simd: Simd, (y, l): (&[f32], Layout)) {
        self.check(y.len(), l);
        let cut = portions(l);
        self.measure_during(simd, cut, (Source(y.as_ptr()), l), |then| cut.for_each(then));
    }

    /// [`Norm::measure`] of rows that `run` completes portion by portion. The caller has checked `y`.
    pub(crate) fn measure_during(
        &mut self,
        simd: Simd,
        cut: Portions,
        (y, l): (Source, Layout),
        run: impl FnOnce(Then<'_>),
    ) {
        let pitch = self.check(l.len(), l);
        self.portions.resize(cut.count() * 3 * pitch, 0.0);
        let portions = Shared::new(&mut self.portions);
        run(&|i, rows| {
            let (y, to) = ((y.start(), l), portions.at(i * 3 * pitch));
            // Each portion writes its own three rows of sums and reads its own rows of y.
            dispatch!(simd => measure_rows(rows: Range<usize>, y: (*const f32, Layout), to: *mut f32));
        });
        let [mean, squares] = &mut self.sums;
        mean.fill(0.0);
        squares.fill(0.0);
        let mut before = 0.0;
        for (i, portion) in self.portions.chunks_exact(3 * pitch).enumerate() {
            let count = (cut.rows(i).len() * l.width) as f64;
            let total = before + count;
            for c in 0..pitch {
                let [about, sum, square] = [0, 1, 2].map(|k| portion[k * pitch + c] as f64);
                // Combines the moments of two groups (Chan, Golub and LeVeque).
                let (portion_mean, distance) = (about + sum / count, about + sum / count - mean[c]);
                let spread = (square - sum * sum / count).max(0.0);
                squares[c] += spread + distance * distance * before * count / total;
                mean[c] += (portion_mean - mean[c]) * count / total;
            }
            before = total;
        }
        for c in 0..pitch {
            self.mean[c] = mean[c] as f32;
            self.variance[c] = (squares[c] / before) as f32;
        }
    }

    /// Returns the sums of the last pass over a batch: after [`Norm::measure`] mean and Σ(y − mean)², after
    /// [`Norm::mask`] Σg and Σg·(y − mean).
    ///
    /// # Shapes
    /// two sums for each of pitch channels
    pub fn sums(&self) -> [&[f64]; 2] {
        [&self.sums[0], &self.sums[1]]
    }

    /// Replaces the measured moments by those of a larger batch of `count` values per channel.
    ///
    /// # Shapes
    /// mean and Σ(y − mean)²: pitch values each
    pub fn set_moments(&mut self, mean: &[f64], squares: &[f64], count: usize) {
        self.mean.iter_mut().zip(mean).for_each(|(to, mean)| *to = *mean as f32);
        self.variance.iter_mut().zip(squares).for_each(|(to, sum)| *to = (sum / count as f64) as f32);
    }

    /// Replaces the sums of [`Norm::mask`] by those of a larger batch of `count` values per channel.
    ///
    /// # Shapes
    /// Σg and Σg·(y − mean): pitch values each
    pub fn set_sums(&mut self, of_g: &[f64], of_gy: &[f64], count: usize) {
        self.sums[0].copy_from_slice(of_g);
        self.sums[1].copy_from_slice(of_gy);
        self.count = count as f64;
    }

    /// Computes scale and shift from mean, variance, γ and β.
    ///
    /// # Shapes
    /// γ and β: one value per channel, at most the pitch
    ///
    /// # Panics
    /// If γ or β is longer than the pitch.
    pub fn prepare(&mut self, gamma: &[f32], beta: &[f32], epsilon: f64) {
        assert!(gamma.len() == beta.len() && gamma.len() <= self.mean.len());
        for (c, (gamma, beta)) in gamma.iter().zip(beta).enumerate() {
            let inverse = 1.0 / (self.variance[c] as f64 + epsilon).sqrt();
            let scale = *gamma as f64 * inverse;
            self.inverse[c] = inverse as f32;
            self.scale[c] = scale as f32;
            self.shift[c] = (*beta as f64 - self.mean[c] as f64 * scale) as f32;
        }
    }

    /// The first half of the backward pass: masks `g`, the gradient of the fused layer's output, in place by
    /// ReLU, and sums it. Afterward, `g` is also the residual's gradient.
    ///
    /// # Shapes
    /// g and y: at least `l.len()` values
    ///
    /// # Panics
    /// If slices and layouts do not agree.
    pub fn mask(&mut self, simd: Simd, (g, l): (&mut [f32], Layout), relu: Relu<'_>, y: &[f32]) {
        self.check(g.len(), l);
        let (cut, g) = (portions(l), Shared::new(g));
        self.mask_during(simd, cut, (g, l), (relu, y), |then| cut.for_each(then));
    }

    /// [`Norm::mask`] of rows that `run` completes portion by portion.
    pub(crate) fn mask_during(
        &mut self,
        simd: Simd,
        cut: Portions,
        (g, l): (Shared<'_, f32>, Layout),
        (relu, y): (Relu<'_>, &[f32]),
        run: impl FnOnce(Then<'_>),
    ) {
        let pitch = self.check(y.len(), l);
        if let Relu::Output(o, ol) = relu {
            assert!(o.len() >= ol.len() && same_maps(l, ol));
        }
        self.portions.resize(cut.count() * 2 * pitch, 0.0);
        let portions = Shared::new(&mut self.portions);
        let (mean, scale, shift) = (&self.mean, &self.scale, &self.shift);
        run(&|i, rows| {
            let (g, y, to) = ((g, l), (y.as_ptr(), mean.as_ptr()), portions.at(i * 2 * pitch));
            let affine = (scale.as_ptr(), shift.as_ptr());
            // Each portion writes its own rows of sums and its own rows of g.
            dispatch!(simd => mask_rows(
                rows: Range<usize>, g: (Shared<'_, f32>, Layout), relu: Relu<'_>, affine: (*const f32, *const f32),
                y: (*const f32, *const f32), to: *mut f32,
            ));
        });
        let [of_g, of_gy] = &mut self.sums;
        of_g.fill(0.0);
        of_gy.fill(0.0);
        for portion in self.portions.chunks_exact(2 * pitch) {
            for c in 0..pitch {
                of_g[c] += portion[c] as f64;
                of_gy[c] += portion[pitch + c] as f64;
            }
        }
        self.count = l.pixels() as f64;
    }

    /// Accumulates the gradients of γ and β after [`Norm::mask`].
    ///
    /// # Shapes
    /// one value per channel
    pub fn parameter_gradients(&self, d_gamma: &mut [f32], d_beta: &mut [f32]) {
        let [of_g, of_gy] = &self.sums;
        for c in 0..d_gamma.len() {
            d_gamma[c] += (of_gy[c] * self.inverse[c] as f64) as f32;
            d_beta[c] += of_g[c] as f32;
        }
    }

    /// The second half of the backward pass, after [`Norm::mask`]: writes the gradient of the normalization's input.
    ///
    /// # Shapes
    /// g and y: at least `l.len()` values; dy: at least `dyl.len()`
    ///
    /// # Panics
    /// If slices and layouts do not agree.
    pub fn input_gradient(
        &mut self,
        simd: Simd,
        (g, l): (&[f32], Layout),
        y: &[f32],
        (dy, dyl): (&mut [f32], Layout),
    ) {
        let pitch = self.check(y.len(), l);
        assert!(g.len() >= l.len() && dy.len() >= dyl.len() && same_maps(l, dyl));
        // dy = scale·(g − Σg/n − (y − mean)·inverse²·Σg(y − mean)/n) = a·g + b·y + c.
        let ([of_g, of_gy], count) = (&self.sums, self.count);
        let [a, b, k] = &mut self.factors;
        for c in 0..pitch {
            let (scale, inverse) = (self.scale[c] as f64, self.inverse[c] as f64);
            let slope = -scale * inverse * inverse * of_gy[c] / count;
            a[c] = self.scale[c];
            b[c] = slope as f32;
            k[c] = (-scale * of_g[c] / count - slope * self.mean[c] as f64) as f32;
        }
        let factors = [&*a, &*b, &*k];
        let (cut, dy) = (portions(l), Shared::new(dy));
        threads::for_each(cut.count(), |i| {
            let (rows, g, y, dy) = (cut.rows(i), (g.as_ptr(), l), y.as_ptr(), (dy, dyl));
            let factors = factors.map(|f| f.as_ptr());
            // Each portion writes its own rows of dy.
            dispatch!(simd => combine_rows(
                rows: Range<usize>, g: (*const f32, Layout), y: *const f32, factors: [*const f32; 3],
                dy: (Shared<'_, f32>, Layout),
            ));
        });
    }

    fn check(&self, values: usize, l: Layout) -> usize {
        assert!(values >= l.len() && l.pitch == self.mean.len(), "{values} values do not fit {l:?}");
        l.pitch
    }
}

fn same_maps(a: Layout, b: Layout) -> bool {
    (a.batch, a.height, a.width, a.pitch) == (b.batch, b.height, b.width, b.pitch)
}

/// The source of the ReLU mask.
#[derive(Clone, Copy, Debug)]
pub enum Relu<'a> {
    /// No ReLU.
    None,
    /// The normalized value, computed again. There is no residual.
    Own,
    /// The fused layer's output.
    Output(&'a [f32], Layout),
}

/// The residual added before ReLU.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// The maps.
    pub values: &'a [f32],
    /// The layout of the maps.
    pub layout: Layout,
    /// A normalization still to be applied to the maps.
    pub norm: Option<&'a Norm>,
}

/// out ← ReLU?(scale·y + shift + residual?).
///
/// # Shapes
/// y: at least `yl.len()` values; out: at least `ol.len()`
///
/// # Panics
/// If slices and layouts do not agree.
pub fn apply(
    simd: Simd,
    norm: &Norm,
    (y, yl): (&[f32], Layout),
    residual: Option<Residual<'_>>,
    relu: bool,
    (out, ol): (&mut [f32], Layout),
) {
    assert!(y.len() >= yl.len() && out.len() >= ol.len() && same_maps(yl, ol));
    let cut = portions(yl);
    let (y, out) = ((Source(y.as_ptr()), yl), (Shared::new(out), ol));
    apply_during(simd, norm, y, (residual, relu), out, |then| cut.for_each(then));
}

/// [`apply`] to rows that `run` completes portion by portion. `out` may be `y` itself. The caller has checked
/// both.
pub(crate) fn apply_during(
    simd: Simd,
    norm: &Norm,
    (y, yl): (Source, Layout),
    (residual, relu): (Option<Residual<'_>>, bool),
    out: (Shared<'_, f32>, Layout),
    run: impl FnOnce(Then<'_>),
) {
    norm.check(yl.len(), yl);
    if let Some(r) = residual {
        assert!(r.values.len() >= r.layout.len() && same_maps(r.layout, yl));
        assert!(r.norm.is_none_or(|n| n.scale.len() == yl.pitch));
    }
    run(&|_, rows| {
        let y = (y.start(), yl);
        // Each portion writes its own rows of out.
        dispatch!(simd => apply_rows(
            rows: Range<usize>, norm: &Norm, y: (*const f32, Layout), residual: Option<Residual<'_>>, relu: bool,
            out: (Shared<'_, f32>, Layout),
        ));
    });
}

#[cfg(test)]
pub(crate) mod oracle {
    //! Normalization of one channel by definition, in `f64`, with a bound on rounding errors.

    use pauc_testing::Rounded;
    use pauc_testing::tolerance::{self, UNIT_F32};

    /// The statistics and parameters of a channel.
    #[derive(Clone, Copy, Debug)]
    pub struct Channel {
        pub mean: Rounded,
        pub variance: Rounded,
        pub gamma: f32,
        pub beta: f32,
        pub epsilon: f64,
    }

    /// The gradients of a channel.
    pub struct Gradients {
        pub input: Vec<Rounded>,
        pub gamma: Rounded,
        pub beta: Rounded,
    }

    /// Returns mean and variance as [`super::Norm::measure`] computes them: each portion sums d = y − a and
    /// d² around a value `a` of its own.
    ///
    /// With m the mean and r the largest |y − m|, both |a − m| ≤ r and |d| ≤ |y − m| + r. With s a portion's
    /// Σd, q its Σd² and c its count, n times the variance is Σ over portions of q − 2(m − a)·s + c·(m − a)².
    /// Its derivative with respect to m is zero, so its error is δq + 2r·δs, plus (Σδs)²/n of second order.
    pub fn moments(values: &[f32]) -> (Rounded, Rounded) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let deviation = |v: &f32| (f64::from(*v) - mean).abs();
        let variance = values.iter().map(|v| deviation(v).powi(2)).sum::<f64>() / n;
        let farthest = values.iter().map(deviation).fold(0.0, f64::max);
        let sum: f64 = values.iter().map(|v| deviation(v) + farthest).sum();
        let square: f64 = values.iter().map(|v| (deviation(v) + farthest).powi(2)).sum();
        // Per term: one rounding of d in the sum; two of d and one of its square in the sum of squares.
        let sum = tolerance::f32(values.len() + 1, sum);
        let square = tolerance::f32(values.len() + 3, square);
        let off = (square + 2.0 * farthest * sum + sum * sum / n) / n;
        (Rounded::within(mean, sum / n).round(), Rounded::within(variance, off).round())
    }

    impl Channel {
        fn inverse(&self) -> Rounded {
            let variance = Rounded { value: self.variance.value + self.epsilon, ..self.variance };
            Rounded::exact(1.0) / variance.sqrt()
        }

        fn scale(&self) -> Rounded {
            Rounded::exact(self.gamma) * self.inverse()
        }

        /// Bounds the rounding error of y·a + b where `a` and `b` are rounded first.
        fn product(y: f64, a: f64, b: f64) -> f64 {
            UNIT_F32 * (2.0 * (y * a).abs() + b.abs())
        }

        /// Returns γ·(y − mean)/√(variance + ε) + β, computed as y·scale + shift.
        pub fn apply(&self, y: f32) -> Rounded {
            let scale = self.scale();
            let shift = f64::from(self.beta).abs() + (self.mean.value * scale.value).abs();
            let exact = scale * (Rounded::exact(y) - self.mean) + Rounded::exact(self.beta);
            exact.loosen(Self::product(f64::from(y), scale.value, shift))
        }

        /// Returns the gradients for `g`, the gradient of the normalized values of `y`: scale·(g − Σg/n) +
        /// slope·(y − mean) with slope = −scale·inverse²·Σg(y − mean)/n, computed as a·g + b·y + c.
        pub fn gradients(&self, g: &[f32], y: &[f32]) -> Gradients {
            let count = Rounded::exact(g.len() as f32);
            let (scale, inverse) = (self.scale(), self.inverse());
            let deviations: Vec<Rounded> = y.iter().map(|y| Rounded::exact(*y) - self.mean).collect();
            let beta = Rounded::sum(g.iter().map(|g| Rounded::exact(*g)));
            let product = Rounded::dot(g.iter().map(|g| Rounded::exact(*g)).zip(deviations.iter().copied()));
            let slope = -scale * inverse * inverse * product / count;
            let shift = scale * beta / count;
            let input = g.iter().zip(y).zip(&deviations).map(|((g, y), deviation)| {
                let (g, y) = (f64::from(*g), f64::from(*y));
                let constant = shift.value.abs() + (slope.value * self.mean.value).abs();
                let rounding = Self::product(y, slope.value, constant) + Self::product(g, scale.value, 0.0);
                (scale * Rounded::within(g, 0.0) - shift + slope * *deviation).loosen(rounding)
            });
            Gradients { input: input.collect(), gamma: product * inverse, beta }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::oracle::Channel;
    use super::*;
    use crate::conv::cases::{compare, noise, place};
    use pauc_testing::{Rounded, property};
    use proptest::prelude::*;

    const EPSILON: f64 = 1e-5;

    fn column(values: &[f32], channels: usize, c: usize) -> Vec<f32> {
        values.iter().skip(c).step_by(channels).copied().collect()
    }

    proptest! {
        #![proptest_config(property::cases(256))]

        #[test]
        fn forward_and_backward_equal_their_definition(
            batch in 1usize..4, h in 1usize..9, w in 1usize..9, channels in 1usize..90, seed in 0u64..1000,
            offset in -300f32..300.0, relu: bool, residual in 0..3,
        ) {
            prop_assume!(batch * h * w > 1);
            let pitch = channels.next_multiple_of(CHANNELS);
            let (flat, halo) = (Layout::flat(batch, h, w, pitch), Layout::haloed(batch, h, w, pitch, 1));
            let n = batch * h * w * channels;
            let y: Vec<f32> = noise(n, seed).iter().map(|v| v + offset).collect();
            let res = noise(n, seed + 1);
            let (gamma, beta) = (noise(channels, seed + 2), noise(channels, seed + 3));
            let dout = noise(n, seed + 4);
            let exact: Vec<Channel> = (0..channels).map(|c| {
                let (mean, variance) = oracle::moments(&column(&y, channels, c));
                Channel { mean, variance, gamma: gamma[c], beta: beta[c], epsilon: EPSILON }
            }).collect();
            let mut other = Norm::new(pitch);
            for c in 0..pitch { other.scale[c] = 0.5 + c as f32 / 50.0; other.shift[c] = 0.1; }
            let added = |i: usize| match residual {
                0 => Rounded::exact(0.0),
                1 => Rounded::exact(res[i]),
                _ => Rounded::exact(other.scale[i % channels]) * Rounded::exact(res[i]) + Rounded::exact(0.1),
            };
            let out: Vec<Rounded> = (0..n).map(|i| {
                let sum = exact[i % channels].apply(y[i]) + added(i);
                if relu { sum.relu() } else { sum }
            }).collect();
            for simd in Simd::all().iter().copied() {
                let (ys, rs) = (place(&y, channels, flat), place(&res, channels, halo));
                let mut norm = Norm::new(pitch);
                norm.measure(simd, (&ys, flat));
                for (c, want) in exact.iter().enumerate() {
                    prop_assert!(want.mean.admits(norm.mean[c]), "mean {c}: {} for {}", norm.mean[c], want.mean);
                    prop_assert!(want.variance.admits(norm.variance[c]), "variance {c}: {} for {}", norm.variance[c], want.variance);
                }
                norm.prepare(&gamma, &beta, EPSILON);
                let r = Residual { values: &rs, layout: halo, norm: (residual == 2).then_some(&other) };
                let mut outs = vec![0.0; halo.len()];
                apply(simd, &norm, (&ys, flat), (residual > 0).then_some(r), relu, (&mut outs, halo));
                // A residual's own normalization shifts the additional channels, which are never read.
                if residual < 2 || channels == pitch { compare(&outs, halo, channels, &out)?; }

                let masked: Vec<f32> = (0..n).map(|i| {
                    let place = halo.row_at(i / channels / w) + i / channels % w * pitch + i % channels;
                    if relu && outs[place] <= 0.0 { 0.0 } else { dout[i] }
                }).collect();
                let gradients: Vec<_> = (0..channels)
                    .map(|c| exact[c].gradients(&column(&masked, channels, c), &column(&y, channels, c)))
                    .collect();
                let dy: Vec<Rounded> = (0..n).map(|i| gradients[i % channels].input[i / channels]).collect();
                let (mut g, mut got) = (place(&dout, channels, flat), vec![0.0; halo.len()]);
                let (mut dg, mut db) = (vec![1.0; channels], vec![2.0; channels]);
                let mask = match relu {
                    false => Relu::None,
                    true if residual == 0 && seed % 2 == 0 => Relu::Own,
                    true => Relu::Output(&outs, halo),
                };
                norm.mask(simd, (&mut g, flat), mask, &ys);
                norm.parameter_gradients(&mut dg, &mut db);
                norm.input_gradient(simd, (&g, flat), &ys, (&mut got, halo));
                compare(&got, halo, channels, &dy)?;
                let masked: Vec<Rounded> = masked.into_iter().map(Rounded::exact).collect();
                compare(&g, flat, channels, &masked)?;
                for (c, want) in gradients.iter().enumerate() {
                    let (gamma, beta) = (Rounded::exact(1.0) + want.gamma, Rounded::exact(2.0) + want.beta);
                    prop_assert!(gamma.admits(dg[c]) && beta.admits(db[c]), "{} for {gamma}, {} for {beta}", dg[c], db[c]);
                }
            }
        }
    }
}
