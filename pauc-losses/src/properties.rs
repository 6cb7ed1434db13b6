//! What every registered term has to hold. A term that the table does not name is checked in its default form, so that a
//! new one cannot be forgotten; it needs a row only for more forms, or where less holds.

use crate::testing::{self, Condition, Data};
use pauc_testing::{assert_within, tolerance};
use pauc_traits::component_ron::{OpenSet, Term};

// What `pauc-cli new` writes holds it too, as it is.
#[path = "../../pauc-cli/templates/loss.rs"]
mod loss_template;
#[path = "../../pauc-cli/templates/regularizer.rs"]
mod regularizer_template;

/// Where a term's gradient is the derivative of its value.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    /// Everywhere.
    Full,
    /// Where keys come from a momentum encoder: online keys are taken for constants.
    WithMomentum,
    /// Nowhere, since the term's targets depend on the embeddings and are taken for constants. The term's own file
    /// compares its gradient with differences at fixed targets.
    Targets,
}

/// A term, its forms, and what holds for them.
#[derive(Clone, Copy)]
pub struct Row {
    name: &'static str,
    flow: Flow,
    /// Forms on which gradients and invariances are checked, by their fields.
    pub forms: &'static [&'static str],
    /// The forms among them that change when the space is rotated: they look at single coordinates.
    axes: &'static [&'static str],
    /// Forms that stay finite on every degenerate batch, extreme settings among them.
    pub finite: &'static [&'static str],
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row { name: "Alignment", flow: Flow::Full, axes: &[],
        forms: &["", "level: Instances", "level: Instances, alpha: 1", "level: Centroid, alpha: 1.5", "level: Members"],
        finite: &["", "level: Instances, alpha: 0.5", "level: Centroid", "level: Members, alpha: 1", "queue: true, rho: 9"] },
    Row { name: "Correlation", flow: Flow::Full,
        axes: &["", "level: Instances", "kind: Covariance", "level: Instances, kind: Covariance"],
        forms: &["", "level: Instances", "kind: Covariance", "level: Instances, kind: Covariance", "kind: Gram"],
        finite: &["", "level: Instances", "kind: Covariance", "kind: Gram", "queue: true, n_min: 3"] },
    Row { name: "CosinePrediction", flow: Flow::WithMomentum, axes: &[],
        forms: &["", "two_sided: true"], finite: &["", "two_sided: true"] },
    Row { name: "Dcl", flow: Flow::Full, axes: &[],
        forms: &["", "temperature: Learnable()"], finite: &["", "temperature: 0.01", "temperature: Learnable()"] },
    Row { name: "EntropyOfAssignments", flow: Flow::Full, axes: &[],
        forms: &["", "sharpness: 0.5"], finite: &["", "temperature: 0.01, sharpness: 1"] },
    Row { name: "InfoNce", flow: Flow::Full, axes: &[],
        forms: &["", "two_sided: false", "negatives: Keys", "negatives: Queue", "negatives: QueueAndBatch, two_sided: true",
            "temperature: Learnable()", "negatives: Keys, temperature: Learnable(init: 0.2)"],
        finite: &["temperature: 0.01", "negatives: Keys, temperature: 0.01", "negatives: Queue, temperature: 0.01",
            "negatives: QueueAndBatch, temperature: 0.01, two_sided: true", "temperature: Learnable()"] },
    // `Sample` may ask for more negatives than a degenerate batch leaves, which is an error with the numbers.
    Row { name: "ProtoNce", flow: Flow::Full, axes: &[], forms: &["", "negatives: Sample(1)"], finite: &[""] },
    Row { name: "ProtoScatter", flow: Flow::Full, axes: &[],
        forms: &["", "rho: 0.5, queue: true, n_min: 2", "temperature: Learnable(init: 0.5)"],
        finite: &["", "temperature: 0.01", "temperature: Learnable()"] },
    Row { name: "SelfDistillation", flow: Flow::Targets, axes: &[], forms: &["", "centre_momentum: None"],
        finite: &["", "student_temperature: 0.01, teacher_temperature: 0.01", "centre_momentum: None"] },
    Row { name: "SupCon", flow: Flow::Full, axes: &[],
        forms: &["", "temperature: Learnable()"], finite: &["", "temperature: 0.01"] },
    Row { name: "SwappedAssignment", flow: Flow::Targets, axes: &[],
        forms: &[""], finite: &["", "temperature: 0.01, epsilon: 0.001"] },
    Row { name: "Uniformity", flow: Flow::Full, axes: &[],
        forms: &["", "level: Instances", "level: Instances, queue: true", "rho: 0.5, n_min: 2, queue: true", "level: OtherCentroids"],
        finite: &["", "level: Instances, t: 1000", "level: Instances, t: Linear(from: 1, to: 3, over: Epochs(2))", "level: Instances, queue: true", "level: OtherCentroids"] },
    Row { name: "Variance", flow: Flow::Full, axes: &["gamma: 1.5"], forms: &["gamma: 1.5"], finite: &[""] },
    Row { name: "VicReg", flow: Flow::Full, axes: &[""], forms: &["", "variance: 0, covariance: 0"], finite: &[""] },
];

