//! Charts as SVG text.
//!
//! Colors are CSS variables (`--ink`, `--muted`, `--grid`, `--paper`, `--c0` to `--c9`), so that one chart
//! works in light and dark mode; [`standalone`] adds the values for a separate file. Charts have the width of
//! a phone and scale up with the page, so text is never smaller than its nominal size.

use crate::axis::{number, significant, ticks};
use std::fmt::Write;

/// The colors of series, after Okabe and Ito, distinguishable with common forms of color blindness: for light
/// mode and for dark mode.
pub const PALETTE: [(&str, &str); 10] = [
    ("#0072b2", "#58b0ea"),
    ("#d55e00", "#ff9557"),
    ("#009e73", "#3fd0a4"),
    ("#b5558f", "#eb9fcb"),
    ("#7a5c00", "#f0c84b"),
    ("#4b4bb5", "#a9a6ff"),
    ("#56b4e9", "#a8dcff"),
    ("#8c3b2a", "#e0836f"),
    ("#6b7280", "#b6bcc8"),
    ("#5f8f00", "#b2d95c"),
];

/// The fonts of all charts.
const FONT: &str = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif";

/// The number format of the vertical axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Plain numbers.
    #[default]
    Plain,
    /// Fractions as percentages.
    Percent,
    /// Decimal logarithms; numbers that are not positive interrupt a line.
    Log,
}

impl Scale {
    /// Returns the height of a value on the axis.
    fn height(self, value: f64) -> f64 {
        if self == Scale::Log { value.log10() } else { value }
    }

    /// Formats the value at a height between ticks that are `step` apart.
    pub(crate) fn label(self, height: f64, step: f64) -> String {
        match self {
            Scale::Plain => number(height, step),
            Scale::Percent => number(height * 100.0, step * 100.0) + " %",
            Scale::Log => number(10f64.powf(height), 10f64.powf(height)),
        }
    }

    /// Returns the ticks of an axis; powers of ten on a logarithmic one, if there are several.
    fn ticks(self, low: f64, high: f64) -> Vec<f64> {
        let all = ticks(low, high, 5);
        let powers: Vec<f64> = all.iter().copied().filter(|t| (t - t.round()).abs() < 1e-9).collect();
        if self == Scale::Log && powers.len() > 1 { powers } else { all }
    }
}

/// A line through points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, by ascending x. NaN or infinite points interrupt the line.
    pub points: Vec<(f64, f64)>,
}

/// A line chart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// The title.
    pub title: String,
    /// The quantity and unit along the horizontal axis.
    pub x: String,
    /// The quantity and unit along the vertical axis.
    pub y: String,
    /// The series; series i has color i.
    pub series: Vec<Series>,
    /// Named horizontal dashed lines, such as chance levels.
    pub references: Vec<(String, f64)>,
    /// Named vertical dotted lines, such as the begin of a phase.
    pub marks: Vec<(String, f64)>,
    /// The number format of the vertical axis.
    pub scale: Scale,
    /// The style of each series, on a page with one legend for all its charts: the color, and from
    /// `PALETTE.len()` on the dashes. If empty, series i has color i, and the chart its own legend.
    pub styles: Vec<usize>,
    /// A band around each series: x, the lower and the upper bound. If empty, no series has one.
    pub bands: Vec<Vec<[f64; 3]>>,
    /// Whether the points are not connected by lines.
    pub is_cloud: bool,
    /// The names of x = 0, 1, 2, … on an axis of places; if empty, the axis has numbers.
    pub places: Vec<String>,
}

const WIDTH: f64 = 400.0;
const PLOT: f64 = 168.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 36.0;
const MARKS: f64 = 12.0;

/// Escapes text for XML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Estimates the width of a text in units of the chart. Fonts cannot be measured here, so the estimate is
/// generous.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if "iljtf.,:;'|/()[] ".contains(c) { 0.34 } else { 0.58 }).sum::<f64>() * size
}

