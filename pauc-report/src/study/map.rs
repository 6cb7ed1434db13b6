//! Maps: a metric over two swept values.

use crate::axis::significant;
use crate::plot::{Scale, escape, text, text_width};
use std::fmt::Write;

/// A table of cells whose color is their value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Map {
    pub title: String,
    /// The path whose values are the columns, and the values.
    pub columns: (String, Vec<String>),
    /// The path whose values are the rows, and the values.
    pub rows: (String, Vec<String>),
    /// The value of each cell, row by row.
    pub cells: Vec<Vec<Option<f64>>>,
    pub scale: Scale,
    /// The values of the palest and of the strongest color, so that maps are comparable.
    pub range: [f64; 2],
}

const WIDTH: f64 = 400.0;
const HIGH: f64 = 30.0;

impl Map {
    /// Renders the map as an `<svg>` element that uses the page's CSS variables.
    pub fn svg(&self) -> String {
        let (columns, rows) = (&self.columns.1, &self.rows.1);
        let widest = rows.iter().map(|r| text_width(r, 11.0)).fold(0.0, f64::max);
        let left = (widest + 10.0).clamp(30.0, 160.0);
        let wide = (WIDTH - left - 2.0) / columns.len().max(1) as f64;
        let top = 54.0;
        let height = top + HIGH * rows.len() as f64 + 6.0;
        let mut out = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{0}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui,sans-serif\"><title>{0}</title>",
            escape(&self.title)
        );
        text(&mut out, (2.0, 14.0), "title", &self.title);
        text(&mut out, (2.0, 30.0), "unit", &format!("↓ {}   → {}", self.rows.0, self.columns.0));
        for (c, value) in columns.iter().enumerate() {
            text(&mut out, (left + wide * (c as f64 + 0.5), top - 6.0), "tick middle", value);
        }
        for (r, value) in rows.iter().enumerate() {
            let y = top + HIGH * r as f64;
            text(&mut out, (left - 6.0, y + HIGH / 2.0 + 4.0), "tick end", value);
            for (c, cell) in self.cells.get(r).into_iter().flatten().enumerate().take(columns.len()) {
                let x = left + wide * c as f64;
                self.cell(&mut out, *cell, (x, y, wide));
            }
        }
        out.push_str("</svg>");
        out
    }

    fn cell(&self, out: &mut String, cell: Option<f64>, (x, y, wide): (f64, f64, f64)) {
        let [low, high] = self.range;
        let share = cell.filter(|_| high > low).map_or(0.0, |v| ((v - low) / (high - low)).clamp(0.0, 1.0));
        let strength = if cell.is_some() { 0.06 + 0.64 * share } else { 0.0 };
        let _ = write!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\" \
             style=\"fill:var(--c0);fill-opacity:{strength:.2};stroke:var(--grid)\"/>",
            x + 1.0,
            y + 1.0,
            wide - 2.0,
            HIGH - 2.0
        );
        let label = match (cell, self.scale) {
            (None, _) => "–".to_string(),
            (Some(v), Scale::Percent) => format!("{:.1}", 100.0 * v),
            (Some(v), _) => significant(v),
        };
        text(out, (x + wide / 2.0, y + HIGH / 2.0 + 4.0), "cell middle", &label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_has_the_strongest_color() {
        let map = Map {
            title: "m".into(),
            columns: ("w".into(), vec!["0".into(), "1".into()]),
            rows: ("k".into(), vec!["10".into()]),
            cells: vec![vec![Some(0.5), Some(0.75)]],
            scale: Scale::Percent,
            range: [0.5, 0.75],
        };
        let svg = map.svg();
        assert!(svg.contains("fill-opacity:0.06") && svg.contains("fill-opacity:0.70"), "{svg}");
        assert!(
            svg.contains(">50.0</text>") && svg.contains(">75.0</text>") && svg.contains("↓ k   → w"),
            "{svg}"
        );
        let constant = Map { range: [0.5, 0.5], cells: vec![vec![Some(0.5), None]], ..map };
        let svg = constant.svg();
        assert!(
            svg.contains("fill-opacity:0.00") && svg.contains(">–</text>") && !svg.contains("NaN"),
            "{svg}"
        );
    }
}
