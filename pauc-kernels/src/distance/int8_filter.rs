//! A filter for the nearest centroid by 8-bit integer products, of which an instruction computes four times
//! as many as of `f32`.
//!
//! Rows and centroids are taken relative to the centroids' origin m and rounded to 8 bits, x − m ≈ s·q. The
//! rounding error is known, so the score from integers is within a bound E of the score of
//! [`crate::distance`]: by Cauchy–Schwarz, |x·c − x̂·ĉ| ≤ ‖x − x̂‖·‖c‖ + ‖x̂‖·‖c − ĉ‖, plus the rounding of
//! `f32`. Every centroid within 2·E of a row's lowest score is a candidate. Candidates get the score that the
//! plain path computes, bit by bit, so the result is that of the plain path. A block with too many candidates
//! (features with far outliers, or centroids that are copies) uses the plain path.

use super::{Packed, sum_of};
use std::arch::x86_64::*;

/// Rows per tile, side by side.
const ROWS: usize = 6;
/// Centroids per panel.
const WIDTH: usize = 64;
/// Rows that are compared with all centroids before the next rows.
const BLOCK: usize = 8 * ROWS;
/// Centroids whose scores are kept until they are scanned; they stay in the L2 cache.
const CHUNK: usize = 32 * WIDTH;
/// Pairs whose final scores are summed side by side.
const CHAINS: usize = 8;
/// Half the distance from 1 to the next `f32`: the largest relative error of one rounding.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

/// Centroids in 8 bits.
#[derive(Clone, Debug)]
pub(crate) struct Quantized {
    origin: Vec<f32>,
    count: usize,
    /// Bytes q + 128 of a panel: four coordinates of 64 centroids, then the next four.
    panels: Vec<u8>,
    /// The scale s of each centroid.
    scale: Vec<f32>,
    /// The score without the product: ‖c − m‖²/2 up to rounding; infinite after the last centroid.
    half: Vec<f32>,
    longest: f64,
    largest_rounding: f64,
    largest_bias: f64,
    largest_half: f64,
}

impl Quantized {
    /// Returns whether the processor has the instructions, and whether there are enough centroids for the
    /// filter to pay off.
    pub fn pays(count: usize, dim: usize) -> bool {
        count >= WIDTH && (16..=8192).contains(&dim) && crate::simd::multiplies_bytes()
    }

    /// Rounds centroids. `bias` has the part of each centroid's score that does not depend on rows.
    pub fn new(centroids: &[f32], origin: &[f32], bias: &[f64]) -> Self {
        let dim = origin.len();
        let (count, steps) = (centroids.len() / dim, dim.div_ceil(4));
        let padded = count.div_ceil(WIDTH) * WIDTH;
        let mut q = Quantized {
            origin: origin.to_vec(),
            count,
            panels: vec![128; padded * steps * 4],
            scale: vec![0.0; padded],
            half: vec![f32::INFINITY; padded],
            longest: 0.0,
            largest_rounding: 0.0,
            largest_bias: 0.0,
            largest_half: 0.0,
        };
        let mut centered = vec![0.0f32; dim];
        for (j, (c, bias)) in centroids.chunks_exact(dim).zip(bias).enumerate() {
            less(c, origin, &mut centered);
            let largest = centered.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let (scale, inverse) = (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 });
            let panel = &mut q.panels[j / WIDTH * WIDTH * steps * 4..][..WIDTH * steps * 4];
            let (mut square, mut rounding, mut with_origin) = (0.0f64, 0.0f64, 0.0f64);
            for (l, (v, m)) in centered.iter().zip(origin).enumerate() {
                let byte = (v * inverse).round() as i8;
                panel[(l / 4 * WIDTH + j % WIDTH) * 4 + l % 4] = (byte as i16 + 128) as u8;
                square += *v as f64 * *v as f64;
                rounding += (*v as f64 - scale as f64 * byte as f64).powi(2);
                with_origin += *v as f64 * *m as f64;
            }
            let half = bias - with_origin;
            (q.scale[j], q.half[j]) = (scale, half as f32);
            q.longest = q.longest.max(square.sqrt());
            q.largest_rounding = q.largest_rounding.max(rounding.sqrt());
            q.largest_bias = q.largest_bias.max(bias.abs());
            q.largest_half = q.largest_half.max(half.abs());
        }
        q
    }

    /// Bounds the difference between a score in `f32`, summed in any order, and the exact one, for a row of
    /// this length.
    fn error_of_f32(&self, length: f64) -> f64 {
        let terms = (self.origin.len() + 4) as f64;
        1.01 * ROUNDING * (terms * length * self.longest + 2.0 * self.largest_bias) + 1e-37
    }

    /// Bounds the difference between a score from integers and one in `f32`.
    fn error(&self, row: &RowFacts) -> f64 {
        let of_bytes = row.rounding * self.longest + row.rounded_length * self.largest_rounding;
        let product = (row.rounded_length + row.rounding) * (self.longest + self.largest_rounding);
        let of_floats = 8.0 * product + 3.0 * self.largest_half;
        1.01 * (of_bytes + ROUNDING * of_floats) + self.error_of_f32(row.length)
    }
}

