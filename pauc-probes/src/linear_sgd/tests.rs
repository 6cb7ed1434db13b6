use super::*;
use pauc_traits::probe::SplitView;

fn probe(text: &str) -> LinearSgd {
    pauc_traits::component_ron::options().from_str(text).unwrap()
}

/// Two noisy classes along two axes and a third at the origin, in 3 values.
fn cloud(n: usize, phase: f64) -> (Vec<f32>, Vec<u32>) {
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    let value = |i: usize, d: usize| {
        let noise = (phase + 1.7 * (3 * i + d) as f64 + (0.3 * (i * d) as f64).cos()).sin();
        (if labels[i] as usize == d { 0.9 } else { 0.0 }) + 0.7 * noise
    };
    ((0..3 * n).map(|j| value(j / 3, j % 3) as f32).collect(), labels)
}

fn measure(probe: &LinearSgd, train: &[f32], labels: &[u32], test: &[f32], tests: &[u32]) -> Vec<Metric> {
    crate::testing::measure(probe, (3, 3, 4), (train, labels), (test, tests)).unwrap()
}

/// Computes the whole protocol in double precision with loops. Returns the accuracy, and the smallest lead of
/// the largest score of a test row.
fn naive(
    x: &[f32],
    y: &[u32],
    test: &[f32],
    tests: &[u32],
    epochs: u64,
    batch: usize,
    lr: f64,
) -> (f64, f64) {
    use pauc_traits::rng::{Purpose, stream};
    use rand::Rng;
    let mut rng = stream(4, Purpose::Probe, 0, 0, 1);
    let mut w = [[0.0f64; 4]; 3];
    for row in &mut w {
        row[..3].iter_mut().for_each(|w| *w = 0.01 * rng.sample::<f64, _>(rand_distr::StandardNormal));
    }
    let mut v = [[0.0f64; 4]; 3];
    let scores =
        |w: &[[f64; 4]; 3], x: &[f32]| w.map(|r| r[3] + (0..3).map(|d| r[d] * x[d] as f64).sum::<f64>());
    let all: Vec<usize> = (0..y.len()).collect();
    for epoch in 0..epochs {
        let rate = lr
            * if 5 * epoch < 3 * epochs {
                1.0
            } else if 5 * epoch < 4 * epochs {
                0.1
            } else {
                0.01
            };
        for some in shuffled(&all, 4, epoch).chunks(batch) {
            let mut g = [[0.0f64; 4]; 3];
            for i in some {
                let x = &x[3 * i..3 * i + 3];
                let e = scores(&w, x).map(f64::exp);
                for c in [0, 1, 2] {
                    let r = (e[c] / e.iter().sum::<f64>() - f64::from(u8::from(c == y[*i] as usize)))
                        / some.len() as f64;
                    (0..3).for_each(|d| g[c][d] += r * x[d] as f64);
                    g[c][3] += r;
                }
            }
            for c in [0, 1, 2] {
                for d in 0..4 {
                    v[c][d] = 0.9 * v[c][d] + g[c][d];
                    w[c][d] -= rate * v[c][d];
                }
            }
        }
    }
    let right = test.chunks(3).zip(tests).filter(|(x, y)| {
        let s = scores(&w, x);
        (0..3).all(|c| s[c] <= s[**y as usize])
    });
    let lead = |x: &[f32]| {
        let mut s = scores(&w, x);
        s.sort_by(f64::total_cmp);
        s[2] - s[1]
    };
    let least = test.chunks(3).map(lead).fold(f64::MAX, f64::min);
    (right.count() as f64 / tests.len() as f64, least)
}

#[test]
fn the_accuracy_is_that_of_loops_in_double_precision() {
    let ((x, y), (test, tests)) = (cloud(70, 0.2), cloud(300, 2.0));
    for (epochs, batch, lr) in [(5, 16, 3.0), (1, 70, 0.5), (10, 8, 0.05)] {
        let got = measure(
            &probe(&format!("(epochs: {epochs}, batch: {batch}, lr: [{lr}])")),
            &x,
            &y,
            &test,
            &tests,
        );
        let (want, lead) = naive(&x, &y, &test, &tests, epochs, batch, lr);
        // A few dozen steps in single precision move scores by some 1e-6, too little to change a prediction.
        assert!(lead > 1e-4, "{lead}");
        assert_eq!(got[0].value, want);
        assert_eq!(got[0].name, format!("linear/sgd/e{epochs}/b{batch}/step0.1/lr{lr}"));
        assert!(want > 0.5 && want < 0.99, "the accuracy is not informative: {want}");
    }
}

#[test]
fn the_rate_is_chosen_on_held_out_training_samples() {
    let ((x, y), (test, tests)) = (cloud(90, 0.2), cloud(90, 2.0));
    let grid = probe("(epochs: 4, batch: 30, lr: [1e30, 1.0, 1e-9])");
    let got = measure(&grid, &x, &y, &test, &tests);
    // 1e30 overflows, and 1e-9 hardly moves.
    assert_eq!(got[1], Metric::detail("linear/sgd/e4/b30/step0.1", "lr", 1.0));
    let single = measure(&probe("(epochs: 4, batch: 30, lr: [1.0])"), &x, &y, &test, &tests);
    assert_eq!(got[0].value, single[0].value);
    // The labels of the test split do not influence the choice.
    let wrong: Vec<u32> = tests.iter().map(|l| (l + 1) % 3).collect();
    assert_eq!(measure(&grid, &x, &y, &test, &wrong)[1].value, 1.0);
}

#[test]
fn standardized_features_do_not_depend_on_scale() {
    let ((x, y), (test, tests)) = (cloud(60, 0.2), cloud(90, 2.0));
    let far = |v: &[f32]| v.iter().map(|v| 64.0 * v).collect::<Vec<f32>>();
    let probe = probe("(epochs: 3, lr: [0.3], standardise: true)");
    let near = measure(&probe, &x, &y, &test, &tests);
    let got = measure(&probe, &far(&x), &y, &far(&test), &tests);
    // Scaling by a power of two is exact.
    assert_eq!(near[0].value, got[0].value);
    assert_eq!(got[0].name, "linear/sgd/e3/b256/step0.1/standardised/lr0.3");
}

#[test]
fn views_need_a_network_and_features() {
    let (x, y) = cloud(30, 0.2);
    assert_eq!(measure(&probe("(views: CropFlip)"), &x, &y, &x, &y), []);
    let rows = RowsView::new(&x, 3);
    let split = SplitView { features: rows, embeddings: rows, labels: Some(&y), images: None };
    let context = ProbeContext {
        train: split,
        test: Some(split),
        classes: 3,
        levels: &[],
        concentrations: &[],
        seed: 0,
        network: None,
        device: None,
    };
    let error = |text: &str| probe(text).measure(&context).unwrap_err().to_string();
    assert!(error("(views: CropFlip, space: Embeddings)").contains("leave `space` out"));
    assert!(error("(lr: [])").contains("`lr` is empty"));
}
