use super::in_batch::{KEPT, SPREAD};
use super::rows::{body, exp, sum_exp};
use super::*;
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

fn dot64(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum()
}

/// The loss and its gradient in double precision, one query at a time.
fn reference(q: &[f32], k: &[f32], scales: &[f32], banks: &[Bank<'_>], dim: usize) -> (f64, Vec<f64>) {
    let n = scales.len();
    let (mut value, mut gradient) = (0.0, vec![0.0; n * dim]);
    for i in 0..n {
        let query = &q[i * dim..(i + 1) * dim];
        let mut all = vec![(scales[i] as f64, &k[i * dim..(i + 1) * dim])];
        for bank in banks {
            for (j, c) in bank.rows.chunks(dim).enumerate() {
                let s = match bank.scale {
                    Scale::Uniform(s) => s,
                    Scale::Each(s) => s[j],
                };
                if bank.own.is_none_or(|own| own[i] != j) {
                    all.push((s as f64, c));
                }
            }
        }
        let logits: Vec<f64> = all.iter().map(|(s, c)| s * dot64(query, c)).collect();
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - top).exp()).sum();
        value += (sum.ln() + top - logits[0]) / n as f64;
        for (c, ((s, row), l)) in all.iter().zip(&logits).enumerate() {
            let p = (l - top).exp() / sum - if c == 0 { 1.0 } else { 0.0 };
            for d in 0..dim {
                gradient[i * dim + d] += p * s * row[d] as f64 / n as f64;
            }
        }
    }
    (value, gradient)
}

/// Gradients are sums of unit vectors times scales, which may cancel: their rounding is measured by the largest scale.
fn close(got: &Graded, (value, gradient): (f64, Vec<f64>), largest: f32) -> Result<(), TestCaseError> {
    prop_assert!((got.value - value).abs() < 2e-5 * value.abs().max(1.0), "{} for {value}", got.value);
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.gradient.iter().zip(&gradient).map(|(g, w)| *g as f64 - w));
    let size = norm(&mut gradient.iter().copied());
    prop_assert!(off <= 1e-4 * size + 1e-6 * largest as f64, "gradient off by {off:e} of {size:e}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn banks_equal_the_loop(
        n in 1usize..300, m in 1usize..1200, extra in 0usize..40, dim in 1usize..40,
        tau in 0.01f32..1.0, own: bool, each: bool,
    ) {
        let (q, k) = (rows(n, dim, 0.1), rows(n, dim, 0.15));
        let (bank, more) = (rows(m, dim, 3.0), rows(extra, dim, 5.0));
        let phi: Vec<f32> = (0..m).map(|j| 1.0 / (tau * (1.0 + 0.5 * (j as f32).sin()))).collect();
        let owners: Vec<usize> = (0..n).map(|i| i * 7 % m).collect();
        let banks = [
            Bank {
                rows: &bank,
                scale: if each { Scale::Each(&phi) } else { Scale::Uniform(1.0 / tau) },
                own: own.then_some(&owners[..]),
            },
            Bank { rows: &more, scale: Scale::Uniform(1.0 / tau), own: None },
        ];
        let scales = vec![1.0 / tau; n];
        let got = cross_entropy(&q, &k, &scales, &banks, dim);
        let largest = phi.iter().fold(1.0 / tau, |most, s| most.max(*s));
        close(&got, reference(&q, &k, &scales, &banks, dim), largest)?;
    }

    #[test]
    fn in_batch_equals_the_loop(half in 1usize..150, dim in 1usize..40, tau in 0.01f32..1.0) {
        let n = 2 * half;
        let mut z = rows(n, dim, 0.3);
        // Views of one sample resemble each other.
        for i in 0..half * dim { z[half * dim + i] = 0.8 * z[i] + 0.2 * z[half * dim + i]; }
        let got = in_batch(&z, dim, tau);
        close(&got, in_batch_reference(&z, dim, tau), 1.0 / tau)?;
    }
}

/// Through [`reference`] with every row's own bank, plus the transposed share of the gradient.
fn in_batch_reference(z: &[f32], dim: usize, tau: f32) -> (f64, Vec<f64>) {
    let n = z.len() / dim;
    let (mut value, mut gradient) = (0.0, vec![0.0; n * dim]);
    let row = |a: usize| &z[a * dim..(a + 1) * dim];
    for a in 0..n {
        let logits: Vec<f64> = (0..n).map(|b| dot64(row(a), row(b)) / tau as f64).collect();
        let top = (0..n).filter(|b| *b != a).map(|b| logits[b]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..n).filter(|b| *b != a).map(|b| (logits[b] - top).exp()).sum();
        let partner = (a + n / 2) % n;
        value += (sum.ln() + top - logits[partner]) / n as f64;
        for b in (0..n).filter(|b| *b != a) {
            let p =
                ((logits[b] - top).exp() / sum - f64::from(u8::from(b == partner))) / (n as f64 * tau as f64);
            for d in 0..dim {
                gradient[a * dim + d] += p * row(b)[d] as f64;
                gradient[b * dim + d] += p * row(a)[d] as f64;
            }
        }
    }
    (value, gradient)
}