/// One row for every registered term.
fn rows() -> Vec<Row> {
    let default = |name| Row { name, flow: Flow::Full, forms: &[""], axes: &[], finite: &[""] };
    let row = |name: &'static str| TABLE.iter().find(|r| r.name == name).copied().unwrap_or(default(name));
    Term::names().into_iter().map(row).collect()
}

pub fn each(of: impl Fn(&Row) -> &'static [&'static str], mut check: impl FnMut(&Row, &str, &str)) {
    for row in rows() {
        for fields in of(&row) {
            check(&row, fields, &format!("{}({fields})", row.name));
        }
    }
}

/// Batches of seven and of six samples, in which every level has members and pairs.
fn toys() -> [Data; 2] {
    let mut even = Data::toy(6, 4);
    even.levels.iter_mut().for_each(|l| l.assignments = [0, 1, 1, 0, 1, 0].map(Some).to_vec());
    [Data::toy(7, 4), even]
}

/// The batch on which a form can be evaluated: `Sample` needs prototypes without members.
pub fn toy(text: &str) -> Data {
    let [all, few] = toys();
    if text.contains("Sample") { few } else { all }
}

#[test]
fn every_registered_term_is_checked() {
    let checked: Vec<_> = rows().iter().map(|r| r.name).collect();
    assert_eq!(checked, Term::names());
    assert!(TABLE.iter().all(|r| checked.contains(&r.name)), "a row names no term");
    assert!(rows().iter().all(|r| !r.forms.is_empty() && !r.finite.is_empty()));
}

#[test]
fn gradients_are_the_derivatives_of_values() {
    each(
        |row| row.forms,
        |row, _, text| {
            if row.flow != Flow::Targets {
                testing::finite_differences(text, &toy(text));
            }
            if row.flow == Flow::Full && !testing::term(text).info().needs().momentum {
                testing::finite_differences(text, &toy(text).without_momentum());
            }
        },
    );
}

#[test]
fn the_order_of_samples_does_not_matter() {
    each(|row| row.forms, |_, _, text| testing::permutation_invariant(text, &toy(text)));
}

#[test]
fn the_axes_of_the_space_matter_only_where_said() {
    each(
        |row| row.forms,
        |row, fields, text| {
            if !row.axes.contains(&fields) {
                testing::rotation_invariant(text, &toy(text));
            }
        },
    );
}

#[test]
fn degenerate_batches_and_extreme_settings_stay_finite() {
    each(|row| row.finite, |_, _, text| testing::finite(text));
}

/// A sample that a clusterer left out as noise has no part in a prototype term, and neither has one in the queue:
/// wherever it lies, value and gradients are the same, and its own gradient is zero.
#[test]
fn noise_has_no_part_in_prototype_terms() {
    const NOISE: usize = 4;
    let found = std::cell::RefCell::new(std::collections::BTreeSet::new());
    each(
        |row| row.forms,
        |row, _, text| {
            let mut data = Data::toy(7, 4);
            for level in &mut data.levels {
                if text.contains("Sample") {
                    level.assignments = [0, 1, 1, 0, 0, 1, 0].map(Some).to_vec();
                }
                level.assignments[NOISE] = None;
            }
            let mut unassigned = data.clone();
            for level in &mut unassigned.levels {
                level.assignments.fill(None);
                level.queue_assignments.fill(None);
            }
            if testing::run::<f64>(text, &unassigned).skipped.is_empty() {
                return; // a term of instances
            }
            found.borrow_mut().insert(row.name);
            let mut elsewhere = data.clone();
            let of_samples = elsewhere.views.iter_mut().chain(&mut elsewhere.predictions);
            for matrix in of_samples.chain(&mut elsewhere.keys).flatten() {
                matrix[NOISE * 4..][..4].copy_from_slice(&[0.7, -3.0, 0.2, 0.5]);
            }
            let queued = &data.levels[0].queue_assignments;
            for (row, _) in queued.iter().enumerate().filter(|(_, a)| a.is_none()) {
                let queue = elsewhere.queue.as_mut().unwrap();
                queue[row * 4..][..4].copy_from_slice(&[0.6, 0.0, -0.8, 0.0]);
            }
            let (a, b) = (testing::run::<f64>(text, &data), testing::run::<f64>(text, &elsewhere));
            let condition = Condition::of(text, &data);
            assert_within!(b.value, a.value, condition.of_value(tolerance::f64), "{text}");
            for (name, gradient) in &a.gradients {
                let off = testing::gap(gradient, &b.gradients[name]);
                let allowed = condition.of_gradient(name, tolerance::f64);
                assert_within!(off, 0.0, allowed, "{text}: the gradient of {name} changes");
                if name.starts_with("view") {
                    let own = &gradient[NOISE * 4..][..4];
                    assert!(
                        own.iter().all(|g| *g == 0.0),
                        "{text}: {name} of noise has the gradient {own:?}"
                    );
                    assert!(
                        gradient.iter().any(|g| *g != 0.0) || name != "view0",
                        "{text}: no gradient at all"
                    );
                }
            }
        },
    );
    let found: Vec<_> = found.into_inner().into_iter().collect();
    assert_eq!(found, ["Alignment", "Correlation", "ProtoNce", "ProtoScatter", "Uniformity"]);
}