/// Splits a line into at most `limit` parts; returns the mean point and the lowest and highest value of each.
fn thin(points: &[(f64, f64)], limit: usize) -> Vec<(f64, f64, f64, f64)> {
    let part = points.len().div_ceil(limit).max(1);
    let summary = |part: &[(f64, f64)]| {
        let values = || part.iter().map(|p| p.1).filter(|v| v.is_finite());
        let count = values().count() as f64;
        let x = part.iter().map(|p| p.0).sum::<f64>() / part.len() as f64;
        (
            x,
            values().sum::<f64>() / count,
            values().fold(f64::NAN, f64::min),
            values().fold(f64::NAN, f64::max),
        )
    };
    points.chunks(part).map(summary).collect()
}

/// The ranges of both axes, and the mapping from data to chart coordinates.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    top: f64,
}

impl Frame {
    fn x(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        self.top + PLOT - (y - self.y.0) / (self.y.1 - self.y.0) * PLOT
    }
}

fn range(values: impl Iterator<Item = f64>, pad: f64) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    // A constant gets a fixed margin, a range one in proportion to it.
    let room =
        if high - low <= 1e-9 * high.abs() { (high.abs() * 0.1).max(1e-6) } else { (high - low) * pad };
    (low - room, high + room)
}

impl Chart {
    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        !self.series.iter().any(|s| s.points.iter().any(|p| p.1.is_finite()))
    }

    /// Renders the chart as an `<svg>` element that uses the page's CSS variables.
    pub fn svg(&self) -> String {
        let heights =
            |s: &Series| -> Vec<_> { s.points.iter().map(|(x, y)| (*x, self.scale.height(*y))).collect() };
        let thinned: Vec<Vec<_>> = self.series.iter().map(|s| thin(&heights(s), 240)).collect();
        let legend = self.legend();
        // The names of marks have their own row above the plot, where no line crosses them.
        let top = 40.0 + 15.0 * legend.len() as f64 + if self.marks.is_empty() { 0.0 } else { MARKS };
        let points = || thinned.iter().flatten();
        let xs = points().map(|p| p.0).chain(self.marks.iter().map(|m| m.1));
        let bounds = self.bands.iter().flatten().flat_map(|b| [b[1], b[2]]);
        let ys = points().flat_map(|p| [p.2, p.3]);
        let ys = ys.chain(bounds.chain(self.references.iter().map(|r| r.1)).map(|y| self.scale.height(y)));
        let frame = Frame { x: range(xs, 0.02), y: range(ys, 0.06), top };
        let height = top + PLOT + BOTTOM;
        let mut out = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"{FONT}\"><title>{0}</title>",
            escape(&self.title)
        );
        text(&mut out, (2.0, 14.0), "title", &self.title);
        draw_legend(&mut out, &legend);
        text(&mut out, (2.0, 32.0 + 15.0 * legend.len() as f64), "unit", &self.y);
        self.axes(&mut out, &frame, height);
        self.lines(&mut out, &frame, &thinned);
        self.annotations(&mut out, &frame);
        out.push_str("</svg>");
        out
    }

    /// Returns the rows of the legend; none for a single series, whose name is in the title.
    fn legend(&self) -> Vec<Vec<(usize, &str)>> {
        if self.series.len() < 2 || !self.styles.is_empty() {
            Vec::new()
        } else {
            legend_rows(self.series.iter().map(|s| s.name.as_str()))
        }
    }

    fn axes(&self, out: &mut String, frame: &Frame, height: f64) {
        let step = |t: &[f64]| if t.len() > 1 { t[1] - t[0] } else { 0.0 };
        let (xs, ys) = (self.x_ticks(frame.x), self.scale.ticks(frame.y.0, frame.y.1));
        for &t in &ys {
            let y = frame.y(t);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            text(out, (LEFT - 6.0, y + 3.5), "tick end", &self.scale.label(t, step(&ys)));
        }
        let floor = frame.top + PLOT;
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{floor}\" y2=\"{floor}\"/>",
            WIDTH - RIGHT
        );
        for (i, place) in self.places.iter().enumerate() {
            text(out, (frame.x(i as f64), floor + 14.0), "tick middle", place);
        }
        for &t in xs.iter().filter(|t| self.places.is_empty() && (**t >= 0.0 || frame.x.0 < -1.0)) {
            text(out, (frame.x(t), floor + 14.0), "tick middle", &number(t, step(&xs)));
        }
        text(out, ((LEFT + WIDTH - RIGHT) / 2.0, height - 6.0), "unit middle", &self.x);
    }

    /// Returns the ticks of the horizontal axis: whole numbers if all points are at whole numbers, as steps are.
    fn x_ticks(&self, (low, high): (f64, f64)) -> Vec<f64> {
        let is_whole = |x: &f64| (x - x.round()).abs() < 1e-9;
        let all = ticks(low, high, 6);
        let whole: Vec<f64> = all.iter().copied().filter(is_whole).collect();
        let points = self.series.iter().flat_map(|s| &s.points);
        if whole.len() > 1 && points.map(|p| p.0).all(|x| is_whole(&x)) { whole } else { all }
    }

    fn lines(&self, out: &mut String, frame: &Frame, thinned: &[Vec<(f64, f64, f64, f64)>]) {
        for (i, (points, series)) in thinned.iter().zip(&self.series).enumerate() {
            let style = self.styles.get(i).copied();
            let color = style.unwrap_or(i) % PALETTE.len();
            if let Some(style) = style {
                let _ = write!(out, "<g class=\"run{style}\">");
            }
            if points.len() < series.points.len() {
                let band: Vec<[f64; 3]> = points.iter().map(|p| [p.0, p.2, p.3]).collect();
                draw_band(out, frame, &band, color);
            }
            if let Some(band) = self.bands.get(i) {
                let heights = band.iter().map(|b| [b[0], self.scale.height(b[1]), self.scale.height(b[2])]);
                draw_band(out, frame, &heights.collect::<Vec<_>>(), color);
            }
            let dashes = style.map_or(0, |s| s / PALETTE.len());
            let dashes = if dashes == 0 { String::new() } else { format!(" dashes{dashes}") };
            let _ = write!(out, "<path class=\"line{dashes}\" d=\"");
            let mut pen = 'M';
            for p in points {
                if p.1.is_finite() {
                    let _ = write!(out, "{pen}{:.1} {:.1}", frame.x(p.0), frame.y(p.1));
                }
                pen = if p.1.is_finite() && !self.is_cloud { 'L' } else { 'M' };
            }
            let _ = write!(out, "\" style=\"stroke:var(--c{color})\"/>");
            if series.points.len() <= 60 || self.is_cloud {
                for p in series.points.iter().filter(|p| self.scale.height(p.1).is_finite()) {
                    let value = match self.scale {
                        Scale::Plain | Scale::Log => significant(p.1),
                        Scale::Percent => format!("{:.2} %", 100.0 * p.1),
                    };
                    let _ = write!(
                        out,
                        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.4\" style=\"fill:var(--c{color})\">\
                         <title>{}: {value} at {}</title></circle>",
                        frame.x(p.0),
                        frame.y(self.scale.height(p.1)),
                        escape(&series.name),
                        significant(p.0)
                    );
                }
            }
            if style.is_some() {
                out.push_str("</g>");
            }
        }
    }

    /// Draws reference lines and marks, with their names where they fit.
    fn annotations(&self, out: &mut String, frame: &Frame) {
        for (name, x) in &self.marks {
            let (x, floor) = (frame.x(*x), frame.top + PLOT);
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{floor}\"/>",
                frame.top - MARKS
            );
            let fits = x + 4.0 + text_width(name, 9.5) < WIDTH;
            let (x, class) = if fits { (x + 4.0, "note") } else { (x - 4.0, "note end") };
            text(out, (x, frame.top - 4.0), class, name);
        }
        let mut taken: Vec<f64> = Vec::new();
        for (name, value) in self.references.iter().filter(|r| r.1.is_finite()) {
            let y = frame.y(self.scale.height(*value));
            let _ = write!(
                out,
                "<line class=\"reference\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            // Above its line, or below it if another name or the frame is in the way.
            let is_free =
                |height: &f64| *height > frame.top + 16.0 && taken.iter().all(|t| (t - height).abs() > 11.0);
            let height = [y - 4.0, y + 11.0].into_iter().find(is_free).unwrap_or(y - 4.0);
            taken.push(height);
            let label = format!("{name} {}", self.reference_value(*value));
            text(out, (WIDTH - RIGHT - 2.0, height), "note end", &label);
        }
    }

    fn reference_value(&self, value: f64) -> String {
        match self.scale {
            Scale::Plain | Scale::Log => significant(value),
            Scale::Percent => format!("{:.1} %", 100.0 * value),
        }
    }
}

