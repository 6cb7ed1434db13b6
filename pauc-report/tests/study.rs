//! The page about a sweep.

// Helpers may unwrap, like the tests themselves.
#![allow(clippy::unwrap_used)]

mod synthetic;

use pauc_report::events::{Event, Log, Metric, Subject};
use pauc_report::side_by_side::RecipeChange;
use pauc_report::study::{Difference, Differences, Mean, StudyRun, TunedArm, Variant, render};
use pauc_report::{ReportData, Study, write_study};
use pauc_traits::probe::MetricKind;
use std::collections::BTreeMap;
use std::path::Path;

const KNN: &str = "knn/cos/k20/t0.07";

/// Writes a run whose accuracies are those of the synthetic one times a factor.
fn run(dir: &Path, seed: u64, factor: f64) -> StudyRun {
    synthetic::write(dir).unwrap();
    let mut events = synthetic::events();
    for event in &mut events {
        if let Event::Probe(p) = event
            && p.subject == Subject::Trained
        {
            let accuracies = p.metrics.iter_mut().filter(|m| m.kind == MetricKind::Accuracy);
            accuracies.for_each(|m| m.value *= factor);
        }
    }
    let lines: Vec<String> = events.iter().map(|e| serde_json::to_string(e).unwrap()).collect();
    std::fs::write(dir.join("metrics.jsonl"), lines.join("\n") + "\n").unwrap();
    let info = serde_json::json!({ "name": "x", "hash": "0", "seed": seed, "status": "finished", "version": "9.9",
        "simd": if seed == 0 { "avx2" } else { "avx512" } });
    std::fs::write(dir.join("run.json"), info.to_string()).unwrap();
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for event in Log::read(&dir.join("metrics.jsonl")).unwrap().events {
        if let Event::Probe(p) = event
            && p.subject == Subject::Trained
        {
            metrics.extend(p.metrics.into_iter().map(|m| (m.name.clone(), m)));
        }
    }
    StudyRun { seed, data: ReportData::read(dir).unwrap(), metrics }
}

fn values(k: &str, weight: &str) -> Vec<(String, String)> {
    vec![("clusterer.k".into(), k.into()), ("objective[1].weight".into(), weight.into())]
}

/// Two arms over two values of two paths, with two seeds.
fn study(dir: &Path) -> Study {
    let mut variants = Vec::new();
    for arm in ["pcl", "<pauc>"] {
        for (k, weight) in [("[10]", "0.0"), ("[10]", "4.0"), ("[99]", "0.0"), ("[99]", "4.0")] {
            let runs: Vec<StudyRun> = (0..2)
                .map(|seed| {
                    let i = variants.len() as f64 + seed as f64 / 10.0;
                    run(&dir.join(format!("{}-{seed}", variants.len())), seed, 1.0 - 0.01 * i)
                })
                .collect();
            let of: Vec<f64> = runs.iter().map(|r| r.metrics[KNN].value).collect();
            let mean = Mean { n: 2, mean: (of[0] + of[1]) / 2.0, sd: 0.01, interval: Some([0.7, 0.9]) };
            let change =
                RecipeChange { path: "objective[1].weight".into(), first: None, other: Some("<b>".into()) };
            variants.push(Variant {
                arm: arm.into(),
                values: values(k, weight),
                hash: format!("hash{}", variants.len()),
                changes: vec![change],
                runs,
                planned: 2 + usize::from(variants.is_empty()),
                means: BTreeMap::from([(KNN.to_string(), mean)]),
                ..Variant::default()
            });
        }
    }
    let difference = Difference {
        arm: "<pauc>".into(),
        values: values("[10]", "4.0"),
        metric: KNN.into(),
        n: 2,
        mean: -0.0123,
        t_interval: Some([-0.02, 0.03]),
        bootstrap_interval: Some([-0.015, 0.01]),
        p: Some(0.0213),
        p_holm: Some(0.0852),
        cohens_d: Some(-1.5),
    };
    let lr = |v: &str| vec![("optimizer.lr".to_string(), v.to_string())];
    Study {
        name: "a study".into(),
        command: "pauc-cli sweep a.ron --report a.html".into(),
        notes: vec!["Nothing was chosen.".into()],
        metrics: vec![KNN.into()],
        variants,
        differences: Some(Differences {
            to: "pcl".into(),
            tests: 4,
            resamples: 10_000,
            all: vec![difference],
        }),
        trials: vec![TunedArm {
            arm: "pcl".into(),
            trials: vec![(lr("0.1"), Some(0.5)), (lr("0.2"), None)],
            chosen: Some(0),
            ..TunedArm::default()
        }],
        text: "Sweep(recipe: \"<x>\")".into(),
    }
}

