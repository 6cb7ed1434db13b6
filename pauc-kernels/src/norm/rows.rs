//! The passes of normalization over rows of pixels.
//!
//! Each pass is a function of rows, called for one portion of a batch, and a function of some channels of
//! these rows. The callers in `norm` check slices against layouts, give every portion its own rows and sums,
//! and round vectors up to the pitch, a multiple of the lanes of every vector.

use super::{Norm, Relu, Residual};
use crate::layout::Layout;
use crate::simd::Vector;
use crate::threads::Shared;
use std::ops::Range;

/// Calls `$body` with `$n` vectors from channel `$c` on, until all channels are done: four at a time, then
/// one.
macro_rules! by_channels {
    ($v:ident, $pitch:expr, |$c:ident| $body:ident::<$n:ident>($($arg:expr),*)) => {{
        let mut $c = 0;
        while $c < $pitch {
            if $c + 4 * $v::LANES <= $pitch {
                $body::<$v, 4>($($arg),*);
                $c += 4 * $v::LANES;
            } else {
                $body::<$v, 1>($($arg),*);
                $c += $v::LANES;
            }
        }
    }};
}

/// Writes three rows of sums: the value around which they are taken, Σ(y − about), Σ(y − about)².
///
/// # Safety
/// [`Vector`]'s contract. `y` is valid for reads of the rows of the layout. `to` is valid for writes of
/// 3·pitch values, and no other thread accesses them.
#[inline(always)]
pub(super) unsafe fn measure_rows<V: Vector>(rows: Range<usize>, (y, l): (*const f32, Layout), to: *mut f32) {
    // SAFETY: this function's contract. `by_channels` stays below the pitch.
    unsafe { by_channels!(V, l.pitch, |c| measure_channels::<N>(rows.clone(), (y, l), to, c)) }
}

/// # Safety
/// As for [`measure_rows`], with N·LANES channels from channel `c` on.
#[inline(always)]
unsafe fn measure_channels<V: Vector, const N: usize>(
    rows: Range<usize>,
    (y, l): (*const f32, Layout),
    to: *mut f32,
    c: usize,
) {
    // SAFETY: this function's contract. All offsets are those of pixels of `rows`, or of `to`'s three rows.
    unsafe {
        let first = y.add(l.row_at(rows.start) + c);
        let mut about = [V::splat(0.0); N];
        let (mut sum, mut square) = ([V::splat(0.0); N], [V::splat(0.0); N]);
        for (j, a) in about.iter_mut().enumerate() {
            *a = V::load(first.add(j * V::LANES));
        }
        for r in rows {
            let mut pixel = y.add(l.row_at(r) + c);
            for _ in 0..l.width {
                for j in 0..N {
                    let d = V::load(pixel.add(j * V::LANES)).sub(about[j]);
                    sum[j] = sum[j].add(d);
                    square[j] = d.mul_add(d, square[j]);
                }
                pixel = pixel.wrapping_add(l.pitch);
            }
        }
        for j in 0..N {
            let to = to.add(c + j * V::LANES);
            about[j].store(to);
            sum[j].store(to.add(l.pitch));
            square[j].store(to.add(2 * l.pitch));
        }
    }
}

/// Loads N vectors with one value per channel, from channel `c` on.
///
/// # Safety
/// [`Vector`]'s contract. `from` is valid for reads of c + N·LANES values.
#[inline(always)]
unsafe fn vectors<V: Vector, const N: usize>(from: *const f32, c: usize) -> [V; N] {
    // SAFETY: this function's contract.
    unsafe {
        let mut vectors = [V::splat(0.0); N];
        for (j, v) in vectors.iter_mut().enumerate() {
            *v = V::load(from.add(c + j * V::LANES));
        }
        vectors
    }
}

/// The start of a row in the maps that [`apply_rows`] reads and writes, with their pitch and width.
#[derive(Clone, Copy)]
struct Row {
    y: *const f32,
    out: *mut f32,
    pitch: usize,
    width: usize,
}

/// Scale and shift of each channel.
type Affine = (*const f32, *const f32);

