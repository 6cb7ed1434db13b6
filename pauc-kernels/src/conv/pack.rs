//! Weights between interchange order, (out, in, height, width), and the order of the kernels.

use super::Geometry;
use crate::simd::Simd;
use crate::threads::{self, Shared};

/// For the forward pass: \[out / panel\]\[ky\]\[kx\]\[in\]\[panel\], with `pitch` input channels.
pub(super) fn forward(simd: Simd, g: Geometry, pitch: usize, w: &[f32], to: &mut [f32]) {
    let (taps, outputs) = (g.kernel * g.kernel, g.output_pitch());
    let columns = simd.panel(outputs);
    assert_eq!((w.len(), to.len()), (g.weights(), taps * pitch * outputs));
    let size = taps * pitch * columns;
    let to = Shared::new(to);
    threads::for_each(outputs / columns, |block| {
        // SAFETY: each portion is one panel.
        let to = unsafe { to.part(block * size..(block + 1) * size) };
        let known = columns.min(g.outputs.saturating_sub(block * columns));
        let w = &w[g.weights().min(block * columns * g.inputs * taps)..];
        for i in 0..pitch {
            for t in 0..taps {
                let to = &mut to[(t * pitch + i) * columns..][..columns];
                let from = if i < g.inputs { known } else { 0 };
                for (lane, to) in to[..from].iter_mut().enumerate() {
                    *to = w[(lane * g.inputs + i) * taps + t];
                }
                to[from..].fill(0.0);
            }
        }
    });
}

/// For the input gradient: \[in / panel\]\[ky\]\[kx\]\[out\]\[panel\].
pub(super) fn input_gradient(simd: Simd, g: Geometry, pitch: usize, w: &[f32], to: &mut [f32]) {
    let (taps, outputs) = (g.kernel * g.kernel, g.output_pitch());
    let columns = simd.panel(pitch);
    assert_eq!((w.len(), to.len()), (g.weights(), taps * pitch * outputs));
    let size = taps * outputs * columns;
    let to = Shared::new(to);
    threads::for_each(pitch / columns, |block| {
        // SAFETY: each portion is one panel.
        let to = unsafe { to.part(block * size..(block + 1) * size) };
        for o in 0..outputs {
            for lane in 0..columns {
                let i = block * columns + lane;
                for t in 0..taps {
                    let known = o < g.outputs && i < g.inputs;
                    to[(t * outputs + o) * columns + lane] =
                        if known { w[(o * g.inputs + i) * taps + t] } else { 0.0 };
                }
            }
        }
    });
}

/// Adds the sum of `parts` weight gradients, each \[ky\]\[kx\]\[in\]\[out\] with rounded-up channels, to `dw`.
pub(super) fn add_weight_gradient(g: Geometry, pitch: usize, from: &[f32], parts: usize, dw: &mut [f32]) {
    let (taps, outputs) = (g.kernel * g.kernel, g.output_pitch());
    let size = taps * pitch * outputs;
    assert!(from.len() >= parts * size && dw.len() == g.weights());
    let dw = Shared::new(dw);
    threads::for_each(g.outputs.div_ceil(16), |block| {
        let range = block * 16..g.outputs.min(block * 16 + 16);
        // SAFETY: each portion is a range of output channels.
        let dw = unsafe { dw.part(range.start * g.inputs * taps..range.end * g.inputs * taps) };
        for t in 0..taps {
            for i in 0..g.inputs {
                let mut sum = [0f32; 16];
                for p in 0..parts {
                    let at = p * size + (t * pitch + i) * outputs + range.start;
                    sum.iter_mut().zip(&from[at..at + 16]).for_each(|(s, v)| *s += v);
                }
                for (o, s) in sum.iter().take(range.len()).enumerate() {
                    dw[(o * g.inputs + i) * taps + t] += s;
                }
            }
        }
    });
}
