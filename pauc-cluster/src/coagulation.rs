//! Diagnostics of coagulation: the diversity inside prototypes collapses while the prototypes stay well
//! apart.
//!
//! The signature is `intra_cosine` → 1 and `within_rank` → 1 while `inter_cosine_mean` stays low and kNN
//! accuracy no longer rises. None of these quantities has a gradient.

use crate::concentration::{quantile, unit_rows};
use crate::lloyd::{self, Members, labels_with_noise};
use crate::metrics::agreement::entropy;
use crate::spectrum::centered_rank;
use pauc_kernels::distance::{dot, squared_distance};
use pauc_kernels::gemm::{Strides, gemm};
use pauc_traits::probe::{Metric, RowsView};
use pauc_traits::{Clustering, Error, Result, stop};
use rayon::prelude::*;

/// The maximum number of rows (or prototypes) in a quantity over all pairs; above it, an evenly spaced subset
/// is used.
pub const MOST_IN_PAIRS: usize = 2048;
/// The maximum number of members in the effective rank of a prototype; above it, an evenly spaced subset is
/// used.
pub const MOST_IN_RANK: usize = 512;
/// The cosine from which on two prototypes count as copies of each other.
pub const COPY: f32 = 0.95;

/// The state of one level of prototypes, or of the classes.
///
/// v are the samples scaled to unit length, c the prototypes as fitted, ĉ the same at unit length, and μ the
/// mean of a prototype's v. Undefined quantities (a single prototype has no neighbor) are NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coagulation {
    /// Mean v·ĉ over samples and their prototypes.
    pub intra_cosine: f64,
    /// Mean ‖v − c‖ over samples and their prototypes.
    pub distance: f64,
    /// Mean ĉ·ĉ' over pairs of occupied prototypes.
    pub inter_cosine_mean: f64,
    /// Largest ĉ·ĉ' over pairs of occupied prototypes (at most [`MOST_IN_PAIRS`] prototypes).
    pub inter_cosine_max: f64,
    /// tr Σ_W / tr Σ_B: Σ‖v − μ‖² over Σ size·‖μ − mean v‖².
    pub within_over_between: f64,
    /// exp(H(σ/Σσ)) of the centered members of a prototype (at most [`MOST_IN_RANK`]), averaged over
    /// prototypes with two or more members, weighted by size. It is 1 if the members are one point or lie on
    /// a line.
    pub within_rank: f64,
    /// 10th percentile of the concentrations φ.
    pub concentration_p10: f64,
    /// Median of the concentrations φ.
    pub concentration_p50: f64,
    /// 90th percentile of the concentrations φ.
    pub concentration_p90: f64,
    /// Prototypes with at least one sample.
    pub occupied: f64,
    /// Entropy of the sizes, in nats; ln K if all sizes are equal.
    pub size_entropy: f64,
    /// Fraction of occupied prototypes (at most [`MOST_IN_PAIRS`]) with cosine [`COPY`] or more to another.
    pub copies: f64,
    /// Mean ‖v − v'‖² over pairs of samples that share a prototype.
    pub instance_alignment: f64,
    /// ln mean exp(−2‖v − v'‖²) over pairs of samples (at most [`MOST_IN_PAIRS`] samples).
    pub instance_uniformity: f64,
    /// ln mean exp(−2‖ĉ − ĉ'‖²) over pairs of occupied prototypes (at most [`MOST_IN_PAIRS`] prototypes).
    pub prototype_uniformity: f64,
}

impl Coagulation {
    /// Measures the prototypes of a clustering.
    ///
    /// # Shapes
    /// `samples`: (n, dim), unit rows. `concentration`: φ of each of the k prototypes, or empty.
    ///
    /// # Errors
    /// If the numbers of samples, dimensions or concentrations disagree.
    pub fn of_clustering(
        samples: RowsView<'_>,
        clustering: &Clustering,
        concentration: &[f32],
    ) -> Result<Self> {
        if clustering.dim != samples.cols || clustering.centroids.len() != clustering.k * clustering.dim {
            return Err(Error::shape(
                "coagulation",
                format!(
                    "{} centroids of width {}, but samples of width {}",
                    clustering.k, clustering.dim, samples.cols
                ),
            ));
        }
        if !concentration.is_empty() && concentration.len() != clustering.k {
            return Err(Error::shape(
                "coagulation",
                format!("{} concentrations for {} prototypes", concentration.len(), clustering.k),
            ));
        }
        measure(samples, &clustering.assignments, Some(&clustering.centroids), clustering.k, concentration)
    }

