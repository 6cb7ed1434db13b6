//! A component declared outside the crate: its syntax, its errors and its registration.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

use dfdx::prelude::*;
use pauc_testing::{assert_within, tolerance};
use pauc_traits::backend::{Backend, Scalar, Value};
use pauc_traits::batch::{Inputs, Level, PrototypeOptions};
use pauc_traits::component_ron::{Problem, Term, code};
use pauc_traits::registry::kind;
use pauc_traits::term::Facts;
use pauc_traits::{
    Batch, Configured, ContrastiveLoss, Count, Needs, Positive, Result, Scheduled, TermInfo, component, ops,
};

component! {
    /// The mean squared length of the raw outputs, divided by a temperature.
    ///
    /// For tests.
    pub struct MeanSquare: ContrastiveLoss {
        /// The divisor.
        pub temperature: Scheduled<Positive> = Positive::lit(0.5).into(),
        /// A required field.
        pub times: Count,
    }
}

impl TermInfo for MeanSquare {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], ..Needs::default() }
    }
    fn chance_level(&self, _: &Facts) -> Option<f64> {
        None
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for MeanSquare {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let scale = self.times.get() as f64 / self.temperature.at(batch.clock()) / batch.size() as f64;
        Ok(ops::total(batch.x(0)?.square()) * E::of(scale))
    }
}

component! {
    /// A section whose fields all have defaults.
    pub struct Optional {
        /// A number.
        pub rho: Scheduled<Positive> = Positive::lit(0.25).into(),
        /// A section in a section.
        pub inner: Option<Count> = None,
    }
}

component! {
    /// A section with required fields on both sides of one that has a default.
    pub struct Mixed {
        /// Required.
        pub first: Count,
        /// Has a default.
        pub middle: Optional = Optional::default(),
        /// Required.
        pub last: String,
    }
}

component! {
    /// A section without fields.
    pub struct Empty {}
}

component! {
    /// A section that got a field after its first release.
    pub struct Grown {
        /// As old as the section.
        pub first: Count = Count::lit(1),
        /// Newer.
        #[added_in("0.2")]
        pub second: Option<Positive> = None,
    }
}

#[test]
fn rust_has_the_defaults_of_recipes() {
    fn parsed<T: serde::de::DeserializeOwned + serde::Serialize>(text: &str) -> String {
        written(&pauc_traits::component_ron::options().from_str::<T>(text).unwrap())
    }
    fn written(value: &impl serde::Serialize) -> String {
        pauc_traits::component_ron::options().to_string(value).unwrap()
    }
    assert_eq!(written(&Optional::default()), "(rho:0.25,inner:None)");
    assert_eq!(written(&Optional::default()), parsed::<Optional>("()"));
    assert_eq!(written(&Empty::default()), parsed::<Empty>("()"));
    let mixed = Mixed::new(Count::lit(3), "end".into());
    assert_eq!(written(&mixed), parsed::<Mixed>("(last: \"end\", first: 3)"));
    assert_eq!(written(&MeanSquare::new(Count::lit(3))), parsed::<MeanSquare>("(times: 3)"));
}

#[test]
fn a_later_field_is_written_only_if_it_is_set() {
    let options = pauc_traits::component_ron::options();
    let again = |text: &str| options.to_string(&options.from_str::<Grown>(text).unwrap()).unwrap();
    assert_eq!(again("()"), "(first:1)");
    assert_eq!(again("(second: None, first: 2)"), "(first:2)");
    assert_eq!(again("(second: Some(0.5))"), "(first:1,second:0.5)");
    assert_eq!(Grown::FIELDS.len(), 2, "the documentation has both");
}

fn problem(text: &str) -> (ron::error::SpannedError, Problem) {
    let error = Term::parse(text).unwrap_err();
    let problem = Problem::parse(&error.code.to_string()).unwrap_or_else(|| panic!("no problem in {error}"));
    (error, problem)
}

#[test]
fn recipe_text_becomes_a_component_and_back() {
    let term = Term::parse("MeanSquare(times: 3)").unwrap();
    let written = pauc_traits::component_ron::options().to_string(&term).unwrap();
    assert_eq!(written, "MeanSquare(temperature:0.5,times:3)");
    assert_eq!(
        pauc_traits::component_ron::options().to_string(&Term::parse(&written).unwrap()).unwrap(),
        written
    );
    let scheduled = "MeanSquare(temperature:Linear(from:1.0,to:0.5,over:Epochs(2.0)),times:3)";
    let again = pauc_traits::component_ron::options().to_string(&Term::parse(scheduled).unwrap()).unwrap();
    assert_eq!(again, scheduled);
}

