use super::in_batch::{KEPT, SPREAD};
use super::rows::{body, exp, sum_exp};
use super::*;
use pauc_testing::Rounded;
use pauc_testing::property::{self, size};
use pauc_testing::tolerance::{self, UNIT_F32};
use proptest::prelude::*;

fn rows(n: usize, dim: usize, phase: f64) -> Vec<f32> {
    let raw: Vec<f64> =
        (0..n * dim).map(|i| (phase + 1.3 * i as f64 + 0.01 * (i * i % 97) as f64).sin()).collect();
    let unit = |row: &[f64]| {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-9);
        row.iter().map(|v| (v / norm) as f32).collect::<Vec<_>>()
    };
    raw.chunks(dim).flat_map(unit).collect()
}

/// The relative error of an exponential: the rounding of its argument, which is at most 88 if the exponential
/// is not 0, plus 2 units in the last place of the exponential itself.
const EXPONENTIAL: f64 = (88.0 + 4.0) * UNIT_F32;

/// A logit: a product of length D, times a scale.
fn logit(scale: f32, a: &[f32], b: &[f32]) -> Rounded {
    let exact = |(a, b): (&f32, &f32)| (Rounded::exact(*a), Rounded::exact(*b));
    Rounded::exact(scale) * Rounded::dot(a.iter().zip(b).map(exact))
}

/// exp(x − shift), where the error of x and other roundings `off` of the argument give the relative error
/// exp(x.error + off) − 1.
fn exponential(x: Rounded, shift: f64, off: f64) -> Rounded {
    let value = (x.value - shift).exp();
    // Values below the smallest exponential become 0.
    Rounded::within(value, value * (x.error + off).exp_m1() + f64::from(f32::MIN_POSITIVE))
}

/// A loss with its gradient, and their error bounds.
struct Expected {
    value: f64,
    error: f64,
    gradient: Vec<Rounded>,
}

impl Expected {
    fn new(rows: usize, dim: usize) -> Self {
        Expected { value: 0.0, error: 0.0, gradient: vec![Rounded::default(); rows * dim] }
    }

    /// Adds ln(1 + ratio)/n. Everything after the ratio is computed in `f64`.
    fn add_loss(&mut self, ratio: Rounded, n: usize) {
        self.value += ratio.value.ln_1p() / n as f64;
        self.error += ratio.error / (1.0 + (ratio.value - ratio.error).max(0.0)) / n as f64;
        self.error += tolerance::f64(10, ratio.value.ln_1p()) / n as f64;
    }

    fn admits(&self, got: &Graded) -> Result<(), TestCaseError> {
        let off = (got.value - self.value).abs();
        prop_assert!(
            off <= self.error,
            "{} for {}, off by {off:e}, allowed {:e}",
            got.value,
            self.value,
            self.error
        );
        for (i, (got, want)) in got.gradient.iter().zip(&self.gradient).enumerate() {
            prop_assert!(want.admits(*got), "gradient {i}: got {got}, expected {want}");
        }
        Ok(())
    }
}