    /// Measures classes as prototypes; their centroids are the means of their samples.
    ///
    /// # Shapes
    /// `samples`: (n, dim), unit rows. `labels`: (n).
    ///
    /// # Errors
    /// If the number of labels is not the number of samples.
    pub fn of_labels(samples: RowsView<'_>, labels: &[u32]) -> Result<Self> {
        let k = labels.iter().max().map_or(0, |m| *m as usize + 1);
        let assignments: Vec<Option<u32>> = labels.iter().copied().map(Some).collect();
        measure(samples, &assignments, None, k, &[])
    }

    /// Returns the defined quantities as metrics named `prefix/intra_cosine` and so on.
    pub fn metrics(&self, prefix: &str) -> Vec<Metric> {
        let all = [
            ("intra_cosine", self.intra_cosine),
            ("distance", self.distance),
            ("inter_cosine_mean", self.inter_cosine_mean),
            ("inter_cosine_max", self.inter_cosine_max),
            ("within_over_between", self.within_over_between),
            ("within_rank", self.within_rank),
            ("concentration_p10", self.concentration_p10),
            ("concentration_p50", self.concentration_p50),
            ("concentration_p90", self.concentration_p90),
            ("occupied", self.occupied),
            ("size_entropy", self.size_entropy),
            ("copies", self.copies),
            ("instance_alignment", self.instance_alignment),
            ("instance_uniformity", self.instance_uniformity),
            ("prototype_uniformity", self.prototype_uniformity),
        ];
        let existing = all.into_iter().filter(|(_, value)| value.is_finite());
        existing.map(|(name, value)| Metric::new(format!("{prefix}/{name}"), value)).collect()
    }
}

fn measure(
    samples: RowsView<'_>,
    assignments: &[Option<u32>],
    centroids: Option<&[f32]>,
    k: usize,
    concentration: &[f32],
) -> Result<Coagulation> {
    check_assignments(assignments, samples.rows, k)?;
    let mut units = samples.data.to_vec();
    unit_rows(&mut units, samples.cols);
    let units = RowsView { data: &units, ..samples };
    let groups = Groups::new(units, assignments, k);
    let centroids = RowsView { data: centroids.unwrap_or(&groups.means), rows: k, cols: units.cols };
    let inside = groups.inside(centroids)?;
    let total = |quantity: fn(&Inside) -> f64| inside.iter().map(quantity).sum::<f64>();
    let n = groups.sizes.iter().sum::<usize>() as f64;

    let mut prototypes: Vec<f32> = groups.occupied.iter().flat_map(|c| centroids.row(*c)).copied().collect();
    unit_rows(&mut prototypes, units.cols);
    let prototypes = RowsView { data: &prototypes, rows: groups.occupied.len(), cols: units.cols };
    let among_prototypes = Pairs::of(prototypes);
    let mut phi: Vec<f64> = concentration.iter().copied().map(f64::from).collect();
    phi.sort_by(f64::total_cmp);
    Ok(Coagulation {
        intra_cosine: total(|p| p.cosine) / n,
        distance: total(|p| p.distance) / n,
        inter_cosine_mean: mean_cosine(prototypes),
        inter_cosine_max: among_prototypes.largest,
        within_over_between: total(|p| p.scatter) / groups.scatter_between(n),
        within_rank: mean_rank(&inside),
        concentration_p10: quantile(&phi, 0.1),
        concentration_p50: quantile(&phi, 0.5),
        concentration_p90: quantile(&phi, 0.9),
        occupied: groups.occupied.len() as f64,
        size_entropy: if n == 0.0 { f64::NAN } else { entropy(&groups.sizes) },
        copies: among_prototypes.copies,
        instance_alignment: mean_square_within(&inside),
        instance_uniformity: Pairs::of(units).uniformity,
        prototype_uniformity: among_prototypes.uniformity,
    })
}

