//! The passes over rows of pixels that normalisation is made of.

use super::{Norm, Relu, Residual};
use crate::layout::Layout;
use crate::simd::Vector;
use crate::threads::Shared;

/// Calls `$body` with `$n` vectors from channel `$c` on, until all channels are done: four at a time, then one.
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

/// Three rows of sums: the value about which they are taken, Σ(y − about), Σ(y − about)².
#[inline(always)]
pub(super) unsafe fn measure_rows<V: Vector>(
    rows: std::ops::Range<usize>,
    (y, l): (*const f32, Layout),
    to: *mut f32,
) {
    #[inline(always)]
    unsafe fn channels<V: Vector, const N: usize>(
        rows: std::ops::Range<usize>,
        (y, l): (*const f32, Layout),
        to: *mut f32,
        c: usize,
    ) {
        // SAFETY: rows of y are inside the slice by `check`; `to` has three rows of pitch values.
        unsafe {
            let first = y.add(l.row_at(rows.start) + c);
            let mut about = [V::splat(0.0); N];
            let (mut sum, mut square) = ([V::splat(0.0); N], [V::splat(0.0); N]);
            for (j, a) in about.iter_mut().enumerate() {
                *a = V::load(first.add(j * V::LANES));
            }
            for r in rows {
                let mut p = y.add(l.row_at(r) + c);
                for _ in 0..l.width {
                    for j in 0..N {
                        let d = V::load(p.add(j * V::LANES)).sub(about[j]);
                        sum[j] = sum[j].add(d);
                        square[j] = d.mul_add(d, square[j]);
                    }
                    p = p.wrapping_add(l.pitch);
                }
            }
            for j in 0..N {
                let at = to.add(c + j * V::LANES);
                about[j].store(at);
                sum[j].store(at.add(l.pitch));
                square[j].store(at.add(2 * l.pitch));
            }
        }
    }
    // SAFETY: as above.
    unsafe { by_channels!(V, l.pitch, |c| channels::<N>(rows.clone(), (y, l), to, c)) }
}

