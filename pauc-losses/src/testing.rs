//! Shared parts of the tests of all terms: toy batches, golden values, finite differences, invariances,
//! extreme inputs.

use dfdx::prelude::*;
use pauc_testing::golden::TERMS;
pub use pauc_testing::vectors::distance as gap;
use pauc_testing::vectors::norm;
use pauc_testing::{assert_within, tolerance};
use pauc_traits::batch::{Constant, Inputs, Level};
use pauc_traits::component_ron::Term;
pub use pauc_traits::private::inventory;
use pauc_traits::schedule::Clock;
use pauc_traits::term::Facts;
use pauc_traits::{Backend, Batch, Scalar, Value, ops};
use rand::{Rng, SeedableRng, rngs::StdRng};
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

/// Says where the gradient of a term is the derivative of its value.
#[derive(Clone, Copy, PartialEq)]
pub enum Flow {
    /// Everywhere.
    Full,
    /// Only if keys come from a momentum encoder: online keys are treated as constants.
    WithMomentum,
    /// Nowhere, because the term's targets depend on the embeddings and are treated as constants. The term's
    /// own file compares its gradient with differences at fixed targets.
    Targets,
}

/// The forms of a term that tests evaluate, and the properties they have. A term's file registers them with
/// [`inventory::submit`]. `properties` reads all of them, and uses the default form of a term that registers
/// none.
#[derive(Clone, Copy)]
pub struct Forms {
    /// The name of the term.
    pub term: &'static str,
    /// Where the gradient is the derivative of the value.
    pub flow: Flow,
    /// Forms on which everything is checked, given by their fields.
    pub forms: &'static [&'static str],
    /// The forms among them that change under a rotation of the space, because they read single coordinates.
    pub axes: &'static [&'static str],
    /// Further forms that stay finite on every degenerate batch: extreme settings.
    pub extremes: &'static [&'static str],
}

inventory::collect!(Forms);

impl Forms {
    /// Returns the default form of a term.
    pub const fn of(term: &'static str) -> Self {
        Forms { term, flow: Flow::Full, forms: &[""], axes: &[], extremes: &[] }
    }

    /// Returns the form with these fields, as in a recipe.
    pub fn text(&self, fields: &str) -> String {
        format!("{}({fields})", self.term)
    }
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

/// Returns a smooth pattern without symmetries.
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

/// Returns the unit row i of a matrix as terms see it: [`ops::l2_normalize`] in plain numbers.
pub fn unit(m: &[f64], cols: usize, i: usize) -> Vec<f64> {
    let row = &m[i * cols..(i + 1) * cols];
    let n = (dot(row, row) + ops::NORM_EPSILON).sqrt();
    row.iter().map(|v| v / n).collect()
}

impl Data {
    /// Returns two views, momentum keys of both, a queue, labels, two levels of clusters and a matrix of
    /// prototypes.
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

    /// Removes the momentum encoder.
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

/// Facts of a run of the given sizes, with a momentum encoder and without queue and labels.
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
        relative_weight: 1.0,
    }
}

/// Returns the mean over the levels of a value of the pairs i < l of samples that share a prototype.
pub fn mean_over_pairs_of_members(data: &Data, value: impl Fn(&[(usize, usize)]) -> f64) -> f64 {
    let of_level = |level: &Clusters| {
        let (mut pairs, s) = (Vec::new(), &level.assignments);
        for i in 0..data.rows {
            for l in i + 1..data.rows {
                if s[i].is_some() && s[i] == s[l] {
                    pairs.push((i, l));
                }
            }
        }
        value(&pairs)
    };
    data.levels.iter().map(of_level).sum::<f64>() / data.levels.len() as f64
}

/// The result of a term on a batch.
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

