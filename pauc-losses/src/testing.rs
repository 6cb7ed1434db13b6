//! What the tests of all terms share: toy batches, golden values, finite differences, invariances, extreme inputs.

use dfdx::prelude::*;
use pauc_traits::batch::{Constant, Inputs, Level};
use pauc_traits::open_set::Term;
use pauc_traits::schedule::Clock;
use pauc_traits::term::Facts;
use pauc_traits::{Backend, Batch, Scalar, Value, ops};
use std::collections::BTreeMap;

/// One clustering in plain numbers.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    pub centroids: Vec<f64>,
    pub concentration: Vec<f64>,
    pub assignments: Vec<Option<u32>>,
    pub queue_assignments: Vec<Option<u32>>,
    pub negatives: Option<Vec<usize>>,
}

/// A batch's inputs in plain numbers, row-major.
#[derive(Clone, Debug, Default)]
pub struct Data {
    pub rows: usize,
    pub dim: usize,
    pub views: Vec<Option<Vec<f64>>>,
    pub predictions: Vec<Option<Vec<f64>>>,
    pub keys: Vec<Option<Vec<f64>>>,
    pub queue: Option<Vec<f64>>,
    pub labels: Option<Vec<u32>>,
    pub levels: Vec<Clusters>,
    pub parameters: BTreeMap<String, Vec<f64>>,
    pub seed: u64,
    pub step: u64,
}

/// A smooth pattern without symmetries.
pub fn pattern(rows: usize, cols: usize, phase: f64) -> Vec<f64> {
    let at = |n: usize| (phase + 1.7 * (n / cols) as f64 + 0.9 * (n % cols) as f64 + 0.3 * n as f64).sin();
    (0..rows * cols).map(|n| at(n) * (1.0 + 0.1 * (n / cols) as f64)).collect()
}

pub fn unit_rows(mut m: Vec<f64>, cols: usize) -> Vec<f64> {
    for row in m.chunks_mut(cols) {
        let n = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-300);
        row.iter_mut().for_each(|v| *v /= n);
    }
    m
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The unit row i of a matrix.
pub fn unit(m: &[f64], cols: usize, i: usize) -> Vec<f64> {
    unit_rows(m[i * cols..(i + 1) * cols].to_vec(), cols)
}

impl Data {
    /// Two views, momentum keys of both, a queue, labels, two levels of clusters and a matrix of prototypes.
    pub fn toy(rows: usize, dim: usize) -> Self {
        let level = |k: usize, shift: usize| Clusters {
            centroids: unit_rows(pattern(k, dim, 2.3 + shift as f64), dim),
            concentration: (0..k).map(|j| 0.15 + 0.02 * j as f64).collect(),
            assignments: (0..rows).map(|i| (i % 5 != 4).then_some(((i + shift) % k) as u32)).collect(),
            queue_assignments: (0..9).map(|i| (i % 4 != 1).then_some((i % k) as u32)).collect(),
            negatives: None,
        };
        Data {
            rows,
            dim,
            views: vec![Some(pattern(rows, dim, 0.1)), Some(pattern(rows, dim, 0.5))],
            predictions: Vec::new(),
            keys: vec![Some(pattern(rows, dim, 0.2)), Some(pattern(rows, dim, 0.4))],
            queue: Some(unit_rows(pattern(9, dim, 4.0), dim)),
            labels: Some((0..rows).map(|i| (i % 3) as u32).collect()),
            levels: vec![level(3, 0), level(5, 1)],
            parameters: [
                ("prototypes".to_string(), unit_rows(pattern(5, dim, 7.0), dim)),
                ("centre".to_string(), vec![0.1, -0.05, 0.0, 0.02, 0.15]),
                ("ln_temperature".to_string(), vec![-1.5]),
            ]
            .into(),
            seed: 1,
            step: 0,
        }
    }

    /// The same without a momentum encoder.
    pub fn without_momentum(mut self) -> Self {
        self.keys.clear();
        self
    }

