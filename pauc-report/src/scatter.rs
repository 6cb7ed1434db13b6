//! Scatter plots, colored by group.

use crate::plot::{PALETTE, draw_legend, escape, legend_rows, text};
use std::fmt::Write;
use std::ops::Range;

/// A scatter plot. Both axes have the same scale, so that distances are comparable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scatter {
    /// The title.
    pub title: String,
    /// The meaning of the two axes, in one line.
    pub axes: String,
    /// The points.
    pub points: Vec<[f32; 2]>,
    /// Each point's group. Groups cycle through ten colors.
    pub groups: Vec<u32>,
    /// The names of the groups, shown at their center and, if colors do not repeat, in a legend; may be
    /// empty.
    pub names: Vec<String>,
}

const WIDTH: f64 = 400.0;
const EDGE: f64 = 372.0;
const LIMIT: usize = 4000;

impl Scatter {
    /// Renders the plot as an `<svg>` element that uses the page's CSS variables. At most 4000 evenly spaced
    /// points are drawn.
    pub fn svg(&self) -> String {
        let count = self.points.len().min(self.groups.len());
        let step = count.div_ceil(LIMIT).max(1);
        let finite = |i: &usize| self.points[*i].iter().all(|v| v.is_finite());
        let chosen: Vec<usize> = (0..count).step_by(step).filter(finite).collect();
        let bounds = |axis: usize| {
            let values = chosen.iter().map(|i| self.points[*i][axis] as f64);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)))
        };
        let ((left, right), (low, high)) = (bounds(0), bounds(1));
        let extent = (right - left).max(high - low).max(1e-9) * 1.04;
        let distinct = self.names.len() <= PALETTE.len();
        let legend = legend_rows(self.names.iter().map(String::as_str).filter(|_| distinct));
        let top = 24.0 + 15.0 * legend.len() as f64;
        let tall = ((high - low) / extent * EDGE + 16.0).clamp(120.0, EDGE);
        let x = |v: f32| WIDTH / 2.0 + (v as f64 - (left + right) / 2.0) / extent * EDGE;
        let y = |v: f32| top + tall / 2.0 - (v as f64 - (low + high) / 2.0) / extent * EDGE;

        let mut out = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{1}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui,sans-serif\"><title>{1}</title>",
            top + tall + 22.0,
            escape(&self.title)
        );
        text(&mut out, (2.0, 14.0), "title", &self.title);
        draw_legend(&mut out, &legend);
        let _ = write!(
            out,
            "<rect x=\"1\" y=\"{top}\" width=\"{}\" height=\"{tall:.1}\" fill=\"none\" style=\"stroke:var(--grid)\"/>",
            WIDTH - 2.0
        );
        for color in 0..PALETTE.len() {
            let mut path = String::new();
            for i in chosen.iter().filter(|i| self.groups[**i] as usize % PALETTE.len() == color) {
                let [px, py] = self.points[*i];
                let _ = write!(path, "M{:.1} {:.1}h0", x(px), y(py));
            }
            if !path.is_empty() {
                let _ = write!(out, "<path class=\"dots\" style=\"stroke:var(--c{color})\" d=\"{path}\"/>");
            }
        }
        let middle = |members: &[usize]| {
            [x(median(members, |i| self.points[i][0])), y(median(members, |i| self.points[i][1]))]
        };
        self.write_names(&mut out, &chosen, middle, top..top + tall);
        text(&mut out, (WIDTH / 2.0, top + tall + 15.0), "unit middle", &self.axes);
        out.push_str("</svg>");
        out
    }

    /// Writes the names of the groups at the center of their drawn points, within the frame `inside`.
    fn write_names(
        &self,
        out: &mut String,
        chosen: &[usize],
        middle: impl Fn(&[usize]) -> [f64; 2],
        inside: Range<f64>,
    ) {
        let mut taken: Vec<(f64, f64)> = Vec::new();
        for (group, name) in self.names.iter().enumerate() {
            let members: Vec<usize> =
                chosen.iter().copied().filter(|i| self.groups[*i] as usize == group).collect();
            if members.is_empty() {
                continue;
            }
            let half = crate::plot::text_width(name, 11.0) / 2.0 + 2.0;
            let [x, y] = middle(&members);
            let (x, y) = (x.clamp(half + 2.0, (WIDTH - half - 2.0).max(half)), y + 4.0);
            // Moves a name to the nearest free height, so that names of overlapping groups stay readable.
            let is_free = |height: &f64| {
                let overlaps =
                    |(tx, ty): &(f64, f64)| (ty - height).abs() <= 12.0 && (tx - x).abs() <= 2.0 * half;
                *height > inside.start + 12.0 && *height < inside.end - 4.0 && !taken.iter().any(overlaps)
            };
            let moves = (0..20).flat_map(|n| [n as f64 * 6.0, n as f64 * -6.0]);
            let height = moves.map(|by| y + by).find(is_free).unwrap_or(y);
            taken.push((x, height));
            text(out, (x, height), "place", name);
        }
    }
}

fn median(members: &[usize], value: impl Fn(usize) -> f32) -> f32 {
    let mut values: Vec<f32> = members.iter().map(|i| value(*i)).collect();
    values.sort_by(f32::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn_once_in_its_color_and_distances_keep_their_ratio() {
        let points = vec![[0.0, 0.0], [10.0, 0.0], [0.0, 5.0], [f32::NAN, 1.0]];
        let names = vec!["zero".into(), "<one>".into()];
        let svg = Scatter { points, groups: vec![0, 1, 11, 0], names, ..Scatter::default() }.svg();
        assert_eq!(svg.matches("h0").count(), 3, "a NaN or infinite point is not drawn");
        // 10 units are 100/104 of the edge.
        let reach = 10.0 / 10.4 * EDGE;
        let (left, right) = (WIDTH / 2.0 - reach / 2.0, WIDTH / 2.0 + reach / 2.0);
        // The title and one row of the legend come first.
        let y = 39.0 + (5.0 / 10.4 * EDGE + 16.0) / 2.0;
        let (floor, ceiling) = (y + reach / 4.0, y - reach / 4.0);
        assert!(svg.contains(&format!("--c0)\" d=\"M{left:.1} {floor:.1}h0\"")), "{svg}");
        let path = format!("--c1)\" d=\"M{right:.1} {floor:.1}h0M{left:.1} {ceiling:.1}h0\"");
        assert!(svg.contains(&path), "group 11 has the color of group 1: {svg}");
        assert!(svg.contains("&lt;one&gt;"));
    }

    #[test]
    fn empty_and_single_clouds_are_drawings_without_nan() {
        assert!(!Scatter::default().svg().contains("NaN"));
        let point = Scatter { points: vec![[1.0, 1.0]], groups: vec![0], ..Scatter::default() };
        assert!(!point.svg().contains("NaN") && point.svg().contains("h0"));
    }
}
