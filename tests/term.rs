//! `term`: every golden case through the binary, and its errors.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{pauc, root};
use pauc::traits::ops::NORM_EPSILON;
use pauc_testing::assert_within;
use pauc_testing::golden::TERMS;
use pauc_testing::tolerance::{self, UNIT_F32, UNIT_F64, central_difference};
use pauc_testing::vectors::{distance, norm};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().unwrap()],
    }
}

fn shape(v: &Value) -> Vec<usize> {
    match v {
        Value::Array(items) => {
            let mut all = vec![items.len()];
            all.extend(items.first().map(shape).unwrap_or_default());
            all
        }
        _ => Vec::new(),
    }
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn integers(name: &str, v: &Value) -> Tensor {
    let bytes = numbers(v).iter().flat_map(|v| (*v as i64).to_le_bytes()).collect();
    (name.into(), Dtype::I64, shape(v), bytes)
}

fn floats(name: &str, v: &Value, wide: bool) -> Tensor {
    let all = numbers(v);
    if wide {
        (name.into(), Dtype::F64, shape(v), all.iter().flat_map(|v| v.to_le_bytes()).collect())
    } else {
        (name.into(), Dtype::F32, shape(v), all.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect())
    }
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|(n, t, s, b)| (n.as_str(), TensorView::new(*t, s.clone(), b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Returns the term of a case as a recipe writes it, and its tensors.
fn case(case: &Value, wide: bool) -> (String, Vec<Tensor>) {
    let name = case["case"].as_str().unwrap();
    let term = TERMS.iter().find(|(prefix, _)| name.split('/').next() == Some(prefix)).unwrap().1;
    let mut tensors = Vec::new();
    for (name, value) in case["inputs"].as_object().unwrap() {
        let whole = name.starts_with("assignments") || name == "labels";
        tensors.push(if whole { integers(name, value) } else { floats(name, value, wide) });
    }
    let mut fields = Vec::new();
    for (key, value) in case["config"].as_object().unwrap() {
        match value.as_str() {
            _ if key == "negative_ids" => tensors.push(integers("negatives.0", value)),
            Some("Sample") => {
                let drawn = case["config"]["negative_ids"].as_array().unwrap().len();
                fields.push(format!("{key}: Sample({drawn})"));
            }
            Some(word) => fields.push(format!("{key}: {word}")),
            None => fields.push(format!("{key}: {value}")),
        }
    }
    (format!("{term}({})", fields.join(", ")), tensors)
}

fn gradients(path: &Path) -> impl Fn(&str) -> Vec<f64> {
    let bytes = std::fs::read(path).unwrap();
    move |name| {
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let t = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        match t.dtype() {
            Dtype::F64 => t.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            _ => t.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        }
    }
}

/// The longest chain of operations for a number of a golden case: inner products of 6 numbers, three rounds
/// of scaling 8 prototypes and 12 rows, sums over as many.
const OPERATIONS: usize = 128;

/// Returns the numbers, each perturbed by a fraction of itself, with signs from a hash.
fn shaken(v: &Value, share: f64, state: &mut u64) -> Value {
    match v {
        Value::Array(items) => items.iter().map(|v| shaken(v, share, state)).collect(),
        v => {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let sign = if *state >> 63 == 0 { 1.0 } else { -1.0 };
            (v.as_f64().unwrap() * (1.0 + sign * share)).into()
        }
    }
}

/// The value of a term and its gradients.
type Outcome = (f64, BTreeMap<String, Vec<f64>>);

/// Bounds the rounding error of a value and its gradients: the change when inputs are perturbed by γₙ with
/// random signs, which covers the rounding of the inputs to `f32` and of all computations (Higham, section
/// 3.1), and the rounding of the result. The bound of a gradient is on its norm.
fn noise(exact: &Outcome, shaken: &[Outcome]) -> (f64, BTreeMap<String, f64>) {
    let share = tolerance::f32(OPERATIONS, 1.0);
    let largest = |off: &dyn Fn(&Outcome) -> f64| shaken.iter().map(off).fold(0.0, f64::max);
    let value = largest(&|other| (other.0 - exact.0).abs()) + share * exact.0.abs();
    let gradients = exact.1.iter().map(|(name, g)| {
        let off = largest(&|other| distance(&other.1[name], g));
        (name.clone(), off + share * norm(g.iter().copied()))
    });
    (value, gradients.collect())
}

/// The relative error of norms: ours are √(‖x‖² + ε), the golden ones are not. No row of the golden cases,
/// mean of unit rows, or difference between two is shorter than 0.1.
const SHORTFALL: f64 = NORM_EPSILON / 2.0 / (0.1 * 0.1);

#[test]
fn every_golden_case_through_the_binary() {
    let text = std::fs::read_to_string(root().join("pauc-losses/tests/golden/terms.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (inputs, grads) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let mut seen = 0;
    // Codes without a term have no value; the library test compares them.
    for golden in golden.iter().filter(|c| c["case"] != "sinkhorn/codes") {
        let evaluate = |golden: &Value, wide: bool| -> Outcome {
            let (term, tensors) = case(golden, wide);
            write(&inputs, &tensors);
            let (i, g) = (inputs.to_str().unwrap(), grads.to_str().unwrap());
            let out = pauc(["term", &term, "--inputs", i, "--grads", g, "--json"]);
            assert_eq!(out.code, 0, "{term}: {}", out.stderr);
            let json: Value = serde_json::from_str(&out.stdout).unwrap();
            assert_eq!(json["dtype"], if wide { "f64" } else { "f32" });
            let found = gradients(&grads);
            let names = golden["grads"].as_object().unwrap().keys();
            (json["value"].as_f64().unwrap(), names.map(|name| (name.clone(), found(name))).collect())
        };
        let wanted = golden["grads"].as_object().unwrap().iter();
        let want: Outcome =
            (golden["value"].as_f64().unwrap(), wanted.map(|(name, g)| (name.clone(), numbers(g))).collect());
        let mut state = 1;
        let others: Vec<Outcome> = (0..3)
            .map(|_| {
                let mut other = golden.clone();
                for (name, v) in other["inputs"].as_object_mut().unwrap() {
                    if !name.starts_with("assignments") && name != "labels" {
                        *v = shaken(v, tolerance::f32(OPERATIONS, 1.0), &mut state);
                    }
                }
                evaluate(&other, true)
            })
            .collect();
        let (value, by_gradient) = noise(&want, &others);
        let term = &golden["case"];
        for wide in [true, false] {
            // The error of norms changes results less than inputs perturbed by twice as much.
            let rounding = if wide { UNIT_F64 / UNIT_F32 } else { 1.0 };
            let scale = rounding + 4.0 * SHORTFALL / tolerance::f32(OPERATIONS, 1.0);
            // The golden values are computed in double precision from differences of logits, which are at
            // most 1/0.05.
            let golden_off = tolerance::f64(8, 1.0 / 0.05);
            let got = evaluate(golden, wide);
            assert_within!(got.0, want.0, scale * value + golden_off, "{term}");
            for (name, want) in &want.1 {
                let off = distance(&got.1[name], want);
                let within = scale * by_gradient[name] + golden_off * (want.len() as f64).sqrt();
                let size = norm(want.iter().copied());
                assert!(off <= within, "{term}: {name} off by {off:e} of {size:e}, allowed {within:e}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 66);
}

#[test]
fn parameters_that_start_at_a_constant_may_be_omitted() {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, grads) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let view = serde_json::json!([[0.3, -0.2, 0.9], [0.4, 0.1, 0.8], [-0.5, 0.6, 0.2]]);
    let other = serde_json::json!([[0.1, 0.5, 0.7], [0.6, -0.3, 0.2], [0.3, 0.3, 0.4]]);
    let views = [floats("view0", &view, true), floats("view1", &other, true)];
    write(&inputs, &views);
    let value = |term: &str, grads: &Path| {
        let out = pauc([
            "term",
            term,
            "--inputs",
            inputs.to_str().unwrap(),
            "--grads",
            grads.to_str().unwrap(),
            "--json",
        ]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        serde_json::from_str::<Value>(&out.stdout).unwrap()["value"].as_f64().unwrap()
    };
    let fixed = value("InfoNce(temperature: 0.3)", &grads);
    let learnable = value("InfoNce(temperature: Learnable(init: 0.3))", &grads);
    // Cosines are between −1 and 1, so logits are at most 1/T, and the derivative by ln T is at most 2/T. A
    // value of three rows takes 64 operations.
    let most = 2.0 / 0.3;
    assert_within!(learnable, fixed, tolerance::f64(64, most));
    let by_log = gradients(&grads)("ln_temperature")[0];
    let at = |t: f64| value(&format!("InfoNce(temperature: {t})"), &folder.path().join("other.safetensors"));
    let want = (at(0.3 * 1e-5f64.exp()) - at(0.3 * (-1e-5f64).exp())) / 2e-5;
    // L = ln Σ exp(y) of differences y ∝ 1/T, |y| ≤ m. Its third derivative by ln T is −(κ₁ + 3κ₂ + κ₃) in
    // terms of their cumulants, and |κ₁| ≤ m, κ₂ ≤ m², |κ₃| ≤ 2m³.
    let third = most + 3.0 * most.powi(2) + 2.0 * most.powi(3);
    assert_within!(by_log, want, central_difference(1e-5, third, 64, most));
    // The predictions come before the embeddings.
    write(
        &inputs,
        &[floats("view0", &other, true), floats("view1", &other, true), floats("prediction0", &view, true)],
    );
    let predicted = value("CosinePrediction()", &grads);
    assert!(gradients(&grads)("view0").iter().all(|g| *g == 0.0));
    write(&inputs, &views);
    assert_eq!(predicted, value("CosinePrediction()", &grads));
}

#[test]
fn concentrations_are_computed_from_the_clustered_rows() {
    let text = std::fs::read_to_string(root().join("pauc-cluster/tests/golden/concentration.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(golden.len(), 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    for golden in golden {
        let of = &golden["inputs"];
        let (alpha, t) = (&golden["config"]["alpha"], &golden["config"]["temperature"]);
        let how = format!("(alpha: {alpha}, temperature: {t})");
        let want = numbers(&golden["outputs"]["concentration"]);
        let least = want.iter().copied().fold(f64::INFINITY, f64::min);
        // A mean distance is at least 0.79, between a row of length 1 and a centroid of at most that, so
        // rounding is relative to 2. It is followed by sums over 6 columns, 20 samples and 8 prototypes, and
        // ten single operations; the mean that each is divided by has the same error.
        let (operations, magnitude) = (2 * (1 + 6 + 20 + 8 + 10), 2.0 / 0.79);
        let single = tolerance::f32(operations, magnitude);
        for (wide, within) in [(true, tolerance::f64(operations, magnitude)), (false, single)] {
            let mut tensors = vec![
                floats("view0", &of["features"], wide),
                floats("key0", &of["features"], wide),
                integers("assignments.0", &of["assignments"]),
                floats("prototypes.0", &of["centroids"], wide),
            ];
            let computed =
                [floats("features", &of["features"], wide), integers("clusters.0", &of["assignments"])];
            let value = |tensors: &[Tensor]| -> Value {
                write(&path, tensors);
                let inputs = path.to_str().unwrap();
                let out = pauc(["term", "ProtoNce()", "--inputs", inputs, "--concentration", &how, "--json"]);
                assert_eq!(out.code, 0, "{}", out.stderr);
                serde_json::from_str(&out.stdout).unwrap()
            };
            tensors.extend(computed);
            let got = value(&tensors);
            for (got, want) in numbers(&got["concentration"]).iter().zip(&want) {
                assert_within!(*got, *want, within * want);
            }
            assert_eq!(numbers(&got["concentration"]).len(), want.len());
            // The term divides by them.
            tensors.truncate(4);
            tensors.push(floats("concentration.0", &golden["outputs"]["concentration"], wide));
            let (got, want) = (&got["value"], &value(&tensors)["value"]);
            // A logit is a cosine over a concentration, with the error of both; the loss has two of them.
            assert_within!(got.as_f64().unwrap(), want.as_f64().unwrap(), 2.0 * within / least);
        }
    }
}

#[test]
fn errors_name_their_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    let view = serde_json::json!([[0.3, -0.2], [0.4, 0.1]]);
    let refused = |tensors: &[Tensor], term: &str, code: i32, says: &[&str]| {
        write(&path, tensors);
        let out = pauc(["term", term, "--inputs", path.to_str().unwrap()]);
        assert_eq!(out.code, code, "{term}: {}{}", out.stdout, out.stderr);
        for text in says {
            assert!(out.stderr.contains(text), "no `{text}` in\n{}", out.stderr);
        }
    };
    let one = floats("view0", &view, false);
    refused(std::slice::from_ref(&one), "InfoNce()", 1, &["an online view"]);
    refused(std::slice::from_ref(&one), "InfoNse()", 2, &["did you mean `InfoNce`?"]);
    refused(std::slice::from_ref(&one), "InfoNce(temperature: 0)", 2, &["greater than 0, got 0"]);
    refused(&[floats("views0", &view, false)], "InfoNce()", 4, &["`views0`", "known: view0"]);
    refused(
        &[one.clone(), integers("view1", &serde_json::json!([[1, 2], [3, 4]]))],
        "InfoNce()",
        4,
        &["expected f32 or f64"],
    );
    let no_rows: Tensor = ("view1".into(), Dtype::F32, vec![0, 2], Vec::new());
    refused(&[one.clone(), no_rows], "InfoNce()", 4, &["`view1`", "is empty"]);
    let broken = [0.5f32, f32::NAN, 0.1, 0.2].iter().flat_map(|v| v.to_le_bytes()).collect();
    let broken: Tensor = ("view1".into(), Dtype::F32, vec![2, 2], broken);
    refused(&[one.clone(), broken], "InfoNce()", 4, &["`view1`", "has NaN at index 1"]);
    let clusters = |c: &[i64]| integers("clusters.0", &serde_json::json!(c));
    let level = [
        one.clone(),
        floats("features", &view, false),
        floats("prototypes.0", &view, false),
        integers("assignments.0", &serde_json::json!([0, 1])),
    ];
    refused(&level, "ProtoNce()", 4, &["requires `clusters.0`"]);
    let with = |c: &[i64]| [&level[..], &[clusters(c)]].concat();
    refused(&with(&[0, 2]), "ProtoNce()", 4, &["`clusters.0`", "has index 2, but there are 2 prototypes"]);
    refused(&with(&[0]), "ProtoNce()", 4, &["has 1 values, but features are 2×2"]);
    let missing = pauc(["term", "InfoNce()", "--inputs", "no/such/file"]);
    assert!(missing.code != 0 && missing.stderr.contains("no/such/file"), "{}", missing.stderr);
}

#[test]
fn a_new_loss_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let made = pauc(["new", "loss", "WarmLoss", "--out", out]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(made.stdout.contains("mod warm_loss;"), "{}", made.stdout);
    let text = std::fs::read_to_string(folder.path().join("warm_loss.rs")).unwrap();
    let template = std::fs::read_to_string(root().join("pauc-cli/templates/loss.rs")).unwrap();
    assert_eq!(text, template.replace("LossTemplate", "WarmLoss"));
    let again = pauc(["new", "loss", "WarmLoss", "--out", out]);
    assert!(again.code == 2 && again.stderr.contains("already exists"), "{}", again.stderr);
    for (name, says) in [("InfoNce", "contrastive loss `InfoNce` already exists"), ("warm loss", "CamelCase")]
    {
        let refused = pauc(["new", "loss", name, "--out", out]);
        assert!(refused.code == 2 && refused.stderr.contains(says), "{}", refused.stderr);
    }
}