    pub fn inputs<E: Scalar, D: Backend<E>>(&self, dev: &D) -> Inputs<E, D> {
        let matrix = |m: &Vec<f64>, rows: usize| {
            ops::constant(dev, m.iter().map(|v| E::of(*v)).collect(), (rows, self.dim))
        };
        let rows_of = |m: &Vec<f64>| m.len() / self.dim;
        let constant = |m: &Vec<f64>| {
            let values: Vec<E> = m.iter().map(|v| E::of(*v)).collect();
            Constant::new(dev, values, (rows_of(m), self.dim))
        };
        let parameter = |name: &String, m: &Vec<f64>| match name.as_str() {
            "prototypes" => matrix(m, rows_of(m)),
            _ => ops::constant(dev, m.iter().map(|v| E::of(*v)).collect(), (1, m.len())),
        };
        let views =
            |v: &[Option<Vec<f64>>]| v.iter().map(|m| m.as_ref().map(|m| matrix(m, self.rows))).collect();
        Inputs {
            views: views(&self.views),
            predictions: views(&self.predictions),
            keys: views(&self.keys),
            queue: self.queue.as_ref().map(constant),
            labels: self.labels.clone(),
            levels: self
                .levels
                .iter()
                .map(|l| Level {
                    centroids: constant(&l.centroids),
                    concentration: l.concentration.iter().map(|v| E::of(*v)).collect(),
                    assignments: l.assignments.clone(),
                    queue_assignments: l.queue_assignments.clone(),
                    negatives: l.negatives.clone(),
                })
                .collect(),
            parameters: self.parameters.iter().map(|(n, m)| (n.clone(), parameter(n, m))).collect(),
            clock: Clock { step: self.step, ..Clock::still() },
            seed: self.seed,
        }
    }
}

/// A run with momentum encoder and without queue and labels, of the given sizes.
pub fn facts(batch: usize, dim: usize, prototypes: &[usize]) -> Facts {
    Facts {
        batch,
        dim,
        samples: 50_000,
        momentum: true,
        predictor: false,
        queue: None,
        prototypes: prototypes.iter().map(|k| Some(*k)).collect(),
        classes: None,
    }
}

/// What a term gave on a batch.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub value: f64,
    /// By "view0", "view1" and the names of parameters.
    pub gradients: BTreeMap<String, Vec<f64>>,
    pub skipped: Vec<String>,
}

pub fn term(text: &str) -> Term {
    Term::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

pub fn run<E: Scalar>(text: &str, data: &Data) -> Outcome
where
    Cpu: Backend<E>,
{
    try_run::<E>(text, data).unwrap_or_else(|e| panic!("{text}: {e}"))
}

pub fn try_run<E: Scalar>(text: &str, data: &Data) -> pauc_traits::Result<Outcome>
where
    Cpu: Backend<E>,
{
    run_on::<E, Cpu>(&Cpu::default(), text, data)
}

/// The same on a given device.
pub fn run_on<E: Scalar, D: Backend<E>>(dev: &D, text: &str, data: &Data) -> pauc_traits::Result<Outcome> {
    let batch = Batch::<E, D>::new(dev, data.inputs(dev))?;
    let value = term(text).evaluate(&batch)?;
    let number = ops::item(&value);
    let skipped = batch.take_skipped();
    let found = batch.backward(value)?;
    let wide = |v: Vec<E>| v.into_iter().map(|x| x.as_f64()).collect::<Vec<_>>();
    let mut gradients: BTreeMap<_, _> =
        found.parameters.into_iter().map(|(name, g)| (name, wide(g))).collect();
    for (what, all) in [("view", found.views), ("prediction", found.predictions)] {
        for (i, g) in all.into_iter().enumerate() {
            if let Some(g) = g {
                gradients.insert(format!("{what}{i}"), wide(g));
            }
        }
    }
    Ok(Outcome { value: number, gradients, skipped })
}

/// A way to compute a term in single precision.
type Way<'a> = &'a dyn Fn(&Batch<f32, Cpu>) -> pauc_traits::Result<Value<f32, Cpu>>;

/// Two ways to compute a term in single precision agree, in value and gradient.
pub fn fused_equals_plain(data: &Data, fused: Way<'_>, plain: Way<'_>) {
    let dev = Cpu::default();
    let run = |term: Way<'_>| {
        let batch = Batch::new(&dev, data.inputs(&dev)).unwrap();
        // A factor shows whether the gradient is scaled by what comes after the term.
        let value = term(&batch).unwrap() * 3.0;
        let number = ops::item(&value);
        let found = batch.backward(value).unwrap();
        let wide = |all: Vec<Vec<f32>>| all.into_iter().flatten().map(f64::from).collect::<Vec<_>>();
        let views = found.views.into_iter().flatten().collect();
        (number, wide(views), wide(found.parameters.into_values().collect()))
    };
    let ((a, ga, pa), (b, gb, pb)) = (run(fused), run(plain));
    assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} for {b}");
    assert!(distance_above(1e-3, &ga, &gb) < 1e-4, "gradients differ by {:e}", distance(&ga, &gb));
    // A temperature's is a sum over all logits, which cancels where the softmax is saturated.
    assert!(distance_above(0.1, &pa, &pb) < 1e-4, "gradients of parameters: {pa:?} for {pb:?}");
}

