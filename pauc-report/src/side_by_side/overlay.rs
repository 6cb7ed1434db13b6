//! The curves of several runs over each other: every line chart of the single reports, one quantity per chart.

use crate::data::ReportData;
use crate::figure::{Figure, Section};
use crate::figures;
use crate::plot::{Chart, Series};

type Points = Vec<(f64, f64)>;

/// The curves of several runs.
pub(super) struct Overlays {
    /// The charts that show two runs or more, in the order of sections.
    pub figures: Vec<Figure>,
    /// The titles of quantities with the same curve in every run.
    pub equal: Vec<String>,
    /// The titles of quantities that only one run has, with the index of that run.
    pub single: Vec<(String, usize)>,
}

/// One quantity in every run.
struct Overlay {
    /// The name of the figure in the report of a run.
    figure: String,
    /// The name of the series there, and the number of earlier series of that name in the figure.
    series: (String, usize),
    section: Section,
    /// The chart without its series.
    frame: Chart,
    /// The curve of each run that has one.
    curves: Vec<Option<Points>>,
}

/// Draws the curves of several runs, whose names appear in tooltips.
pub(super) fn overlay(runs: &[&ReportData], names: &[String]) -> Overlays {
    let mut all = collect(runs);
    all.sort_by_key(|o| o.section);
    let mut overlays = Overlays { figures: Vec::new(), equal: Vec::new(), single: Vec::new() };
    for o in &all {
        let is_alone = all.iter().filter(|other| other.figure == o.figure).count() == 1;
        let title = if is_alone { o.frame.title.clone() } else { title(o) };
        let having: Vec<usize> = (0..runs.len()).filter(|r| o.curves[*r].is_some()).collect();
        if let [only] = having[..] {
            overlays.single.push((title, only));
        } else if have_equal_curves(o) {
            overlays.equal.push(title);
        } else {
            overlays.figures.push(draw(o, title, names));
        }
    }
    overlays
}

fn title(o: &Overlay) -> String {
    let (name, earlier) = &o.series;
    let number = if *earlier == 0 { String::new() } else { format!(" ({})", earlier + 1) };
    format!("{}: {name}{number}", o.frame.title)
}

/// Returns the quantities of all runs, in the order of their first appearance.
fn collect(runs: &[&ReportData]) -> Vec<Overlay> {
    let mut all: Vec<Overlay> = Vec::new();
    for (r, data) in runs.iter().enumerate() {
        let charts =
            figures::charts(data).into_iter().filter(|(_, section, _)| *section != Section::Postmortem);
        for (figure, section, chart) in charts {
            let Chart { series, .. } = &chart;
            for (i, s) in series.iter().enumerate().filter(|(_, s)| s.points.iter().any(|p| p.1.is_finite()))
            {
                let key = (s.name.clone(), series[..i].iter().filter(|e| e.name == s.name).count());
                let place = all.iter().position(|o| o.figure == figure && o.series == key);
                let place = place.unwrap_or_else(|| {
                    let frame = Chart { series: Vec::new(), marks: Vec::new(), ..chart.clone() };
                    let (figure, curves) = (figure.clone(), vec![None; runs.len()]);
                    all.push(Overlay { figure, series: key, section, frame, curves });
                    all.len() - 1
                });
                let o = &mut all[place];
                // A line of reference, such as the chance level, has to hold for every run.
                o.frame.references.retain(|reference| chart.references.contains(reference));
                o.curves[r] = Some(s.points.clone());
            }
        }
    }
    all
}

fn have_equal_curves(o: &Overlay) -> bool {
    let bits = |points: &Points| points.iter().map(|p| (p.0.to_bits(), p.1.to_bits())).collect::<Vec<_>>();
    let curves: Vec<_> = o.curves.iter().map(|c| c.as_ref().map(bits)).collect();
    curves.iter().all(|c| c.is_some() && *c == curves[0])
}

fn draw(o: &Overlay, title: String, names: &[String]) -> Figure {
    let mut chart = Chart { title, ..o.frame.clone() };
    for (r, points) in o.curves.iter().enumerate() {
        if let Some(points) = points {
            chart.series.push(Series { name: names[r].clone(), points: points.clone() });
            chart.styles.push(r);
        }
    }
    Figure { name: o.figure.clone(), section: o.section, svg: chart.svg() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Log;

    fn run(losses: &[f64], terms: &[(&str, f64, f64)]) -> ReportData {
        let term = |(name, value, chance): &(&str, f64, f64)| {
            format!(r#"{{"name":"{name}","value":{value},"weight":1,"chance":{chance},"skipped":false}}"#)
        };
        let terms: Vec<String> = terms.iter().map(term).collect();
        let step = |(i, loss): (usize, &f64)| {
            format!(
                r#"{{"event":"step","step":{i},"epoch":{i},"lr":0.5,"loss":{loss},"terms":[{}],"grad_norm":{loss},"images_per_second":null}}"#,
                terms.join(",")
            ) + "\n"
        };
        ReportData::from_log(Log::parse(&losses.iter().enumerate().map(step).collect::<String>()))
    }

    #[test]
    fn quantities_are_drawn_named_as_equal_or_named_as_alone() {
        let a = run(&[3.0, 2.0], &[("InfoNce", 1.0, 5.0), ("VicReg", 2.0, 6.0)]);
        let b = run(&[4.0, 2.5], &[("InfoNce", 1.5, 5.0)]);
        let names = ["1 · a<b".to_string(), "2 · c".to_string()];
        let o = overlay(&[&a, &b], &names);
        let drawn: Vec<&str> = o.figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(drawn, ["objective", "term-infonce", "gradient-norm"]);
        assert_eq!(o.equal, ["Weights of the terms: InfoNce", "Learning rate"]);
        let single = [("VicReg".to_string(), 0), ("Weights of the terms: VicReg".to_string(), 0)];
        assert_eq!(o.single, single);
        let svg = &o.figures[0].svg;
        assert!(svg.contains("<g class=\"run0\">") && svg.contains("<g class=\"run1\">"));
        assert!(svg.contains("1 · a&lt;b: 3.000 at 0") && svg.contains("2 · c: 2.500 at 1"), "{svg}");
        assert!(!svg.contains("class=\"key\""), "the page has the legend");
    }

    #[test]
    fn a_reference_holds_for_every_run_or_is_left_out() {
        let a = run(&[3.0, 2.0], &[("InfoNce", 1.0, 5.0)]);
        let same = run(&[4.0, 2.5], &[("InfoNce", 1.5, 5.0)]);
        let other = run(&[4.0, 2.5], &[("InfoNce", 1.5, 7.0)]);
        let names = ["1".to_string(), "2".to_string()];
        let term = |b: &ReportData| overlay(&[&a, b], &names).figures.remove(1).svg;
        assert!(term(&same).contains("chance 5.000"));
        assert!(!term(&other).contains("chance"));
    }
}