/// Draws a band between the lower and upper heights at each x.
fn draw_band(out: &mut String, frame: &Frame, band: &[[f64; 3]], color: usize) {
    let finite = || band.iter().filter(|b| b.iter().all(|v| v.is_finite()));
    out.push_str("<polygon class=\"band\" points=\"");
    let mut corner = |b: &[f64; 3], y: f64| {
        let _ = write!(out, "{:.1},{:.1} ", frame.x(b[0]), frame.y(y));
    };
    finite().for_each(|b| corner(b, b[2]));
    finite().rev().for_each(|b| corner(b, b[1]));
    let _ = write!(out, "\" style=\"fill:var(--c{color})\"/>");
}

/// Arranges a legend in rows of (color, name) that fit the width of a chart.
pub(crate) fn legend_rows<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Vec<(usize, &'a str)>> {
    let mut rows: Vec<Vec<(usize, &str)>> = Vec::new();
    let mut used = f64::INFINITY;
    for (i, name) in names.enumerate() {
        let width = legend_width(name);
        if used + width > WIDTH {
            rows.push(Vec::new());
            used = 0.0;
        }
        used += width;
        if let Some(row) = rows.last_mut() {
            row.push((i, name));
        }
    }
    rows
}

/// Draws a legend under the title.
pub(crate) fn draw_legend(out: &mut String, rows: &[Vec<(usize, &str)>]) {
    for (row, entries) in rows.iter().enumerate() {
        let (mut x, y) = (2.0, 27.0 + 15.0 * row as f64);
        for (i, name) in entries {
            let _ = write!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" style=\"stroke:var(--c{})\" stroke-width=\"3\"/>",
                x + 14.0,
                i % PALETTE.len()
            );
            text(out, (x + 18.0, y + 4.0), "key", name);
            x += legend_width(name);
        }
    }
}

