//! One convolution of a network: its shape and its algorithm.

use super::{Geometry, Packed, direct, winograd};
use crate::buffer::Buffer;
use crate::layout::{Layout, Portions, Then};
use crate::norm::{self, Norm, Relu, Residual, Source};
use crate::simd::Simd;
use crate::threads::Shared;

/// The algorithm of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The direct method.
    Direct,
    /// With fewer multiplications: Winograd's F(4×4, 3×3).
    Winograd,
}

impl Algorithm {
    /// Returns the fastest algorithm for a layer that reads maps of `pitch` channels.
    ///
    /// The rule compares multiply-adds: nine per pixel, against 36 products of all channels per tile, whole
    /// or not. Transforming a channel costs as much as its products with five others.
    pub fn fastest(g: Geometry, pitch: usize) -> Self {
        let (inputs, outputs) = (pitch, g.output_pitch());
        let tiles = g.height.div_ceil(4) * g.width.div_ceil(4);
        let direct = 9 * g.height * g.width * inputs * outputs;
        let winograd = 36 * tiles * (inputs * outputs + 5 * (inputs + outputs));
        if winograd::applies(g, pitch) && winograd < direct { Algorithm::Winograd } else { Algorithm::Direct }
    }

    /// Returns Winograd's algorithm if it applies, otherwise the direct one.
    pub fn winograd(g: Geometry, pitch: usize) -> Self {
        if winograd::applies(g, pitch) { Algorithm::Winograd } else { Algorithm::Direct }
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Algorithm::Direct => "direct",
            Algorithm::Winograd => "Winograd F(4×4, 3×3)",
        })
    }
}

/// Temporary memory of convolutions: packed weights, transformed tiles, partial sums. Layers that run one
/// after the other share it; it grows to the largest need.
#[derive(Clone, Debug, Default)]
pub struct Work {
    packed: Packed,
    transformed: Packed,
    sums: Buffer,
    winograd: winograd::Work,
}

/// A pass of normalization over rows of an output, applied as soon as they are complete and still in a cache.
/// Otherwise it would have to read them from memory.
#[derive(Debug)]
pub enum After<'a> {
    /// No pass.
    Nothing,
    /// [`Norm::measure`].
    Measure(&'a mut Norm),
    /// [`norm::apply`], in place.
    Apply {
        /// The normalization.
        norm: &'a Norm,
        /// The residual to add.
        residual: Option<Residual<'a>>,
        /// Whether to apply ReLU.
        relu: bool,
    },
    /// [`Norm::mask`]. The output of this convolution is the gradient of a normalized map.
    Mask {
        /// That map's normalization.
        norm: &'a mut Norm,
        /// The source of that map's ReLU mask.
        relu: Relu<'a>,
        /// The map before it was normalized.
        y: &'a [f32],
    },
}

impl After<'_> {
    /// Runs `run`, which computes `y` in the portions of `cut`, and applies this pass to each portion.
    fn follow(
        self,
        simd: Simd,
        cut: Portions,
        (y, l): (Shared<'_, f32>, Layout),
        run: impl FnOnce(Then<'_>),
    ) {
        assert!(y.len() >= l.len());
        let source = (Source(y.at(0)), l);
        match self {
            After::Nothing => run(&|_, _| ()),
            After::Measure(norm) => norm.measure_during(simd, cut, source, run),
            After::Apply { norm, residual, relu } => {
                norm::apply_during(simd, norm, source, (residual, relu), (y, l), run)
            }
            After::Mask { norm, relu, y: before } => norm.mask_during(simd, cut, (y, l), (relu, before), run),
        }
    }
}

/// A convolution. The caller owns the weights, which every call packs again.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    geometry: Geometry,
    algorithm: Algorithm,
}

impl Convolution {
    /// Creates a convolution of this shape with this algorithm.
    pub fn new(geometry: Geometry, algorithm: Algorithm) -> Self {
        Convolution { geometry, algorithm }
    }

