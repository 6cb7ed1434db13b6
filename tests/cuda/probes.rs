//! Probes and their building blocks.

use crate::{device, pattern};
use pauc::traits::registry::kind;
use pauc::traits::{Compute, Configured};
use pauc_testing::{assert_within, tolerance};

/// The bank's rows by descending score, equal scores by number, from a full sort. Small integers make
/// products exact.
#[test]
fn the_highest_scores_are_those_of_a_full_sort() {
    use pauc::traits::probe::RowsView;
    let whole = |n: usize, step: usize| (0..n).map(move |i| (i * i * step / 7 % 5) as f32 - 2.0);
    let (n, dim) = (33_000, 3);
    let mut bank: Vec<f32> = whole(n * dim, 13).collect();
    // Along the last axis, each row scores higher than all rows before it.
    bank.iter_mut().skip(2).step_by(dim).enumerate().for_each(|(i, v)| *v = i as f32 / 16.0);
    let queries = [1.0, 0.0, 0.0, 2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 2.0, -0.5];
    let mut shift: Vec<f32> = whole(n, 5).map(|v| v / 2.0).collect();
    shift[7] = f32::NEG_INFINITY;
    let dev = device();
    let on = dev.probes_on_device().unwrap();
    for (n, k, shift) in [(n, 300, None), (n, 1024, Some(&shift)), (2, 1, None), (40, 60, Some(&shift))] {
        let (bank, shift) = (&bank[..n * dim], shift.map(|s| &s[..n]));
        let (queries, bank) = (RowsView::new(&queries, dim), RowsView::new(bank, dim));
        let got = on.highest(queries, bank, shift, k).unwrap().unwrap();
        assert_eq!(got.len(), queries.rows);
        for (q, got) in queries.iter().zip(got) {
            let score = |i: usize| {
                bank.row(i).iter().zip(q).map(|(a, b)| a * b).sum::<f32>() + shift.map_or(0.0, |s| s[i])
            };
            let mut want: Vec<(f32, u32)> = (0..n).map(|i| (score(i), i as u32)).collect();
            want.retain(|w| w.0.is_finite());
            want.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            want.truncate(k);
            assert!(got == want, "{k} of {n} for {q:?}");
        }
    }
    let (queries, bank) = (RowsView::new(&queries, dim), RowsView::new(&bank, dim));
    assert!(on.highest(queries, bank, None, 1025).unwrap().is_none());
}

/// Returns a probe's metrics on overlapping classes, with or without the device.
fn measured(probe: &str, device: Option<&dyn pauc::traits::probe::ProbesOnDevice>) -> Vec<(String, f64)> {
    use pauc::traits::probe::{ProbeContext, RowsView, SplitView};
    let (dim, classes) = (9, 4);
    let split = |n: usize, phase: f64| {
        let labels: Vec<u32> = (0..n).map(|i| (i * 7 % 11 % classes) as u32).collect();
        let noise = pattern(n * dim, phase);
        let value = |i: usize| noise[i] + if i % dim == labels[i / dim] as usize { 0.8 } else { 0.0 };
        let rows: Vec<f32> = (0..n * dim).map(value).collect();
        (rows, labels)
    };
    let ((train, labels), (test, tests)) = (split(170, 0.3), split(60, 1.9));
    fn view<'a>(rows: &'a [f32], dim: usize, labels: &'a [u32]) -> SplitView<'a> {
        let rows = RowsView::new(rows, dim);
        SplitView { features: rows, embeddings: rows, labels: Some(labels), images: None }
    }
    let context = ProbeContext {
        train: view(&train, dim, &labels),
        test: Some(view(&test, dim, &tests)),
        classes,
        levels: &[],
        concentrations: &[],
        seed: 1,
        network: None,
        device,
    };
    let metrics = Configured::<kind::Probe>::parse(probe).unwrap().measure(&context).unwrap();
    metrics.into_iter().map(|m| (m.name, m.value)).collect()
}

/// A device that counts its calls.
struct Counted<'a> {
    dev: &'a dyn pauc::traits::probe::ProbesOnDevice,
    asked: std::cell::Cell<usize>,
}

impl pauc::traits::probe::ProbesOnDevice for Counted<'_> {
    fn highest(
        &self,
        queries: pauc::traits::probe::RowsView<'_>,
        bank: pauc::traits::probe::RowsView<'_>,
        shift: Option<&[f32]>,
        k: usize,
    ) -> pauc::traits::Result<Option<Vec<pauc::traits::probe::Neighbors>>> {
        self.asked.set(self.asked.get() + 1);
        self.dev.highest(queries, bank, shift, k)
    }
    fn regression(
        &self,
        rows: pauc::traits::probe::RowsView<'_>,
        labels: &[u32],
        classes: usize,
    ) -> pauc::traits::Result<Option<Box<dyn pauc::traits::probe::RegressionOnDevice>>> {
        self.asked.set(self.asked.get() + 1);
        self.dev.regression(rows, labels, classes)
    }
}