fn legend_width(name: &str) -> f64 {
    18.0 + text_width(name, 11.5) + 12.0
}

pub(crate) fn text(out: &mut String, (x, y): (f64, f64), class: &str, text: &str) {
    let _ = write!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
}

/// The CSS rules of all charts, for the page or a separate file.
pub const STYLE: &str = "\
.plot text{fill:var(--ink);font-size:11px}\
.plot .title{font-size:13px;font-weight:600}\
.plot .key{font-size:11.5px}\
.plot .unit,.plot .tick{fill:var(--muted)}\
.plot .tick,.plot .unit{font-size:10.5px}\
.plot .tick{font-variant-numeric:tabular-nums}\
.plot .end{text-anchor:end}.plot .middle{text-anchor:middle}\
.plot .note{font-size:10px;paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}\
.plot .grid{stroke:var(--grid);stroke-width:1}\
.plot .axis{stroke:var(--muted);stroke-width:1}\
.plot .line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}\
.plot .band{opacity:.18}\
.plot .reference{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:5 4;opacity:.75}\
.plot .mark{stroke:var(--muted);stroke-width:1;stroke-dasharray:1.5 3}\
.plot .dots{fill:none;stroke-width:2.6;stroke-linecap:round;stroke-opacity:.62}\
.plot .place{font-size:11px;font-weight:600;text-anchor:middle;paint-order:stroke;stroke:var(--paper);stroke-width:3.5px;stroke-linejoin:round}";

/// Returns the values of the CSS variables; `dark` for dark mode.
pub fn colors(dark: bool) -> String {
    let (ink, muted, grid, paper) = if dark {
        ("#e6e8ec", "#9aa3b2", "#2c323c", "#14171c")
    } else {
        ("#1c2026", "#5c6573", "#e3e6eb", "#ffffff")
    };
    let mut css = format!("--ink:{ink};--muted:{muted};--grid:{grid};--paper:{paper};");
    for (i, (light, dim)) in PALETTE.iter().enumerate() {
        let _ = write!(css, "--c{i}:{};", if dark { dim } else { light });
    }
    css
}