/// Properties of a row in 8 bits.
#[derive(Clone, Copy, Debug, Default)]
struct RowFacts {
    scale: f32,
    /// −128·Σq, which compensates for the 128 added to centroids.
    start: i32,
    length: f64,
    rounded_length: f64,
    rounding: f64,
}

/// A centroid that may be the nearest of a row of the block, and its score from integers.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    row: u32,
    centroid: u32,
    score: f32,
}

/// Like [`crate::distance::nearest_scored`], for the rows of a task, with the bits of the plain path, which
/// is `plain`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
pub(crate) fn nearest(
    rows: &[f32],
    packed: &Packed<'_>,
    q: &Quantized,
    (index, score, square): (&mut [u32], &mut [f32], &mut [f32]),
    plain: impl Fn(&[f32], &mut [u32], &mut [f32], &mut [f32]),
) {
    let dim = q.origin.len();
    let count = q.count;
    let mut block = Block::new(dim.div_ceil(4), count.min(CHUNK).div_ceil(WIDTH) * WIDTH);
    let results = index.chunks_mut(BLOCK).zip(score.chunks_mut(BLOCK)).zip(square.chunks_mut(BLOCK));
    let all_rows = rows;
    for (b, (rows, ((index, score), square))) in rows.chunks(BLOCK * dim).zip(results).enumerate() {
        let following = &all_rows
            [((b + 1) * BLOCK * dim).min(all_rows.len())..((b + 2) * BLOCK * dim).min(all_rows.len())];
        for line in following.chunks(16) {
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
        if block.find(rows, q, count) && block.decide(rows, packed, q, index, score) {
            for ((x, index), square) in rows.chunks_exact(dim).zip(index).zip(square) {
                let centroid = packed.centroid(*index);
                *square = in_lanes::<true>(x, centroid);
            }
        } else {
            plain(rows, index, score, square);
        }
    }
}

/// The buffers of a block of rows.
struct Block {
    steps: usize,
    /// Four coordinates of [`ROWS`] rows, then the next four.
    tiles: Vec<i32>,
    facts: [RowFacts; BLOCK],
    /// BLOCK×CHUNK scores.
    scores: Vec<f32>,
    width: usize,
    candidates: Vec<Candidate>,
}

impl Block {
    fn new(steps: usize, width: usize) -> Self {
        Block {
            steps,
            tiles: vec![0; BLOCK * steps],
            facts: [RowFacts::default(); BLOCK],
            scores: vec![0.0; BLOCK * width],
            width,
            candidates: Vec::new(),
        }
    }

    /// Fills `candidates`. Returns false if there are too many for the filter to pay off.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
    fn find(&mut self, rows: &[f32], q: &Quantized, count: usize) -> bool {
        let dim = q.origin.len();
        let used = rows.len() / dim;
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            self.facts[i] = self.round(i, row, &q.origin);
        }
        let mut lowest = [f32::INFINITY; BLOCK];
        self.candidates.clear();
        // A candidate costs a few dozen times as much as a plain score.
        let most = used * (count / 24).max(2);
        let window: [f64; BLOCK] = std::array::from_fn(|i| 2.0 * q.error(&self.facts[i]));
        for first in (0..count).step_by(CHUNK) {
            let panels = (count - first).min(CHUNK).div_ceil(WIDTH);
            self.score(q, first, panels, used, &mut lowest);
            for i in 0..used {
                let limit = upper(lowest[i] as f64 + window[i]);
                let scores = &self.scores[i * self.width..][..panels * WIDTH];
                for (part, scores) in scores.as_chunks::<WIDTH>().0.iter().enumerate() {
                    let mut mask = at_most(scores, limit);
                    while mask != 0 {
                        let lane = mask.trailing_zeros() as usize;
                        let centroid = (first + part * WIDTH + lane) as u32;
                        self.candidates.push(Candidate { row: i as u32, centroid, score: scores[lane] });
                        mask &= mask - 1;
                    }
                }
                if self.candidates.len() > most {
                    return false;
                }
            }
        }
        if count > CHUNK {
            let limits: [f32; BLOCK] = std::array::from_fn(|i| upper(lowest[i] as f64 + window[i]));
            self.candidates.retain(|c| c.score <= limits[c.row as usize]);
            self.candidates.sort_unstable_by_key(|c| (c.row, c.centroid));
        }
        true
    }

    /// Rounds row `i` of the block into its tile.
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    fn round(&mut self, i: usize, row: &[f32], origin: &[f32]) -> RowFacts {
        let lanes = |values: &[f32]| {
            let mask = if values.len() >= 16 { u16::MAX } else { (1u16 << values.len()) - 1 };
            // SAFETY: the mask has one bit per value of the slice, up to 16, and masked lanes are not read.
            unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
        };
        let parts = || row.chunks(16).zip(origin.chunks(16)).map(|(x, m)| (lanes(x), lanes(m)));
        let (mut largest, mut square) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for (x, m) in parts() {
            largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_sub_ps(x, m)));
            square = _mm512_fmadd_ps(x, x, square);
        }
        let largest = _mm512_reduce_max_ps(largest);
        let (scale, inverse) = (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 });
        let (by_scale, by_inverse) = (_mm512_set1_ps(scale), _mm512_set1_ps(inverse));
        let (mut total, mut rounding, mut rounded) =
            (_mm512_setzero_si512(), _mm512_setzero_ps(), _mm512_setzero_ps());
        let tile = &mut self.tiles[i / ROWS * ROWS * self.steps..][..ROWS * self.steps];
        for (part, (x, m)) in parts().enumerate() {
            let x = _mm512_sub_ps(x, m);
            let integer = _mm512_cvtps_epi32(_mm512_mul_ps(x, by_inverse));
            total = _mm512_add_epi32(total, integer);
            let rounded_x = _mm512_mul_ps(_mm512_cvtepi32_ps(integer), by_scale);
            let error = _mm512_sub_ps(x, rounded_x);
            rounding = _mm512_fmadd_ps(error, error, rounding);
            rounded = _mm512_fmadd_ps(rounded_x, rounded_x, rounded);
            let mut bytes = [0i32; 4];
            // SAFETY: `bytes` has the four times four bytes that are written; the store needs no alignment.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(integer)) };
            for (s, bytes) in bytes.iter().enumerate().take(self.steps - part * 4) {
                tile[(part * 4 + s) * ROWS + i % ROWS] = *bytes;
            }
        }
        // The error of sums of squares in f32 is far below the 1 % margin of the bounds.
        let root = |v| (_mm512_reduce_add_ps(v) as f64).sqrt();
        let start = _mm512_reduce_add_epi32(total).wrapping_mul(-128);
        let (length, rounding, rounded_length) = (root(square), root(rounding), root(rounded));
        RowFacts { scale, start, length, rounded_length, rounding }
    }

    /// Computes the scores of all rows for the centroids of some panels, and updates each row's lowest score.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
    fn score(&mut self, q: &Quantized, first: usize, panels: usize, used: usize, lowest: &mut [f32; BLOCK]) {
        let bytes = WIDTH * self.steps * 4;
        let mut least = [_mm512_set1_ps(f32::INFINITY); BLOCK];
        for p in 0..panels {
            let centroid = first + p * WIDTH;
            let panel = &q.panels[centroid / WIDTH * bytes..][..bytes];
            let (scale, half) = (&q.scale[centroid..][..WIDTH], &q.half[centroid..][..WIDTH]);
            for t in 0..used.div_ceil(ROWS) {
                let tile = &self.tiles[t * ROWS * self.steps..][..ROWS * self.steps];
                let start: [i32; ROWS] = std::array::from_fn(|r| self.facts[t * ROWS + r].start);
                let sums = products(tile, panel, start);
                for (r, sums) in sums.iter().enumerate() {
                    let i = t * ROWS + r;
                    let by_row = _mm512_set1_ps(self.facts[i].scale);
                    let scores = &mut self.scores[i * self.width + p * WIDTH..][..WIDTH];
                    for (j, sum) in sums.iter().enumerate() {
                        // SAFETY: `scale`, `half` and `scores` were sliced to WIDTH = 64 values above, and j
                        // is below 4.
                        unsafe {
                            let scale = _mm512_loadu_ps(scale.as_ptr().add(16 * j));
                            let half = _mm512_loadu_ps(half.as_ptr().add(16 * j));
                            let factor = _mm512_mul_ps(scale, by_row);
                            let score = _mm512_fnmadd_ps(factor, _mm512_cvtepi32_ps(*sum), half);
                            _mm512_storeu_ps(scores.as_mut_ptr().add(16 * j), score);
                            least[i] = _mm512_min_ps(least[i], score);
                        }
                    }
                }
            }
        }
        for (lowest, least) in lowest.iter_mut().zip(least) {
            *lowest = lowest.min(_mm512_reduce_min_ps(least));
        }
    }

    /// Keeps those of each row's candidates whose scores, summed in lanes, are within rounding of the lowest:
    /// one for nearly every row, and fast. Returns false if a row has none, which requires numbers that
    /// overflow.
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    fn sharpen(&mut self, rows: &[f32], packed: &Packed<'_>, q: &Quantized) -> bool {
        let dim = q.origin.len();
        // Centroids minus their origin are not kept, since they would need as much memory again.
        let mut centered = vec![0.0f32; dim];
        let (mut kept, mut begin) = (0, 0);
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            let end = begin + self.candidates[begin..].iter().take_while(|c| c.row == i as u32).count();
            if end == begin {
                return false;
            }
            let kept_before = kept;
            if end - begin > 1 {
                let mut least = f32::INFINITY;
                for c in &mut self.candidates[begin..end] {
                    less(packed.centroid(c.centroid), &q.origin, &mut centered);
                    c.score = packed.bias[c.centroid as usize] - in_lanes::<false>(row, &centered);
                    least = least.min(c.score);
                }
                let limit = upper(least as f64 + 4.0 * q.error_of_f32(self.facts[i].length));
                for candidate in begin..end {
                    if self.candidates[candidate].score <= limit {
                        self.candidates[kept] = self.candidates[candidate];
                        kept += 1;
                    }
                }
                if kept == kept_before {
                    return false;
                }
            } else {
                self.candidates[kept] = self.candidates[begin];
                kept += 1;
            }
            begin = end;
        }
        self.candidates.truncate(kept);
        true
    }

    /// Writes each row's nearest candidate and its score. Returns false if a row has none, as
    /// [`Block::sharpen`].
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    fn decide(
        &mut self,
        rows: &[f32],
        packed: &Packed<'_>,
        q: &Quantized,
        index: &mut [u32],
        score: &mut [f32],
    ) -> bool {
        if !self.sharpen(rows, packed, q) {
            return false;
        }
        let dim = q.origin.len();
        score.fill(f32::INFINITY);
        index.fill(0);
        for group in self.candidates.chunks(CHAINS) {
            let pair: [(&[f32], &[f32]); CHAINS] = std::array::from_fn(|g| {
                let c = &group[g.min(group.len() - 1)];
                (&rows[c.row as usize * dim..][..dim], packed.centroid(c.centroid))
            });
            for (c, sum) in group.iter().zip(in_order(&pair, &q.origin)) {
                let (i, value) = (c.row as usize, packed.bias[c.centroid as usize] - sum);
                // Candidates of a row come in ascending order, so the lowest index among equals is kept.
                if value < score[i] {
                    (index[i], score[i]) = (c.centroid, value);
                }
            }
        }
        true
    }
}

