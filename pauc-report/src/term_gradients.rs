//! The gradients of single terms at the embeddings, over epochs and by phase.

use crate::axis::significant;
use crate::data::ReportData;
use crate::events::Gradients;
use crate::figure::Section;
use crate::figures::{EPOCH, marks, put};
use crate::html::{NONE, Table};
use crate::plot::{Chart, Scale, Series};
use crate::study::figures::mean;

/// The name of the sum of the weighted gradients.
const SUM: &str = "sum of the terms";

/// The ratio of the largest to the smallest norm from which on their axis is logarithmic.
const WIDE: f64 = 50.0;

/// Charts of the norm of each term and of their sum, and of the cosine of each pair of terms.
pub(crate) fn charts(data: &ReportData, add: &mut impl FnMut(&str, Section, Chart)) {
    let mut terms: Vec<Series> = Vec::new();
    let mut pairs: Vec<Series> = Vec::new();
    for gradients in &data.gradients {
        gradients.terms.iter().for_each(|t| put(&mut terms, &t.name, (gradients.epoch, t.norm)));
        for (a, b, cosine) in gradients.pairs() {
            put(&mut pairs, &pair(a, b), (gradients.epoch, cosine));
        }
    }
    if terms.len() > 1 {
        let points = data.gradients.iter().map(|g| (g.epoch, g.total)).collect();
        terms.push(Series { name: SUM.into(), points });
    }
    let chart = |title: &str, y: &str, series| Chart {
        title: title.into(),
        x: EPOCH.into(),
        y: y.into(),
        series,
        marks: marks(data),
        ..Chart::default()
    };
    let scale = scale(&terms);
    let norms = chart("Gradients of the terms", "norm at the unit embeddings, weighted", terms);
    add("term-gradients", Section::TermGradients, Chart { scale, ..norms });
    let cosines = chart("Agreement of terms", "cosine of gradients; below 0: they conflict", pairs);
    let references = vec![("orthogonal".to_string(), 0.0)];
    add("term-cosines", Section::TermGradients, Chart { references, ..cosines });
}

fn pair(a: &str, b: &str) -> String {
    format!("{a} · {b}")
}

/// Returns a logarithmic scale if small norms would be invisible on a plain one.
fn scale(norms: &[Series]) -> Scale {
    let values = norms.iter().flat_map(|s| &s.points).map(|p| p.1).filter(|v| v.is_finite() && *v > 0.0);
    let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
    if high > WIDE * low { Scale::Log } else { Scale::Plain }
}

/// Returns the means of norms and cosines over the logged steps of each phase; `None` if no gradients were logged.
pub(crate) fn table(data: &ReportData) -> Option<Table> {
    let phases = by_phase(data);
    let row = |name: String, value: &dyn Fn(&Gradients) -> Option<f64>| {
        let of_phase = |(_, steps): &(_, Vec<&Gradients>)| mean(steps.iter().filter_map(|step| value(step)));
        let cells = phases.iter().map(|phase| of_phase(phase).map_or(NONE.into(), significant));
        std::iter::once(name).chain(cells).collect()
    };
    let terms = first_seen(data.gradients.iter().flat_map(|g| g.terms.iter().map(|t| t.name.as_str())));
    let pairs = first_seen(data.gradients.iter().flat_map(|g| g.pairs().map(|(a, b, _)| (a, b))));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for name in &terms {
        let norm = |g: &Gradients| g.terms.iter().find(|t| t.name == *name).map(|t| t.norm);
        rows.push(row(format!("norm: {name}"), &norm));
    }
    // A single term is its own sum.
    if terms.len() > 1 {
        rows.push(row(format!("norm: {SUM}"), &|g| Some(g.total)));
    }
    for (a, b) in pairs {
        let cosine =
            |g: &Gradients| g.pairs().find(|found| (found.0, found.1) == (a, b)).map(|found| found.2);
        rows.push(row(format!("cosine: {}", pair(a, b)), &cosine));
    }
    let head = |(phase, steps): &(&str, Vec<&Gradients>)| {
        format!("{phase} ({} step{})", steps.len(), if steps.len() == 1 { "" } else { "s" })
    };
    let head = std::iter::once("mean over".to_string()).chain(phases.iter().map(head)).collect();
    (!phases.is_empty()).then_some(Table { head, rows })
}

