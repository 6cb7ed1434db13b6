//! Nearest centroids: x·cᵀ in register tiles with a fused arg-min, so that no N×K matrix is written.
//!
//! ‖x − c‖² = ‖x‖² + 2·(‖c‖²/2 − x·c), so the nearest centroid has the smallest score ‖c‖²/2 − x·c. The
//! centroids' mean m is subtracted first (x·c = x·(c − m) + x·m, and x·m is the same for all centroids). This
//! keeps the digits of features far from the origin. Every dot product is summed in the order of its
//! coordinates, in whichever tile. So the result depends neither on the number of threads nor on the grouping
//! of rows.

#[cfg(target_arch = "x86_64")]
mod int8_filter;

use crate::simd::{Level, Simd};
#[cfg(target_arch = "x86_64")]
use int8_filter::Quantized;
use rayon::prelude::*;
use std::sync::OnceLock;

/// Lanes in which a distance is summed.
const LANES: usize = 16;
/// Rows that pass over a panel of centroids while it is in the L1 cache.
const BLOCK: usize = 96;
/// Rows per parallel task; fixed, so that tasks are the same for every number of threads.
const TASK: usize = 4 * BLOCK;

/// Returns the number of centroids per panel.
fn panel_width(simd: Simd) -> usize {
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => 64,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => 16,
        _ => 8,
    }
}

/// Centroids in the layout of [`nearest`]: panels of a few dozen, coordinate by coordinate.
#[derive(Clone, Debug)]
pub struct Packed<'a> {
    simd: Simd,
    dim: usize,
    centroids: &'a [f32],
    pub(crate) bias: Vec<f32>,
    origin: Vec<f32>,
    panels: OnceLock<Vec<f32>>,
    #[cfg(target_arch = "x86_64")]
    quantized: Option<Quantized>,
}

impl<'a> Packed<'a> {
    /// Packs centroids of length `dim`, row-major, around their mean.
    ///
    /// # Shapes
    /// centroids (K, dim)
    ///
    /// # Panics
    /// If there are no centroids, or the number of values is not a multiple of `dim`.
    pub fn new(centroids: &'a [f32], dim: usize) -> Self {
        Self::around(centroids, &mean_row(centroids, dim))
    }

    /// Packs centroids, row-major, around an `origin` as long as a centroid. With the same origin, a row's
    /// score for a centroid does not depend on the other centroids.
    ///
    /// # Shapes
    /// centroids (K, D), origin D
    ///
    /// # Panics
    /// If there are no centroids, or the number of values is not a multiple of the origin's length.
    pub fn around(centroids: &'a [f32], origin: &[f32]) -> Self {
        Self::for_simd(centroids, origin, Simd::active())
    }

    /// [`Packed::around`] with given [`biases`] of the centroids around the same origin, for callers that
    /// pack some of them repeatedly.
    ///
    /// # Shapes
    /// centroids (K, D), origin D, biases K
    ///
    /// # Panics
    /// As [`Packed::around`], or if the number of biases is not that of centroids.
    pub fn with_biases(centroids: &'a [f32], origin: &[f32], biases: &[f64]) -> Self {
        Self::of(centroids, origin, biases, Simd::active())
    }

    fn for_simd(centroids: &'a [f32], mean: &[f32], simd: Simd) -> Self {
        Self::of(centroids, mean, &biases(centroids, mean), simd)
    }

    fn of(centroids: &'a [f32], mean: &[f32], exact: &[f64], simd: Simd) -> Self {
        let dim = mean.len();
        assert!(
            dim > 0 && !centroids.is_empty() && centroids.len() == exact.len() * dim,
            "{} values do not form {} centroids of {dim}",
            centroids.len(),
            exact.len()
        );
        let (count, width) = (exact.len(), panel_width(simd));
        let mut bias: Vec<f32> = exact.iter().map(|b| *b as f32).collect();
        // Padding in the last panel is infinitely far away.
        bias.resize(count.div_ceil(width) * width, f32::INFINITY);
        Packed {
            simd,
            dim,
            centroids,
            bias,
            origin: mean.to_vec(),
            panels: OnceLock::new(),
            #[cfg(target_arch = "x86_64")]
            quantized: (simd.level() == Level::Avx512 && Quantized::pays(count, dim))
                .then(|| Quantized::new(centroids, mean, exact)),
        }
    }