/// The definition, one query at a time.
///
/// Each exponential is taken relative to the largest logit of its part so far. This maximum is the same for
/// all and cancels, except for the rounding of the differences: once when an exponential is computed, and
/// once per later tile with a larger logit.
fn reference(q: &[f32], k: &[f32], scales: &[f32], banks: &[Bank<'_>], dim: usize) -> Expected {
    let n = scales.len();
    let mut expected = Expected::new(n, dim);
    let candidates: usize = banks.iter().map(|bank| bank.rows.len() / dim).sum();
    let tiles = candidates.div_ceil(TILE) + 1;
    let off = (tiles + 1) as f64 * EXPONENTIAL + tolerance::f32(candidates + tiles, 1.0);
    for i in 0..n {
        let query = &q[i * dim..(i + 1) * dim];
        let key = &k[i * dim..(i + 1) * dim];
        let positive = logit(scales[i], query, key);
        let mut all: Vec<(f32, &[f32], Rounded)> = Vec::new();
        for bank in banks {
            for (j, row) in bank.rows.chunks(dim).enumerate() {
                let scale = match bank.scale {
                    Scale::Uniform(s) => s,
                    Scale::Each(s) => s[j],
                };
                if bank.own.is_none_or(|own| own[i] != j) {
                    // Relative to the positive, whose logit is rounded too.
                    let ratio = exponential(logit(scale, query, row), positive.value, positive.error + off);
                    all.push((scale, row, ratio));
                }
            }
        }
        let ratio = all.iter().fold(Rounded::default(), |sum, (_, _, r)| {
            Rounded::within(sum.value + r.value, sum.error + r.error)
        });
        expected.add_loss(ratio, n);
        let total = Rounded::within((1.0 + ratio.value) * n as f64, ratio.error * n as f64);
        let push = Rounded::exact(scales[i]) * (ratio / total);
        let pulls: Vec<(Rounded, &[f32])> =
            all.iter().map(|(scale, row, r)| (Rounded::exact(*scale) * *r / total, *row)).collect();
        for d in 0..dim {
            let terms = pulls.iter().map(|(pull, row)| *pull * Rounded::exact(row[d]));
            let sum = Rounded::sum(terms.chain([-(push * Rounded::exact(key[d]))]));
            let magnitude =
                pulls.iter().map(|(pull, row)| (pull.value * f64::from(row[d])).abs()).sum::<f64>();
            // Each part is multiplied by its weight and added.
            let parts = PARTS * banks.len() + 2;
            let push = (push.value * f64::from(key[d])).abs();
            expected.gradient[i * dim + d] = sum.loosen(tolerance::f32(parts, magnitude + push));
        }
    }
    expected
}

proptest! {
    #![proptest_config(property::cases(150))]
    #[test]
    fn banks_equal_the_loop(
        n in size(1..300), m in size(1..1200), extra in 0usize..40, dim in size(1..40),
        tau in 0.01f32..1.0, own: bool, each: bool,
    ) {
        let sizes = Sizes { n, m, extra, dim };
        check_banks(sizes, tau, own, each)?;
    }

    #[test]
    fn in_batch_equals_the_loop(half in size(1..150), dim in size(1..40), tau in 0.01f32..1.0) {
        let n = 2 * half;
        let mut z = rows(n, dim, 0.3);
        // Views of one sample are similar.
        for i in 0..half * dim { z[half * dim + i] = 0.8 * z[i] + 0.2 * z[half * dim + i]; }
        let got = in_batch(&z, dim, 1.0 / tau);
        in_batch_reference(&z, dim, tau).admits(&got)?;
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    m: usize,
    extra: usize,
    dim: usize,
}

fn check_banks(
    Sizes { n, m, extra, dim }: Sizes,
    tau: f32,
    own: bool,
    each: bool,
) -> Result<(), TestCaseError> {
    let (q, k) = (rows(n, dim, 0.1), rows(n, dim, 0.15));
    let (bank, more) = (rows(m, dim, 3.0), rows(extra, dim, 5.0));
    let phi: Vec<f32> = (0..m).map(|j| 1.0 / (tau * (1.0 + 0.5 * (j as f32).sin()))).collect();
    let owners: Vec<usize> = (0..n).map(|i| i * 7 % m).collect();
    let banks = [
        Bank {
            rows: &bank[..],
            scale: if each { Scale::Each(&phi) } else { Scale::Uniform(1.0 / tau) },
            own: own.then_some(&owners[..]),
        },
        Bank { rows: &more[..], scale: Scale::Uniform(1.0 / tau), own: None },
    ];
    let scales = vec![1.0 / tau; n];
    let got = cross_entropy(&q, Positives::Rows(&k, 1.0 / tau), &banks, dim);
    reference(&q, &k, &scales, &banks, dim).admits(&got)?;
    if own {
        // The same rows also as positives, with the scales that they have as candidates.
        let keys: Vec<f32> = owners.iter().flat_map(|j| &bank[j * dim..(j + 1) * dim]).copied().collect();
        let scales: Vec<f32> = owners.iter().map(|j| if each { phi[*j] } else { 1.0 / tau }).collect();
        let got = cross_entropy(&q, Positives::Own, &banks, dim);
        reference(&q, &keys, &scales, &banks, dim).admits(&got)?;
    }
    Ok(())
}

#[test]
fn canceling_pulls_in_one_dimension_are_within_their_rounding() {
    // Rows of one coordinate are 1 or −1: hundreds of equal pulls cancel to a gradient far below each of
    // their sums.
    for (own, each) in [(false, false), (false, true), (true, false), (true, true)] {
        for extra in [0, 1, 17] {
            check_banks(Sizes { n: 1, m: 213, extra, dim: 1 }, 0.119, own, each).unwrap();
        }
    }
}

/// The definition, every row against all others. Logits are taken relative to one ceiling, or relative to the
/// largest of a row and then to the logarithm of the row's sum, which is as large as a logit and rounded to
/// `f32`.
fn in_batch_reference(z: &[f32], dim: usize, tau: f32) -> Expected {
    let n = z.len() / dim;
    let mut expected = Expected::new(n, dim);
    let scale = 1.0 / tau;
    let row = |a: usize| &z[a * dim..(a + 1) * dim];
    let partner = |a: usize| (a + n / 2) % n;
    let off = EXPONENTIAL + tolerance::f32(n, 1.0);
    let logits: Vec<Rounded> = (0..n * n).map(|i| logit(scale, row(i / n), row(i % n))).collect();
    let (mut negatives, mut sums, mut offs) = (Vec::new(), Vec::new(), Vec::new());
    for a in 0..n {
        let own = &logits[a * n..(a + 1) * n];
        let positive = own[partner(a)];
        let others = (0..n).filter(|b| *b != a && *b != partner(a));
        let ratio = others.fold(Rounded::default(), |sum, b| {
            let one = exponential(own[b], positive.value, positive.error + off);
            Rounded::within(sum.value + one.value, sum.error + one.error)
        });
        expected.add_loss(ratio, n);
        let total = Rounded::within(1.0 + ratio.value, ratio.error + positive.error.exp_m1());
        let lse = total.value.ln() + positive.value;
        negatives.push(ratio / total);
        // The error of the logarithm of the sum, if probabilities are relative to it.
        offs.push(off + 2.0 * UNIT_F32 * lse.abs() + positive.error);
        sums.push((positive.value, total));
    }
    for a in 0..n {
        let weight = |b: usize| {
            if b == partner(a) {
                return -(negatives[a] + negatives[b]);
            }
            let seen_from = |c: usize| exponential(logits[a * n + b], sums[c].0, offs[c]) / sums[c].1;
            seen_from(a) + seen_from(b)
        };
        let weights: Vec<(usize, Rounded)> = (0..n).filter(|b| *b != a).map(|b| (b, weight(b))).collect();
        let factor = Rounded::exact(scale) / Rounded::exact(n as f32);
        for d in 0..dim {
            let terms = weights.iter().map(|(b, w)| *w * Rounded::exact(row(*b)[d]));
            expected.gradient[a * dim + d] = factor * Rounded::sum(terms);
        }
    }
    expected
}

#[test]
fn a_common_ceiling_and_one_per_row_agree_at_the_limit() {
    let (n, dim) = (96, 16);
    let z = rows(n, dim, 0.7);
    // Unit rows spread by 2/τ: τ on both sides of 2/SPREAD.
    for tau in [1.999 / SPREAD, 2.001 / SPREAD] {
        in_batch_reference(&z, dim, tau).admits(&in_batch(&z, dim, 1.0 / tau)).unwrap();
    }
    // Opposite rows are as far apart as possible and still contribute to the gradient.
    let mut opposite = vec![0.0f32; 4 * 2];
    for (i, x) in [1.0, -1.0, -1.0, 1.0].into_iter().enumerate() {
        opposite[2 * i] = x;
    }
    for tau in [0.026, 0.02, 1.0] {
        in_batch_reference(&opposite, 2, tau).admits(&in_batch(&opposite, 2, 1.0 / tau)).unwrap();
    }
}

#[test]
fn large_batches_compute_logits_twice_and_agree() {
    let (n, dim) = (1100, 8);
    assert!(n * n > KEPT);
    let z = rows(n, dim, 0.3);
    in_batch_reference(&z, dim, 0.2).admits(&in_batch(&z, dim, 1.0 / 0.2)).unwrap();
}

#[test]
fn the_exponential_is_exact_to_two_units() {
    for i in 0..=200_000 {
        let x = -100.0 * i as f32 / 200_000.0;
        let want = (x as f64).exp();
        let got = exp(x);
        let off = (got as f64 - want).abs();
        assert!(off <= 2.0 * f32::EPSILON as f64 * want || (x < -86.9 && off < 1e-37), "exp({x}) = {got}");
    }
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(0.0), 1.0);
    let row: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
    let ((top, fast), (plain_top, plain)) = (sum_exp(&row), body::sum_exp(&row));
    assert_eq!((top, fast.to_bits()), (plain_top, plain.to_bits()), "bits depend on the instruction set");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (n, m, dim) = (40, 3000, 16);
    let (q, k, bank, z) = (rows(n, dim, 0.1), rows(n, dim, 0.2), rows(m, dim, 1.0), rows(200, dim, 2.0));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let banks = [Bank { rows: &bank[..], scale: Scale::Uniform(5.0), own: None }];
        pool.install(|| (cross_entropy(&q, Positives::Rows(&k, 5.0), &banks, dim), in_batch(&z, dim, 10.0)))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn nan_in_any_input_reaches_the_value() {
    let (q, bank) = (rows(3, 4, 0.0), rows(70, 4, 1.0));
    for poisoned in 0..3 {
        let (mut q, mut k, mut bank) = (q.clone(), q.clone(), bank.clone());
        [&mut q, &mut k, &mut bank][poisoned][6] = f32::NAN;
        let banks = [Bank { rows: &bank[..], scale: Scale::Uniform(5.0), own: None }];
        assert!(cross_entropy(&q, Positives::Rows(&k, 5.0), &banks, 4).value.is_nan(), "{poisoned}");
    }
    let mut z = rows(80, 4, 0.5);
    z[5] = f32::NAN;
    assert!(in_batch(&z, 4, 5.0).value.is_nan());
}

#[test]
fn without_candidates_the_loss_is_zero() {
    let q = rows(3, 4, 0.0);
    let lonely = cross_entropy(&q, Positives::Rows(&q, 5.0), &[], 4);
    assert_eq!((lonely.value, lonely.gradient), (0.0, vec![0.0; 12]));
    let own: Vec<usize> = vec![0];
    let bank = Bank { rows: &q[..4], scale: Scale::Uniform(5.0), own: Some(&own) };
    for positives in [Positives::Rows(&q[..4], 5.0), Positives::Own] {
        assert_eq!(cross_entropy(&q[..4], positives, &[bank], 4).value, 0.0);
    }
    let pair = in_batch(&q[..8], 4, 5.0);
    assert_eq!((pair.value, pair.gradient), (0.0, vec![0.0; 8]));
}