#[test]
fn one_ceiling_for_all_and_one_for_each_row_agree_at_the_border() {
    let (n, dim) = (96, 16);
    let z = rows(n, dim, 0.7);
    // Unit rows spread by 2/τ: τ on both sides of 2/SPREAD.
    for tau in [1.999 / SPREAD, 2.001 / SPREAD] {
        close(&in_batch(&z, dim, tau), in_batch_reference(&z, dim, tau), 1.0 / tau).unwrap();
    }
    // Opposite rows are as far apart as rows can be, and still have their share in the gradient.
    let mut opposite = vec![0.0f32; 4 * 2];
    for (i, x) in [1.0, -1.0, -1.0, 1.0].into_iter().enumerate() {
        opposite[2 * i] = x;
    }
    for tau in [0.026, 0.02, 1.0] {
        let got = in_batch(&opposite, 2, tau);
        let (value, _) = in_batch_reference(&opposite, 2, tau);
        assert!((got.value - value).abs() < 1e-6 * value, "{tau}: {} for {value}", got.value);
    }
}

#[test]
fn large_batches_compute_logits_twice_and_agree() {
    let (n, dim) = (1100, 8);
    assert!(n * n > KEPT);
    let z = rows(n, dim, 0.3);
    close(&in_batch(&z, dim, 0.2), in_batch_reference(&z, dim, 0.2), 5.0).unwrap();
}

#[test]
fn every_instruction_set_computes_the_exponential() {
    for i in 0..=200_000 {
        let x = -100.0 * i as f32 / 200_000.0;
        let want = (x as f64).exp();
        for got in [exp::<true>(x), exp::<false>(x)] {
            let off = (got as f64 - want).abs();
            assert!(
                off <= 2.0 * f32::EPSILON as f64 * want || (x < -86.9 && off < 1e-37),
                "exp({x}) = {got}"
            );
        }
    }
    assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
    assert_eq!((exp::<false>(0.0), exp::<true>(0.0)), (1.0, 1.0));
    let row: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
    let ((top, fast), (plain_top, plain)) = (sum_exp(&row), body::sum_exp::<false>(&row));
    assert!(top == plain_top && (fast - plain).abs() < 1e-5 * plain);
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let (n, m, dim) = (40, 3000, 16);
    let (q, k, bank, z) = (rows(n, dim, 0.1), rows(n, dim, 0.2), rows(m, dim, 1.0), rows(200, dim, 2.0));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let banks = [Bank { rows: &bank, scale: Scale::Uniform(5.0), own: None }];
        pool.install(|| (cross_entropy(&q, &k, &vec![5.0; n], &banks, dim), in_batch(&z, dim, 0.1)))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn not_a_number_anywhere_is_seen() {
    let (q, bank) = (rows(3, 4, 0.0), rows(70, 4, 1.0));
    for poisoned in 0..3 {
        let (mut q, mut k, mut bank) = (q.clone(), q.clone(), bank.clone());
        [&mut q, &mut k, &mut bank][poisoned][6] = f32::NAN;
        let banks = [Bank { rows: &bank, scale: Scale::Uniform(5.0), own: None }];
        assert!(cross_entropy(&q, &k, &[5.0; 3], &banks, 4).value.is_nan(), "{poisoned}");
    }
    let mut z = rows(80, 4, 0.5);
    z[5] = f32::NAN;
    assert!(in_batch(&z, 4, 0.2).value.is_nan());
}

#[test]
fn nothing_to_compare_with_is_zero() {
    let q = rows(3, 4, 0.0);
    let lonely = cross_entropy(&q, &q, &[5.0; 3], &[], 4);
    assert_eq!((lonely.value, lonely.gradient), (0.0, vec![0.0; 12]));
    let own: Vec<usize> = vec![0];
    let bank = Bank { rows: &q[..4], scale: Scale::Uniform(5.0), own: Some(&own) };
    assert_eq!(cross_entropy(&q[..4], &q[..4], &[5.0], &[bank], 4).value, 0.0);
    let pair = in_batch(&q[..8], 4, 0.2);
    assert_eq!((pair.value, pair.gradient), (0.0, vec![0.0; 8]));
}
