//! Convolutions of channels-last maps: forward, and the gradients with respect to input and weight.
//!
//! Weights and their gradients are in interchange order, (out, in, height, width). [`Packed`] holds weights
//! in the order of a kernel and is filled once per step. Channels of maps are rounded up to [`CHANNELS`]; the
//! additional values are zero.
//!
//! | module | contents |
//! |---|---|
//! | `direct` | any size, any stride: taps × channels summed in registers |
//! | `winograd` | 3×3 at stride 1 with a quarter of the multiplications |
//! | [`Convolution`] | one layer; chooses between them |
//! | [`Work`] | the memory that layers share |
//! | `pack` | weights from interchange order and back |

mod direct;
mod layer;
mod pack;
mod winograd;

pub use layer::{After, Algorithm, Convolution, Work};

use crate::buffer::Buffer;
use crate::layout::Layout;
use crate::simd::CHANNELS;

/// The shape of a convolution, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Distance between applications of the kernel.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

impl Geometry {
    /// Returns the rows and columns of the output.
    pub fn output(&self) -> (usize, usize) {
        let side = |n: usize| (n + 2 * self.padding - self.kernel) / self.stride + 1;
        (side(self.height), side(self.width))
    }

    /// Returns the multiply-adds of one image's forward pass.
    pub fn multiply_adds(&self) -> u64 {
        let (h, w) = self.output();
        (h * w * self.outputs * self.inputs * self.kernel * self.kernel) as u64
    }

    /// Returns the number of weights.
    pub fn weights(&self) -> usize {
        self.outputs * self.inputs * self.kernel * self.kernel
    }

    /// Returns the pitch of the output: its channels, rounded up.
    pub fn output_pitch(&self) -> usize {
        self.outputs.next_multiple_of(CHANNELS)
    }

    fn check_input(&self, x: &[f32], l: Layout) {
        let (oh, ow) = self.output();
        let reach = |o: usize| (o - 1) * self.stride + self.kernel;
        assert!(
            (l.height, l.width) == (self.height, self.width) && l.pitch >= self.inputs,
            "{self:?} does not fit the input {l:?}"
        );
        assert!(
            l.before >= self.padding && x.len() >= l.len(),
            "{self:?} does not fit the input {l:?} of {} values",
            x.len()
        );
        let start = l.before - self.padding;
        assert!(start + reach(oh) <= l.before + l.height + l.below, "{self:?} reads below {l:?}");
        assert!(start + reach(ow) <= l.before + l.width + l.right, "{self:?} reads right of {l:?}");
    }

    fn check_output(&self, values: usize, l: Layout) {
        assert!((l.height, l.width) == self.output(), "{self:?} does not fit the output {l:?}");
        assert!(
            l.pitch == self.output_pitch() && values >= l.len(),
            "{self:?} does not fit the output {l:?} of {values} values"
        );
    }
}

/// Weights in the order of a kernel. Layers that run one after the other share the memory.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    values: Buffer,
    len: usize,
}

impl Packed {
    /// Returns `len` values with unspecified contents, in memory that only grows.
    fn reserve(&mut self, len: usize) -> &mut [f32] {
        self.values.grow(len);
        self.len = len;
        &mut self.values[..len]
    }

    /// Returns the values packed last.
    fn values(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

/// Returns the number of parts of a sum over `rows`, where a part needs `size` values and is computed in
/// `tasks` tasks: as many parts as fit together into a cache near the processor. If that gives few tasks,
/// more parts, up to a larger cache.
pub(crate) fn parts(size: usize, rows: usize, tasks: usize) -> usize {
    let [near, far] = [18, 20].map(|bits| (1 << bits) / size.max(1));
    near.max(far.min(16usize.div_ceil(tasks))).clamp(1, 16).min(rows.max(1))
}

#[cfg(test)]
pub(crate) mod reference {
    //! Convolutions by definition, in `f64`, over images without halo, with a bound on the rounding error of
    //! each value in `f32`.
    use super::*;
    use pauc_testing::{Rounded, tolerance};

    /// Sums of products. In any order, with or without fused multiply-add, the error of `f32` is at most
    /// γₙ·Σ|products| for n products.
    struct Sums(Vec<(f64, f64, usize)>);

    impl Sums {
        /// Creates sums that start at zero, or at given values.
        fn new(len: usize, start: Option<&[f32]>) -> Self {
            let begun = |v: &f32| (f64::from(*v), f64::from(v.abs()), 1);
            Sums(start.map_or_else(|| vec![(0.0, 0.0, 0); len], |start| start.iter().map(begun).collect()))
        }

        fn add(&mut self, i: usize, a: f32, b: f32) {
            let product = a as f64 * b as f64;
            let (value, magnitude, count) = &mut self.0[i];
            *value += product;
            *magnitude += product.abs();
            *count += 1;
        }

        fn finish(self) -> Vec<Rounded> {
            let bound = |(value, magnitude, count)| Rounded::within(value, tolerance::f32(count, magnitude));
            self.0.into_iter().map(bound).collect()
        }
    }

    /// Calls `visit(input, weight, output)` with the indices of every product.
    fn products(g: Geometry, batch: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let (oh, ow) = g.output();
        for b in 0..batch {
            for (oy, ox) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
                for (ky, kx) in (0..g.kernel).flat_map(|y| (0..g.kernel).map(move |x| (y, x))) {
                    let (iy, ix) = (oy * g.stride + ky, ox * g.stride + kx);
                    if iy < g.padding || ix < g.padding {
                        continue;
                    }
                    let (iy, ix) = (iy - g.padding, ix - g.padding);
                    if iy >= g.height || ix >= g.width {
                        continue;
                    }
                    for o in 0..g.outputs {
                        for i in 0..g.inputs {
                            visit(
                                ((b * g.height + iy) * g.width + ix) * g.inputs + i,
                                ((o * g.inputs + i) * g.kernel + ky) * g.kernel + kx,
                                ((b * oh + oy) * ow + ox) * g.outputs + o,
                            );
                        }
                    }
                }
            }
        }
    }

    pub fn forward(g: Geometry, batch: usize, x: &[f32], w: &[f32]) -> Vec<Rounded> {
        let (oh, ow) = g.output();
        let mut y = Sums::new(batch * oh * ow * g.outputs, None);
        products(g, batch, |i, k, o| y.add(o, x[i], w[k]));
        y.finish()
    }

    /// Returns the gradient, added to `start` if given.
    pub fn input_gradient(
        g: Geometry,
        batch: usize,
        dy: &[f32],
        w: &[f32],
        start: Option<&[f32]>,
    ) -> Vec<Rounded> {
        let mut dx = Sums::new(batch * g.height * g.width * g.inputs, start);
        products(g, batch, |i, k, o| dx.add(i, dy[o], w[k]));
        dx.finish()
    }

    /// Returns the gradient, added to `start`.
    pub fn weight_gradient(g: Geometry, batch: usize, x: &[f32], dy: &[f32], start: &[f32]) -> Vec<Rounded> {
        let mut dw = Sums::new(g.weights(), Some(start));
        products(g, batch, |i, k, o| dw.add(k, dy[o], x[i]));
        dw.finish()
    }
}

#[cfg(test)]
pub(crate) mod cases {
    //! A random convolution with all operands of its kernels, in both layouts.
    use super::*;
    use crate::layout::copy_pixels;
    pub use pauc_testing::inputs::noise;
    use pauc_testing::{Rounded, property::size};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    pub struct Case {
        pub g: Geometry,
        pub batch: usize,
        pub x: Vec<f32>,
        pub w: Vec<f32>,
        pub dy: Vec<f32>,
    }