fn check_assignments(assignments: &[Option<u32>], n: usize, k: usize) -> Result<()> {
    if assignments.len() != n {
        let message = format!("{} assignments for {n} samples", assignments.len());
        return Err(Error::shape("coagulation", message));
    }
    match assignments.iter().flatten().find(|a| **a as usize >= k) {
        Some(wrong) => {
            Err(Error::shape("coagulation", format!("an assignment to prototype {wrong}, but there are {k}")))
        }
        None => Ok(()),
    }
}

/// Samples grouped by prototype.
struct Groups<'a> {
    /// v, the samples scaled to unit length.
    units: RowsView<'a>,
    members: Members,
    /// The size of each of the K prototypes.
    sizes: Vec<usize>,
    /// μ of each prototype. Noise also has a mean, after the others.
    means: Vec<f32>,
    /// The prototypes with samples.
    occupied: Vec<usize>,
}

impl<'a> Groups<'a> {
    fn new(units: RowsView<'a>, assignments: &[Option<u32>], k: usize) -> Self {
        let labels = labels_with_noise(assignments, k);
        let mut means = vec![0.0f32; (k + 1) * units.cols];
        lloyd::means(units, &labels, &mut means);
        let members = Members::new(&labels, k + 1);
        let sizes: Vec<usize> = (0..k).map(|c| members.of(c).len()).collect();
        let occupied = (0..k).filter(|c| sizes[*c] > 0).collect();
        Groups { units, members, sizes, means, occupied }
    }

    fn mean(&self, c: usize) -> &[f32] {
        &self.means[c * self.units.cols..][..self.units.cols]
    }

    /// Computes the sums over the members of each occupied prototype.
    fn inside(&self, centroids: RowsView<'_>) -> Result<Vec<Inside>> {
        self.occupied.par_iter().map(|c| self.inside_of(*c, centroids.row(*c))).collect()
    }

    fn inside_of(&self, c: usize, centroid: &[f32]) -> Result<Inside> {
        let own = self.members.of(c);
        let mut direction = centroid.to_vec();
        unit_rows(&mut direction, centroid.len());
        let mut inside =
            Inside { size: own.len() as f64, cosine: 0.0, distance: 0.0, scatter: 0.0, rank: None };
        for i in own {
            let v = self.units.row(*i as usize);
            inside.cosine += dot(v, &direction) as f64;
            inside.distance += (squared_distance(v, centroid) as f64).sqrt();
            inside.scatter += squared_distance(v, self.mean(c)) as f64;
        }
        if own.len() > 1 {
            let some = evenly(own.len(), MOST_IN_RANK).map(|place| self.units.row(own[place] as usize));
            inside.rank = Some(centered_rank(&some.collect::<Vec<_>>(), self.units.cols)?);
        }
        Ok(inside)
    }

    /// Σ size·‖μ − mean v‖² over prototypes; `n` is the number of samples that have a prototype.
    fn scatter_between(&self, n: f64) -> f64 {
        let mut overall = vec![0.0f64; self.units.cols];
        for &c in &self.occupied {
            for (m, v) in overall.iter_mut().zip(self.mean(c)) {
                *m += *v as f64 * self.sizes[c] as f64 / n;
            }
        }
        let scatter = |c: &usize| {
            let squares = overall.iter().zip(self.mean(*c)).map(|(m, v)| (*v as f64 - m).powi(2));
            self.sizes[*c] as f64 * squares.sum::<f64>()
        };
        self.occupied.iter().map(scatter).sum()
    }
}

/// Sums over the members of one prototype.
struct Inside {
    /// The number of members.
    size: f64,
    /// Σ v·ĉ.
    cosine: f64,
    /// Σ‖v − c‖.
    distance: f64,
    /// Σ‖v − μ‖².
    scatter: f64,
    /// The effective rank; `None` with fewer than two members.
    rank: Option<f64>,
}

/// Returns the mean effective rank, weighted by size; NaN if no prototype has a rank.
fn mean_rank(inside: &[Inside]) -> f64 {
    let ranked = || inside.iter().filter_map(|p| Some((p.size, p.rank?)));
    ranked().map(|(size, rank)| size * rank).sum::<f64>() / ranked().map(|(size, _)| size).sum::<f64>()
}

