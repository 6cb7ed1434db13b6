//! Cross-entropy against large banks, compared with plain loops in `f64`.

use crate::{EVENLY, device, long_sum, pattern};
use pauc::cuda::softmax::{Bank, LogitBudget, Positives, Scale, cross_entropy_within};
use pauc::cuda::{Buffer, Context};
use pauc_testing::vectors::norm;
use pauc_testing::{Rounded, assert_within, tolerance};

/// Rows scaled to unit length in `f32`.
fn unit(rows: usize, dim: usize, phase: f64) -> Vec<f32> {
    let mut all = pattern(rows * dim, phase);
    for row in all.chunks_exact_mut(dim) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= norm);
    }
    all
}

/// Candidates on the host: rows, scales, own rows.
type Candidates = (Vec<f32>, Vec<f32>, Option<Vec<usize>>);

/// The relative error of a product of split fp16 numbers: each factor has 22 bits, and the product of both
/// low parts is left out.
const HALVES: f64 = 3.0 / (1u64 << 22) as f64;
/// Candidates whose weighted rows are summed on tensor cores into one partial sum.
const AT_ONCE: usize = 1024;

/// A logit with its row, its scale and its error.
struct Logit<'a> {
    value: f64,
    row: &'a [f32],
    scale: f64,
    off: f64,
}

/// The definition: the value, and the gradient with respect to the queries, each with its rounding error.
///
/// Errors of single products are nearly independent, so their squares add up: [`EVENLY`] times the largest is
/// six standard deviations. A logit's error enters the logarithm of the sum with the logit's probability, and
/// it enters its own weight in the gradient.
fn plain(
    queries: &[f32],
    positives: &[f32],
    scales: &[f32],
    banks: &[Candidates],
    dim: usize,
) -> (Rounded, Vec<Rounded>) {
    let n = scales.len();
    let products = |a: &[f32], b: &[f32]| {
        let each = || a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        (each().sum::<f64>(), each().map(|p| p * p).sum::<f64>())
    };
    let (mut value, mut gradient) = (Rounded::default(), Vec::new());
    for i in 0..n {
        let (q, k) = (&queries[i * dim..][..dim], &positives[i * dim..][..dim]);
        // The positive's logit is a sum in `f64` times a scale.
        let (own, scale) = (products(q, k).0 * f64::from(scales[i]), f64::from(scales[i]));
        let own = Logit { value: own, row: k, scale, off: tolerance::f32(1, own.abs()) };
        let mut others = Vec::new();
        for (rows, scale, own) in banks {
            for (j, row) in rows.chunks_exact(dim).enumerate() {
                if own.as_ref().is_none_or(|own| own[i] != j) {
                    let scale = f64::from(if scale.len() == 1 { scale[0] } else { scale[j] });
                    let (sum, squares) = products(q, row);
                    let off = EVENLY * HALVES * squares.sqrt() + long_sum(dim, sum, squares);
                    // One rounding for the multiplication by the scale, and two for the argument of the
                    // exponential.
                    let (value, off) = (sum * scale, off * scale + tolerance::f32(3, (sum * scale).abs()));
                    others.push(Logit { value, row, scale, off });
                }
            }
        }
        let top = others.iter().fold(own.value, |top, l| top.max(l.value));
        let sum: f64 = others.iter().map(|l| (l.value - top).exp()).sum();
        let all = sum + (own.value - top).exp();
        let of_others = sum / all;
        value.value += (all.ln() + top - own.value) / n as f64;
        // Probabilities among the negatives, with their errors. Exponentials are exact to two units in the
        // last place. Adding eight of them in `f32` has an error of the same size.
        let p = |l: &Logit<'_>| (l.value - top).exp() / sum;
        let squared: f64 = others.iter().map(|l| (p(l) * l.off).powi(2)).sum();
        let of_sum = squared.sqrt() + tolerance::f32(8, 1.0);
        value.error += of_others * (of_sum + own.off) / n as f64;
        // The logarithm of the sum is rounded before it is subtracted from logits, and the difference is
        // rounded again.
        let of_weights = of_sum + tolerance::f32(2, (sum.ln() + top).abs());
        // A few factors follow. Sums consist of partial sums, which are added one by one.
        let parts = others.len().div_ceil(AT_ONCE) + banks.len();
        let of_factors = tolerance::f32(10 + 3 * parts, 1.0);
        for d in 0..dim {
            let (mut to, mut squares, mut inherited) = (0.0, 0.0, 0.0);
            for l in &others {
                let term = of_others * p(l) * l.scale * f64::from(l.row[d]);
                to += term;
                squares += term * term;
                inherited += (term * (l.off + tolerance::f32(4, 1.0) + EVENLY * HALVES)).powi(2);
            }
            let of_positive = (of_others * own.scale * f64::from(own.row[d])).abs();
            // The relative error of the negatives' share, and so of both parts of the gradient.
            let of_share = (1.0 - of_others) * (of_sum + own.off);
            let off = inherited.sqrt()
                + long_sum(others.len().min(AT_ONCE), to, squares)
                + to.abs() * (of_weights + of_factors + of_share)
                + of_positive * (of_factors + of_share);
            let all = to - of_others * own.scale * f64::from(own.row[d]);
            gradient.push(Rounded::within(all / n as f64, off / n as f64));
        }
    }
    (value.round(), gradient)
}