    /// Returns the length of a centroid.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns the centroid with that number.
    pub(crate) fn centroid(&self, number: u32) -> &'a [f32] {
        &self.centroids[number as usize * self.dim..][..self.dim]
    }

    /// Returns the panels, written at the first call: the filter by 8-bit products rarely needs them.
    fn panels(&self) -> &[f32] {
        let (dim, width) = (self.dim, panel_width(self.simd));
        self.panels.get_or_init(|| {
            let mut panels = vec![0.0; self.bias.len() * dim];
            for (j, c) in self.centroids.chunks_exact(dim).enumerate() {
                let panel = &mut panels[j / width * dim * width..][..dim * width];
                for (l, (v, m)) in c.iter().zip(&self.origin).enumerate() {
                    panel[l * width + j % width] = v - m;
                }
            }
            panels
        })
    }
}

/// Returns the part of each centroid's score that does not depend on rows, around an origin m as long as a
/// centroid: (‖c‖² − ‖m‖²)/2. The score (‖c‖² − ‖m‖²)/2 − x·(c − m) differs from ‖c‖²/2 − x·c only by terms
/// in x.
///
/// # Shapes
/// centroids (K, D), origin D → K
///
/// # Panics
/// If the number of values is not a multiple of the origin's length.
pub fn biases(centroids: &[f32], origin: &[f32]) -> Vec<f64> {
    let dim = origin.len();
    assert!(
        dim > 0 && centroids.len().is_multiple_of(dim),
        "{} values do not form centroids of {dim}",
        centroids.len()
    );
    let square = |v: &[f32]| v.iter().map(|x| *x as f64 * *x as f64).sum::<f64>();
    let of_origin = square(origin);
    centroids.chunks_exact(dim).map(|c| (square(c) - of_origin) / 2.0).collect()
}

/// Returns the mean of rows of length `dim`, summed in `f64`.
///
/// # Shapes
/// rows (N, dim) → dim
///
/// # Panics
/// If `dim` is 0.
pub fn mean_row(rows: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += *v as f64);
    }
    sums.iter().map(|s| (s / (rows.len() / dim).max(1) as f64) as f32).collect()
}

/// Writes the number of each row's nearest centroid (the lowest among equals) and ‖x − c‖². The latter is
/// summed from differences and so is exact up to rounding.
///
/// Runs on the current rayon pool.
///
/// # Shapes
/// rows N×D, index N, square N
///
/// # Panics
/// If the lengths disagree.
pub fn nearest(rows: &[f32], packed: &Packed<'_>, index: &mut [u32], square: &mut [f32]) {
    nearest_scored(rows, packed, index, &mut vec![0.0; index.len()], square);
}