/// The value in double precision.
pub fn value(text: &str, data: &Data) -> f64 {
    run::<f64>(text, data).value
}

fn norm(v: &[f64]) -> f64 {
    dot(v, v).sqrt()
}

/// ‖a − b‖/‖b‖, with a floor for a vanishing b.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    distance_above(1e-6, a, b)
}

pub fn distance_above(floor: f64, a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(b).max(floor)
}

const NAMES: &[(&str, &str)] = &[
    ("info_nce", "InfoNce"),
    ("proto_nce", "ProtoNce"),
    ("dcl", "Dcl"),
    ("sup_con", "SupCon"),
    ("swapped_assignment", "SwappedAssignment"),
    ("cosine_prediction", "CosinePrediction"),
    ("proto_scatter", "ProtoScatter"),
    ("vicreg", "VicReg"),
    ("alignment", "Alignment"),
    ("uniformity", "Uniformity"),
    ("correlation", "Correlation"),
    ("ko_leo", "KoLeo"),
];

fn numbers(v: &serde_json::Value) -> Vec<f64> {
    match v {
        serde_json::Value::Array(items) => items.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().unwrap()],
    }
}

/// The golden file, parsed.
pub fn golden_file() -> Vec<serde_json::Value> {
    serde_json::from_str(include_str!("../tests/golden/terms.json")).unwrap()
}

fn golden_data(case: &serde_json::Value) -> Data {
    let inputs = &case["inputs"];
    let matrix = |name: &str| inputs.get(name).map(numbers);
    let mut data = Data {
        rows: inputs["view0"].as_array().unwrap().len(),
        dim: inputs["view0"][0].as_array().unwrap().len(),
        views: vec![matrix("view0"), matrix("view1")],
        keys: if inputs.get("key1").is_some() { vec![None, matrix("key1")] } else { Vec::new() },
        queue: matrix("queue"),
        labels: matrix("labels").map(|l| l.iter().map(|v| *v as u32).collect()),
        ..Data::default()
    };
    for m in 0.. {
        let Some(centroids) = matrix(&format!("prototypes.{m}")) else { break };
        let Some(assignments) = matrix(&format!("assignments.{m}")) else {
            // Prototypes without assignments are learnable ones.
            data.parameters.insert("prototypes".into(), centroids);
            break;
        };
        let k = centroids.len() / data.dim;
        data.levels.push(Clusters {
            centroids,
            concentration: matrix(&format!("concentration.{m}")).unwrap_or(vec![0.2; k]),
            assignments: assignments.iter().map(|v| Some(*v as u32)).collect(),
            queue_assignments: Vec::new(),
            negatives: case["config"]
                .get("negative_ids")
                .map(|ids| numbers(ids).iter().map(|v| *v as usize).collect()),
        });
    }
    data
}

fn golden_text(case: &serde_json::Value) -> Option<String> {
    let name = case["case"].as_str().unwrap();
    let name = NAMES.iter().find(|(prefix, _)| name.split('/').next() == Some(prefix))?.1;
    let negatives = case["config"].get("negative_ids").map_or(0, |ids| ids.as_array().unwrap().len());
    let fields: Vec<String> = case["config"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| *key != "negative_ids")
        .map(|(key, value)| match value.as_str() {
            Some("Sample") => format!("{key}: Sample({negatives})"),
            Some(word) => format!("{key}: {word}"),
            None => format!("{key}: {value}"),
        })
        .collect();
    Some(format!("{name}({})", fields.join(", ")))
}