/// Asserts that metrics agree, except for one sample in sixty whose vote may depend on rounding.
fn same_metrics(probes: &[(&str, usize)]) {
    let dev = device();
    for (probe, asked) in probes {
        let counted = Counted { dev: dev.probes_on_device().unwrap(), asked: Default::default() };
        let (got, want) = (measured(probe, Some(&counted)), measured(probe, None));
        assert_eq!(counted.asked.get(), *asked, "{probe}");
        assert!(!want.is_empty() && got.len() == want.len());
        for ((name, got), (same, want)) in got.iter().zip(&want) {
            assert_eq!(name, same);
            // A metric is a mean over 60 samples, in `f64`.
            assert_within!(*got, *want, 1.0 / 60.0 + tolerance::f64(61, 1.0), "{name}");
        }
    }
}

#[test]
fn neighbors_vote_as_on_the_cpu() {
    same_metrics(&[
        ("Knn(k: 7)", 1),
        ("KnnGrid(k: [1, 30, 500])", 2),
        ("Retrieval()", 1),
        ("LowShot(probe: Knn(k: 3), labels: PerClass(20))", 1),
    ]);
}

/// Also across a tile boundary, which is reached early with many classes.
#[test]
fn losses_of_a_regression_and_their_gradients_equal_plain_sums() {
    use pauc::traits::probe::RowsView;
    let dev = device();
    for (n, dim, classes, from) in [(70, 5, 3, 11), (60, 2, 300_000, 1)] {
        let labels: Vec<u32> = (0..n).map(|i| (i * 7 % classes.min(50)) as u32).collect();
        let (x, weights) = (pattern(n * dim, 0.4), pattern(classes * (dim + 1), 1.1));
        let on = dev.probes_on_device().unwrap().regression(RowsView::new(&x, dim), &labels, classes);
        let on = on.unwrap().unwrap();
        let mut got = vec![1.0; weights.len()];
        let loss = on.loss(from..n, &weights, &mut got).unwrap();
        let (mut total, mut loss_off, mut sure, mut possible) = (0.0, 0.0, 0, 0);
        // Gradients, the error that each inherits from the residuals, and the sums of the terms' absolute
        // values.
        let [mut want, mut inherited, mut size] = [0; 3].map(|_| vec![0.0; weights.len()]);
        for (x, label) in x.chunks(dim).zip(&labels).skip(from) {
            let bias = |c: usize| f64::from(weights[classes * dim + c]);
            let products =
                |c: usize| x.iter().zip(&weights[c * dim..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let logits: Vec<f64> = (0..classes).map(|c| products(c).sum::<f64>() + bias(c)).collect();
            let sizes = (0..classes).map(|c| products(c).map(f64::abs).sum::<f64>() + bias(c).abs());
            // A logit is an inner product in `f32` plus a bias; everything up to the residual is in `f64`.
            let off = sizes.map(|s| tolerance::f32(dim + 1, s)).fold(0.0, f64::max);
            let own = logits[*label as usize];
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            total += sum.ln() - own;
            // Both the logarithm and the label's logit have the error of a logit.
            loss_off += 2.0 * off;
            let best = |by: f64| usize::from(logits.iter().all(|l| *l <= own + by));
            // The other classes only: the label's own logit has an error, too.
            let rivals = logits.iter().enumerate().filter(|(c, _)| *c != *label as usize);
            sure += usize::from(rivals.map(|(_, l)| *l).fold(f64::NEG_INFINITY, f64::max) < own - 2.0 * off);
            possible += best(2.0 * off);
            for (c, logit) in logits.iter().enumerate() {
                let p = logit.exp() / sum;
                let residual = p - f64::from(u8::from(c == *label as usize));
                // The errors of its logit and of the sum in the denominator; then the residual is rounded.
                let residual_off = p * (2.0 * off).exp_m1() + tolerance::f32(1, residual.abs());
                for (at, x) in
                    (0..dim).map(|d| (c * dim + d, f64::from(x[d]))).chain([(classes * dim + c, 1.0)])
                {
                    want[at] += residual * x;
                    inherited[at] += residual_off * x.abs();
                    size[at] += (residual * x).abs() + residual_off * x.abs();
                }
            }
        }
        // The oracle's own sums have as many terms as there are classes and rows.
        let oracle = tolerance::f64(classes + n, total);
        assert_within!(loss, total, loss_off + oracle, "{n}, {dim}, {classes}: loss");
        for (at, got) in got.iter().enumerate() {
            let allowed = inherited[at] + tolerance::f32(n, size[at]) + tolerance::f64(classes + n, size[at]);
            assert_within!(*got, want[at], allowed, "{n}, {dim}, {classes}: gradient {at}");
        }
        // Where rounding decides, the prediction may be right or wrong.
        let right = on.right(from..n, &weights).unwrap();
        assert!((sure..=possible).contains(&right), "{right}, expected {sure} to {possible}");
        let got = on.scatter().unwrap();
        for (at, got) in got.iter().enumerate() {
            let products = || x.chunks(dim).map(|x| f64::from(x[at / dim]) * f64::from(x[at % dim]));
            let size: f64 = products().map(f64::abs).sum();
            assert_within!(*got, products().sum::<f64>(), tolerance::f32(n, size), "scatter {at}");
        }
        assert!(on.loss(0..n + 1, &weights, &mut vec![0.0; weights.len()]).is_err());
    }
}

#[test]
fn a_linear_probe_measures_the_same_as_on_the_cpu() {
    same_metrics(&[("Linear(l2: [0.1, 1e-3])", 1)]);
}
