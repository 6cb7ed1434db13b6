//! `cluster`: from the features in a file to prototypes.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Output, pauc};
use pauc_testing::{assert_within, tolerance};
use std::path::{Path, PathBuf};

/// A `.npy` file of 32-bit floats.
fn npy(path: &Path, rows: usize, cols: usize, values: &[f32]) -> PathBuf {
    std::fs::write(path, pauc_testing::npy::floats(&format!("({rows}, {cols})"), values)).unwrap();
    path.to_path_buf()
}

/// Returns 120 points around 4 corners, cycling through the corners.
fn corners() -> Vec<f32> {
    let at =
        |i: usize| [(i % 4 / 2) as f32 * 10.0 + (i as f32).sin(), (i % 2) as f32 * 10.0 + (i as f32).cos()];
    (0..120).flat_map(at).collect()
}

fn cluster(file: &Path, with: &str, more: &[&str]) -> Output {
    let file = file.display().to_string();
    let mut args = vec!["cluster", &file, "--with", with];
    args.extend(more);
    let out = pauc(args);
    assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    out
}

fn refused(file: &Path, with: &str, more: &[&str], code: i32, says: &str) {
    let out = cluster(file, with, more);
    assert_eq!(out.code, code, "{says}: {} {}", out.stdout, out.stderr);
    assert!(out.stderr.contains(says), "no `{says}` in\n{}", out.stderr);
}

#[test]
fn four_corners_are_found_scored_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = npy(&folder.path().join("x.npy"), 120, 2, &corners());
    let labels = folder.path().join("labels.csv");
    std::fs::write(&labels, (0..120).map(|i| format!("{}\n", i % 4)).collect::<String>()).unwrap();
    let out = folder.path().join("out.safetensors");
    let (labels, out_text) = (labels.display().to_string(), out.display().to_string());
    let more = ["--labels", &labels, "--out", &out_text, "--json"];
    let printed = cluster(&file, "KMeans(k: [4, 2])", &more);
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let json: serde_json::Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!((&json["rows"], &json["cols"]), (&120.into(), &2.into()));
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
    let level = &json["levels"][0];
    // The squared distances to the means of the points of each corner.
    let (points, mut squares, mut magnitude) = (corners(), 0.0, 0.0);
    for column in 0..2 {
        for corner in 0..4 {
            let of = || (0..30).map(|i| f64::from(points[2 * (4 * i + corner) + column]));
            let mean = of().sum::<f64>() / 30.0;
            squares += of().map(|v| (v - mean).powi(2)).sum::<f64>();
            magnitude += of().map(|v| (v.abs() + mean.abs()).powi(2)).sum::<f64>();
        }
    }
    // The largest sums are ‖x‖² + ‖c‖² − 2·x·c. An error of a centroid has only a second-order effect.
    assert_within!(level["objective"].as_f64().unwrap(), squares, tolerance::f32(8, magnitude));
    assert_eq!(level["metrics"]["labels/ari"], 1.0);
    assert_eq!(level["metrics"]["labels/hungarian_accuracy"], 1.0);
    assert_eq!(level["iterations"].as_u64().unwrap() as usize, level["moved"].as_array().unwrap().len());
    assert_eq!(level["splits"], 0);
    // Corners are 10 apart, points at most 1 from theirs: 1 − a/b is at least 1 − 2/8.
    assert!(level["metrics"]["silhouette"].as_f64().unwrap() > 0.7);
    assert_eq!(json["levels"][1]["k"], 2);

    let bytes = std::fs::read(out).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (name, dtype, shape) in [
        ("prototypes.0", "F32", vec![4, 2]),
        ("assignments.0", "I64", vec![120]),
        ("concentration.0", "F32", vec![4]),
        ("prototypes.1", "F32", vec![2, 2]),
    ] {
        assert_eq!(header[name]["dtype"], dtype);
        assert_eq!(header[name]["shape"], serde_json::json!(shape));
    }
    let place = &header["assignments.0"]["data_offsets"];
    let part = |i: usize| 8 + length + place[i].as_u64().unwrap() as usize;
    let assigned: Vec<i64> =
        bytes[part(0)..part(1)].chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    assert!(assigned.iter().enumerate().all(|(i, a)| *a == assigned[i % 4]), "{assigned:?}");
}

