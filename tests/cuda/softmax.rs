//! Cross-entropy against large banks, beside plain loops in `f64`.

use crate::{device, distance_above, pattern};
use pauc::cuda::softmax::{Bank, Positives, Room, Scale, cross_entropy_in};
use pauc::cuda::{Buffer, Context};

/// Rows of unit length, as `f32` has them.
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

/// The definition: the value, and the gradient with respect to the queries.
fn plain(
    queries: &[f32],
    positives: &[f32],
    scales: &[f32],
    banks: &[Candidates],
    dim: usize,
) -> (f64, Vec<f64>) {
    let n = scales.len();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let (mut value, mut gradient) = (0.0, vec![0.0; n * dim]);
    for i in 0..n {
        let (q, k) = (&queries[i * dim..][..dim], &positives[i * dim..][..dim]);
        // Logits with the rows and scales that they are made of; the positive's first.
        let mut logits = vec![(dot(q, k) * f64::from(scales[i]), k, f64::from(scales[i]))];
        for (rows, scale, own) in banks {
            for (j, row) in rows.chunks_exact(dim).enumerate() {
                if own.as_ref().is_none_or(|own| own[i] != j) {
                    let s = f64::from(if scale.len() == 1 { scale[0] } else { scale[j] });
                    logits.push((dot(q, row) * s, row, s));
                }
            }
        }
        let top = logits.iter().fold(f64::NEG_INFINITY, |top, l| top.max(l.0));
        let sum: f64 = logits.iter().map(|l| (l.0 - top).exp()).sum();
        value += (sum.ln() + top - logits[0].0) / n as f64;
        for (j, (logit, row, s)) in logits.iter().enumerate() {
            let p = (logit - top).exp() / sum - if j == 0 { 1.0 } else { 0.0 };
            let to = &mut gradient[i * dim..][..dim];
            to.iter_mut().zip(*row).for_each(|(to, v)| *to += p * s * f64::from(*v) / n as f64);
        }
    }
    (value, gradient)
}

fn compare(n: usize, dim: usize, sizes: &[usize], size: f32, room: Room) -> (f64, f64) {
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
    let over: Vec<Vec<f32>> = banks.iter().map(|b| b.1.iter().map(|s| 1.0 / s).collect()).collect();
    let scale = |b: usize| if b == 0 { Scale::Over(&over[0]) } else { Scale::Same(banks[b].1[0]) };
    let found: Vec<Bank<'_>> = (0..banks.len())
        .map(|b| Bank { rows: rows[b].view(), scale: scale(b), own: banks[b].2.as_deref() })
        .collect();
    // Positives of their own, or rows of the first bank.
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
    let graded = cross_entropy_in(&on, room, q.view(), drawn_to, &found, dim).unwrap();
    let (value, gradient) = plain(&queries, &positives, &scales, &banks, dim);
    let wanted: Vec<f32> = gradient.iter().map(|g| *g as f32).collect();
    let found = f64::from(graded.value.to_host().unwrap()[0]);
    ((found - value).abs() / value, distance_above(0.0, &graded.gradient.to_host().unwrap(), &wanted))
}

/// Halves lose no more than `f32` does: rows of 128, of lengths from 10⁻⁶ to 10⁶, of odd sizes, kept and in tiles.
#[test]
fn products_of_halves_are_as_good_as_those_of_f32() {
    let tiles = Room { kept: 0, tile: 400 };
    for (n, dim, sizes, size, room) in [
        (6, 128, vec![2500, 30], 1.0, Room::default()),
        (6, 128, vec![150, 64], 1e-6, tiles),
        (5, 128, vec![96, 40], 1e6, Room::default()),
        (9, 7, vec![123, 45], 1.0, tiles),
        // The second bank's scores begin in the middle of a pack.
        (3, 8, vec![35, 64], 1.0, Room::default()),
        (4, 3, vec![2049], 1.0, Room::default()),
        (1, 1, vec![5], 1.0, Room::default()),
    ] {
        let (value, gradient) = compare(n, dim, &sizes, size, room);
        let what = format!("{n} queries of {dim} against {sizes:?}, of length {size}");
        println!("{what}: the value is off by {value:.1e}, the gradient by {gradient:.1e}");
        // A GPU's exponentials and logits are those of `f32`.
        assert!(value < 2e-6, "{what}: the value is off by {value:e}");
        assert!(gradient < 4e-6, "{what}: the gradient is off by {gradient:e}");
    }
}