/// Returns the next larger `f32`.
fn upper(v: f64) -> f32 {
    (v as f32).next_up()
}

/// Returns a mask of the scores that are at most the limit.
#[inline]
#[target_feature(enable = "avx512f")]
fn at_most(scores: &[f32; WIDTH], limit: f32) -> u64 {
    let limit = _mm512_set1_ps(limit);
    let part = |j: usize| {
        // SAFETY: the array has WIDTH = 64 values, and j is below 4.
        let values = unsafe { _mm512_loadu_ps(scores.as_ptr().add(16 * j)) };
        (_mm512_cmp_ps_mask::<_CMP_LE_OQ>(values, limit) as u64) << (16 * j)
    };
    part(0) | part(1) | part(2) | part(3)
}

/// Computes the products of [`ROWS`] rows with the centroids of a panel, in registers until the end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
fn products(tile: &[i32], panel: &[u8], start: [i32; ROWS]) -> [[__m512i; 4]; ROWS] {
    let mut sums: [[__m512i; 4]; ROWS] = std::array::from_fn(|r| [_mm512_set1_epi32(start[r]); 4]);
    for (x, c) in tile.as_chunks::<ROWS>().0.iter().zip(panel.as_chunks::<{ WIDTH * 4 }>().0) {
        // SAFETY: the chunk has WIDTH·4 = 256 bytes, and j is below 4.
        let c: [__m512i; 4] =
            std::array::from_fn(|j| unsafe { _mm512_loadu_si512(c.as_ptr().add(64 * j).cast()) });
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = _mm512_set1_epi32(*x);
            for (sum, c) in sums.iter_mut().zip(c) {
                *sum = _mm512_dpbusd_epi32(*sum, c, x);
            }
        }
    }
    sums
}