    /// Returns the shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Returns the portions in which rows of `l` are computed from maps of `pitch` channels.
    fn portions(&self, simd: Simd, pitch: usize, l: Layout) -> Portions {
        match self.algorithm {
            Algorithm::Direct => direct::portions(l),
            Algorithm::Winograd => winograd::portions(simd, pitch, l),
        }
    }

    /// y ← x ∗ w, with w in interchange order.
    ///
    /// # Shapes
    /// x: the geometry's input with a halo of at least its padding; y: its output, channels rounded up.
    ///
    /// # Panics
    /// If slices, layouts and geometry do not agree.
    pub fn forward(
        &self,
        simd: Simd,
        work: &mut Work,
        x: (&[f32], Layout),
        w: &[f32],
        (y, yl): (&mut [f32], Layout),
        after: After<'_>,
    ) {
        let (g, pitch, y) = (self.geometry, x.1.pitch, Shared::new(y));
        let cut = self.portions(simd, pitch, yl);
        after.follow(simd, cut, (y, yl), |then| match self.algorithm {
            Algorithm::Direct => {
                direct::pack_forward(simd, g, pitch, w, &mut work.packed);
                direct::forward(simd, g, x, &work.packed, (y, yl), then);
            }
            Algorithm::Winograd => {
                let (packed, to) = (&mut work.packed, &mut work.transformed);
                winograd::pack(simd, g, (pitch, false), w, [packed, &mut *to]);
                winograd::forward(simd, x, to, &mut work.sums, (y, yl, false), then);
            }
        });
    }

    /// dx ← dy ∗ wᵀ, or dx ← dx + dy ∗ wᵀ if `add`.
    ///
    /// # Shapes
    /// dy: the geometry's output with the halo that its padding requires; dx: its input, channels rounded up.
    ///
    /// # Panics
    /// If slices, layouts and geometry do not agree.
    pub fn input_gradient(
        &self,
        simd: Simd,
        work: &mut Work,
        dy: (&[f32], Layout),
        w: &[f32],
        (dx, dxl, add): (&mut [f32], Layout, bool),
        after: After<'_>,
    ) {
        let (g, pitch, dx) = (self.geometry, dxl.pitch, Shared::new(dx));
        let cut = self.portions(simd, dy.1.pitch, dxl);
        after.follow(simd, cut, (dx, dxl), |then| match self.algorithm {
            Algorithm::Direct => {
                direct::pack_input_gradient(simd, g, pitch, w, &mut work.packed);
                direct::input_gradient(simd, g, dy, &work.packed, (dx, dxl, add), then);
            }
            Algorithm::Winograd => {
                let (packed, to) = (&mut work.packed, &mut work.transformed);
                winograd::pack(simd, g, (pitch, true), w, [packed, &mut *to]);
                winograd::forward(simd, dy, to, &mut work.sums, (dx, dxl, add), then);
            }
        });
    }