#[test]
fn errors_carry_code_span_and_remedy() {
    let (error, p) = problem("MeanSquare(\n    temperture: 0.2,\n    times: 3)");
    assert_eq!((p.code, p.suggestion.as_deref()), (code::UNKNOWN_FIELD, Some("temperature")));
    assert_eq!((error.span.start.line, error.span.start.col), (2, 5));
    let (_, p) = problem("MeanSqare(times: 3)");
    assert_eq!((p.code, p.suggestion.as_deref()), (code::UNKNOWN_NAME, Some("MeanSquare")));
    let (_, p) = problem("MeanSquare()");
    assert_eq!(p.code, code::MISSING_FIELD);
    let (_, p) = problem("MeanSquare(times: 3, times: 4)");
    assert_eq!(p.code, code::DUPLICATE_FIELD);
    let range = Term::parse("MeanSquare(temperature: -1.0, times: 3)").unwrap_err();
    assert!(range.to_string().contains("greater than 0, got -1"), "{range}");
}

#[test]
fn the_registry_has_documentation_and_defaults() {
    let entry = Configured::<kind::ContrastiveLoss>::parse("MeanSquare(times: 1)").unwrap().entry;
    assert_eq!(entry.summary(), "The mean squared length of the raw outputs, divided by a temperature.");
    assert_eq!(entry.origin, "pauc-traits");
    assert_eq!(entry.fields[0].default.unwrap()(), "0.5");
    assert_eq!(entry.fields[0].doc.trim(), "The divisor.");
    assert!(entry.fields[1].default.is_none());
}

fn matrix(rows: usize, cols: usize, phase: f64) -> Vec<f64> {
    pauc_testing::inputs::wave_f64(rows * cols, phase, 1.3).iter().map(|v| v + 0.1).collect()
}

fn toy(dev: &Cpu) -> Inputs<f64, Cpu> {
    let unit = |phase| {
        let rows = ops::l2_normalize(dev.tensor_from_vec(matrix(3, 4, phase), (3, 4)));
        pauc_traits::batch::Constant::new(dev, rows.as_vec(), (3, 4))
    };
    Inputs {
        views: vec![Some(dev.tensor_from_vec(matrix(6, 4, 0.1), (6, 4)))],
        keys: vec![None, Some(dev.tensor_from_vec(matrix(6, 4, 0.7), (6, 4)))],
        queue: Some(unit(2.0)),
        levels: vec![Level {
            centroids: unit(5.0),
            concentration: vec![0.2; 3],
            assignments: vec![Some(0), Some(2), Some(2), None, Some(0), Some(2)],
            queue_assignments: vec![Some(2), None, Some(1)],
            negatives: None,
        }],
        ..Inputs::default()
    }
}

/// norm(Σ members + ρ·centroid), written with loops.
fn naive_prototype(rows: &[&[f64]], centroid: &[f64], rho: f64) -> Vec<f64> {
    let unit = |v: &[f64]| {
        let n = (v.iter().map(|x| x * x).sum::<f64>() + ops::NORM_EPSILON).sqrt();
        v.iter().map(|x| x / n).collect::<Vec<_>>()
    };
    let mut sum: Vec<f64> = centroid.iter().map(|c| c * rho).collect();
    for row in rows {
        sum.iter_mut().zip(unit(row)).for_each(|(s, x)| *s += x);
    }
    unit(&sum)
}