#[inline(always)]
pub(super) unsafe fn apply_rows<V: Vector>(
    rows: std::ops::Range<usize>,
    norm: &Norm,
    (y, yl): (*const f32, Layout),
    residual: Option<Residual<'_>>,
    relu: bool,
    (out, ol): (Shared<'_, f32>, Layout),
) {
    #[inline(always)]
    unsafe fn channels<V: Vector, const N: usize>(
        (y, out, pitch, width): (*const f32, *mut f32, usize, usize),
        (scale, shift): (*const f32, *const f32),
        residual: Option<(*const f32, Option<(*const f32, *const f32)>)>,
        relu: bool,
        c: usize,
    ) {
        // SAFETY: `apply` checks slices against layouts; the vectors have pitch values.
        unsafe {
            let vectors = |from: *const f32| {
                let mut v = [V::splat(0.0); N];
                for (j, v) in v.iter_mut().enumerate() {
                    *v = V::load(from.add(c + j * V::LANES));
                }
                v
            };
            let (scale, shift, zero) = (vectors(scale), vectors(shift), V::splat(0.0));
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
                    let (s, h) = (vectors(s), vectors(h));
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
    for r in rows {
        let from = y.wrapping_add(yl.row_at(r));
        let maps = (from, out.at(ol.row_at(r)), yl.pitch, yl.width);
        let own = (norm.scale.as_ptr(), norm.shift.as_ptr());
        let other = residual.map(|r2| {
            let values = r2.values.as_ptr().wrapping_add(r2.layout.row_at(r));
            (values, r2.norm.map(|n| (n.scale.as_ptr(), n.shift.as_ptr())))
        });
        // SAFETY: as above.
        unsafe { by_channels!(V, yl.pitch, |c| channels::<N>(maps, own, other, relu, c)) }
    }
}

/// Two rows of sums, Σg and Σg·(y − mean), of g masked by ReLU.
#[inline(always)]
pub(super) unsafe fn mask_rows<V: Vector>(
    rows: std::ops::Range<usize>,
    (g, l): (Shared<'_, f32>, Layout),
    relu: Relu<'_>,
    own: (*const f32, *const f32),
    (y, mean): (*const f32, *const f32),
    to: *mut f32,
) {
    /// `mask` gives of each value what is left of it, from where it is and from y.
    #[inline(always)]
    unsafe fn channels<V: Vector, const N: usize>(
        rows: std::ops::Range<usize>,
        (g, l): (Shared<'_, f32>, Layout),
        (y, mean): (*const f32, *const f32),
        (to, c): (*mut f32, usize),
        mask: impl Fn(V, V, usize, usize, usize) -> V,
    ) {
        // SAFETY: `mask_during` checks slices against layouts; the vectors have pitch values.
        unsafe {
            let mut middle = [V::splat(0.0); N];
            for (j, m) in middle.iter_mut().enumerate() {
                *m = V::load(mean.add(c + j * V::LANES));
            }
            let (mut sum, mut product) = ([V::splat(0.0); N], [V::splat(0.0); N]);
            for r in rows {
                let at = l.row_at(r) + c;
                let (g, y) = (g.at(at), y.add(at));
                for x in 0..l.width {
                    for j in 0..N {
                        let i = x * l.pitch + j * V::LANES;
                        let y = V::load(y.add(i));
                        let v = mask(V::load(g.add(i)), y, r, i + c, j);
                        v.store(g.add(i));
                        sum[j] = sum[j].add(v);
                        product[j] = v.mul_add(y.sub(middle[j]), product[j]);
                    }
                }
            }
            for j in 0..N {
                sum[j].store(to.add(c + j * V::LANES));
                product[j].store(to.add(l.pitch + c + j * V::LANES));
            }
        }
    }
    let (maps, y) = ((g, l), (y, mean));
    // SAFETY: as above.
    unsafe {
        match relu {
            Relu::None => {
                by_channels!(V, l.pitch, |c| channels::<N>(rows.clone(), maps, y, (to, c), |v, _, _, _, _| v))
            }
            Relu::Own => {
                let (scale, shift) = own;
                by_channels!(V, l.pitch, |c| channels::<N>(
                    rows.clone(),
                    maps,
                    y,
                    (to, c),
                    |v: V, y: V, _, _, j| {
                        let (scale, shift) = [scale, shift].map(|s| V::load(s.add(c + j * V::LANES))).into();
                        v.where_positive(y.mul_add(scale, shift))
                    }
                ))
            }
            Relu::Output(o, ol) => {
                let o = o.as_ptr();
                by_channels!(V, l.pitch, |c| channels::<N>(
                    rows.clone(),
                    maps,
                    y,
                    (to, c),
                    |v: V, _, r, i, _| v.where_positive(V::load(o.add(ol.row_at(r) + i)))
                ))
            }
        }
    }
}

/// dy ← a·g + b·y + k.
#[inline(always)]
pub(super) unsafe fn combine_rows<V: Vector>(
    rows: std::ops::Range<usize>,
    (g, l): (*const f32, Layout),
    y: *const f32,
    factors: [*const f32; 3],
    (dy, dyl): (Shared<'_, f32>, Layout),
) {
    #[inline(always)]
    unsafe fn channels<V: Vector, const N: usize>(
        (g, y, dy): (*const f32, *const f32, *mut f32),
        (pitch, width): (usize, usize),
        [a, b, k]: [*const f32; 3],
        c: usize,
    ) {
        // SAFETY: `backward` checks slices against layouts; the vectors have pitch values.
        unsafe {
            let vectors = |from: *const f32| {
                let mut v = [V::splat(0.0); N];
                for (j, v) in v.iter_mut().enumerate() {
                    *v = V::load(from.add(c + j * V::LANES));
                }
                v
            };
            let (a, b, k) = (vectors(a), vectors(b), vectors(k));
            for x in 0..width {
                for j in 0..N {
                    let i = x * pitch + c + j * V::LANES;
                    let rest = V::load(y.add(i)).mul_add(b[j], k[j]);
                    V::load(g.add(i)).mul_add(a[j], rest).store(dy.add(i));
                }
            }
        }
    }
    for r in rows {
        let at = l.row_at(r);
        let maps = (g.wrapping_add(at), y.wrapping_add(at), dy.at(dyl.row_at(r)));
        // SAFETY: as above.
        unsafe { by_channels!(V, l.pitch, |c| channels::<N>(maps, (l.pitch, l.width), factors, c)) }
    }
}