/// Parses the configuration of a term, such as `InfoNce(temperature: 0.1)`.
pub fn parse<T: serde::de::DeserializeOwned>(text: &str) -> T {
    let fields = text.find('(').map_or(text, |start| &text[start..]);
    pauc_traits::component_ron::options().from_str(fields).unwrap_or_else(|e| panic!("{text}: {e}"))
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

/// Runs a term on the given device.
pub fn run_on<E: Scalar, D: Backend<E>>(dev: &D, text: &str, data: &Data) -> pauc_traits::Result<Outcome> {
    run_by(dev, data, |batch| term(text).evaluate(batch))
}

/// Runs one implementation of a term.
pub fn run_by<E: Scalar, D: Backend<E>>(
    dev: &D,
    data: &Data,
    loss: impl Fn(&Batch<E, D>) -> pauc_traits::Result<Value<E, D>>,
) -> pauc_traits::Result<Outcome> {
    let batch = Batch::<E, D>::new(dev, data.inputs(dev))?;
    let value = loss(&batch)?;
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

/// [`tolerance::f32`] or [`tolerance::f64`].
pub type Rounding = fn(usize, f64) -> f64;

/// How much rounding changes the value and the gradients of a term on a batch.
///
/// A rounded computation equals the exact one on inputs that are slightly off (Higham, *Accuracy and
/// Stability of Numerical Algorithms*, section 1.5): each by a relative γₙ, where n is the longest chain of
/// operations. The result is off by γₙ times the condition of the term. The condition is measured as the
/// largest response to relative changes of all inputs with random signs. Real rounding errors are far smaller
/// than γₙ, which leaves room for signs that were not drawn.
///
/// One error does not correspond to any input. A softmax shifts logits by the largest, and its loss is the
/// difference of two logits. Each of [`SHIFTS`] such steps rounds a number as large as the largest logit S,
/// which changes a logarithm by u·S, and a probability p by p·u·S. A gradient is Σ (p − y)·row/(τ·N) for each
/// of N rows, divided by ‖x‖.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The longest chain of operations from an input to the value, as an equivalent number n of roundings of
    /// equal sign.
    pub operations: usize,
    /// |L| and its response to relative changes.
    pub value: f64,
    /// ‖g‖ and its response to relative changes, by the names of [`Outcome::gradients`].
    pub gradients: BTreeMap<String, f64>,
    /// The effect of rounding the shifts: in the value, in gradients of rows, and in gradients of parameters.
    pub shifts: [f64; 3],
    /// The difference from the same term on rows of exact unit length: in the value, and in gradients.
    pub shortened: [f64; 2],
}

/// Shift, difference, logarithm and the addition of the shift.
const SHIFTS: usize = 4;
/// The number of sign patterns that a condition is measured with.
const PATTERNS: usize = 8;

impl Condition {
    /// Measures the condition of a term in its plain composition.
    pub fn of(text: &str, data: &Data) -> Self {
        const CHANGE: f64 = 1e-6;
        let still = run::<f64>(text, data);
        let (mut value, mut gradients) = (0.0f64, BTreeMap::new());
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..PATTERNS {
            let mut moved = data.clone();
            let rows = moved.views.iter_mut().chain(&mut moved.predictions).chain(&mut moved.keys);
            let levels = moved.levels.iter_mut().flat_map(|l| [&mut l.centroids, &mut l.concentration]);
            let inputs = rows.flatten().chain(&mut moved.queue).chain(moved.parameters.values_mut());
            for v in inputs.chain(levels).flatten() {
                *v *= 1.0 + if rng.r#gen::<bool>() { CHANGE } else { -CHANGE };
            }
            let moved = run::<f64>(text, &moved);
            value = value.max((moved.value - still.value).abs() / CHANGE);
            for (name, gradient) in &still.gradients {
                let response = gap(gradient, &moved.gradients[name]) / CHANGE;
                let largest = gradients.entry(name.clone()).or_insert(0.0f64);
                *largest = largest.max(response);
            }
        }
        for (name, gradient) in &still.gradients {
            *gradients.get_mut(name).unwrap() += norm(gradient);
        }
        let queue = data.queue.as_ref().map_or(0, |q| q.len() / data.dim);
        let prototypes = data.levels.iter().map(|l| l.concentration.len()).max().unwrap_or(0);
        // Two unit rows, their inner product, the sum over candidates, and the mean over rows.
        let operations = 2 * (data.dim + 3) + data.dim + 8 + (2 * data.rows + queue + prototypes) + data.rows;
        // Roundings in both directions amount to 6·√n·u of the possible n·u (Higham and Mary 2019).
        let operations = operations.min((tolerance::SIGMAS * (operations as f64).sqrt()).ceil() as usize);
        let (logit, steep) = sharpness(text, data);
        // A row of one number is divided by itself, so its gradient consists of rounding only.
        let of_rows =
            steep * if data.dim == 1 { 1.0 } else { logit } * inverse_lengths(data) / data.rows as f64;
        let shifts = [logit, of_rows, logit * steep];
        let shortened = [0.0; 2];
        Condition { operations, value: value + still.value.abs(), gradients, shifts, shortened }
    }

    /// Adds the difference from a reference that divides rows by ‖x‖ instead of √(‖x‖² + ε).
    ///
    /// Rows that are 1024 times as long lose a millionth of the effect of ε, which measures it. Batch
    /// prototypes are normalized sums, here no shorter than a half: they lose a fraction of up to 2ε, and a
    /// cosine of two loses 4ε. A distance d that is smoothed by ε grows by ε/2d, and is above 0.1 here.
    pub fn beside_exact_rows(self, text: &str, data: &Data) -> Self {
        const LONGER: f64 = 1024.0;
        let name = text.split('(').next().unwrap();
        let raw =
            ["Variance", "VicReg"].contains(&name) || name == "Correlation" && text.contains("Instances");
        let mut shortened = [0.0f64; 2];
        if !raw {
            let (here, mut longer) = (run::<f64>(text, data), data.clone());
            let rows = longer.views.iter_mut().chain(&mut longer.predictions).chain(&mut longer.keys);
            rows.flatten().flatten().for_each(|v| *v *= LONGER);
            let there = run::<f64>(text, &longer);
            shortened[0] = (here.value - there.value).abs();
            for (name, gradient) in here.gradients.iter().filter(|(name, _)| of_rows(name)) {
                let other: Vec<f64> = there.gradients[name].iter().map(|g| LONGER * g).collect();
                shortened[1] = shortened[1].max(gap(gradient, &other));
            }
        }
        if ["Alignment", "Correlation", "ProtoScatter", "Uniformity"].contains(&name) {
            let steepest = self.gradients.values().copied().fold(0.0, f64::max);
            shortened[0] += 4.0 * ops::NORM_EPSILON * (self.value + self.shifts[0]);
            shortened[1] += 4.0 * ops::NORM_EPSILON * (steepest * (1.0 + self.shifts[0]) + self.shifts[1]);
        }
        Condition { shortened, ..self }
    }

    /// The condition for a loss ℓ = ln(1 + Σ exp(negative − positive)) that is computed in this form. Its
    /// derivative with respect to a logit is at most min(1, ℓ), so the effect of shifts is as small as the
    /// loss, also in the mean over N rows.
    pub fn streaming(text: &str, data: &Data) -> Self {
        let (of, loss) = (Condition::of(text, data), value(text, data));
        let [value, of_rows, of_parameters] = of.shifts;
        // The loss of all rows may come from a single one.
        let small = (loss * (data.rows as f64).sqrt()).min(1.0);
        Condition { shifts: [value * loss.min(1.0), of_rows * small, of_parameters * loss.min(1.0)], ..of }
    }

    /// Adds further operations on each input.
    pub fn after(self, more: usize) -> Self {
        Condition { operations: self.operations + more, ..self }
    }

    /// Returns the tolerance of the value.
    pub fn of_value(&self, rounding: Rounding) -> f64 {
        rounding(self.operations, self.value) + rounding(SHIFTS, self.shifts[0]) + self.shortened[0]
    }

    /// Returns the tolerance of a gradient, in its norm. The backward pass is as long as the forward pass. An
    /// input whose gradient is zero and stays zero gets none.
    pub fn of_gradient(&self, name: &str, rounding: Rounding) -> f64 {
        if self.gradients[name] == 0.0 {
            return 0.0;
        }
        let rounded = rounding(2 * self.operations, self.gradients[name]);
        rounded + rounding(SHIFTS, self.shifts[if of_rows(name) { 1 } else { 2 }]) + self.shortened[1]
    }
}

/// Returns whether a gradient belongs to rows that are divided by their length.
fn of_rows(name: &str) -> bool {
    name.starts_with("view") || name.starts_with("prediction")
}

/// Returns the largest number that a softmax of the term sees, a difference of cosines over the smallest
/// temperature, and the largest factor of a cosine that a gradient flows through. Terms of distances see
/// differences of cosines; terms of moments do not.
fn sharpness(text: &str, data: &Data) -> (f64, f64) {
    let written = pauc_traits::component_ron::options().to_string(&term(text)).unwrap();
    let name = written.split('(').next().unwrap();
    if ["Correlation", "Variance", "VicReg"].contains(&name) {
        return (0.0, 0.0);
    }
    let concentrations = data.levels.iter().flat_map(|l| &l.concentration);
    let smallest = concentrations.copied().filter(|_| name == "ProtoNce").fold(1.0, f64::min);
    let (mut logit, mut steep) = (2.0 / smallest, 1.0 / smallest);
    for (field, set) in written.split(['(', ',', ')']).filter_map(|setting| setting.split_once(':')) {
        let factor = match (field, set.parse::<f64>()) {
            // −t·d² with d² = 2 − 2·cosine.
            ("t", Ok(t)) => 2.0 * t,
            ("epsilon", Ok(t)) => 1.0 / t,
            (field, Ok(t)) if field.ends_with("temperature") => 1.0 / t,
            ("temperature", Err(_)) => 1.0 / data.parameters["ln_temperature"][0].exp(),
            _ => continue,
        };
        logit = logit.max(2.0 * factor);
        // Codes and teachers are constants.
        if !["epsilon", "teacher_temperature"].contains(&field) {
            steep = steep.max(factor);
        }
    }
    (logit, steep)
}

/// Returns √(Σ 1/‖x‖²) over the rows of the view where it is largest.
fn inverse_lengths(data: &Data) -> f64 {
    let of = |m: &Vec<f64>| m.chunks(data.dim).map(|x| 1.0 / dot(x, x)).sum::<f64>().sqrt();
    data.views.iter().chain(&data.predictions).flatten().map(of).fold(0.0, f64::max)
}

/// An implementation of a term in single precision.
type Way<'a> = &'a dyn Fn(&Batch<f32, Cpu>) -> pauc_traits::Result<Value<f32, Cpu>>;

/// Asserts that two implementations of a term in single precision agree in value and gradient, up to
/// rounding.
pub fn fused_equals_plain(text: &str, data: &Data, fused: Way<'_>, plain: Way<'_>) {
    // A factor shows whether the gradient is scaled by the operations after the term.
    const FACTOR: f64 = 3.0;
    let run =
        |term: Way<'_>| run_by(&Cpu::default(), data, |batch| Ok(term(batch)? * FACTOR as f32)).unwrap();
    let (fused, plain) = (run(fused), run(plain));
    let conditions = [Condition::streaming(text, data), Condition::of(text, data)];
    let both = |allowed: &dyn Fn(&Condition) -> f64| FACTOR * conditions.iter().map(allowed).sum::<f64>();
    assert_within!(fused.value, plain.value, both(&|c| c.of_value(tolerance::f32)), "{text}");
    assert_eq!(fused.skipped, plain.skipped, "{text}");
    assert!(fused.gradients.keys().eq(plain.gradients.keys()), "{text}");
    for (name, gradient) in &plain.gradients {
        let allowed = both(&|c| c.of_gradient(name, tolerance::f32));
        assert_within!(gap(&fused.gradients[name], gradient), 0.0, allowed, "{text}: gradient of {name}");
    }
}

/// Returns the value in double precision.
pub fn value(text: &str, data: &Data) -> f64 {
    run::<f64>(text, data).value
}

fn numbers(v: &serde_json::Value) -> Vec<f64> {
    match v {
        serde_json::Value::Array(items) => items.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().unwrap()],
    }
}