/// Returns the mean of ‖v − v'‖² over the unordered pairs within prototypes. The sum over one prototype is
/// size·Σ‖v − μ‖².
fn mean_square_within(inside: &[Inside]) -> f64 {
    let squares: f64 = inside.iter().map(|p| p.size * p.scatter).sum();
    let pairs: f64 = inside.iter().map(|p| p.size * (p.size - 1.0) / 2.0).sum();
    squares / pairs
}

/// Returns at most `most` evenly spaced positions in 0..n.
fn evenly(n: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = n.min(most);
    (0..taken).map(move |i| i * n / taken)
}

/// Returns the mean of u·u' over all pairs, from ‖Σu‖² = Σ‖u‖² + 2·Σ u·u'.
fn mean_cosine(units: RowsView<'_>) -> f64 {
    let (mut sum, mut squares) = (vec![0.0f64; units.cols], 0.0);
    for u in units.iter() {
        for (s, v) in sum.iter_mut().zip(u) {
            *s += *v as f64;
            squares += *v as f64 * *v as f64;
        }
    }
    let m = units.rows as f64;
    (sum.iter().map(|s| s * s).sum::<f64>() - squares) / (m * (m - 1.0))
}

/// Quantities over all pairs of unit rows; NaN with fewer than two rows.
struct Pairs {
    largest: f64,
    copies: f64,
    uniformity: f64,
}

/// The number of rows compared with all others in one task.
const BLOCK: usize = 64;

impl Pairs {
    fn of(units: RowsView<'_>) -> Self {
        let n = units.rows.min(MOST_IN_PAIRS);
        if n < 2 {
            return Pairs { largest: f64::NAN, copies: f64::NAN, uniformity: f64::NAN };
        }
        let some: Vec<f32> = evenly(units.rows, MOST_IN_PAIRS).flat_map(|i| units.row(i)).copied().collect();
        let some = RowsView::new(&some, units.cols);
        let stop = stop::flag();
        let blocks: Vec<PairBlock> = (0..n.div_ceil(BLOCK))
            .into_par_iter()
            .filter(|_| !stop.is_set())
            .map(|b| PairBlock::of(some, b * BLOCK))
            .collect();
        let nearest = || blocks.iter().flat_map(|b| &b.largest);
        Pairs {
            largest: nearest().copied().fold(f32::NEG_INFINITY, f32::max) as f64,
            copies: nearest().filter(|c| **c >= COPY).count() as f64 / n as f64,
            uniformity: (blocks.iter().map(|b| b.kernel).sum::<f64>() / (n * (n - 1)) as f64).ln(),
        }
    }
}

/// One block of rows compared with all rows.
struct PairBlock {
    /// The largest cosine of each row to another row.
    largest: Vec<f32>,
    /// Σ exp(−2‖u − u'‖²).
    kernel: f64,
}