/// Relative to the reference, however small it is.
fn compare(outcome: &Outcome, case: &serde_json::Value, value: f64, gradient: f64) {
    let (name, want) = (&case["case"], case["value"].as_f64().unwrap());
    let off = (outcome.value - want).abs();
    assert!(off <= value * want.abs(), "{name}: {} for {want}", outcome.value);
    for (input, want) in case["grads"].as_object().unwrap() {
        let found = outcome.gradients.get(input.strip_suffix(".0").unwrap_or(input)).unwrap();
        let off = distance_above(0.0, found, &numbers(want));
        assert!(off <= gradient, "{name}: gradient of {input} is off by {off:e}");
    }
}

/// Compares a term with every golden case under a prefix, in double and in single precision.
pub fn golden(prefix: &str, cases: usize) {
    let mut seen = 0;
    for case in golden_file().iter().filter(|c| c["case"].as_str().unwrap().split('/').next() == Some(prefix))
    {
        let (text, data) = (golden_text(case).unwrap(), golden_data(case));
        compare(&run::<f64>(&text, &data), case, 1e-9, 1e-9);
        compare(&run::<f32>(&text, &data), case, 1e-5, 1e-4);
        seen += 1;
    }
    assert_eq!(seen, cases, "golden cases of {prefix}");
}

#[test]
fn every_golden_case_belongs_to_a_term() {
    for case in golden_file() {
        let name = case["case"].as_str().unwrap();
        assert!(name == "sinkhorn/codes" || golden_text(&case).is_some(), "{name}");
    }
}

/// Compares the gradients of a term with central differences.
pub fn finite_differences(text: &str, data: &Data) {
    let gradients = run::<f64>(text, data).gradients;
    let step = 1e-5;
    for (name, gradient) in &gradients {
        for (i, found) in gradient.iter().enumerate() {
            let at = |by: f64| {
                let mut data = data.clone();
                let number = |n: &str| n.parse::<usize>().unwrap();
                let at = match (name.strip_prefix("view"), name.strip_prefix("prediction")) {
                    (Some(v), _) => data.views[number(v)].as_mut().unwrap(),
                    (_, Some(v)) => data.predictions[number(v)].as_mut().unwrap(),
                    _ => data.parameters.get_mut(name).unwrap(),
                };
                at[i] += by;
                value(text, &data)
            };
            let want = (at(step) - at(-step)) / (2.0 * step);
            assert!(
                (found - want).abs() < 1e-6 * (1.0 + want.abs()),
                "{text}: gradient of {name}[{i}] is {found}, central difference {want}"
            );
        }
    }
}

fn permuted(data: &Data, order: &[usize]) -> Data {
    let rows = |m: &Vec<f64>| {
        order.iter().flat_map(|i| m[i * data.dim..(i + 1) * data.dim].to_vec()).collect::<Vec<_>>()
    };
    let mut new = data.clone();
    for v in new.views.iter_mut().chain(&mut new.keys) {
        *v = v.as_ref().map(rows);
    }
    new.labels = data.labels.as_ref().map(|l| order.iter().map(|i| l[*i]).collect());
    for (level, old) in new.levels.iter_mut().zip(&data.levels) {
        level.assignments = order.iter().map(|i| old.assignments[*i]).collect();
    }
    new
}

/// The order of the samples changes nothing but the order of the gradients.
pub fn permutation_invariant(text: &str, data: &Data) {
    let order: Vec<usize> = (0..data.rows).map(|i| (2 * data.rows - i + 1) % data.rows).collect();
    let (a, b) = (run::<f64>(text, data), run::<f64>(text, &permuted(data, &order)));
    assert!((a.value - b.value).abs() < 1e-9 * (1.0 + a.value.abs()), "{text}: {} and {}", a.value, b.value);
    let data = Data { views: vec![a.gradients.get("view0").cloned()], ..data.clone() };
    let want = permuted(&data, &order).views[0].clone().unwrap();
    assert!(distance(&b.gradients["view0"], &want) < 1e-8, "{text}: gradients do not follow the order");
}