#[test]
fn batch_prototypes_equal_their_definition() {
    let dev = Cpu::default();
    let batch = Batch::new(&dev, toy(&dev)).unwrap();
    let options = PrototypeOptions { rho: 0.5, n_min: 1, queue: true };
    let p = batch.prototypes(0, options).unwrap();
    assert_eq!(p.occupied, [0, 2], "prototype 1 has a member in the queue only");
    let (x, k, q) = (matrix(6, 4, 0.1), matrix(6, 4, 0.7), matrix(3, 4, 2.0));
    let c = batch.levels().unwrap()[0].centroids.values();
    let row = |m: &'static str, i: usize| -> Vec<f64> {
        let m = match m {
            "x" => &x,
            "k" => &k,
            _ => &q,
        };
        m[i * 4..i * 4 + 4].to_vec()
    };
    for (branch, got) in [("x", p.online()), ("k", batch.key_prototypes(0, &p).unwrap())] {
        let members = [row(branch, 1), row(branch, 2), row(branch, 5), row("q", 0)];
        let refs: Vec<&[f64]> = members.iter().map(Vec::as_slice).collect();
        let want = naive_prototype(&refs, &c[8..12], 0.5);
        for (g, w) in got.as_vec()[4..8].iter().zip(&want) {
            // Unit rows of four elements, a sum of four members and half a centroid, and a unit row again.
            // Rounding in a sum is divided by its length, here above a half; the magnitudes of the members
            // sum to at most 4.5.
            assert_within!(*g, *w, tolerance::f64((4 + 3) + 5 + (4 + 3), 4.5 / 0.5), "{branch}");
        }
    }
    assert!(std::rc::Rc::ptr_eq(&p, &batch.prototypes(0, options).unwrap()), "computed once");
    let strict = PrototypeOptions { n_min: 3, ..PrototypeOptions::default() };
    assert_eq!(batch.prototypes(0, strict).unwrap().occupied, [2]);
}

#[test]
fn gradients_through_prototypes_agree_with_finite_differences() {
    let dev = Cpu::default();
    let value = |x: Vec<f64>, grads: bool| {
        let mut inputs = toy(&dev);
        inputs.views[0] = Some(dev.tensor_from_vec(x, (6, 4)));
        let batch = Batch::new(&dev, inputs).unwrap();
        let p = batch.prototypes(0, PrototypeOptions::default()).unwrap();
        let kp = batch.key_prototypes(0, &p).unwrap();
        let value = ops::total(p.online() * kp) + ops::total(batch.z(0).unwrap().sin());
        let number = ops::item(&value);
        (number, grads.then(|| batch.backward(value).unwrap().views[0].clone().unwrap()))
    };
    let x = matrix(6, 4, 0.1);
    let gradient = value(x.clone(), true).1.unwrap();
    let moved = |i: usize, by: f64| {
        let mut x = x.clone();
        x[i] += by;
        value(x, false).0
    };
    let h = 1e-2;
    let third = |i: usize| {
        let (outer, inner) = (moved(i, 2.0 * h) - moved(i, -2.0 * h), moved(i, h) - moved(i, -h));
        ((outer - 2.0 * inner) / (2.0 * h.powi(3))).abs()
    };
    let third = (0..x.len()).map(third).fold(0.0, f64::max);
    // The largest third difference over a wider step equals the third derivative up to an error that the
    // factor 2 covers. The value is a sum of 8 products and of 24 sines, after 20 operations on rows.
    let allowed = tolerance::central_difference(1e-5, 2.0 * third, 20 + 32, 8.0 + 24.0);
    for (i, found) in gradient.iter().enumerate() {
        let numeric = (moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5;
        assert_within!(numeric, *found, allowed, "{i}");
    }
}

#[test]
fn missing_inputs_and_wrong_shapes_are_errors_with_a_remedy() {
    let dev = Cpu::default();
    let mut inputs = toy(&dev);
    inputs.queue = None;
    inputs.levels.clear();
    let batch = Batch::new(&dev, inputs).unwrap();
    for error in [
        batch.queue().err(),
        batch.levels().err(),
        batch.labels().err(),
        batch.momentum_key(0).err(),
        batch.z(1).err(),
    ] {
        let text = error.unwrap().to_string();
        assert!(text.contains("this run does not have"), "{text}");
    }
    let mut inputs = toy(&dev);
    inputs.keys[1] = Some(dev.tensor_from_vec(matrix(5, 4, 0.0), (5, 4)));
    let text = Batch::new(&dev, inputs).err().unwrap().to_string();
    assert_eq!(text, "batch: key1: is 5×4, but view0 is 6×4");
    let mut inputs = toy(&dev);
    inputs.levels[0].assignments[0] = Some(3);
    assert!(
        Batch::new(&dev, inputs).err().unwrap().to_string().contains("prototype 3, but there are only 3")
    );
}
