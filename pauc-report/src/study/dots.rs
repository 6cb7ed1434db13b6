//! Charts with one row per variant: every value as a dot, their mean and its interval.

use crate::axis::significant;
use crate::plot::{PALETTE, Scale, escape, text, text_width};
use std::fmt::Write;

/// A chart with one row per variant. Values are along the horizontal axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Dots {
    pub title: String,
    /// The quantity and unit along the axis.
    pub x: String,
    pub rows: Vec<Row>,
    pub scale: Scale,
    /// Whether there is a line at 0.
    pub has_zero: bool,
}

/// A row, or the heading of rows if it has no values.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub label: String,
    /// The color, as an index of the palette.
    pub color: usize,
    /// Values with their names.
    pub dots: Vec<(String, f64)>,
    pub mean: Option<f64>,
    pub interval: Option<[f64; 2]>,
}

const WIDTH: f64 = 400.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const HIGH: f64 = 17.0;

impl Row {
    fn is_heading(&self) -> bool {
        self.dots.is_empty() && self.mean.is_none()
    }
}

impl Dots {
    /// Renders the chart as an `<svg>` element that uses the page's CSS variables; nothing without a finite value.
    pub fn svg(&self) -> Option<String> {
        let values = self
            .rows
            .iter()
            .flat_map(|r| r.dots.iter().map(|d| d.1).chain(r.interval.into_iter().flatten()).chain(r.mean));
        let finite = values.chain(self.has_zero.then_some(0.0)).filter(|v| v.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if !self.rows.iter().any(|r| r.dots.iter().any(|d| d.1.is_finite()) || r.mean.is_some()) || low > high
        {
            return None;
        }
        let room = if high > low { (high - low) * 0.04 } else { (high.abs() * 0.1).max(1e-6) };
        let (low, high) = (low - room, high + room);
        let labels = self.rows.iter().filter(|r| !r.is_heading()).map(|r| text_width(&r.label, 11.0));
        let widest = labels.fold(0.0, f64::max);
        let left = (widest + 14.0).clamp(40.0, 190.0);
        let x = |v: f64| left + (v - low) / (high - low) * (WIDTH - left - RIGHT);
        let floor = TOP + HIGH * self.rows.len() as f64 + 4.0;
        let mut out = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{1}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui,sans-serif\"><title>{1}</title>",
            floor + 36.0,
            escape(&self.title)
        );
        text(&mut out, (2.0, 14.0), "title", &self.title);
        self.axis(&mut out, (low, high), (left, floor), &x);
        for (i, row) in self.rows.iter().enumerate() {
            let middle = TOP + HIGH * (i as f64 + 0.5);
            self.row(&mut out, row, middle, left, &x);
        }
        out.push_str("</svg>");
        Some(out)
    }