    /// dw ← dw + the gradient with respect to the weights, in interchange order.
    ///
    /// # Shapes
    /// x: the geometry's input with a halo of at least its padding; dy: its output, channels rounded up, in a
    /// [`Layout::haloed`].
    ///
    /// # Panics
    /// If slices, layouts and geometry do not agree.
    pub fn weight_gradient(
        &self,
        simd: Simd,
        work: &mut Work,
        x: (&[f32], Layout),
        dy: (&[f32], Layout),
        dw: &mut [f32],
    ) {
        match self.algorithm {
            Algorithm::Direct => direct::weight_gradient(simd, self.geometry, x, dy, &mut work.sums, dw),
            Algorithm::Winograd => {
                winograd::weight_gradient(simd, self.geometry, x, dy, &mut work.winograd, dw)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases::{Case, compare_all, geometry, noise};
    use super::*;
    use crate::norm::oracle::{self, Channel};
    use pauc_testing::{Rounded, property};
    use proptest::prelude::*;

    const EPSILON: f64 = 1e-5;

    /// Returns a normalization whose statistics are those of no map, and its channels.
    fn other_norm(pitch: usize) -> (Norm, Vec<Channel>) {
        let mut norm = Norm::new(pitch);
        let (gamma, beta) = (noise(pitch, 2), noise(pitch, 3));
        norm.mean.copy_from_slice(&noise(pitch, 1));
        norm.variance.fill(1.5);
        norm.prepare(&gamma, &beta, EPSILON);
        let (mean, variance) = (norm.mean.clone(), Rounded::exact(1.5));
        let channel = |c: usize| Channel {
            mean: Rounded::exact(mean[c]),
            variance,
            gamma: gamma[c],
            beta: beta[c],
            epsilon: EPSILON,
        };
        (norm, (0..pitch).map(channel).collect())
    }

    /// Returns the values of one channel.
    fn column(map: &[f32], l: Layout, c: usize) -> Vec<f32> {
        let pixels = (0..l.rows()).flat_map(|r| (0..l.width).map(move |x| l.row_at(r) + x * l.pitch));
        pixels.map(|pixel| map[pixel + c]).collect()
    }

    /// Moments measured by a fused pass agree with those of a separate pass.
    fn measured_alike(simd: Simd, conv: &Convolution, case: &Case) -> Result<(), TestCaseError> {
        let ((x, xl), yl, pitch) = (case.input(), case.flat_output(), case.g.output_pitch());
        let (mut y, mut work) = (vec![0.0; yl.len()], Work::default());
        conv.forward(simd, &mut work, (&x, xl), &case.w, (&mut y, yl), After::Nothing);
        let (mut measured, mut alone) = (Norm::new(pitch), Norm::new(pitch));
        let mut again = vec![0.0; yl.len()];
        conv.forward(simd, &mut work, (&x, xl), &case.w, (&mut again, yl), After::Measure(&mut measured));
        alone.measure(simd, (&y, yl));
        prop_assert_eq!(&again, &y);
        for c in 0..pitch {
            let (mean, variance) = oracle::moments(&column(&y, yl, c));
            for norm in [&measured, &alone] {
                prop_assert!(mean.admits(norm.mean[c]), "mean {c}: {} for {mean}", norm.mean[c]);
                prop_assert!(
                    variance.admits(norm.variance[c]),
                    "variance {c}: {} for {variance}",
                    norm.variance[c]
                );
            }
        }
        Ok(())
    }

    /// A map normalized by a fused pass equals one normalized afterward, bit by bit.
    fn applied_alike(
        simd: Simd,
        conv: &Convolution,
        case: &Case,
        residual: bool,
        relu: bool,
    ) -> Result<(), TestCaseError> {
        let ((x, xl), (dy, dyl), yl) = (case.input(), case.output_gradient(), case.flat_output());
        let (mut y, mut work) = (vec![0.0; yl.len()], Work::default());
        conv.forward(simd, &mut work, (&x, xl), &case.w, (&mut y, yl), After::Nothing);
        let (norm, _) = other_norm(yl.pitch);
        let residual = residual.then(|| Residual { values: &dy, layout: dyl, norm: None });
        let (mut out, mut want) = (vec![0.0; dyl.len()], vec![0.0; dyl.len()]);
        let after = After::Apply { norm: &norm, residual, relu };
        conv.forward(simd, &mut work, (&x, xl), &case.w, (&mut out, dyl), after);
        norm::apply(simd, &norm, (&y, yl), residual, relu, (&mut want, dyl));
        prop_assert_eq!(out, want);
        Ok(())
    }

    /// A gradient masked and summed by a fused pass equals one masked afterward.
    fn masked_alike(
        simd: Simd,
        conv: &Convolution,
        case: &Case,
        seed: u64,
        (add, own): (bool, bool),
    ) -> Result<(), TestCaseError> {
        let ((x, xl), (dy, dyl), dxl) = (case.input(), case.output_gradient(), case.flat_input());
        let (before, mut work) = (noise(dxl.len(), seed), Work::default());
        let (mut dx, mut want) = (before.clone(), before.clone());
        conv.input_gradient(simd, &mut work, (&dy, dyl), &case.w, (&mut want, dxl, add), After::Nothing);
        let ((mut masked, channels), (mut alone, _)) = (other_norm(dxl.pitch), other_norm(dxl.pitch));
        let relu = if own { Relu::Output(&x, xl) } else { Relu::Own };
        let after = After::Mask { norm: &mut masked, relu, y: &before };
        conv.input_gradient(simd, &mut work, (&dy, dyl), &case.w, (&mut dx, dxl, add), after);
        alone.mask(simd, (&mut want, dxl), relu, &before);
        prop_assert_eq!(&dx, &want);
        let expected: Vec<_> = (0..dxl.pitch)
            .map(|c| channels[c].gradients(&column(&dx, dxl, c), &column(&before, dxl, c)))
            .collect();
        for norm in [&mut masked, &mut alone] {
            let (mut to, mut gamma, mut beta) =
                (vec![0.0; dxl.len()], vec![0.0; dxl.pitch], vec![0.0; dxl.pitch]);
            norm.parameter_gradients(&mut gamma, &mut beta);
            norm.input_gradient(simd, (&dx, dxl), &before, (&mut to, dxl));
            for (c, want) in expected.iter().enumerate() {
                compare_all("input", &column(&to, dxl, c), &want.input)?;
                compare_all("γ and β", &[gamma[c], beta[c]], &[want.gamma, want.beta])?;
            }
        }
        Ok(())
    }

    fn what_follows(g: Geometry, batch: usize, seed: u64, add: bool, own: bool) -> Result<(), TestCaseError> {
        let case = Case::new(g, batch, seed);
        for simd in Simd::all().iter().copied() {
            for algorithm in [Algorithm::Direct, Algorithm::winograd(g, case.input_pitch())] {
                let conv = Convolution::new(g, algorithm);
                measured_alike(simd, &conv, &case)?;
                applied_alike(simd, &conv, &case, own, add)?;
                masked_alike(simd, &conv, &case, seed + 5, (add, own))?;
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(property::cases(96))]

        #[test]
        fn a_fused_pass_equals_the_separate_pass((g, batch) in geometry(), seed in 0u64..1000, add: bool, own: bool) {
            prop_assume!(g.kernel <= 3 && g.inputs >= 4);
            what_follows(g, batch, seed, add, own)?;
        }
    }

    #[test]
    fn moments_about_an_outlying_value_are_within_their_rounding() {
        // The first pixel of channel 16 is far from the mean, and squares are summed around it. The variance
        // 2.27 differs by 2.5e-5 between the fused and the separate pass. Both are within the rounding of the
        // larger sums.
        let g = Geometry { height: 12, width: 11, inputs: 16, outputs: 17, kernel: 1, stride: 1, padding: 0 };
        what_follows(g, 3, 399, false, false).unwrap();
    }

    #[test]
    fn winograd_is_chosen_where_it_saves_multiplications() {
        let side = |side: usize, channels: usize| Geometry {
            height: side,
            width: side,
            inputs: channels,
            outputs: channels,
            kernel: 3,
            stride: 1,
            padding: 1,
        };
        for (g, pitch, want) in [
            (side(28, 16), 16, Algorithm::Winograd),
            (side(7, 64), 64, Algorithm::Winograd),
            (side(4, 512), 512, Algorithm::Winograd),
            (side(2, 512), 512, Algorithm::Direct),
            (Geometry { stride: 2, ..side(28, 16) }, 16, Algorithm::Direct),
            (Geometry { inputs: 3, ..side(28, 16) }, 3, Algorithm::Direct),
            (Geometry { kernel: 1, padding: 0, ..side(28, 16) }, 16, Algorithm::Direct),
        ] {
            assert_eq!(Algorithm::fastest(g, pitch), want, "{g:?}");
        }
    }
}