fn compare(n: usize, dim: usize, sizes: &[usize], size: f32, budget: LogitBudget) {
    let dev = device();
    let on = Context::of(&dev).unwrap();
    let sized = |rows: Vec<f32>| rows.into_iter().map(|v| v * size).collect::<Vec<f32>>();
    let queries = sized(unit(n, dim, 0.2));
    let temper = 1.0 / (size * size);
    let banks: Vec<Candidates> = sizes
        .iter()
        .enumerate()
        .map(|(b, m)| {
            let scale = match b {
                0 => (0..*m).map(|j| 1.0 / (0.1 + 0.02 * (j % 11) as f32) * temper).collect(),
                _ => vec![temper * 5.0],
            };
            let own = (b == 0).then(|| (0..n).map(|i| (i * 5 + 1) % m).collect());
            (sized(unit(*m, dim, 2.0 + b as f64)), scale, own)
        })
        .collect();
    let there = |v: &[f32]| Buffer::from_host(&on, v).unwrap();
    let q = there(&queries);
    let rows: Vec<Buffer> = banks.iter().map(|b| there(&b.0)).collect();
    let scale = |b: usize| if b == 0 { Scale::Each(&banks[0].1) } else { Scale::Uniform(banks[b].1[0]) };
    let device_banks: Vec<Bank<'_>> = (0..banks.len())
        .map(|b| Bank { rows: rows[b].view(), scale: scale(b), own: banks[b].2.as_deref() })
        .collect();
    // The positives are separate rows, or rows of the first bank.
    let own = banks[0].2.clone().unwrap();
    let of_bank = !n.is_multiple_of(2);
    let (positives, scales): (Vec<f32>, Vec<f32>) = if of_bank {
        let rows = own.iter().flat_map(|j| banks[0].0[j * dim..(j + 1) * dim].iter().copied());
        (rows.collect(), own.iter().map(|j| banks[0].1[*j]).collect())
    } else {
        (sized(unit(n, dim, 0.9)), vec![temper * 4.0; n])
    };
    let k = there(&positives);
    let drawn_to = if of_bank { Positives::Own } else { Positives::Rows(k.view(), temper * 4.0) };
    let graded = cross_entropy_within(&on, budget, q.view(), drawn_to, &device_banks, dim).unwrap();
    let (value, gradient) = plain(&queries, &positives, &scales, &banks, dim);
    let what = format!("{n} queries of {dim} against {sizes:?}, of length {size}");
    let (got, gradients) = (graded.value.to_host().unwrap()[0], graded.gradient.to_host().unwrap());
    let off = |got: f32, want: &Rounded| (f64::from(got) - want.value).abs();
    let norm = |of: &dyn Fn(usize) -> f64| norm((0..n * dim).map(of));
    let size = norm(&|i| gradient[i].value);
    println!(
        "{what}: relative error of the value {:.1e}, allowed {:.1e}; of the gradient {:.1e}, allowed {:.1e}",
        off(got, &value) / value.value,
        value.error / value.value,
        norm(&|i| off(gradients[i], &gradient[i])) / size,
        norm(&|i| gradient[i].error) / size,
    );
    assert_within!(got, value.value, value.error, "{what}: value");
    for (i, (got, want)) in gradients.iter().zip(&gradient).enumerate() {
        assert_within!(*got, want.value, want.error, "{what}: gradient {i}");
    }
}

/// Split fp16 numbers are as accurate as `f32`: rows of 128, of lengths from 10⁻⁶ to 10⁶, of odd sizes, kept
/// and in tiles.
#[test]
fn split_fp16_products_are_as_accurate_as_f32() {
    let tiles = LogitBudget { kept: 0, tile: 400 };
    for (n, dim, sizes, size, budget) in [
        (6, 128, vec![2500, 30], 1.0, LogitBudget::default()),
        (6, 128, vec![150, 64], 1e-6, tiles),
        (5, 128, vec![96, 40], 1e6, LogitBudget::default()),
        (9, 7, vec![123, 45], 1.0, tiles),
        // The second bank's scores begin in the middle of a pack.
        (3, 8, vec![35, 64], 1.0, LogitBudget::default()),
        (4, 3, vec![2049], 1.0, LogitBudget::default()),
        (1, 1, vec![5], 1.0, LogitBudget::default()),
    ] {
        compare(n, dim, &sizes, size, budget);
    }
}
