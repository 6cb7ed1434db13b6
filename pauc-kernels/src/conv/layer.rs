//! One convolution of a network: its shape and how it is computed.

use super::{Geometry, Packed, direct, winograd};
use crate::buffer::Buffer;
use crate::layout::Layout;
use crate::simd::Simd;

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// By its definition, see [`direct`].
    Direct,
    /// With fewer multiplications, see [`winograd`].
    Winograd,
}

impl Algorithm {
    /// The fastest for a layer that reads maps of `pitch` channels.
    ///
    /// The rule compares multiply-adds: nine a pixel, and for each tile, whole or not, 36 products of all channels and
    /// as much for a channel's transform as for products with five others.
    pub fn fastest(g: Geometry, pitch: usize) -> Self {
        let (inputs, outputs) = (pitch, g.output_pitch());
        let tiles = g.height.div_ceil(4) * g.width.div_ceil(4);
        let direct = 9 * g.height * g.width * inputs * outputs;
        let winograd = 36 * tiles * (inputs * outputs + 5 * (inputs + outputs));
        if winograd::applies(g, pitch) && winograd < direct { Algorithm::Winograd } else { Algorithm::Direct }
    }

    /// Winograd's wherever it applies.
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

/// Memory that convolutions use while they run: packed weights, transformed tiles, partial sums. Layers that run one
/// after the other share one, which grows to the needs of the largest.
#[derive(Clone, Debug, Default)]
pub struct Work {
    packed: Packed,
    transformed: Packed,
    sums: Buffer,
    winograd: winograd::Work,
}

/// A convolution. The weights belong to the caller and are packed anew at each call.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    geometry: Geometry,
    algorithm: Algorithm,
}

impl Convolution {
    /// Of a shape, by an algorithm.
    pub fn new(geometry: Geometry, algorithm: Algorithm) -> Self {
        Convolution { geometry, algorithm }
    }

    /// Its shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// y ← x ∗ w, with w in interchange order.
    ///
    /// # Panics
    /// As [`direct::forward`].
    pub fn forward(
        &self,
        simd: Simd,
        work: &mut Work,
        x: (&[f32], Layout),
        w: &[f32],
        y: (&mut [f32], Layout),
    ) {
        match self.algorithm {
            Algorithm::Direct => {
                direct::pack_forward(simd, self.geometry, x.1.pitch, w, &mut work.packed);
                direct::forward(simd, self.geometry, x, &work.packed, y);
            }
            Algorithm::Winograd => {
                let (packed, to) = (&mut work.packed, &mut work.transformed);
                winograd::pack_forward(simd, self.geometry, x.1.pitch, w, packed, to);
                winograd::forward(simd, x, to, &mut work.sums, y, false);
            }
        }
    }

    /// dx ← dy ∗ wᵀ, or dx ← dx + dy ∗ wᵀ if `add`.
    ///
    /// # Panics
    /// As [`direct::input_gradient`].
    pub fn input_gradient(
        &self,
        simd: Simd,
        work: &mut Work,
        dy: (&[f32], Layout),
        w: &[f32],
        dx: (&mut [f32], Layout),
        add: bool,
    ) {
        match self.algorithm {
            Algorithm::Direct => {
                direct::pack_input_gradient(simd, self.geometry, dx.1.pitch, w, &mut work.packed);
                direct::input_gradient(simd, self.geometry, dy, &work.packed, dx, add);
            }
            Algorithm::Winograd => {
                let (packed, to) = (&mut work.packed, &mut work.transformed);
                winograd::pack_input_gradient(simd, self.geometry, dx.1.pitch, w, packed, to);
                winograd::forward(simd, dy, to, &mut work.sums, dx, add);
            }
        }
    }

    /// dw ← dw + the gradient with respect to the weights, in interchange order.
    ///
    /// # Panics
    /// As [`direct::weight_gradient`].
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
    use super::*;

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