/// Returns a·b, or ‖a − b‖², summed in sixteen lanes like [`crate::distance`].
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(crate) fn in_lanes<const DIFFERENCE: bool>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sum = _mm512_setzero_ps();
    for (a, b) in a.iter().zip(b) {
        // SAFETY: both are arrays of sixteen values, by `as_chunks`.
        let (a, b) = unsafe { (_mm512_loadu_ps(a.as_ptr()), _mm512_loadu_ps(b.as_ptr())) };
        let d = _mm512_sub_ps(a, b);
        sum = if DIFFERENCE { _mm512_fmadd_ps(d, d, sum) } else { _mm512_fmadd_ps(a, b, sum) };
    }
    let mut lanes = [0.0f32; 16];
    // SAFETY: `lanes` has the sixteen values that are written.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
    let remainder = rest_a.iter().zip(rest_b).fold(0.0f32, |sum, (a, b)| {
        if DIFFERENCE { (a - b).mul_add(a - b, sum) } else { a.mul_add(*b, sum) }
    });
    remainder + sum_of(&lanes)
}

/// a − b.
#[inline(always)]
fn less(a: &[f32], b: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(a.iter().zip(b)).for_each(|(to, (a, b))| *to = a - b);
}

/// Computes x·(c − m) in the order of the coordinates, like the plain path, for several pairs at a time.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn in_order(pairs: &[(&[f32], &[f32]); CHAINS], origin: &[f32]) -> [f32; CHAINS] {
    let mut sums = [0.0f32; CHAINS];
    let pairs = pairs.map(|(x, c)| (&x[..origin.len()], &c[..origin.len()]));
    for (l, m) in origin.iter().enumerate() {
        for (sum, (x, c)) in sums.iter_mut().zip(&pairs) {
            *sum = x[l].mul_add(c[l] - m, *sum);
        }
    }
    sums
}