/// [`nearest`], and the score (‖c‖² − ‖m‖²)/2 − x·(c − m) of the nearest centroid around the packing's origin
/// m. Scores of packings around the same origin can be compared.
///
/// # Shapes
/// rows N×D, index N, score N, square N
///
/// # Panics
/// If the lengths disagree.
pub fn nearest_scored(
    rows: &[f32],
    packed: &Packed<'_>,
    index: &mut [u32],
    score: &mut [f32],
    square: &mut [f32],
) {
    let dim = packed.dim;
    assert!(
        rows.len() == index.len() * dim,
        "{} values do not form {} rows of {dim}",
        rows.len(),
        index.len()
    );
    assert!(
        index.len() == square.len() && index.len() == score.len(),
        "indices, scores and distances must have one length"
    );
    let results = index.par_chunks_mut(TASK).zip(score.par_chunks_mut(TASK)).zip(square.par_chunks_mut(TASK));
    rows.par_chunks(TASK * dim).zip(results).for_each(|(rows, ((index, score), square))| {
        match packed.simd.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Simd` of this level exists only if the processor has AVX-512F, and with it AVX2 and
            // FMA. `Quantized::pays` has checked for AVX-512BW and VNNI.
            Level::Avx512 => unsafe {
                match &packed.quantized {
                    Some(q) => {
                        let plain =
                            |rows: &[f32], index: &mut [u32], score: &mut [f32], square: &mut [f32]| {
                                nearest_avx512(rows, packed, index, score, square)
                            };
                        int8_filter::nearest(rows, packed, q, (index, score, square), plain)
                    }
                    None => nearest_avx512(rows, packed, index, score, square),
                }
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Simd` of this level exists only if the processor has AVX2 and FMA.
            Level::Avx2 => unsafe { nearest_avx2(rows, packed, index, score, square) },
            _ => nearest_in_blocks::<4, 8, 4, { cfg!(target_arch = "aarch64") }>(
                rows, packed, index, score, square,
            ),
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn nearest_avx512(
    rows: &[f32],
    packed: &Packed<'_>,
    index: &mut [u32],
    score: &mut [f32],
    square: &mut [f32],
) {
    nearest_in_blocks::<6, 64, 16, true>(rows, packed, index, score, square);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn nearest_avx2(rows: &[f32], packed: &Packed<'_>, index: &mut [u32], score: &mut [f32], square: &mut [f32]) {
    nearest_in_blocks::<6, 16, 8, true>(rows, packed, index, score, square);
}

/// The smallest score of a row so far in each of L lanes, one vector register wide, and the number of its
/// group of L centroids.
#[derive(Clone, Copy)]
struct Best<const L: usize> {
    score: [f32; L],
    group: [u32; L],
}

/// Compares R rows with W centroids at a time, with minima in L lanes.
#[inline(always)]
fn nearest_in_blocks<const R: usize, const W: usize, const L: usize, const FMA: bool>(
    rows: &[f32],
    packed: &Packed<'_>,
    index: &mut [u32],
    score: &mut [f32],
    square: &mut [f32],
) {
    let dim = packed.dim;
    let mut best = [Best::<L>::NONE; BLOCK];
    let mut tiles = vec![0.0f32; BLOCK * dim];
    let results = index.chunks_mut(BLOCK).zip(score.chunks_mut(BLOCK)).zip(square.chunks_mut(BLOCK));
    for (rows, ((index, score), square)) in rows.chunks(BLOCK * dim).zip(results) {
        best.fill(Best::NONE);
        // R rows side by side, coordinate by coordinate. Padding in the last tile is computed and ignored.
        let used = index.len().div_ceil(R) * R;
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            let tile = &mut tiles[i / R * R * dim..][..R * dim];
            for (v, at) in row.iter().zip(tile[i % R..].iter_mut().step_by(R)) {
                *at = *v;
            }
        }
        let panels = packed.panels().chunks_exact(dim * W).zip(packed.bias.as_chunks::<W>().0);
        for (p, (panel, bias)) in panels.enumerate() {
            let group = (p * (W / L)) as u32;
            let tiles = tiles[..used * dim].chunks_exact(R * dim).zip(best.chunks_exact_mut(R));
            for (tile, best) in tiles {
                let sums = products::<R, W, FMA>(tile, panel);
                for (sums, best) in sums.iter().zip(best) {
                    best.update(sums, bias, group);
                }
            }
        }
        let results = index.iter_mut().zip(score).zip(square);
        for ((x, best), ((index, score), square)) in rows.chunks_exact(dim).zip(&best).zip(results) {
            (*index, *score) = best.lowest();
            let centroid = packed.centroid(*index);
            *square = squared_distance_as::<FMA>(x, centroid);
        }
    }
}

impl<const L: usize> Best<L> {
    const NONE: Self = Best { score: [f32::INFINITY; L], group: [0; L] };

    /// Merges the scores bias − sum of a panel whose first L centroids are group `group`.
    #[inline(always)]
    fn update<const W: usize>(&mut self, sums: &[f32; W], bias: &[f32; W], group: u32) {
        let (mut least, mut from) = (self.score, self.group);
        let parts = sums.as_chunks::<L>().0.iter().zip(bias.as_chunks::<L>().0);
        for (part, (sums, bias)) in parts.enumerate() {
            let score: [f32; L] = std::array::from_fn(|l| bias[l] - sums[l]);
            // Masks instead of branches, so that all lanes are compared at once.
            let lower: [u32; L] = std::array::from_fn(|l| if score[l] < least[l] { u32::MAX } else { 0 });
            for l in 0..L {
                least[l] = f32::from_bits((score[l].to_bits() & lower[l]) | (least[l].to_bits() & !lower[l]));
                from[l] = ((group + part as u32) & lower[l]) | (from[l] & !lower[l]);
            }
        }
        (self.score, self.group) = (least, from);
    }

    /// Returns the centroid with the lowest score (the lowest index among equals), and the score.
    #[inline(always)]
    fn lowest(&self) -> (u32, f32) {
        let (mut score, mut index) = (f32::INFINITY, u32::MAX);
        for lane in 0..L {
            let candidate = self.group[lane] * L as u32 + lane as u32;
            if self.score[lane] < score || (self.score[lane] == score && candidate < index) {
                (score, index) = (self.score[lane], candidate);
            }
        }
        // If scores overflow, none is below infinity, and any centroid is as good as another.
        if score == f32::INFINITY { (0, score) } else { (index, score) }
    }
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction, `mul_add` is a slow function call.
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Computes the dot products of R rows with the W centroids of a panel. They stay in registers until the end,
/// which requires a loop that cannot panic.
#[inline(always)]
fn products<const R: usize, const W: usize, const FMA: bool>(tile: &[f32], panel: &[f32]) -> [[f32; W]; R] {
    let mut sums = [[0.0f32; W]; R];
    for (x, c) in tile.as_chunks::<R>().0.iter().zip(panel.as_chunks::<W>().0) {
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sum, c) in sums.iter_mut().zip(c) {
                *sum = multiply_add::<FMA>(*x, *c, *sum);
            }
        }
    }
    sums
}

#[inline(always)]
pub(crate) fn squared_distance_as<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (pa, pb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut remainder = 0.0;
    for (x, y) in pa.remainder().iter().zip(pb.remainder()) {
        remainder = multiply_add::<FMA>(x - y, x - y, remainder);
    }
    for (x, y) in pa.zip(pb) {
        for i in 0..LANES {
            lanes[i] = multiply_add::<FMA>(x[i] - y[i], x[i] - y[i], lanes[i]);
        }
    }
    remainder + sum_of(&lanes)
}

#[inline(always)]
pub(crate) fn sum_of(lanes: &[f32; LANES]) -> f32 {
    let mut halves = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            halves[i] += halves[i + width];
        }
        width /= 2;
    }
    halves[0]
}