#[test]
fn the_page_has_every_seed_and_every_number() {
    let dir = tempfile::tempdir().unwrap();
    let all = study(dir.path());
    let page = render(&all).unwrap();
    for variant in &all.variants {
        for run in &variant.runs {
            let arm = variant.arm.replace('<', "&lt;").replace('>', "&gt;");
            let dot = format!("{arm}, seed {}: {:.2} %", run.seed, 100.0 * run.metrics[KNN].value);
            assert!(page.contains(&dot), "no {dot}");
        }
        let mean = format!("<td>{:.2} % ± 1.00</td>", 100.0 * variant.means[KNN].mean);
        assert!(page.contains(&mean), "no {mean}");
        assert!(page.contains(&variant.hash));
    }
    let difference = "<td>2</td><td>−1.23</td><td>−2.00 … +3.00</td><td>−1.50 … +1.00</td><td>0.0213</td>\
                      <td>0.0852</td><td>−1.50</td>";
    assert!(page.contains(difference), "no {difference}");
    assert!(page.contains("Holm's correction for 4 tests"));
    // A run of the first variant is missing; the instruction sets differ.
    assert!(page.contains("pcl · k=[10] · weight=0.0: 2 of 3 runs"));
    assert!(page.contains("avx2 (8 runs); avx512 (8 runs)") && page.contains("<td>9.9</td>"));
    assert!(page.contains("<td>lr=0.1</td><td>0.5000</td><td>chosen</td>"));
}

#[test]
fn two_swept_values_have_maps_and_curves_have_bands() {
    let dir = tempfile::tempdir().unwrap();
    let all = study(dir.path());
    let page = render(&all).unwrap();
    assert_eq!(page.matches("↓ k   → weight").count(), 2, "one map per arm");
    let best = all.variants.iter().map(|v| v.means[KNN].mean).fold(f64::MIN, f64::max);
    assert!(page.contains(&format!(">{:.1}</text>", 100.0 * best)));
    // A line and a band per variant in the chart of the accuracy over epochs.
    let chart = page.split("<figure>").find(|f| f.contains(&format!("<title>Accuracy by {KNN}"))).unwrap();
    assert_eq!((chart.matches("class=\"band\"").count(), chart.matches("class=\"line\"").count()), (8, 8));
    let cloud = page.split("<figure>").find(|f| f.contains("effective rank within classes")).unwrap();
    assert_eq!(cloud.matches("<circle").count(), 16, "one dot per run");
    assert_eq!(
        page.matches("distances between groups have no meaning").count(),
        8,
        "embeddings side by side"
    );
}

#[test]
fn a_path_with_three_values_has_a_line_per_arm() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = study(dir.path());
    // The second path has four values now, and the first one.
    for (i, v) in all.variants.iter_mut().enumerate() {
        v.values = values("[10]", &format!("{}.5", i % 4));
    }
    let page = render(&all).unwrap();
    assert!(page.contains("Results over objective[1].weight"));
    let title = format!("<title>{KNN}, k=[10]");
    let chart = page.split("<figure>").find(|f| f.contains(&title)).unwrap();
    for (v, place) in all.variants.iter().zip([0, 1, 2, 3, 0, 1, 2, 3]) {
        let arm = v.arm.replace('<', "&lt;").replace('>', "&gt;");
        let at = if place == 0 { "0".to_string() } else { format!("{place}.000") };
        let tooltip = format!("<title>{arm}: {:.2} % at {at}</title>", 100.0 * v.means[KNN].mean);
        assert!(chart.contains(&tooltip) && chart.contains(&format!(">{place}.5</text>")), "no {tooltip}");
    }
    assert_eq!(chart.matches("class=\"band\"").count(), 2);
    assert!(!page.contains("↓ "), "one swept path has no map");
}

#[test]
fn the_page_loads_nothing_and_names_stay_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_study(&study(dir.path()), &dir.path().join("a.html")).unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.contains("&lt;pauc&gt;") && page.contains("&lt;b&gt;") && page.contains("&lt;x&gt;"));
    assert!(!page.contains("<pauc>") && !page.contains("<x>") && !page.contains("NaN"));
    let page = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn a_page_without_a_finished_run_is_refused() {
    let error = render(&Study::default()).unwrap_err().to_string();
    assert!(error.contains("no run of the sweep has finished"), "{error}");
}