    impl Case {
        pub fn new(g: Geometry, batch: usize, seed: u64) -> Self {
            let (oh, ow) = g.output();
            Case {
                g,
                batch,
                x: noise(batch * g.height * g.width * g.inputs, seed),
                w: noise(g.weights(), seed + 1),
                dy: noise(batch * oh * ow * g.outputs, seed + 2),
            }
        }

        /// Images keep their channels; feature maps are rounded up.
        pub fn input_pitch(&self) -> usize {
            if self.g.inputs < 4 { self.g.inputs } else { self.g.inputs.next_multiple_of(CHANNELS) }
        }

        pub fn input(&self) -> (Buffer, Layout) {
            let l = Layout::haloed(
                self.batch,
                self.g.height,
                self.g.width,
                self.input_pitch(),
                self.g.padding.max(1),
            );
            (place(&self.x, self.g.inputs, l), l)
        }

        pub fn flat_input(&self) -> Layout {
            Layout::flat(self.batch, self.g.height, self.g.width, self.input_pitch())
        }

        pub fn flat_output(&self) -> Layout {
            let (oh, ow) = self.g.output();
            Layout::flat(self.batch, oh, ow, self.g.output_pitch())
        }

        pub fn output_gradient(&self) -> (Buffer, Layout) {
            let (oh, ow) = self.g.output();
            let l = Layout::haloed(self.batch, oh, ow, self.g.output_pitch(), 1);
            (place(&self.dy, self.g.outputs, l), l)
        }
    }

    pub fn place(values: &[f32], channels: usize, l: Layout) -> Buffer {
        let mut buffer = Buffer::zeros(l.len());
        copy_pixels((values, Layout::flat(l.batch, l.height, l.width, channels)), (&mut buffer, l));
        buffer
    }

    /// Asserts that the map in `l` equals `want` up to rounding, and that additional channels are zero.
    pub fn compare(got: &[f32], l: Layout, channels: usize, want: &[Rounded]) -> Result<(), TestCaseError> {
        for r in 0..l.rows() {
            for x in 0..l.width {
                for c in 0..l.pitch {
                    let got = got[l.row_at(r) + x * l.pitch + c];
                    let padding = Rounded::exact(0.0);
                    let want = if c < channels { want[(r * l.width + x) * channels + c] } else { padding };
                    prop_assert!(
                        want.admits(got),
                        "row {r} column {x} channel {c}: got {got}, expected {want}"
                    );
                }
            }
        }
        Ok(())
    }

    pub fn compare_all(name: &str, got: &[f32], want: &[Rounded]) -> Result<(), TestCaseError> {
        prop_assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            prop_assert!(want.admits(*got), "{name} {i}: got {got}, expected {want}");
        }
        Ok(())
    }

    pub fn geometry() -> impl Strategy<Value = (Geometry, usize)> {
        let kernel = prop_oneof![Just(1usize), Just(3), Just(3), Just(5), Just(7)];
        let channels = prop_oneof![1usize..4, size(4..40), Just(64usize)];
        (size(1..13), size(1..13), channels, size(1..70), kernel, 1usize..3, 1usize..4).prop_map(
            |(height, width, inputs, outputs, kernel, stride, batch)| {
                (Geometry { height, width, inputs, outputs, kernel, stride, padding: kernel / 2 }, batch)
            },
        )
    }
}