/// Returns ‖a − b‖², summed in sixteen lanes.
///
/// # Shapes
/// a D, b D
///
/// # Panics
/// If the lengths differ.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors differ in length");
    squared_distance_as::<{ cfg!(target_arch = "aarch64") }>(a, b)
}

/// Lowers each row's `square` to the squared distance to the nearest of a few centroids, if that is smaller.
///
/// Runs on the current rayon pool. Faster than [`nearest`] for up to about sixteen centroids.
///
/// # Shapes
/// rows N×D, centroids K×D, square N
///
/// # Panics
/// If the lengths disagree.
pub fn lower_to(rows: &[f32], centroids: &[f32], dim: usize, square: &mut [f32]) {
    assert!(
        rows.len() == square.len() * dim && centroids.len().is_multiple_of(dim),
        "rows and centroids must have length {dim}"
    );
    let simd = Simd::active();
    let parts = rows.par_chunks(TASK * dim).zip(square.par_chunks_mut(TASK));
    parts.for_each(|(rows, square)| match simd.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd::active` has this level only if the processor has AVX-512F, and with it AVX2 and FMA.
        Level::Avx512 => unsafe { lower_avx512(rows, centroids, dim, square) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd::active` has this level only if the processor has AVX2 and FMA.
        Level::Avx2 => unsafe { lower_avx2(rows, centroids, dim, square) },
        _ => lower_plain::<{ cfg!(target_arch = "aarch64") }>(rows, centroids, dim, square),
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn lower_avx512(rows: &[f32], centroids: &[f32], dim: usize, square: &mut [f32]) {
    for (x, square) in rows.chunks_exact(dim).zip(square) {
        for c in centroids.chunks_exact(dim) {
            *square = square.min(int8_filter::in_lanes::<true>(x, c));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn lower_avx2(rows: &[f32], centroids: &[f32], dim: usize, square: &mut [f32]) {
    lower_plain::<true>(rows, centroids, dim, square);
}

#[inline(always)]
fn lower_plain<const FMA: bool>(rows: &[f32], centroids: &[f32], dim: usize, square: &mut [f32]) {
    for (x, square) in rows.chunks_exact(dim).zip(square) {
        for c in centroids.chunks_exact(dim) {
            *square = square.min(squared_distance_as::<FMA>(x, c));
        }
    }
}

/// Returns a·b, summed in sixteen lanes.
///
/// # Shapes
/// a D, b D
///
/// # Panics
/// If the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors differ in length");
    let mut lanes = [0.0f32; LANES];
    let (pa, pb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut remainder = 0.0;
    for (x, y) in pa.remainder().iter().zip(pb.remainder()) {
        remainder += x * y;
    }
    for (x, y) in pa.zip(pb) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    remainder + sum_of(&lanes)
}

/// Adds the rows numbered `members` to `sum`, in order, in `f64`.
///
/// # Shapes
/// rows (N, dim), members any number below N, sum dim
///
/// # Panics
/// If a row does not exist, or `sum` is not as long as a row.
pub fn add_rows(rows: &[f32], dim: usize, members: &[u32], sum: &mut [f64]) {
    assert_eq!(sum.len(), dim, "`sum` must be as long as a row");
    match Simd::active().level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd::active` has this level only if the processor has AVX-512F.
        Level::Avx512 => unsafe { add_rows_avx512(rows, dim, members, sum) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd::active` has this level only if the processor has AVX2.
        Level::Avx2 => unsafe { add_rows_avx2(rows, dim, members, sum) },
        _ => add_rows_plain(rows, dim, members, sum),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn add_rows_avx512(rows: &[f32], dim: usize, members: &[u32], sum: &mut [f64]) {
    add_rows_plain(rows, dim, members, sum);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_rows_avx2(rows: &[f32], dim: usize, members: &[u32], sum: &mut [f64]) {
    add_rows_plain(rows, dim, members, sum);
}

#[inline(always)]
fn add_rows_plain(rows: &[f32], dim: usize, members: &[u32], sum: &mut [f64]) {
    for &i in members {
        let row = &rows[i as usize * dim..][..dim];
        for (s, v) in sum.iter_mut().zip(row) {
            *s += *v as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::noise;
    use pauc_testing::property::{self, size};
    use pauc_testing::{Rounded, tolerance};
    use proptest::prelude::*;

    /// Numbers uniform within ½ of `offset`.
    fn values(n: usize, seed: u64, offset: f32) -> Vec<f32> {
        noise(n, seed).iter().map(|v| 0.5 * v + offset).collect()
    }

    fn exact(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum()
    }

    /// Returns ‖a − b‖² as the kernels compute it, from differences.
    fn square_of_difference(a: &[f32], b: &[f32]) -> Rounded {
        let difference = |(a, b): (&f32, &f32)| Rounded::exact(*a) - Rounded::exact(*b);
        Rounded::sum(a.iter().zip(b).map(difference).map(|d| d * d))
    }

    /// Bounds the error of a row's score (‖c‖² − ‖m‖²)/2 − x·(c − m). Its first part is rounded once, c − m
    /// is rounded, and a chain of D products and a difference follow.
    fn error_of_score(x: &[f32], c: &[f32], m: &[f32]) -> f64 {
        let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let products =
            x.iter().zip(c).zip(m).map(|((x, c), m)| (f64::from(*x) * (f64::from(*c) - f64::from(*m))).abs());
        let bias = (square(c) - square(m)).abs() / 2.0;
        tolerance::f32(x.len() + 2, products.sum::<f64>()) + tolerance::f32(2, bias)
    }

    proptest! {
        #![proptest_config(property::cases(120))]
        #[test]
        fn nearest_equals_the_double_loop(n in size(1..210), k in size(1..140), d in size(1..40), seed: u64, far: bool) {
            let offset = if far { 30.0 } else { 0.0 };
            let (x, c) = (values(n * d, seed, offset), values(k * d, seed ^ 77, offset));
            let origin = mean_row(&c, d);
            for simd in Simd::all().iter().copied() {
                let packed = Packed::for_simd(&c, &origin, simd);
                let (mut index, mut square) = (vec![9; n], vec![0.0; n]);
                nearest(&x, &packed, &mut index, &mut square);
                for (i, row) in x.chunks_exact(d).enumerate() {
                    let centroid = |j: usize| &c[j * d..(j + 1) * d];
                    let least = (0..k).min_by(|a, b| exact(row, centroid(*a)).total_cmp(&exact(row, centroid(*b)))).unwrap();
                    let (found, wanted) = (centroid(index[i] as usize), centroid(least));
                    let (got, want) = (exact(row, found), exact(row, wanted));
                    // The lower score won. A squared distance is twice a score, plus a term common to all
                    // centroids.
                    let slack = 2.0 * (error_of_score(row, found, &origin) + error_of_score(row, wanted, &origin));
                    prop_assert!(got <= want + slack, "{} row {i}: got {got}, expected at most {want} + {slack:e}", simd.name());
                    let bound = square_of_difference(row, found);
                    prop_assert!(bound.admits(square[i]), "{} row {i}: {} for {bound}", simd.name(), square[i]);
                }
            }
        }
    }

    #[test]
    fn the_lowest_of_equal_centroids_wins() {
        let (x, one) = (values(100 * 5, 3, 0.0), values(5, 4, 0.0));
        let c: Vec<f32> = one.iter().cycle().take(5 * 150).copied().collect();
        for simd in Simd::all().iter().copied() {
            let (mut index, mut square) = (vec![9; 100], vec![0.0; 100]);
            nearest(&x, &Packed::for_simd(&c, &mean_row(&c, 5), simd), &mut index, &mut square);
            assert!(index.iter().all(|i| *i == 0), "{}: {index:?}", simd.name());
        }
    }

    #[test]
    fn a_rows_result_does_not_depend_on_other_rows() {
        let (x, c) = (values(400 * 33, 1, 0.0), values(70 * 33, 2, 0.0));
        let packed = Packed::new(&c, 33);
        let (mut index, mut square) = (vec![0; 400], vec![0.0; 400]);
        nearest(&x, &packed, &mut index, &mut square);
        for i in [0, 5, 95, 96, 383, 399] {
            let (mut one, mut s) = ([0], [0.0]);
            nearest(&x[i * 33..(i + 1) * 33], &packed, &mut one, &mut s);
            assert_eq!((one[0], s[0].to_bits()), (index[i], square[i].to_bits()));
        }
        for batch in [7, 96, 256, 399] {
            let (mut some, mut s) = (vec![0; 400], vec![0.0f32; 400]);
            let parts = x.chunks(batch * 33).zip(some.chunks_mut(batch)).zip(s.chunks_mut(batch));
            parts.for_each(|((x, index), square)| nearest(x, &packed, index, square));
            let bits = |s: &[f32]| s.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
            assert_eq!((some, bits(&s)), (index.clone(), bits(&square)), "batches of {batch}");
        }
    }

    /// Rows and centroids of several kinds: noise, far from the origin, copies and ties, one dominant
    /// coordinate, zeros.
    #[cfg(target_arch = "x86_64")]
    fn kind(kind: usize, n: usize, d: usize, seed: u64) -> Vec<f32> {
        let mut x = values(n * d, seed, if kind == 1 { 30.0 } else { 0.0 });
        for (i, v) in x.iter_mut().enumerate() {
            match kind {
                2 => *v = (2.0 * *v).round(),
                3 if i % d == 3 => *v *= 1e4,
                4 if (i / d).is_multiple_of(3) => *v = 0.0,
                5 => *v *= 1e-20,
                6 => *v = ((i / d % 5) as f32 - 2.0) + 1e-3 * *v,
                _ => {}
            }
        }
        x
    }

    #[cfg(target_arch = "x86_64")]
    proptest! {
        #![proptest_config(property::cases(40))]
        #[test]
        fn candidates_from_integers_give_the_bits_of_the_plain_path(
            n in 1usize..150, k in 64usize..300, d in 16usize..70, what in 0usize..7, seed: u64, many: bool,
        ) {
            let k = if many { k + 2100 } else { k };
            let (x, c) = (kind(what, n, d, seed), kind(what, k, d, seed ^ 77));
            let packed = Packed::new(&c, d);
            prop_assert_eq!(packed.quantized.is_some(), Simd::active().level() == Level::Avx512 && Quantized::pays(k, d));
            let plain = Packed { quantized: None, ..packed.clone() };
            let results = |packed: &Packed<'_>| {
                let (mut index, mut score, mut square) = (vec![9; n], vec![0.0; n], vec![0.0; n]);
                nearest_scored(&x, packed, &mut index, &mut score, &mut square);
                let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                (index, bits(score), bits(square))
            };
            prop_assert_eq!(results(&packed), results(&plain));
        }
    }

    #[test]
    fn values_that_overflow_do_not_panic() {
        let (mut index, mut square) = ([7; 3], [0.0; 3]);
        nearest(&[1e30, -1e30, 0.0], &Packed::new(&[1e30, -1e30], 1), &mut index, &mut square);
        assert!(index.iter().all(|i| *i < 2));
    }

    #[test]
    fn squares_are_lowered_to_those_of_the_nearest() {
        let (n, d) = (TASK + 7, 21);
        let (x, c) = (values(n * d, 8, 0.0), values(5 * d, 9, 0.0));
        let mut square = vec![f32::INFINITY; n];
        square[3] = 0.01;
        lower_to(&x, &c, d, &mut square);
        for (i, square) in square.iter().enumerate() {
            let start = if i == 3 { 0.01f32 } else { f32::INFINITY };
            let squares = c.chunks_exact(d).map(|c| square_of_difference(&x[i * d..][..d], c));
            // The minimum of the computed values is no lower than the minimum of their bounds.
            let want =
                squares.chain([Rounded::exact(start)]).min_by(|a, b| a.value.total_cmp(&b.value)).unwrap();
            assert!(want.admits(*square), "row {i}: {square} for {want}");
        }
    }

    #[test]
    fn sums_and_products_equal_plain_loops() {
        let (a, b) = (values(37, 5, 0.3), values(37, 6, 0.0));
        assert!(square_of_difference(&a, &b).admits(squared_distance(&a, &b)));
        let want = Rounded::dot(a.iter().zip(&b).map(|(a, b)| (Rounded::exact(*a), Rounded::exact(*b))));
        assert!(want.admits(dot(&a, &b)), "{want}");
        let mut sum = vec![1.0; 4];
        add_rows(&a[..36], 4, &[8, 0, 3], &mut sum);
        for l in 0..4 {
            assert_eq!(sum[l], 1.0 + a[32 + l] as f64 + a[l] as f64 + a[12 + l] as f64);
        }
    }
}