impl PairBlock {
    /// Compares the [`BLOCK`] rows from row `first` on.
    fn of(units: RowsView<'_>, first: usize) -> Self {
        let RowsView { data, rows: n, cols: dim } = units;
        let rows = BLOCK.min(n - first);
        let mut cosines = vec![0.0f32; rows * n];
        gemm(
            (rows, n, dim),
            1.0,
            (data, Strides::row_major(dim).from(first * dim)),
            (data, Strides::transposed(dim)),
            0.0,
            (&mut cosines, Strides::row_major(n)),
        );
        let mut block = PairBlock { largest: Vec::with_capacity(rows), kernel: 0.0 };
        for (r, cosines) in cosines.chunks_exact_mut(n).enumerate() {
            // A row does not form a pair with itself.
            cosines[first + r] = f32::NEG_INFINITY;
            block.largest.push(cosines.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            // ‖u − u'‖² = 2 − 2·u·u' for unit rows.
            block.kernel += cosines.iter().map(|c| (4.0 * (c - 1.0)).exp() as f64).sum::<f64>();
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn wave(rows: usize, dim: usize) -> Vec<f32> {
        (0..rows * dim)
            .map(|i| (1.7 * (i / dim) as f32 + 0.9 * (i % dim) as f32 + (i * i % 13) as f32).sin())
            .collect()
    }

    fn unit(v: &[f32]) -> Vec<f64> {
        let length = v.iter().map(|x| *x as f64 * *x as f64).sum::<f64>().sqrt();
        v.iter().map(|x| *x as f64 / length).collect()
    }

    fn product(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    }

    fn apart(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum()
    }

    fn mean_of(values: impl Iterator<Item = f64>) -> f64 {
        let all: Vec<f64> = values.collect();
        all.iter().sum::<f64>() / all.len() as f64
    }

    /// A clustering of 60 samples into 6 prototypes, in double precision, and what is computed from it. Prototype 4
    /// is empty, sample 7 is noise.
    struct Example {
        found: Coagulation,
        /// The unit samples.
        v: Vec<Vec<f64>>,
        centroids: Vec<Vec<f64>>,
        /// The unit centroids.
        directions: Vec<Vec<f64>>,
        /// The samples that have a prototype, with it.
        used: Vec<(usize, usize)>,
        /// The prototypes that have samples.
        occupied: Vec<usize>,
    }

    const DIM: usize = 5;
    /// The samples that have a prototype.
    const COUNTED: f64 = 59.0;

    impl Example {
        fn new() -> Self {
            let (n, k) = (60, 6);
            let data = wave(n, DIM);
            let centroids: Vec<f32> = wave(k, DIM).iter().map(|v| v * 0.7).collect();
            let assignments: Vec<Option<u32>> =
                (0..n).map(|i| (i != 7).then_some([0, 1, 2, 3, 5][(7 * i + i / 5) % 5] as u32)).collect();
            let used: Vec<(usize, usize)> =
                assignments.iter().enumerate().filter_map(|(i, a)| a.map(|a| (i, a as usize))).collect();
            let double = |c: &[f32]| c.iter().map(|x| f64::from(*x)).collect();
            let (v, directions) = (data.chunks(DIM).map(unit), centroids.chunks(DIM).map(unit));
            let (v, directions) = (v.collect(), directions.collect());
            let doubles = centroids.chunks(DIM).map(double).collect();
            let occupied = (0..k).filter(|c| used.iter().any(|u| u.1 == *c)).collect();
            let clustering = Clustering { k, dim: DIM, centroids, assignments, report: Default::default() };
            let phi: Vec<f32> = (0..k).map(|i| i as f32).collect();
            let found = Coagulation::of_clustering(RowsView::new(&data, DIM), &clustering, &phi).unwrap();
            Example { found, v, centroids: doubles, directions, used, occupied }
        }

        /// Returns the pairs of prototypes that have samples.
        fn pairs(&self) -> Vec<(usize, usize)> {
            let later = |a: usize| self.occupied.iter().filter(move |b| **b > a).map(move |b| (a, *b));
            self.occupied.iter().flat_map(|a| later(*a)).collect()
        }

        fn cosine(&self, (a, b): (usize, usize)) -> f64 {
            product(&self.directions[a], &self.directions[b])
        }

        /// Returns the samples of a prototype.
        fn members(&self, prototype: usize) -> Vec<usize> {
            self.used.iter().filter(|u| u.1 == prototype).map(|u| u.0).collect()
        }

        /// Returns the mean of some samples.
        fn center(&self, samples: &[usize]) -> Vec<f64> {
            (0..DIM).map(|l| mean_of(samples.iter().map(|i| self.v[*i][l]))).collect()
        }
    }

    /// The error of a cosine. In the code, v and ĉ are rounded to f32. This moves a vector by u and a cosine by 2u.
    /// Products of length `DIM` follow.
    fn of_cosine() -> f64 {
        tolerance::f32(DIM + 2, 1.0)
    }

    #[test]
    fn cosines_and_distances_equal_their_definitions() {
        let example = Example::new();
        let Example { found, v, centroids, directions, used, occupied } = &example;
        let intra = mean_of(used.iter().map(|(i, j)| product(&v[*i], &directions[*j])));
        assert_within!(found.intra_cosine, intra, of_cosine());
        // A distance is off by as much as v is, plus half the relative error of its square, which has DIM + 3
        // roundings.
        let distance = mean_of(used.iter().map(|(i, j)| apart(&v[*i], &centroids[*j]).sqrt()));
        let allowed = tolerance::f32(1, 1.0) + tolerance::f32(DIM + 3, distance / 2.0);
        assert_within!(found.distance, distance, allowed);
        let cosines: Vec<f64> = example.pairs().into_iter().map(|pair| example.cosine(pair)).collect();
        // The mean is computed in f64, from rounded vectors.
        assert_within!(found.inter_cosine_mean, mean_of(cosines.iter().copied()), tolerance::f32(3, 1.0));
        assert_within!(found.inter_cosine_max, cosines.iter().copied().fold(-2.0, f64::max), of_cosine());
        let is_copy =
            |a: &&usize| occupied.iter().any(|b| *a != b && example.cosine((**a, *b)) >= COPY as f64);
        let is_clear = |cosine: &f64| (cosine - COPY as f64).abs() > of_cosine();
        assert!(cosines.iter().all(is_clear), "rounding decides which prototypes are copies");
        assert_eq!(found.copies, occupied.iter().filter(is_copy).count() as f64 / occupied.len() as f64);
    }

    #[test]
    fn uniformity_and_alignment_equal_their_definitions() {
        let example = Example::new();
        let Example { found, v, directions, .. } = &example;
        let uniformity =
            |squares: &mut dyn Iterator<Item = f64>| mean_of(squares.map(|s| (-2.0 * s).exp())).ln();
        // exp(4·(cos − 1)): the exponent is off by four times the error of a cosine, and the difference, at
        // most 2, is rounded. exp is accurate to one unit in the last place. A mean of positive terms has at
        // most the same relative error, and its logarithm has that as its absolute error.
        let allowed = 4.0 * (of_cosine() + tolerance::f32(1, 2.0)) + tolerance::f32(2, 1.0);
        // The bound is first order, for errors below 1e-5.
        let allowed = allowed * (1.0 + allowed);
        let pairs = example.pairs();
        let of_prototypes =
            uniformity(&mut pairs.iter().map(|(a, b)| apart(&directions[*a], &directions[*b])));
        assert_within!(found.prototype_uniformity, of_prototypes, allowed);
        let all_pairs = (0..v.len()).flat_map(|a| (a + 1..v.len()).map(move |b| (a, b)));
        let of_instances = uniformity(&mut all_pairs.map(|(a, b)| apart(&v[a], &v[b])));
        assert_within!(found.instance_uniformity, of_instances, allowed);
        let used = &example.used;
        let together = used
            .iter()
            .flat_map(|a| used.iter().filter(move |b| b.0 > a.0 && a.1 == b.1).map(move |b| (a.0, b.0)));
        // The sum of ‖v − v'‖² of a prototype is size·Σ‖v − μ‖². Both v and μ are moved by u, which moves the
        // square by 4u·‖v − μ‖, and its sum has DIM + 2 roundings. A mean of ‖v − μ‖² is at most 1. Over the
        // pairs, it counts 2·size/(size − 1) times, which is at most 4.
        let alignment = mean_of(together.map(|(a, b)| apart(&v[a], &v[b])));
        assert_within!(found.instance_alignment, alignment, tolerance::f32(4 + DIM + 2, 4.0));
    }

    #[test]
    fn scatter_sizes_and_concentrations_equal_their_definitions() {
        let example = Example::new();
        let Example { found, v, used, occupied, .. } = &example;
        let overall = example.center(&used.iter().map(|u| u.0).collect::<Vec<_>>());
        let (mut within, mut between, mut entropy) = (0.0, 0.0, 0.0);
        for j in occupied {
            let members = example.members(*j);
            let (center, size) = (example.center(&members), members.len() as f64);
            within += members.iter().map(|i| apart(&v[*i], &center)).sum::<f64>();
            between += size * apart(&center, &overall);
            entropy -= size / COUNTED * (size / COUNTED).ln();
        }
        // As for the alignment, with Σ‖v − μ‖ ≤ √(n·within), and the same for the means around their mean.
        let of_within = tolerance::f32(4, (COUNTED * within).sqrt()) + tolerance::f32(DIM + 2, within);
        let of_between = tolerance::f32(4, (COUNTED * between).sqrt());
        let ratio = within / between;
        let allowed = (of_within + ratio * of_between) / (between - of_between);
        assert_within!(found.within_over_between, ratio, allowed);
        assert_eq!((used.len() as f64, found.occupied), (COUNTED, 5.0));
        // Five terms p·ln p with four roundings each.
        assert_within!(found.size_entropy, entropy, tolerance::f64(5 + 4, entropy));
        let percentiles = (found.concentration_p10, found.concentration_p50, found.concentration_p90);
        assert_eq!(percentiles, (0.5, 2.5, 4.5));
    }

    #[test]
    fn the_rank_within_prototypes_equals_that_of_singular_values() {
        let example = Example::new();
        let (mut rank, mut of_rank) = (0.0, 0.0);
        for j in &example.occupied {
            let members = example.members(*j);
            let (center, size) = (example.center(&members), members.len() as f64);
            // The singular values computed in another way: from the centered matrix itself.
            let matrix = faer::Mat::from_fn(members.len(), DIM, |r, l| example.v[members[r]][l] - center[l]);
            let singular = matrix.singular_values().unwrap();
            let total: f64 = singular.iter().sum();
            let h: f64 = singular.iter().map(|s| s / total).filter(|p| *p > 1e-12).map(|p| -p * p.ln()).sum();
            rank += size / COUNTED * h.exp();
            // Rounding the samples moves the matrix by at most u·√size, and each singular value by no more. A
            // share σ/Σσ moves by (1 + share·DIM) times that over Σσ, and all shares together by 2·DIM times
            // that. The entropy h moves by as much times |ln| of the smallest share, and exp(h) by the same
            // relative amount.
            let moved = 2.0 * DIM as f64 * tolerance::f32(1, size.sqrt()) / total;
            let least = singular.iter().copied().fold(total, f64::min) / total;
            assert!(moved < 0.01 * least, "the bound is first order");
            of_rank += size / COUNTED * h.exp() * moved * 1.01 * (1.0 + least.ln().abs());
        }
        assert_within!(example.found.within_rank, rank, of_rank);
    }

    #[test]
    fn collapse_has_its_signature() {
        // Four tight clusters on the axes, compared with the same clusters with spread.
        let cluster = |spread: f32| -> Vec<f32> {
            let mut data = Vec::new();
            for i in 0..80 {
                let mut row = [0.0f32; 8];
                row[i % 4] = 1.0;
                for (l, v) in row.iter_mut().enumerate() {
                    *v += spread * ((i * i * 31 + l * l * 17 + i * l) as f32).sin();
                }
                data.extend(row);
            }
            data
        };
        let labels: Vec<u32> = (0..80).map(|i| i % 4).collect();
        let (tight, loose) = (cluster(0.0), cluster(0.2));
        let tight = Coagulation::of_labels(RowsView::new(&tight, 8), &labels).unwrap();
        let loose = Coagulation::of_labels(RowsView::new(&loose, 8), &labels).unwrap();
        // Rows on the axes, their means and the quantities derived from them are exact.
        assert_eq!((tight.intra_cosine, tight.within_rank), (1.0, 1.0));
        assert_eq!((tight.inter_cosine_mean, tight.within_over_between), (0.0, 0.0));
        assert!(loose.intra_cosine < 0.99 && loose.within_rank > 3.0, "{loose:?}");
        // Four terms ¼·ln ¼, each with one rounding, and their sum.
        assert_within!(tight.size_entropy, 4f64.ln(), tolerance::f64(4, 4f64.ln()));
    }

    #[test]
    fn undefined_quantities_are_left_out() {
        let one = Coagulation::of_labels(RowsView::new(&[1.0, 0.0, 0.0, 1.0], 2), &[0, 0]).unwrap();
        assert!(one.inter_cosine_max.is_nan() && one.copies.is_nan() && one.concentration_p50.is_nan());
        let names: Vec<String> = one.metrics("level0").into_iter().map(|m| m.name).collect();
        assert!(names.contains(&"level0/within_rank".to_string()));
        assert!(!names.contains(&"level0/copies".to_string()));
        let empty = Coagulation::of_labels(RowsView { data: &[], rows: 0, cols: 2 }, &[]).unwrap();
        assert_eq!(empty.occupied, 0.0);
        assert!(Coagulation::of_labels(RowsView::new(&[1.0], 1), &[]).is_err());
        assert_eq!(evenly(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(evenly(0, 4).count(), 0);
    }
}