/// out ← ReLU?(scale·y + shift + residual?), row by row.
///
/// # Safety
/// [`Vector`]'s contract. `y` is valid for reads of the rows of its layout, and so is the residual. `out`'s
/// layout has the same maps, and no other thread accesses these rows of it. `y` and `out` may be the same
/// map.
#[inline(always)]
pub(super) unsafe fn apply_rows<V: Vector>(
    rows: Range<usize>,
    norm: &Norm,
    (y, yl): (*const f32, Layout),
    residual: Option<Residual<'_>>,
    relu: bool,
    (out, ol): (Shared<'_, f32>, Layout),
) {
    for r in rows {
        let y = y.wrapping_add(yl.row_at(r));
        let row = Row { y, out: out.at(ol.row_at(r)), pitch: yl.pitch, width: yl.width };
        let affine = (norm.scale.as_ptr(), norm.shift.as_ptr());
        let residual = residual.map(|map| {
            let values = map.values.as_ptr().wrapping_add(map.layout.row_at(r));
            (values, map.norm.map(|n| (n.scale.as_ptr(), n.shift.as_ptr())))
        });
        // SAFETY: this function's contract. The vectors of a `Norm` have its pitch as their length, which
        // `apply_during` compares with the pitch of the layouts.
        unsafe { by_channels!(V, yl.pitch, |c| apply_channels::<N>(row, affine, residual, relu, c)) }
    }
}

/// # Safety
/// As for [`apply_rows`], with N·LANES channels from channel `c` on.
#[inline(always)]
unsafe fn apply_channels<V: Vector, const N: usize>(
    Row { y, out, pitch, width }: Row,
    (scale, shift): Affine,
    residual: Option<(*const f32, Option<Affine>)>,
    relu: bool,
    c: usize,
) {
    // SAFETY: this function's contract. All offsets are those of pixels of the row.
    unsafe {
        let (scale, shift, zero) = (vectors::<V, N>(scale, c), vectors::<V, N>(shift, c), V::splat(0.0));
        let pixel =
            |x: usize, j: usize| V::load(y.add(x * pitch + c + j * V::LANES)).mul_add(scale[j], shift[j]);
        let finish = |x: usize, j: usize, v: V| {
            let v = if relu { v.max(zero) } else { v };
            v.store(out.add(x * pitch + c + j * V::LANES));
        };
        match residual {
            None => {
                for x in 0..width {
                    for j in 0..N {
                        finish(x, j, pixel(x, j));
                    }
                }
            }
            Some((res, None)) => {
                for x in 0..width {
                    for j in 0..N {
                        finish(x, j, pixel(x, j).add(V::load(res.add(x * pitch + c + j * V::LANES))));
                    }
                }
            }
            Some((res, Some((s, h)))) => {
                let (s, h) = (vectors::<V, N>(s, c), vectors::<V, N>(h, c));
                for x in 0..width {
                    for j in 0..N {
                        let r = V::load(res.add(x * pitch + c + j * V::LANES)).mul_add(s[j], h[j]);
                        finish(x, j, pixel(x, j).add(r));
                    }
                }
            }
        }
    }
}

/// Writes two rows of sums, Σg and Σg·(y − mean), of g masked by ReLU.
///
/// # Safety
/// [`Vector`]'s contract. `g` and `y` have the layout, and the output in `relu` has its own layout of the
/// same maps. No other thread accesses these rows of `g`. `affine` and `mean` are valid for reads of pitch
/// values, `to` for writes of 2·pitch.
#[inline(always)]
pub(super) unsafe fn mask_rows<V: Vector>(
    rows: Range<usize>,
    (g, l): (Shared<'_, f32>, Layout),
    relu: Relu<'_>,
    (scale, shift): (*const f32, *const f32),
    (y, mean): (*const f32, *const f32),
    to: *mut f32,
) {
    let (maps, y) = ((g, l), (y, mean));
    // SAFETY: this function's contract. `by_channels` stays below the pitch.
    unsafe {
        match relu {
            Relu::None => by_channels!(V, l.pitch, |c| mask_channels::<N>(
                rows.clone(),
                maps,
                y,
                (to, c),
                |g, _, _, _, _| g
            )),
            Relu::Own => by_channels!(V, l.pitch, |c| mask_channels::<N>(
                rows.clone(),
                maps,
                y,
                (to, c),
                |g: V, y: V, _, _, j| {
                    let (scale, shift) = [scale, shift].map(|s| V::load(s.add(c + j * V::LANES))).into();
                    g.where_positive(y.mul_add(scale, shift))
                }
            )),
            Relu::Output(out, out_layout) => {
                let out = out.as_ptr();
                by_channels!(V, l.pitch, |c| mask_channels::<N>(
                    rows.clone(),
                    maps,
                    y,
                    (to, c),
                    |g: V, _, r, i, _| g.where_positive(V::load(out.add(out_layout.row_at(r) + i)))
                ))
            }
        }
    }
}

/// Masks some channels and sums them. `mask` returns the masked vector of g, given that of g, that of y, the
/// row, the offset within the row, and the number of the vector.
///
/// # Safety
/// As for [`mask_rows`], with N·LANES channels from channel `c` on.
#[inline(always)]
unsafe fn mask_channels<V: Vector, const N: usize>(
    rows: Range<usize>,
    (g, l): (Shared<'_, f32>, Layout),
    (y, mean): (*const f32, *const f32),
    (to, c): (*mut f32, usize),
    mask: impl Fn(V, V, usize, usize, usize) -> V,
) {
    // SAFETY: this function's contract. All offsets are those of pixels of `rows`, or of `to`'s two rows.
    unsafe {
        let mean = vectors::<V, N>(mean, c);
        let (mut sum, mut product) = ([V::splat(0.0); N], [V::splat(0.0); N]);
        for r in rows {
            let start = l.row_at(r) + c;
            let (g, y) = (g.at(start), y.add(start));
            for x in 0..l.width {
                for j in 0..N {
                    let i = x * l.pitch + j * V::LANES;
                    let y = V::load(y.add(i));
                    let v = mask(V::load(g.add(i)), y, r, i + c, j);
                    v.store(g.add(i));
                    sum[j] = sum[j].add(v);
                    product[j] = v.mul_add(y.sub(mean[j]), product[j]);
                }
            }
        }
        for j in 0..N {
            sum[j].store(to.add(c + j * V::LANES));
            product[j].store(to.add(l.pitch + c + j * V::LANES));
        }
    }
}

/// dy ← a·g + b·y + k.
///
/// # Safety
/// [`Vector`]'s contract. `g` and `y` are valid for reads of the rows of the layout, `factors` of pitch
/// values. `dy` has the same maps in its own layout, and no other thread accesses these rows of it.
#[inline(always)]
pub(super) unsafe fn combine_rows<V: Vector>(
    rows: Range<usize>,
    (g, l): (*const f32, Layout),
    y: *const f32,
    factors: [*const f32; 3],
    (dy, dyl): (Shared<'_, f32>, Layout),
) {
    for r in rows {
        let start = l.row_at(r);
        let maps = (g.wrapping_add(start), y.wrapping_add(start), dy.at(dyl.row_at(r)));
        // SAFETY: this function's contract. `by_channels` stays below the pitch.
        unsafe { by_channels!(V, l.pitch, |c| combine_channels::<N>(maps, (l.pitch, l.width), factors, c)) }
    }
}

/// # Safety
/// As for [`combine_rows`], with N·LANES channels from channel `c` on.
#[inline(always)]
unsafe fn combine_channels<V: Vector, const N: usize>(
    (g, y, dy): (*const f32, *const f32, *mut f32),
    (pitch, width): (usize, usize),
    [a, b, k]: [*const f32; 3],
    c: usize,
) {
    // SAFETY: this function's contract. All offsets are those of pixels of the row.
    unsafe {
        let (a, b, k) = (vectors::<V, N>(a, c), vectors::<V, N>(b, c), vectors::<V, N>(k, c));
        for x in 0..width {
            for j in 0..N {
                let i = x * pitch + c + j * V::LANES;
                let without_g = V::load(y.add(i)).mul_add(b[j], k[j]);
                V::load(g.add(i)).mul_add(a[j], without_g).store(dy.add(i));
            }
        }
    }
}