/// Parses the golden file.
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
            // Prototypes without assignments are learnable.
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
    let name = TERMS.iter().find(|(prefix, _)| name.split('/').next() == Some(prefix))?.1;
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

/// Compares with a reference in double precision, stored with all its digits.
fn compare(outcome: &Outcome, case: &serde_json::Value, condition: &Condition, rounding: Rounding) {
    let (name, want) = (&case["case"], case["value"].as_f64().unwrap());
    assert_within!(outcome.value, want, condition.of_value(rounding), "{name}");
    for (input, want) in case["grads"].as_object().unwrap() {
        let input = input.strip_suffix(".0").unwrap_or(input);
        let off = gap(&outcome.gradients[input], &numbers(want));
        assert_within!(off, 0.0, condition.of_gradient(input, rounding), "{name}: gradient of {input}");
    }
}

/// Compares a term with every golden case under a prefix, in double and in single precision.
pub fn golden(prefix: &str, cases: usize) {
    let mut seen = 0;
    for case in golden_file().iter().filter(|c| c["case"].as_str().unwrap().split('/').next() == Some(prefix))
    {
        let (text, data) = (golden_text(case).unwrap(), golden_data(case));
        let condition = Condition::of(&text, &data).beside_exact_rows(&text, &data);
        compare(&run::<f64>(&text, &data), case, &condition, tolerance::f64);
        // In single precision these use the streaming kernel, which keeps small losses exact.
        let streaming = prefix == "info_nce" || prefix == "proto_nce" && !text.contains("Sample");
        let condition = if streaming { Condition::streaming(&text, &data) } else { condition };
        compare(&run::<f32>(&text, &data), case, &condition, tolerance::f32);
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
    let condition = Condition::of(text, data);
    differences(&run::<f64>(text, data), data, &condition, |moved| value(text, moved));
}

/// Compares gradients with central differences of a value.
///
/// The truncation error is that of the third derivative, whose size is measured by differences over a wider
/// step. Twice the largest one over the elements of an input covers the error of this measurement.
pub fn differences(of: &Outcome, data: &Data, condition: &Condition, value: impl Fn(&Data) -> f64) {
    let (step, wide) = (1e-5, 1e-2);
    let rounded = condition.value + condition.shifts[0];
    for (name, gradient) in &of.gradients {
        let at = |i: usize, by: f64| {
            let mut data = data.clone();
            let number = |n: &str| n.parse::<usize>().unwrap();
            let at = match (name.strip_prefix("view"), name.strip_prefix("prediction")) {
                (Some(v), _) => data.views[number(v)].as_mut().unwrap(),
                (_, Some(v)) => data.predictions[number(v)].as_mut().unwrap(),
                _ => data.parameters.get_mut(name).unwrap(),
            };
            at[i] += by;
            value(&data)
        };
        let third = |i: usize| {
            let (outer, inner) = (at(i, 2.0 * wide) - at(i, -2.0 * wide), at(i, wide) - at(i, -wide));
            ((outer - 2.0 * inner) / (2.0 * wide.powi(3))).abs()
        };
        let third = (0..gradient.len()).map(third).fold(0.0, f64::max);
        let allowed = tolerance::central_difference(step, 2.0 * third, condition.operations, rounded)
            + condition.of_gradient(name, tolerance::f64);
        for (i, found) in gradient.iter().enumerate() {
            let want = (at(i, step) - at(i, -step)) / (2.0 * step);
            assert_within!(*found, want, allowed, "gradient of {name}[{i}] and central difference");
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

/// Asserts that the order of the samples changes only the order of the gradients.
pub fn permutation_invariant(text: &str, data: &Data) {
    let order: Vec<usize> = (0..data.rows).map(|i| (2 * data.rows - i + 1) % data.rows).collect();
    let (a, b) = (run::<f64>(text, data), run::<f64>(text, &permuted(data, &order)));
    let condition = Condition::of(text, data);
    assert_within!(b.value, a.value, condition.of_value(tolerance::f64), "{text}");
    let data = Data { views: vec![a.gradients.get("view0").cloned()], ..data.clone() };
    let want = permuted(&data, &order).views[0].clone().unwrap();
    let off = gap(&b.gradients["view0"], &want);
    let allowed = condition.of_gradient("view0", tolerance::f64);
    assert_within!(off, 0.0, allowed, "{text}: gradients do not follow the order");
}

/// Asserts that rotating the space, with all inputs, changes nothing.
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
    // Each of the D(D − 1)/2 plane rotations takes a product and a sum, there and with the gradient.
    let condition = Condition::of(text, data).after(2 * data.dim * (data.dim - 1));
    assert_within!(b.value, a.value, condition.of_value(tolerance::f64), "{text}");
    let off = gap(&b.gradients["view0"], &rotate(&a.gradients["view0"]));
    let allowed = condition.of_gradient("view0", tolerance::f64);
    assert_within!(off, 0.0, allowed, "{text}: gradients do not rotate along");
}

/// Degenerate batches: identical rows, zero rows, one sample, no assignments, one prototype, many prototypes.
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

/// Asserts that values and gradients are finite on every degenerate batch, in both precisions.
pub fn finite(text: &str) {
    for (what, data) in degenerate() {
        if term(text).info().needs().momentum && data.keys.is_empty() {
            continue;
        }
        for outcome in [run::<f64>(text, &data), run::<f32>(text, &data)] {
            let ok = outcome.value.is_finite()
                // Logits hidden by `MASKED` do not show in a value.
                && outcome.value.abs() < 1e20
                && outcome.gradients.values().flatten().all(|g| g.is_finite());
            assert!(ok, "{text} on {what}: {outcome:?}");
        }
    }
}