/// Makes a standalone SVG file of a chart, in light colors on white.
pub fn standalone(svg: &str) -> String {
    let style = format!("<style>svg{{{};background:#fff}}{STYLE}</style>", colors(false));
    match svg.find('>') {
        Some(end) => format!("{}{style}{}\n", &svg[..=end], &svg[end + 1..]),
        None => svg.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "a < b".into(), points }];
        Chart { title: "t & u".into(), series, references: vec![("chance".into(), 0.5)], ..Chart::default() }
    }

    #[test]
    fn points_land_where_the_axes_say() {
        let svg = chart(vec![(0.0, 0.0), (1.0, 1.0)]).svg();
        // The range is widened by 2 % and 6 %: x = 0 is 2/104 of the width from the left.
        let x = LEFT + 0.02 / 1.04 * (WIDTH - LEFT - RIGHT);
        let y = 40.0 + PLOT * (1.0 - 0.06 / 1.12);
        assert!(svg.contains(&format!("M{x:.1} {y:.1}L")), "{svg}");
        assert!(svg.contains("t &amp; u") && svg.contains("a &lt; b") && svg.contains("chance 0.5000"));
    }

    #[test]
    fn gaps_and_empty_series_do_not_reach_the_drawing() {
        let svg = chart(vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)]).svg();
        assert_eq!(svg.matches('L').count(), 0, "a gap ends the line: {svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(chart(vec![(0.0, f64::NAN)]).is_empty());
        assert!(!chart(vec![]).svg().contains("NaN"));
    }

    #[test]
    fn a_logarithmic_axis_has_powers_of_ten() {
        let points = vec![(0.0, 1e-2), (1.0, 0.0), (2.0, 1e4)];
        let svg = Chart { scale: Scale::Log, references: Vec::new(), ..chart(points) }.svg();
        // From −2 to 4, widened by 6 %: 10⁴ is 6/112 of the height from the top.
        let y = 40.0 + PLOT * 0.06 / 1.12;
        assert!(svg.contains(&format!(" {y:.1}\"")), "{svg}");
        assert!(
            ["0.01", "1", "100", "10k"].iter().all(|tick| svg.contains(&format!(">{tick}</text>"))),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 2, "zero has no logarithm: {svg}");
    }

    #[test]
    fn long_lines_become_means_with_a_band_that_holds_all_values() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (i as f64, (i % 2) as f64)).collect();
        let thinned = thin(&points, 240);
        assert!(thinned.len() <= 240 && thinned.iter().all(|p| (p.1, p.2, p.3) == (0.5, 0.0, 1.0)));
        assert!(chart(points).svg().contains("class=\"band\""));
    }

    #[test]
    fn bands_and_clouds_are_drawn() {
        let points = vec![(0.0, 0.5), (1.0, 0.5)];
        let bands = vec![vec![[0.0, 0.0, 1.0], [1.0, 0.25, 0.75]]];
        let svg = Chart { bands, references: Vec::new(), ..chart(points.clone()) }.svg();
        // Heights between 0 and 1, widened by 6 %.
        let y = |v: f64| 40.0 + PLOT - (v + 0.06) / 1.12 * PLOT;
        let x = |v: f64| LEFT + (v + 0.02) / 1.04 * (WIDTH - LEFT - RIGHT);
        let corners = [(0.0, 1.0), (1.0, 0.75), (1.0, 0.25), (0.0, 0.0)];
        let want: String = corners.iter().map(|c| format!("{:.1},{:.1} ", x(c.0), y(c.1))).collect();
        assert!(svg.contains(&format!("points=\"{want}\"")), "{svg}");
        let cloud = Chart { is_cloud: true, ..chart(points) }.svg();
        assert!(cloud.matches("<circle").count() == 2 && !cloud.contains('L'), "{cloud}");
        let places = vec!["none".to_string(), "much".to_string()];
        let named = Chart { places, ..chart(vec![(0.0, 0.5), (1.0, 0.5)]) }.svg();
        assert!(named.contains(&format!("x=\"{:.1}\" y=\"222.0\">none</text>", x(0.0))), "{named}");
        assert!(!named.contains(">0.2</text>"), "{named}");
    }

    #[test]
    fn a_file_of_its_own_holds_its_colors() {
        let svg = standalone(&chart(vec![(0.0, 1.0)]).svg());
        assert!(svg.starts_with("<svg") && svg.contains("--c0:#0072b2") && svg.contains(".plot .line"));
    }
}