/// Returns each value once, in the order of their first appearance.
fn first_seen<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Returns the phases in which gradients were logged, with their steps.
fn by_phase(data: &ReportData) -> Vec<(&str, Vec<&Gradients>)> {
    let mut phases: Vec<(&str, Vec<&Gradients>)> = vec![("whole run", Vec::new())];
    let mut upcoming = data.phases.iter().peekable();
    for gradients in &data.gradients {
        // A phase that begins after n steps has the steps from n + 1 on.
        while let Some(phase) = upcoming.next_if(|phase| phase.step < gradients.step) {
            phases.push((&phase.name, Vec::new()));
        }
        if let Some((_, steps)) = phases.last_mut() {
            steps.push(gradients);
        }
    }
    phases.retain(|(_, steps)| !steps.is_empty());
    phases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Phase, TermGradient};

    fn term(name: &str, norm: f64, cosines: &[f64]) -> TermGradient {
        TermGradient { name: name.into(), norm, cosines: cosines.to_vec() }
    }

    fn run() -> ReportData {
        let at = |step: u64, terms, total| Gradients { step, epoch: step as f64 / 10.0, terms, total };
        let phase = |step, name: &str| Phase { step, name: name.into(), text: String::new() };
        ReportData {
            gradients: vec![
                at(5, vec![term("A", 1.0, &[])], 1.0),
                at(10, vec![term("A", 3.0, &[])], 3.0),
                at(
                    15,
                    vec![term("A", 2.0, &[]), term("B", 4.0, &[-0.5]), term("C", 0.0, &[f64::NAN, f64::NAN])],
                    5.0,
                ),
                at(
                    20,
                    vec![term("A", 2.5, &[]), term("B", 4.5, &[0.25]), term("C", 0.0, &[f64::NAN, f64::NAN])],
                    6.0,
                ),
            ],
            phases: vec![phase(0, "warm-up"), phase(10, "prototypes")],
            ..ReportData::default()
        }
    }

    #[test]
    fn the_table_has_means_by_phase() {
        let table = table(&run()).unwrap();
        assert_eq!(table.head, ["mean over", "warm-up (2 steps)", "prototypes (2 steps)"]);
        let want = [
            ["norm: A", "2.000", "2.250"],
            ["norm: B", NONE, "4.250"],
            ["norm: C", NONE, "0"],
            ["norm: sum of the terms", "2.000", "5.500"],
            ["cosine: A · B", NONE, "−0.1250"],
            ["cosine: A · C", NONE, NONE],
            ["cosine: B · C", NONE, NONE],
        ];
        assert_eq!(table.rows, want);
    }

    #[test]
    fn runs_without_phases_or_without_gradients_have_a_table_or_none() {
        let whole = ReportData { phases: Vec::new(), ..run() };
        assert_eq!(table(&whole).unwrap().head, ["mean over", "whole run (4 steps)"]);
        assert!(table(&ReportData { gradients: Vec::new(), ..run() }).is_none());
    }

    #[test]
    fn charts_have_a_series_per_term_and_pair_and_a_scale_that_fits() {
        let charts_of = |data: &ReportData| {
            let mut found: Vec<Chart> = Vec::new();
            charts(data, &mut |_, section, chart| {
                assert_eq!(section, Section::TermGradients);
                found.push(chart);
            });
            found
        };
        let names = |c: &Chart| c.series.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
        let [norms, cosines] = &charts_of(&run())[..] else { panic!() };
        assert_eq!(names(norms), ["A", "B", "C", SUM]);
        assert_eq!(norms.series[3].points, [(0.5, 1.0), (1.0, 3.0), (1.5, 5.0), (2.0, 6.0)]);
        assert_eq!(names(cosines), ["A · B", "A · C", "B · C"]);
        assert_eq!((norms.scale, cosines.scale), (Scale::Plain, Scale::Plain));
        let mut wide = run();
        wide.gradients[3].terms[2].norm = 0.01;
        assert_eq!(charts_of(&wide)[0].scale, Scale::Log);
        // A single term is its own sum, and has no pair.
        let mut single = run();
        single.gradients.truncate(2);
        let [norms, cosines] = &charts_of(&single)[..] else { panic!() };
        assert!(names(norms) == ["A"] && cosines.is_empty());
        assert_eq!(table(&single).unwrap().rows, [["norm: A", "2.000"]]);
    }
}
