//! Properties that every registered term must have. A term that registers no [`Forms`] is checked in its
//! default form, so that a new term cannot be forgotten. Register forms only for further settings, or where
//! fewer properties hold.

use crate::testing::{self, Condition, Data, Flow, Forms};
use pauc_testing::{assert_within, tolerance};
use pauc_traits::component_ron::{OpenSet, Term};

// The output of `pauc-cli new` must pass the same tests unchanged.
#[path = "../../pauc-cli/templates/loss.rs"]
mod loss_template;
#[path = "../../pauc-cli/templates/regularizer.rs"]
mod regularizer_template;

/// Returns the forms of every registered term.
fn all_forms() -> Vec<Forms> {
    let registered: Vec<&Forms> = testing::inventory::iter::<Forms>.into_iter().collect();
    let forms = |name: &'static str| {
        registered.iter().find(|forms| forms.term == name).map_or(Forms::of(name), |forms| **forms)
    };
    Term::names().into_iter().map(forms).collect()
}

/// Checks each form. The closure gets its fields, and its text as in a recipe.
pub fn each(mut check: impl FnMut(&Forms, &str, &str)) {
    for forms in all_forms() {
        forms.forms.iter().for_each(|fields| check(&forms, fields, &forms.text(fields)));
    }
}

/// Checks each form that must stay finite on degenerate batches.
pub fn each_finite(mut check: impl FnMut(&str)) {
    for forms in all_forms() {
        for fields in forms.forms.iter().chain(forms.extremes) {
            // `Sample` may ask for more negatives than a degenerate batch leaves, which is an error.
            if !fields.contains("Sample") {
                check(&forms.text(fields));
            }
        }
    }
}

/// Batches of seven and of six samples, in which every level has members and pairs.
fn toys() -> [Data; 2] {
    let mut even = Data::toy(6, 4);
    even.levels.iter_mut().for_each(|l| l.assignments = [0, 1, 1, 0, 1, 0].map(Some).to_vec());
    [Data::toy(7, 4), even]
}

/// Returns a batch on which a form can be evaluated: `Sample` needs prototypes without members.
pub fn toy(text: &str) -> Data {
    let [all, few] = toys();
    if text.contains("Sample") { few } else { all }
}

#[test]
fn every_registered_term_is_checked() {
    let mut checked = all_forms();
    assert!(checked.iter().map(|forms| forms.term).eq(Term::names()));
    assert!(checked.iter().all(|forms| !forms.forms.is_empty()));
    checked.retain(|forms| testing::inventory::iter::<Forms>.into_iter().any(|f| f.term == forms.term));
    let registered = testing::inventory::iter::<Forms>.into_iter().count();
    assert_eq!(registered, checked.len(), "forms name an unknown term, or a term twice");
}

#[test]
fn gradients_are_the_derivatives_of_values() {
    each(|forms, _, text| {
        if forms.flow != Flow::Targets {
            testing::finite_differences(text, &toy(text));
        }
        if forms.flow == Flow::Full && !testing::term(text).info().needs().momentum {
            testing::finite_differences(text, &toy(text).without_momentum());
        }
    });
}

#[test]
fn the_order_of_samples_does_not_matter() {
    each(|_, _, text| testing::permutation_invariant(text, &toy(text)));
}

#[test]
fn only_declared_forms_depend_on_the_axes() {
    each(|forms, fields, text| {
        if !forms.axes.contains(&fields) {
            testing::rotation_invariant(text, &toy(text));
        }
    });
}

#[test]
fn degenerate_batches_and_extreme_settings_stay_finite() {
    each_finite(testing::finite);
}

/// A sample that a clusterer marked as noise does not influence a prototype term, and neither does noise in
/// the queue. Wherever it is, value and gradients are the same, and its own gradient is zero.
#[test]
fn noise_does_not_affect_prototype_terms() {
    let mut checked = std::collections::BTreeSet::new();
    each(|forms, _, text| {
        let mut data = Data::toy(7, 4);
        for level in &mut data.levels {
            if text.contains("Sample") {
                level.assignments = [0, 1, 1, 0, 0, 1, 0].map(Some).to_vec();
            }
            level.assignments[NOISE] = None;
        }
        if reads_assignments(text, &data) {
            checked.insert(forms.term);
            noise_has_no_part(text, &data);
        }
    });
    for term in ["Alignment", "Correlation", "ProtoNce", "ProtoScatter", "Uniformity"] {
        assert!(checked.contains(term), "{term} does not read assignments");
    }
}

/// The sample without a prototype.
const NOISE: usize = 4;

/// Returns whether a term reads assignments. If it does, it must be skipped when no sample has a prototype.
fn reads_assignments(text: &str, data: &Data) -> bool {
    let mut unassigned = data.clone();
    for level in &mut unassigned.levels {
        level.assignments.fill(None);
        level.queue_assignments.fill(None);
    }
    let without = testing::run::<f64>(text, &unassigned);
    if without.value == testing::value(text, data) {
        return false;
    }
    assert!(!without.skipped.is_empty(), "{text} is not skipped when no sample has a prototype");
    true
}

fn noise_has_no_part(text: &str, data: &Data) {
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
    let (a, b) = (testing::run::<f64>(text, data), testing::run::<f64>(text, &elsewhere));
    let condition = Condition::of(text, data);
    assert_within!(b.value, a.value, condition.of_value(tolerance::f64), "{text}");
    for (name, gradient) in &a.gradients {
        let off = testing::gap(gradient, &b.gradients[name]);
        let allowed = condition.of_gradient(name, tolerance::f64);
        assert_within!(off, 0.0, allowed, "{text}: the gradient of {name} changes");
        if name.starts_with("view") {
            let own = &gradient[NOISE * 4..][..4];
            assert!(own.iter().all(|g| *g == 0.0), "{text}: {name} of noise has the gradient {own:?}");
            assert!(gradient.iter().any(|g| *g != 0.0) || name != "view0", "{text}: no gradient at all");
        }
    }
}

#[test]
fn a_page_has_every_section() {
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

/// Every field that is a weight, a temperature or a sharpness takes a schedule, and a constant schedule
/// equals the number.
#[test]
fn constant_schedules_equal_numbers() {
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
        // A field that is not read would not change a single bit.
        assert!((low - high).abs() > 1e-6, "{term}: {field} changes nothing");
        // The toy run has a single step, so from step 1 on every schedule has its last value.
        let step = format!("Step(from: {}, to: {number}, at: Steps(1))", number / 2.0);
        let linear = format!("Linear(from: {}, to: {number}, over: Epochs(1))", number / 2.0);
        let cosine = format!("Cosine(from: {}, to: {number}, over: Fraction(1))", number / 2.0);
        let warmup = format!("Warmup(to: {number}, over: Steps(2))");
        // A schedule computes its number in at most four operations. The effect of a relative change of the
        // number is measured.
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
