//! Batch normalisation, fused with the addition of a residual and with ReLU.
//!
//! ```text
//! out = max(0, scale·y + shift + residual),   scale = γ/√(var + ε),   shift = β − mean·scale
//! ```
//! Each pass goes over the maps once. Sums are taken in `f32` within a portion of rows, about a value of that portion,
//! and in `f64` across portions, in their order.

mod rows;

use self::rows::{apply_rows, combine_rows, measure_rows, sum_rows};
use crate::layout::Layout;
use crate::simd::{CHANNELS, Simd, dispatch};
use crate::threads::{self, Shared};

/// Pixels of one portion of a sum.
const PIXELS: usize = 512;

fn rows_of_a_portion(width: usize) -> usize {
    PIXELS.div_ceil(width)
}

/// A normalisation's state between forward and backward pass. Vectors have one value a channel, rounded up.
#[derive(Clone, Debug, Default)]
pub struct Norm {
    /// The mean that was subtracted.
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
    factors: [Vec<f32>; 3],
}

impl Norm {
    /// For maps of `pitch` channels.
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
            factors: [zeros(), zeros(), zeros()],
        }
    }

    /// Takes mean and variance from a batch.
    ///
    /// # Panics
    /// If the slice is shorter than its layout, or the layout has another pitch.
    pub fn measure(&mut self, simd: Simd, (y, l): (&[f32], Layout)) {
        let pitch = self.check(y, l);
        let size = rows_of_a_portion(l.width);
        let n = l.rows().div_ceil(size);
        self.portions.resize(n * 3 * pitch, 0.0);
        let portions = Shared::new(&mut self.portions);
        threads::for_each(n, |i| {
            let rows = i * size..l.rows().min((i + 1) * size);
            let (y, to) = ((y.as_ptr(), l), portions.at(i * 3 * pitch));
            // Each portion writes its own three rows of sums and reads its own rows of y.
            dispatch!(simd => measure_rows(rows: std::ops::Range<usize>, y: (*const f32, Layout), to: *mut f32));
        });
        let [mean, squares] = &mut self.sums;
        mean.fill(0.0);
        squares.fill(0.0);
        let mut before = 0.0;
        for (i, portion) in self.portions.chunks_exact(3 * pitch).enumerate() {
            let count = (l.rows().min((i + 1) * size) - i * size) as f64 * l.width as f64;
            let total = before + count;
            for c in 0..pitch {
                let [about, sum, square] = [0, 1, 2].map(|k| portion[k * pitch + c] as f64);
                // Two groups' moments into those of both (Chan, Golub and LeVeque).
                let (own, apart) = (about + sum / count, about + sum / count - mean[c]);
                let spread = (square - sum * sum / count).max(0.0);
                squares[c] += spread + apart * apart * before * count / total;
                mean[c] += (own - mean[c]) * count / total;
            }
            before = total;
        }
        for c in 0..pitch {
            self.mean[c] = mean[c] as f32;
            self.variance[c] = (squares[c] / before) as f32;
        }
    }

    /// Sets scale and shift from mean, variance, γ and β.
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

    /// The gradient with respect to the normalisation's input. Masks `g`, the gradient of its output, in place by ReLU
    /// where `output`, the fused layer's output, is given; what is left in `g` is also the residual's gradient. Adds
    /// to the gradients of γ and β, and writes that of y.
    ///
    /// # Panics
    /// If slices and layouts do not agree.
    pub fn backward(
        &mut self,
        simd: Simd,
        (g, l): (&mut [f32], Layout),
        output: Option<(&[f32], Layout)>,
        y: &[f32],
        (d_gamma, d_beta): (&mut [f32], &mut [f32]),
        (dy, dyl): (&mut [f32], Layout),
    ) {
        let pitch = self.check(y, l);
        assert!(g.len() >= l.len() && dy.len() >= dyl.len() && same_maps(l, dyl));
        assert!(output.is_none_or(|(o, ol)| o.len() >= ol.len() && same_maps(l, ol)));
        let size = rows_of_a_portion(l.width);
        let n = l.rows().div_ceil(size);
        self.portions.resize(n * 3 * pitch, 0.0);
        let (portions, shared) = (Shared::new(&mut self.portions), Shared::new(g));
        let mean = self.mean.as_ptr() as usize;
        threads::for_each(n, |i| {
            let rows = i * size..l.rows().min((i + 1) * size);
            let output = output.map(|(o, ol)| (o.as_ptr(), ol));
            let (g, y, to) = ((shared, l), y.as_ptr(), portions.at(i * 3 * pitch));
            let mean = mean as *const f32;
            // Each portion writes its own rows of sums and its own rows of g.
            dispatch!(simd => sum_rows(
                rows: std::ops::Range<usize>, g: (Shared<'_, f32>, Layout), output: Option<(*const f32, Layout)>,
                y: *const f32, mean: *const f32, to: *mut f32,
            ));
        });
        let [of_g, of_gy] = &mut self.sums;
        of_g.fill(0.0);
        of_gy.fill(0.0);
        for portion in self.portions.chunks_exact(3 * pitch) {
            for c in 0..pitch {
                of_g[c] += portion[c] as f64;
                of_gy[c] += portion[pitch + c] as f64;
            }
        }
        for c in 0..d_gamma.len() {
            d_gamma[c] += (of_gy[c] * self.inverse[c] as f64) as f32;
            d_beta[c] += of_g[c] as f32;
        }
        // dy = scale·(g − Σg/n − (y − mean)·inverse²·Σg(y − mean)/n) = a·g + b·y + c.
        let count = l.pixels() as f64;
        let [a, b, k] = &mut self.factors;
        for c in 0..pitch {
            let (scale, inverse) = (self.scale[c] as f64, self.inverse[c] as f64);
            let slope = -scale * inverse * inverse * of_gy[c] / count;
            a[c] = self.scale[c];
            b[c] = slope as f32;
            k[c] = (-scale * of_g[c] / count - slope * self.mean[c] as f64) as f32;
        }
        let factors = [a.as_ptr() as usize, b.as_ptr() as usize, k.as_ptr() as usize];
        let dy = Shared::new(dy);
        threads::for_each(n, |i| {
            let rows = i * size..l.rows().min((i + 1) * size);
            let (g, y, dy) = ((shared.at(0).cast_const(), l), y.as_ptr(), (dy, dyl));
            let factors = factors.map(|f| f as *const f32);
            // Each portion writes its own rows of dy.
            dispatch!(simd => combine_rows(
                rows: std::ops::Range<usize>, g: (*const f32, Layout), y: *const f32, factors: [*const f32; 3],
                dy: (Shared<'_, f32>, Layout),
            ));
        });
    }

    fn check(&self, y: &[f32], l: Layout) -> usize {
        assert!(y.len() >= l.len() && l.pitch == self.mean.len(), "{} values, {l:?}", y.len());
        l.pitch
    }
}

fn same_maps(a: Layout, b: Layout) -> bool {
    (a.batch, a.height, a.width, a.pitch) == (b.batch, b.height, b.width, b.pitch)
}

/// What is added before ReLU.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// The maps.
    pub values: &'a [f32],
    /// Where they are.
    pub layout: Layout,
    /// A normalisation that is still to be applied to them.
    pub norm: Option<&'a Norm>,
}