#[test]
fn a_page_says_what_the_term_does() {
    use pauc_traits::registry::catalog;
    for l in catalog().into_iter().filter(|l| Term::names().contains(&l.name)) {
        let snippet = format!("(term: {}(", l.name);
        for part in ["```text\n", "# Shapes", "# Reading", "# Gradient", "# When to use", &snippet, "ource"] {
            assert!(l.doc.contains(part), "the page of {} lacks `{part}`", l.name);
        }
        let gradient =
            l.doc.split("# Gradient").nth(1).unwrap_or_default().split("\n #").next().unwrap_or_default();
        assert!(
            ["contract", "cluster"].iter().any(|word| gradient.to_lowercase().contains(word)),
            "the page of {} does not say whether its gradient contracts clusters: {gradient}",
            l.name
        );
    }
}

/// Every field that is a weight, a temperature or a sharpness takes a schedule, and a schedule that stands still is
/// the number.
#[test]
fn schedules_stand_for_numbers() {
    let fields: &[(&str, &str, f64)] = &[
        ("Alignment", "rho", 0.5),
        ("Correlation", "off_diagonal", 0.1),
        ("Correlation", "rho", 0.5),
        ("Dcl", "temperature", 0.3),
        ("EntropyOfAssignments", "temperature", 0.3),
        ("EntropyOfAssignments", "sharpness", 0.5),
        ("InfoNce", "temperature", 0.3),
        ("ProtoScatter", "temperature", 0.3),
        ("ProtoScatter", "rho", 0.5),
        ("SelfDistillation", "student_temperature", 0.3),
        ("SelfDistillation", "teacher_temperature", 0.3),
        ("SupCon", "temperature", 0.3),
        ("SwappedAssignment", "temperature", 0.3),
        ("SwappedAssignment", "epsilon", 0.5),
        ("Uniformity", "t", 3.0),
        ("Uniformity", "rho", 0.5),
        ("Variance", "gamma", 1.5),
        ("VicReg", "invariance", 2.0),
        ("VicReg", "variance", 2.0),
        ("VicReg", "covariance", 2.0),
    ];
    for (term, field, number) in fields {
        let at = |step: u64, value: &str| {
            let text = format!("{term}({field}: {value})");
            testing::value(&text, &Data { step, ..Data::toy(7, 4) })
        };
        let (low, high) = (at(0, &format!("{}", number / 2.0)), at(0, &number.to_string()));
        // A field that is not read would leave every bit as it is.
        assert!((low - high).abs() > 1e-6, "{term}: {field} changes nothing");
        // The toy's run has a single step: from step 1 on every schedule is at its end.
        let step = format!("Step(from: {}, to: {number}, at: Steps(1))", number / 2.0);
        let linear = format!("Linear(from: {}, to: {number}, over: Epochs(1))", number / 2.0);
        let cosine = format!("Cosine(from: {}, to: {number}, over: Fraction(1))", number / 2.0);
        let warmup = format!("Warmup(to: {number}, over: Steps(2))");
        // A schedule computes its number in at most four operations; what a relative change of it does is measured.
        let response =
            |number: f64, value: f64| (at(0, &format!("{}", number * (1.0 + 1e-6))) - value) / 1e-6;
        let response = response(number / 2.0, low).abs().max(response(*number, high).abs());
        let allowed = tolerance::f64(4, response);
        for schedule in [&step, &linear, &cosine, &warmup] {
            for (found, want) in [(at(0, schedule), low), (at(1, schedule), high)] {
                assert_within!(found, want, allowed, "{term}({field}: {schedule})");
            }
        }
    }
}