    fn axis(
        &self,
        out: &mut String,
        (low, high): (f64, f64),
        (left, floor): (f64, f64),
        x: &dyn Fn(f64) -> f64,
    ) {
        let ticks = crate::axis::ticks(low, high, ((WIDTH - left) / 70.0) as usize);
        let step = if ticks.len() > 1 { ticks[1] - ticks[0] } else { 0.0 };
        for t in ticks {
            let at = x(t);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{floor}\"/>"
            );
            text(out, (at, floor + 13.0), "tick middle", &self.scale.label(t, step));
        }
        if self.has_zero {
            let at = x(0.0);
            let _ = write!(
                out,
                "<line class=\"reference\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{floor}\"/>"
            );
        }
        text(out, (WIDTH / 2.0, floor + 28.0), "unit middle", &self.x);
    }

    fn row(&self, out: &mut String, row: &Row, middle: f64, left: f64, x: &dyn Fn(f64) -> f64) {
        let color = row.color % PALETTE.len();
        if row.is_heading() {
            text(out, (2.0, middle + 4.0), "unit", &clipped(&row.label, WIDTH - 4.0));
            return;
        }
        text(out, (left - 8.0, middle + 4.0), "label end", &clipped(&row.label, left - 10.0));
        if let Some([low, high]) = row.interval.filter(|i| i.iter().all(|v| v.is_finite())) {
            let (low, high) = (x(low), x(high));
            let _ = write!(
                out,
                "<path class=\"line\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {0:.1}v6M{high:.1} {0:.1}v6\" \
                 style=\"stroke:var(--c{color})\"/>",
                middle - 3.0
            );
        }
        for (name, value) in row.dots.iter().filter(|d| d.1.is_finite()) {
            let _ = write!(
                out,
                "<circle class=\"seed\" cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"3\" style=\"fill:var(--c{color})\">\
                 <title>{}, {}: {}</title></circle>",
                x(*value),
                escape(&row.label),
                escape(name),
                self.value(*value)
            );
        }
        if let Some(mean) = row.mean.filter(|m| m.is_finite()) {
            let _ = write!(
                out,
                "<path class=\"mean\" d=\"M{0:.1} {1:.1}v11\" style=\"stroke:var(--c{color})\"><title>{2}, mean: {3}\
                 </title></path>",
                x(mean),
                middle - 5.5,
                escape(&row.label),
                self.value(mean)
            );
        }
    }

    fn value(&self, value: f64) -> String {
        match self.scale {
            Scale::Percent => format!("{:.2} %", 100.0 * value),
            _ => significant(value),
        }
    }
}

/// Shortens a text to the width of its place.
fn clipped(label: &str, width: f64) -> String {
    if text_width(label, 11.0) <= width {
        return label.to_string();
    }
    let mut short = String::new();
    for c in label.chars() {
        if text_width(&short, 11.0) + 12.0 > width {
            break;
        }
        short.push(c);
    }
    short.trim_end().to_string() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_intervals_and_means_are_where_the_axis_says() {
        let row = Row {
            label: "a<b".into(),
            color: 11,
            dots: vec![("seed 0".into(), 0.0), ("seed 1".into(), 1.0), ("seed 2".into(), f64::NAN)],
            mean: Some(0.5),
            interval: Some([0.25, 0.75]),
        };
        let heading = Row { label: "k=3".into(), ..Row::default() };
        let chart = Dots { title: "t".into(), rows: vec![heading, row], ..Dots::default() };
        let svg = chart.svg().unwrap();
        // From 0 to 1, widened by 4 %.
        let left = (text_width("a<b", 11.0) + 14.0).clamp(40.0, 190.0);
        let x = |v: f64| left + (v + 0.04) / 1.08 * (WIDTH - left - RIGHT);
        let middle = TOP + HIGH * 1.5;
        for at in [0.0, 1.0] {
            assert!(svg.contains(&format!("cx=\"{:.1}\" cy=\"{middle:.1}\"", x(at))), "{svg}");
        }
        assert!(svg.contains(&format!("d=\"M{:.1} {middle:.1}H{:.1}", x(0.25), x(0.75))), "{svg}");
        assert!(svg.contains(&format!("d=\"M{:.1} {:.1}v11", x(0.5), middle - 5.5)), "{svg}");
        assert!(
            svg.contains("a&lt;b, seed 1: 1.000") && svg.contains("--c1)") && !svg.contains("NaN"),
            "{svg}"
        );
        assert_eq!(Dots::default().svg(), None);
        let nothing = Row { dots: vec![("s".into(), f64::NAN)], ..Row::default() };
        assert_eq!(Dots { rows: vec![nothing], ..Dots::default() }.svg(), None);
    }

    #[test]
    fn long_labels_are_shortened() {
        let short = clipped("a long label that does not fit", 60.0);
        assert!(short.ends_with('…') && text_width(&short, 11.0) <= 66.0, "{short}");
        assert_eq!(clipped("short", 60.0), "short");
    }
}