#[test]
fn files_of_all_kinds_and_any_number_of_threads_give_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> =
        (0..700 * 20).map(|i| ((i * i) as f32 * 0.013).sin() + (i / 20 % 9) as f32).collect();
    let file = npy(&folder.path().join("x.npy"), 700, 20, &values);
    let text: String = values
        .chunks(20)
        .map(|r| r.iter().map(f32::to_string).collect::<Vec<_>>().join(",") + "\n")
        .collect();
    let csv = folder.path().join("x.csv");
    std::fs::write(&csv, text).unwrap();
    for with in [
        "KMeans(k: [80, 7])",
        "KMeans(k: [70], spherical: true)",
        "MiniBatchKMeans(k: [70], batch: 100)",
        "HierarchicalKMeans(k: [5, 70])",
        "HierarchicalKMeans(k: [600])",
        "Agglomerative(k: [9], leaves: 70)",
        "GaussianMixture(k: [8])",
        "Sinkhorn(k: [8])",
        "Dbscan(radius: 3.0)",
    ] {
        let of = |file: &Path, threads: &str| {
            let out = folder.path().join("out.safetensors").display().to_string();
            let done = cluster(file, with, &["--out", &out, "--threads", threads]);
            assert_eq!(done.code, 0, "{with}: {}", done.stderr);
            std::fs::read(out).unwrap()
        };
        let one = of(&file, "1");
        for (other, threads) in [(&file, "2"), (&file, "4"), (&csv, "1")] {
            assert!(one == of(other, threads), "{with}: {other:?} with {threads} threads differs");
        }
    }
}

#[test]
fn mistakes_have_their_messages_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let good = npy(&at("x.npy"), 120, 2, &corners());
    refused(&good, "KMeans(k: [121])", &[], 2, "lower k to 120 or less");
    refused(&good, "KMeans(k: [])", &[], 2, "k is an empty list");
    refused(&good, "Kmeans(k: [3])", &[], 2, "did you mean `KMeans`?");
    refused(&good, "KMeans(k: [0])", &[], 2, "E0106");
    refused(&good, "Labels()", &[], 2, "needs class labels");
    refused(&good, "KMeans(k: [3])", &["--temperature", "0"], 2, "--temperature");
    refused(&at("none.npy"), "KMeans(k: [3])", &[], 4, "not found");
    refused(&at("x.hdf5"), "KMeans(k: [3])", &[], 2, "give a .safetensors, .npy, .csv or .parquet file");
    #[cfg(not(feature = "parquet"))]
    refused(&at("x.parquet"), "KMeans(k: [3])", &[], 2, "without the feature `parquet`");
    let mut values = corners();
    values[7] = f32::NAN;
    refused(&npy(&at("nan.npy"), 120, 2, &values), "KMeans(k: [3])", &[], 4, "row 3, column 1: NaN");
    values[7] = f32::NEG_INFINITY;
    refused(&npy(&at("inf.npy"), 120, 2, &values), "Dbscan(radius: 1.0)", &[], 4, "row 3, column 1: -inf");
    refused(&npy(&at("cut.npy"), 130, 2, &corners()), "KMeans(k: [3])", &[], 4, "is truncated");
    refused(&npy(&at("empty.npy"), 0, 2, &[]), "KMeans(k: [3])", &[], 4, "is empty");
    std::fs::write(at("few.csv"), "0\n1\n").unwrap();
    let few = at("few.csv").display().to_string();
    refused(&good, "KMeans(k: [3])", &["--labels", &few], 4, "2 labels for 120 samples");
    let mut wrong = std::fs::read(&good).unwrap();
    wrong[22] = b'i';
    std::fs::write(at("int.npy"), wrong).unwrap();
    refused(&at("int.npy"), "KMeans(k: [3])", &[], 4, "holds i4; expected 32-bit floats");
}

#[test]
fn unusual_features_work() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, rows, cols, values: &[f32], with: &str| {
        let file = npy(&folder.path().join(name), rows, cols, values);
        let out = cluster(&file, with, &["--json"]);
        assert_eq!(out.code, 0, "{name} {with}: {}", out.stderr);
        let json: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        json["levels"][0].clone()
    };
    let zeros = of("zeros.npy", 40, 3, &[0.0; 120], "KMeans(k: [4], spherical: true)");
    assert_eq!(zeros["objective"], 0.0);
    for with in
        ["KMeans(k: [5])", "MiniBatchKMeans(k: [5])", "HierarchicalKMeans(k: [2, 5])", "Sinkhorn(k: [5])"]
    {
        // The halves of a split are 1/1024 of each coordinate away from the point, until an update restores
        // one.
        let objective = of("same.npy", 40, 3, &[1.5; 120], with)["objective"].as_f64().unwrap();
        let most = 120.0 * (1.5f64 / 1024.0).powi(2);
        // Differences are exact; their squares and the sum of 120 of them are rounded.
        assert!(objective <= most + tolerance::f32(121, most), "{with}: {objective}");
    }
    let line: Vec<f32> = (0..50).map(|i| i as f32).collect();
    assert_eq!(of("line.npy", 50, 1, &line, "KMeans(k: [50])")["objective"], 0.0, "k = n, d = 1");
    let one = of("line.npy", 50, 1, &line, "KMeans(k: [1])");
    assert_eq!(one["objective"], 50.0 * (50.0 * 50.0 - 1.0) / 12.0, "one cluster: n(n² − 1)/12");
}
