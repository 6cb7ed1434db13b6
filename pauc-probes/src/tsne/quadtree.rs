//! Repulsion between many points in the plane, with far groups of points taken as one: Barnes & Hut's method.
//!
//! Points are sorted along a Z-curve, and cells are ranges of that order. Neighbors on the curve share one walk
//! through the tree. Sorting and sums have a fixed order, so that the number of threads changes nothing.

use pauc_kernels::neighbor_forces::{Repulsion, repulsion};
use rayon::prelude::*;

/// Cells of at most this many points are not divided.
const LEAF: usize = 16;
/// Points that share one walk through the tree.
const BLOCK: usize = 32;
/// Bits of a coordinate on the curve, and so the largest depth of the tree.
const BITS: u32 = 16;

/// Returns the numbers of points in the order of the curve, which visits near points one after the other. Equal points
/// keep their order.
///
/// # Shapes
/// N points → N numbers
pub fn along_curve(points: &[[f32; 2]]) -> Vec<u32> {
    let axis = |d: usize| points.iter().map(|p| p[d]).collect::<Vec<f32>>();
    sorted_codes(&[axis(0), axis(1)]).into_iter().map(|code| code as u32).collect()
}

/// Returns the places of points on the curve with their numbers, in order.
fn sorted_codes([xs, ys]: &[Vec<f32>; 2]) -> Vec<u64> {
    let bounds = Bounds::of(xs, ys);
    let largest = ((1u32 << BITS) - 1) as f32;
    let scale = if bounds.side() > 0.0 { largest / bounds.side() } else { 0.0 };
    let place = |v: f32, low: f32| spread((((v - low) * scale) as u32).min((1 << BITS) - 1));
    // The point's number makes every code unique, so that the order is, too.
    let code = |(i, (x, y)): (usize, (&f32, &f32))| {
        (place(*x, bounds.low[0]) | place(*y, bounds.low[1]) << 1) << 32 | i as u64
    };
    let mut codes: Vec<u64> = xs.iter().zip(ys).enumerate().map(code).collect();
    codes.par_sort_unstable();
    codes
}

/// A square cell with its points, in depth-first order.
struct Cell {
    /// The mean of its points.
    center: [f32; 2],
    /// The number of its points.
    count: f32,
    /// The square of the larger side of its points' bounding box.
    side2: f32,
    /// The first cell behind this one and all cells inside it.
    next: usize,
    /// The range of its points, if it is not divided.
    leaf: Option<[usize; 2]>,
}

/// A bounding box.
#[derive(Clone, Copy)]
struct Bounds {
    low: [f32; 2],
    high: [f32; 2],
}

impl Bounds {
    const EMPTY: Bounds = Bounds { low: [f32::INFINITY; 2], high: [f32::NEG_INFINITY; 2] };

    fn of(xs: &[f32], ys: &[f32]) -> Bounds {
        xs.iter().zip(ys).fold(Bounds::EMPTY, |b, (x, y)| b.with(Bounds { low: [*x, *y], high: [*x, *y] }))
    }

    fn with(self, other: Bounds) -> Bounds {
        let each = |f: fn(f32, f32) -> f32, a: [f32; 2], b: [f32; 2]| [f(a[0], b[0]), f(a[1], b[1])];
        Bounds { low: each(f32::min, self.low, other.low), high: each(f32::max, self.high, other.high) }
    }

    /// Returns the larger side.
    fn side(self) -> f32 {
        (self.high[0] - self.low[0]).max(self.high[1] - self.low[1])
    }

    /// Returns the square of the distance to a position; zero inside.
    fn distance2(self, at: [f32; 2]) -> f32 {
        let along = |d: usize| (self.low[d] - at[d]).max(at[d] - self.high[d]).max(0.0);
        along(0).powi(2) + along(1).powi(2)
    }
}

/// The sums of a cell.
struct Sums {
    sum: [f64; 2],
    count: usize,
    bounds: Bounds,
}

/// Points in the order of the curve, and the cells that they are in.
pub(super) struct Quadtree {
    codes: Vec<u64>,
    xs: Vec<f32>,
    ys: Vec<f32>,
    cells: Vec<Cell>,
}

impl Quadtree {
    /// Builds the tree of points at finite positions.
    pub fn new(points: &[Vec<f32>; 2]) -> Self {
        let ([xs, ys], codes) = (points, sorted_codes(points));
        let sorted = |axis: &[f32]| codes.iter().map(|c| axis[*c as u32 as usize]).collect();
        let mut tree = Quadtree { xs: sorted(xs), ys: sorted(ys), codes, cells: Vec::new() };
        if !tree.codes.is_empty() {
            tree.add(0, tree.codes.len(), 0);
        }
        tree
    }