/// Rotating the space, with everything in it, changes nothing.
pub fn rotation_invariant(text: &str, data: &Data) {
    // A product of plane rotations that mixes all axes.
    let rotate = |m: &Vec<f64>| {
        let mut m = m.clone();
        for row in m.chunks_mut(data.dim) {
            for a in 0..data.dim {
                for b in a + 1..data.dim {
                    let (sin, cos) = (0.3 + a as f64 + 0.7 * b as f64).sin_cos();
                    (row[a], row[b]) = (cos * row[a] - sin * row[b], sin * row[a] + cos * row[b]);
                }
            }
        }
        m
    };
    let mut rotated = data.clone();
    for v in rotated.views.iter_mut().chain(&mut rotated.keys).chain([&mut rotated.queue]) {
        *v = v.as_ref().map(rotate);
    }
    rotated.levels.iter_mut().for_each(|l| l.centroids = rotate(&l.centroids));
    rotated.parameters.entry("prototypes".into()).and_modify(|p| *p = rotate(p));
    let (a, b) = (run::<f64>(text, data), run::<f64>(text, &rotated));
    assert!((a.value - b.value).abs() < 1e-9 * (1.0 + a.value.abs()), "{text}: {} and {}", a.value, b.value);
    let want = rotate(&a.gradients["view0"]);
    assert!(distance(&b.gradients["view0"], &want) < 1e-8, "{text}: gradients do not rotate along");
}

/// Degenerate batches: identical rows, zero rows, one sample, nothing assigned, one prototype, many prototypes.
pub fn degenerate() -> Vec<(&'static str, Data)> {
    let toy = || Data::toy(7, 4);
    let same = |data: &mut Data, row: &[f64]| {
        for v in data.views.iter_mut().chain(&mut data.keys) {
            *v = Some(row.repeat(7));
        }
    };
    let mut identical = toy();
    same(&mut identical, &[0.3, -0.2, 0.9, 0.4]);
    let mut zero = toy();
    same(&mut zero, &[0.0; 4]);
    let mut one_zero = toy();
    one_zero.views.iter_mut().chain(&mut one_zero.keys).flatten().for_each(|v| v[..4].fill(0.0));
    let mut unassigned = toy();
    unassigned.levels.iter_mut().for_each(|l| l.assignments.fill(None));
    let mut one_prototype = toy();
    one_prototype.levels.iter_mut().for_each(|l| l.assignments.fill(Some(1)));
    let mut labels_once = toy();
    labels_once.labels = Some((0..7).collect());
    let mut many = toy();
    many.levels = vec![Clusters {
        centroids: unit_rows(pattern(100, 4, 3.0), 4),
        concentration: vec![0.2; 100],
        assignments: (0..7).map(|i| Some(i * 11)).collect(),
        queue_assignments: vec![None; 9],
        negatives: None,
    }];
    let mut large = toy();
    large.views.iter_mut().flatten().flatten().for_each(|v| *v *= 1e3);
    vec![
        ("identical rows", identical),
        ("zero rows", zero),
        ("one zero row", one_zero),
        ("one sample", Data::toy(1, 4)),
        ("two samples", Data::toy(2, 4)),
        ("nothing assigned", unassigned),
        ("one prototype", one_prototype),
        ("labels seen once", labels_once),
        ("many prototypes", many),
        ("large outputs", large),
        ("no momentum", toy().without_momentum()),
    ]
}

/// Values and gradients are finite on every degenerate batch, in both precisions.
pub fn finite(text: &str) {
    for (what, data) in degenerate() {
        if term(text).info().needs().momentum && data.keys.is_empty() {
            continue;
        }
        for outcome in [run::<f64>(text, &data), run::<f32>(text, &data)] {
            let ok = outcome.value.is_finite()
                && outcome.value.abs() < 1e20
                && outcome.gradients.values().flatten().all(|g| g.is_finite());
            assert!(ok, "{text} on {what}: {outcome:?}");
        }
    }
}