/// out ← ReLU?(scale·y + shift + residual?).
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
    norm.check(y, yl);
    assert!(out.len() >= ol.len() && same_maps(yl, ol));
    if let Some(r) = residual {
        assert!(r.values.len() >= r.layout.len() && same_maps(r.layout, yl));
        assert!(r.norm.is_none_or(|n| n.scale.len() == yl.pitch));
    }
    let out = Shared::new(out);
    let size = rows_of_a_portion(yl.width);
    threads::for_each(yl.rows().div_ceil(size), |i| {
        let rows = i * size..yl.rows().min((i + 1) * size);
        let (y, out) = ((y, yl), (out, ol));
        // Each portion writes its own rows of out.
        dispatch!(simd => apply_rows(
            rows: std::ops::Range<usize>, norm: &Norm, y: (&[f32], Layout), residual: Option<Residual<'_>>, relu: bool,
            out: (Shared<'_, f32>, Layout),
        ));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::cases::{compare, noise, place};
    use proptest::prelude::*;

    const EPSILON: f64 = 1e-5;

    struct Reference {
        mean: Vec<f64>,
        variance: Vec<f64>,
    }

    fn moments(y: &[f32], channels: usize) -> Reference {
        let n = (y.len() / channels) as f64;
        let column = |c: usize| y.iter().skip(c).step_by(channels).map(|v| *v as f64);
        let mean: Vec<f64> = (0..channels).map(|c| column(c).sum::<f64>() / n).collect();
        let variance =
            (0..channels).map(|c| column(c).map(|v| (v - mean[c]).powi(2)).sum::<f64>() / n).collect();
        Reference { mean, variance }
    }

    proptest! {
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
            let m = moments(&y, channels);
            let unit = |i: usize| (y[i] as f64 - m.mean[i % channels]) / (m.variance[i % channels] + EPSILON).sqrt();
            let mut other = Norm::new(pitch);
            for c in 0..pitch { other.scale[c] = 0.5 + c as f32 / 50.0; other.shift[c] = 0.1; }
            let added = |i: usize| match residual {
                0 => 0.0,
                1 => res[i] as f64,
                _ => (0.5 + (i % channels) as f64 / 50.0) * res[i] as f64 + 0.1f32 as f64,
            };
            let plain: Vec<f64> = (0..n).map(|i| gamma[i % channels] as f64 * unit(i) + beta[i % channels] as f64 + added(i)).collect();
            let out: Vec<f64> = plain.iter().map(|v| if relu { v.max(0.0) } else { *v }).collect();
            let count = (n / channels) as f64;
            // y is rounded before its mean is subtracted: what that costs, after division by the deviation.
            let deviation = m.variance.iter().fold(f64::MAX, |a, v| a.min(v.sqrt())).max(EPSILON.sqrt());
            let rounding = 1e-6 * (offset.abs() as f64 + 1.0) / deviation;
            for simd in Simd::all().iter().copied() {
                let (ys, rs) = (place(&y, channels, flat), place(&res, channels, halo));
                let mut norm = Norm::new(pitch);
                norm.measure(simd, (&ys, flat));
                for c in 0..channels {
                    prop_assert!((norm.variance[c] as f64 - m.variance[c]).abs() < 1e-5 * m.variance[c].max(0.01), "variance {c}");
                }
                norm.prepare(&gamma, &beta, EPSILON);
                let r = Residual { values: &rs, layout: halo, norm: (residual == 2).then_some(&other) };
                let mut outs = vec![0.0; halo.len()];
                apply(simd, &norm, (&ys, flat), (residual > 0).then_some(r), relu, (&mut outs, halo));
                if residual < 2 { compare(&outs, halo, channels, &out, 1e-6 + rounding)?; }

                let mask = |i: usize| {
                    let at = halo.row_at(i / channels / w) + i / channels % w * pitch + i % channels;
                    if relu && outs[at] <= 0.0 { 0.0 } else { dout[i] as f64 }
                };
                let (mut sg, mut sgu) = (vec![0.0; channels], vec![0.0; channels]);
                for i in 0..n { sg[i % channels] += mask(i); sgu[i % channels] += mask(i) * unit(i); }
                let dy: Vec<f64> = (0..n).map(|i| {
                    let c = i % channels;
                    gamma[c] as f64 / (m.variance[c] + EPSILON).sqrt() * (mask(i) - sg[c] / count - unit(i) * sgu[c] / count)
                }).collect();
                let (mut g, mut got) = (place(&dout, channels, flat), vec![0.0; halo.len()]);
                let (mut dg, mut db) = (vec![1.0; channels], vec![2.0; channels]);
                let output = relu.then_some((&outs[..], halo));
                norm.backward(simd, (&mut g, flat), output, &ys, (&mut dg, &mut db), (&mut got, halo));
                if residual < 2 { compare(&got, halo, channels, &dy, 1e-5 + 4.0 * rounding)?; }
                let masked: Vec<f64> = (0..n).map(mask).collect();
                compare(&g, flat, channels, &masked, 0.0)?;
                for c in 0..channels {
                    prop_assert!((dg[c] as f64 - 1.0 - sgu[c]).abs() < 1e-4 + count * rounding && (db[c] as f64 - 2.0 - sg[c]).abs() < 1e-4);
                }
            }
        }
    }
}