    /// Adds the cell of the points `begin..end`, which agree in the first `depth` pairs of bits of their codes.
    fn add(&mut self, begin: usize, end: usize, mut depth: u32) -> Sums {
        let mut quarters = [begin; 5];
        // Skips cells that would hold the same points as the cell around them.
        while end - begin > LEAF && depth < BITS {
            let shift = 32 + 2 * (BITS - 1 - depth);
            let codes = &self.codes[begin..end];
            quarters =
                std::array::from_fn(|q| begin + codes.partition_point(|c| (c >> shift & 3) < q as u64));
            depth += 1;
            if quarters.windows(2).all(|q| q[1] - q[0] < end - begin) {
                break;
            }
        }
        let is_leaf = end - begin <= LEAF || quarters.windows(2).any(|q| q[1] - q[0] == end - begin);
        let at = self.cells.len();
        let leaf = is_leaf.then_some([begin, end]);
        self.cells.push(Cell { center: [0.0; 2], count: 0.0, side2: 0.0, next: 0, leaf });
        let sums = if is_leaf { self.sums(begin, end) } else { self.add_quarters(quarters, depth) };
        let next = self.cells.len();
        let cell = &mut self.cells[at];
        cell.center = sums.sum.map(|sum| (sum / sums.count as f64) as f32);
        (cell.count, cell.side2, cell.next) = (sums.count as f32, sums.bounds.side().powi(2), next);
        sums
    }

    fn add_quarters(&mut self, quarters: [usize; 5], depth: u32) -> Sums {
        let mut all = Sums { sum: [0.0; 2], count: 0, bounds: Bounds::EMPTY };
        for q in quarters.windows(2).filter(|q| q[1] > q[0]) {
            let part = self.add(q[0], q[1], depth);
            (0..2).for_each(|d| all.sum[d] += part.sum[d]);
            all.count += part.count;
            all.bounds = all.bounds.with(part.bounds);
        }
        all
    }

    fn sums(&self, begin: usize, end: usize) -> Sums {
        let (xs, ys) = (&self.xs[begin..end], &self.ys[begin..end]);
        let sum = |v: &[f32]| v.iter().map(|v| *v as f64).sum();
        Sums { sum: [sum(xs), sum(ys)], count: end - begin, bounds: Bounds::of(xs, ys) }
    }

    /// Returns the repulsion of every point from all points, itself included, in the order of the points that the
    /// tree was built from. A cell counts as one point if it is smaller than `theta` times its distance.
    pub fn repulsions(&self, theta: f32) -> Vec<Repulsion> {
        let mut sorted = vec![Repulsion::default(); self.xs.len()];
        sorted.par_chunks_mut(BLOCK).enumerate().for_each_init(Far::default, |far, (b, out)| {
            let (begin, end) = (b * BLOCK, b * BLOCK + out.len());
            let (xs, ys) = (&self.xs[begin..end], &self.ys[begin..end]);
            self.walk(Bounds::of(xs, ys), theta * theta, far);
            for ((out, x), y) in out.iter_mut().zip(xs).zip(ys) {
                *out = repulsion([*x, *y], &far.counts, &far.xs, &far.ys);
            }
        });
        let mut all = vec![Repulsion::default(); sorted.len()];
        self.codes.iter().zip(sorted).for_each(|(code, r)| all[*code as u32 as usize] = r);
        all
    }

    /// Collects what points within `block` are repelled by.
    fn walk(&self, block: Bounds, theta2: f32, far: &mut Far) {
        far.clear();
        let mut at = 0;
        while let Some(cell) = self.cells.get(at) {
            // A leaf of more points is as small as a cell can be.
            let is_point = cell.leaf.is_some() && cell.count > LEAF as f32;
            if is_point || cell.side2 < theta2 * block.distance2(cell.center) {
                far.add(&[cell.count], &[cell.center[0]], &[cell.center[1]]);
                at = cell.next;
            } else if let Some([begin, end]) = cell.leaf {
                far.add(&[1.0; LEAF][..end - begin], &self.xs[begin..end], &self.ys[begin..end]);
                at = cell.next;
            } else {
                at += 1;
            }
        }
    }
}

/// Points and cells that repel a block.
#[derive(Default)]
struct Far {
    counts: Vec<f32>,
    xs: Vec<f32>,
    ys: Vec<f32>,
}

impl Far {
    fn clear(&mut self) {
        self.counts.clear();
        self.xs.clear();
        self.ys.clear();
    }

    fn add(&mut self, counts: &[f32], xs: &[f32], ys: &[f32]) {
        self.counts.extend_from_slice(counts);
        self.xs.extend_from_slice(xs);
        self.ys.extend_from_slice(ys);
    }
}

