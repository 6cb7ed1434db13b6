//! The folder of a synthetic run, with everything that a report shows.

use pauc_report::events::*;
use pauc_traits::probe::MetricKind;
use std::f64::consts::TAU;
use std::path::Path;

/// Pseudo-random numbers between −1 and 1, the same on every machine.
fn noise(n: u64) -> f64 {
    let mixed = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

const STEPS_PER_EPOCH: u64 = 39;
const EPOCHS: u64 = 40;
const WARM_UP: u64 = 10;

fn fall(from: f64, to: f64, progress: f64, speed: f64) -> f64 {
    to + (from - to) * (-speed * progress).exp()
}

fn step(step: u64) -> Event {
    let epoch = step as f64 / STEPS_PER_EPOCH as f64;
    let progress = epoch / EPOCHS as f64;
    let on = epoch >= WARM_UP as f64;
    let term = |i: u64, name: &str, from: f64, to: f64, wobble: f64, weight: f64, chance: Option<f64>| Term {
        name: name.into(),
        value: (i == 0 || on).then(|| fall(from, to, progress, 4.0) + wobble * noise(step * 7 + i)),
        weight: if i == 0 || on { weight } else { 0.0 },
        chance,
        skipped: i == 3 && step.is_multiple_of(500),
    };
    let ramp = ((epoch - WARM_UP as f64) / 5.0).clamp(0.0, 1.0);
    let terms = vec![
        term(0, "InfoNce", 7.1, 4.2, 0.12, 1.0, Some(7.626)),
        term(1, "ProtoNce", 5.6, 2.9, 0.1, 0.25, Some(5.0)),
        term(2, "Alignment", 1.2, 0.42, 0.05, 0.1, Some(2.0)),
        term(3, "Uniformity", -2.2, -3.4, 0.06, 0.1 * ramp, Some(-3.9)),
        term(4, "Correlation", 0.9, 0.3, 0.04, 0.1, Some(1.0)),
    ];
    let loss = terms.iter().map(|t| t.weight * t.value.unwrap_or(0.0)).sum();
    Event::Step(Step {
        step,
        epoch,
        lr: 0.12 * if epoch < 2.0 { epoch / 2.0 } else { 0.5 * (1.0 + (0.5 * TAU * progress).cos()) },
        loss,
        terms,
        grad_norm: fall(6.0, 0.8, progress, 5.0) * (1.0 + 0.3 * noise(step)),
        images_per_second: 1450.0 + 120.0 * noise(step + 99),
    })
}

/// Gradients of terms, of which the last two start with the prototypes and disagree with the first.
fn gradients(step: u64) -> Event {
    let epoch = step as f64 / STEPS_PER_EPOCH as f64;
    let norm = |from: f64, i: u64| {
        fall(from, 0.4 * from, epoch / EPOCHS as f64, 3.0) * (1.0 + 0.1 * noise(step * 3 + i))
    };
    let wobble = |cosine: f64, i: u64| cosine + 0.05 * noise(step * 5 + i);
    let term = |name: &str, norm, cosines| TermGradient { name: name.into(), norm, cosines };
    let mut terms = vec![term("InfoNce", norm(0.09, 0), vec![])];
    if step > WARM_UP * STEPS_PER_EPOCH {
        terms.push(term("ProtoNce", norm(0.03, 1), vec![wobble(0.35, 0)]));
        terms.push(term("Alignment", norm(0.0004, 2), vec![wobble(0.1, 1), wobble(-0.3, 2)]));
    }
    let total = 1.1 * terms.iter().map(|t| t.norm.powi(2)).sum::<f64>().sqrt();
    Event::Gradients(Gradients { step, epoch, terms, total })
}

fn clustering(epoch: u64) -> Event {
    let progress = epoch as f64 / EPOCHS as f64;
    let level = |k: u64| ClusterLevel {
        churn: (epoch > WARM_UP).then(|| fall(0.6, 0.1, progress, 3.0)),
        k,
        objective: fall(6100.0, 3900.0, progress, 3.0) * (1.0 - 0.0006 * k as f64),
        imbalance: 1.3 + 0.4 * (k as f64 / 200.0) + 0.1 * noise(epoch * k),
        empty: 0,
        splits: if epoch == WARM_UP { k / 40 } else { 0 },
        concentration_mean: 0.2,
        concentration_min: 0.14,
        concentration_max: 0.27 + 0.02 * noise(epoch),
    };
    let levels = [50, 100, 200].map(level).to_vec();
    Event::Clustering(Clustering {
        step: epoch * STEPS_PER_EPOCH,
        epoch: epoch as f64,
        seconds: 0.62,
        levels,
    })
}

fn metric(name: impl Into<String>, value: f64) -> Metric {
    let name = name.into();
    Metric { kind: MetricKind::of_stored_name(&name), name, value }
}

fn probe(epoch: u64, subject: Subject, knn: f64) -> Event {
    let progress = epoch as f64 / EPOCHS as f64;
    let mut metrics = vec![metric("knn/cos/k20/t0.07", knn)];
    if subject == Subject::Trained {
        metrics.push(metric("rankme/features", fall(12.0, 61.0, progress, 4.0)));
        metrics.push(metric("rankme/embeddings", fall(6.0, 38.0, progress, 4.0)));
        metrics.push(metric("spread/features", fall(0.3, 0.62, progress, 5.0)));
        metrics.push(metric("spread/embeddings", fall(0.4, 0.94, progress, 5.0)));
        for (quantity, from, to) in
            [("intra_cosine", 0.7, 0.58), ("inter_cosine_mean", 0.5, 0.2), ("within_rank", 12.0, 34.0)]
        {
            let name = format!("coagulation/classes/{quantity}");
            metrics.push(metric(name, fall(from, to, progress, 3.0)));
        }
        for k in [50.0, 100.0, 200.0].into_iter().filter(|_| epoch >= WARM_UP) {
            let name = |quantity: &str| format!("coagulation/k{k}/{quantity}");
            metrics.push(metric(name("intra_cosine"), fall(0.62, 0.86, progress, 2.0) + 0.0003 * k));
            metrics.push(metric(name("inter_cosine_mean"), fall(0.4, 0.06, progress, 3.0)));
            metrics.push(metric(name("within_rank"), fall(30.0, 14.0, progress, 2.0) - 0.02 * k));
            metrics.push(metric(name("copies"), 0.0004 * k * (1.0 - progress)));
        }
    }
    if epoch == EPOCHS {
        for k in [1, 5, 20, 200] {
            for t in [0.02, 0.07, 0.2, 1.0] {
                let value = knn - 0.01 * noise((k as f64 / t) as u64).abs();
                metrics.push(metric(format!("knn_grid/cos/k{k}/t{t}"), value));
            }
            metrics.push(metric(format!("knn_grid/l2/k{k}"), knn - 0.02));
        }
    }
    let linear = epoch == EPOCHS || subject != Subject::Trained;
    if linear {
        metrics.push(metric("linear/lbfgs/standardised/l2", 0.01));
        metrics.push(metric("linear/lbfgs/standardised/converged", 1.0));
        metrics.push(metric("linear/lbfgs/standardised", knn + 0.021));
    }
    let step = epoch * STEPS_PER_EPOCH;
    Event::Probe(Probe { step, epoch: epoch as f64, seconds: 1.4, subject, metrics })
}

fn health(epoch: u64) -> [Event; 2] {
    let (progress, step) = (epoch as f64 / EPOCHS as f64, epoch * STEPS_PER_EPOCH);
    let mean = fall(7.1, 4.2, progress, 4.0);
    let name = "InfoNce".into();
    let terms = vec![TermMean { name, mean, chance: Some(7.626), epochs_at_chance: 0, regularizer: false }];
    let (spread, rank) = (fall(0.4, 0.94, progress, 5.0), fall(6.0, 38.0, progress, 4.0));
    let health = Health { step, epoch: epoch as f64, terms, spread, rank };
    let shares = [("data", 0.02), ("forward", 0.34), ("terms", 0.12), ("backward", 0.48), ("other", 0.04)];
    let seconds = 6.9 + 0.2 * noise(epoch);
    let stages = Stages {
        step,
        epoch: epoch as f64,
        seconds,
        images_per_second: 10_000.0 / seconds,
        stages: shares
            .map(|(name, share)| StageTime { name: name.into(), seconds: share * seconds })
            .to_vec(),
        peak_memory_bytes: Some((310 << 20) + (epoch << 20)),
        loader: Some(LoaderTime {
            images: 9984,
            read: 0.01,
            augment: 0.8 + 0.03 * noise(epoch),
            normalize: 0.2,
        }),
    };
    [Event::Health(health), Event::Stages(stages)]
}

/// Returns all events of the run.
pub fn events() -> Vec<Event> {
    let mut events = vec![
        Event::Phase(Phase { step: 0, name: "warm-up".into(), text: "Only InfoNce counts.".into() }),
        Event::Warning(Warning {
            step: 0,
            text: "k 200 is close to the batch of 256: most prototypes have a single sample in a batch; use a smaller K \
                   or `queue: true`"
                .into(),
        }),
        probe(0, Subject::RawPixels, 0.7981),
        probe(0, Subject::RandomInit, 0.7342),
    ];
    for epoch in 0..EPOCHS {
        if epoch == WARM_UP {
            let text = "Prototypes are there: all five terms count.".into();
            events.push(Event::Phase(Phase {
                step: epoch * STEPS_PER_EPOCH,
                name: "prototypes".into(),
                text,
            }));
        }
        if epoch >= WARM_UP && epoch.is_multiple_of(2) {
            events.push(clustering(epoch));
        }
        events.extend((1..=STEPS_PER_EPOCH).map(|s| step(epoch * STEPS_PER_EPOCH + s)));
        events.push(gradients((epoch + 1) * STEPS_PER_EPOCH));
        events.extend(health(epoch + 1));
        if (epoch + 1).is_multiple_of(2) {
            let progress = (epoch + 1) as f64 / EPOCHS as f64;
            events.push(probe(
                epoch + 1,
                Subject::Trained,
                fall(0.74, 0.856, progress, 4.0) + 0.004 * noise(epoch),
            ));
        }
    }
    events.push(Event::Warning(Warning {
        step: 1000,
        text: "Uniformity was skipped on 3 batches: fewer than 2 prototypes".into(),
    }));
    events.push(Event::End(End { step: EPOCHS * STEPS_PER_EPOCH, seconds: 187.4, status: Status::Finished }));
    events
}

const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

fn embedding() -> serde_json::Value {
    let mut points = Vec::new();
    let (mut labels, mut prototypes) = (Vec::new(), Vec::new());
    for i in 0..2000u64 {
        let class = i % 10;
        // Some classes overlap.
        let angle = [0.1, 1.3, 0.3, 0.7, 0.4, 3.6, 0.2, 3.9, 2.4, 4.4][class as usize];
        let part = i / 10 % 5;
        let bend = angle + 0.12 * part as f64 + 0.1 * noise(i * 3);
        let radius = 0.55 + 0.12 * noise(i * 3 + 1) + 0.05 * noise(i * 3 + 2);
        points.push([radius * bend.cos(), radius * bend.sin()]);
        labels.push(class);
        prototypes.push(class * 5 + part);
    }
    // Ten clusters on a ring instead of a real t-SNE.
    let blob = |i: u64| {
        let angle = TAU * (i % 10) as f64 / 10.0;
        let coordinate = |turn: f64, n: u64| 30.0 * turn + 7.0 * (noise(i * 5 + n) + noise(i * 5 + n + 1));
        [coordinate(angle.cos(), 0), coordinate(angle.sin(), 2)]
    };
    let tsne: Vec<_> = (0..2000).map(blob).collect();
    serde_json::json!({
        "tsne": tsne, "perplexity": 30.0, "test": true, "of": 10_000, "points": points, "labels": labels, "prototypes": prototypes, "classes": CLASSES, "explained": [0.31, 0.17],
    })
}

const RECIPE: &str = r#"Recipe(
    version: 1,
    name: "pauc-fashion",
    data: FashionMini(),
    views: [(count: 2, ops: [RandomResizedCrop(size: 28, scale: (0.3, 1.0)), HorizontalFlip(p: 0.5)])],
    encoder: ResNet18(stem: Small, width: 16),
    objective: [
        (term: InfoNce(temperature: 0.2)),
        (term: ProtoNce(), weight: 0.25, from: Epochs(10)),
        (term: Alignment(level: Prototypes), weight: 0.1, from: Epochs(10)),
        (term: Uniformity(level: Prototypes, t: 2.0), weight: Linear(from: 0.0, to: 0.1, over: Epochs(5)), from: Epochs(10)),
        (term: Correlation(kind: Cross), weight: 0.1, from: Epochs(10)),
    ],
    train: (epochs: 40, batch: 256, seed: 0),
)
"#;

/// Writes the folder.
pub fn write(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir.join("figures"))?;
    let lines: Result<Vec<String>, _> = events().iter().map(serde_json::to_string).collect();
    std::fs::write(dir.join("metrics.jsonl"), lines?.join("\n") + "\n")?;
    std::fs::write(dir.join("recipe.resolved.ron"), RECIPE)?;
    std::fs::write(dir.join("figures/embedding.json"), embedding().to_string())?;
    let run = serde_json::json!({
        "name": "pauc-fashion", "hash": "3fa9c1d2", "seed": 0, "status": "finished", "version": "0.1.0",
        "device": "cpu", "threads": 2, "simd": "avx512", "platform": "linux x86_64", "recipe": "pauc-fashion.ron",
        "data": "Fashion-MNIST, a part of 10 000 training and 2 000 test images, 28×28, 10 classes",
    });
    std::fs::write(dir.join("run.json"), run.to_string())
}