/// Moves bit i of a 16-bit number to bit 2i.
fn spread(v: u32) -> u64 {
    let mut v = u64::from(v);
    for (shift, mask) in [(8, 0x00ff_00ff), (4, 0x0f0f_0f0f), (2, 0x3333_3333), (1, 0x5555_5555)] {
        v = (v | v << shift) & mask;
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::noise;
    use pauc_testing::{assert_within, tolerance};

    /// Σ q²·(y − y_j) and Σ q over all points, in `f64`, with the sums of the absolute values of the terms.
    fn exact([xs, ys]: &[Vec<f32>; 2], i: usize) -> ([f64; 3], [f64; 3]) {
        let (mut sums, mut sizes) = ([0.0; 3], [0.0; 3]);
        for j in 0..xs.len() {
            let (dx, dy) = (f64::from(xs[i]) - f64::from(xs[j]), f64::from(ys[i]) - f64::from(ys[j]));
            let q = 1.0 / (1.0 + dx * dx + dy * dy);
            for (k, term) in [q * q * dx, q * q * dy, q].into_iter().enumerate() {
                sums[k] += term;
                sizes[k] += term.abs();
            }
        }
        (sums, sizes)
    }

    /// Clumps of different density in a square of side `2·extent`, as in a map.
    fn clumps(n: usize, extent: f32) -> [Vec<f32>; 2] {
        let (wide, near) = (noise(2 * n, 1), noise(2 * n, 2));
        let axis = |d: usize| {
            let value = |i: usize| {
                let clump = (i % 9) * 2 + d;
                extent * (0.8 * wide[clump] + 0.2 * near[2 * i + d] * near[2 * i + d].abs())
            };
            (0..n).map(value).collect()
        };
        [axis(0), axis(1)]
    }

    #[test]
    fn without_an_approximation_every_pair_counts_once() {
        // The last points coincide.
        let mut points = clumps(700, 30.0);
        points.iter_mut().for_each(|axis| axis.extend([1.5; 3]));
        let got = Quadtree::new(&points).repulsions(0.0);
        for (i, r) in got.iter().enumerate() {
            let (want, sizes) = exact(&points, i);
            for (got, (want, size)) in [r.push[0], r.push[1], r.total].iter().zip(want.iter().zip(sizes)) {
                // Ten operations per term, and a sum over all of them.
                assert_within!(f64::from(*got), *want, tolerance::f32(703 + 10, size), "{i}");
            }
        }
    }

    #[test]
    fn the_approximation_is_within_one_percent_and_better_with_smaller_cells() {
        for extent in [0.001, 5.0, 100.0] {
            let points = clumps(3000, extent);
            let tree = Quadtree::new(&points);
            let error = |theta: f32| {
                let (mut off, mut size, mut total, mut exact_total) = (0.0, 0.0, 0.0, 0.0);
                for (i, r) in tree.repulsions(theta).iter().enumerate() {
                    let (want, _) = exact(&points, i);
                    off += (0..2).map(|d| (f64::from(r.push[d]) - want[d]).powi(2)).sum::<f64>();
                    size += (0..2).map(|d| want[d].powi(2)).sum::<f64>();
                    total += f64::from(r.total);
                    exact_total += want[2];
                }
                ((off / size).sqrt(), (total / exact_total - 1.0).abs())
            };
            let (coarse, total) = error(super::super::sparse::THETA);
            let (fine, _) = error(0.5 * super::super::sparse::THETA);
            assert!(coarse < 0.01 && total < 0.01, "extent {extent}: {coarse}, sum {total}");
            assert!(fine <= coarse, "extent {extent}: {fine} after {coarse}");
        }
    }

    #[test]
    fn many_points_in_one_place_are_one_point_of_their_weight() {
        let mut points = [vec![0.25f32; 5000], vec![-1.0; 5000]];
        points[0].push(1.25);
        points[1].push(-1.0);
        let got = Quadtree::new(&points).repulsions(0.5);
        // 5000 points at distance 1, and itself.
        let rounding = tolerance::f32(30, 5000.0);
        assert_within!(f64::from(got[5000].push[0]), 5000.0 / 4.0, rounding);
        assert_within!(f64::from(got[5000].total), 2501.0, rounding);
        assert_within!(f64::from(got[17].push[0]), -0.25, tolerance::f32(30, 1.0));
        assert_within!(f64::from(got[17].total), 5000.5, rounding);
        assert!(Quadtree::new(&[vec![], vec![]]).repulsions(0.5).is_empty());
    }

    #[test]
    fn the_curve_visits_one_quarter_after_the_other() {
        let corners = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]];
        assert_eq!(along_curve(&corners), [1, 4, 2, 3, 0]);
        assert_eq!(along_curve(&[[3.0, 3.0]; 2]), [0, 1]);
        assert!(along_curve(&[]).is_empty());
    }

    #[test]
    fn bits_are_spread() {
        assert_eq!((spread(0b1), spread(0b101), spread(0xffff)), (0b1, 0b1_0001, 0x5555_5555));
    }
}
