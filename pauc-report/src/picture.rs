//! Figures that contain an image file.

use crate::data::Prototypes;
use crate::figure::{Figure, Section};
use crate::plot::text;

/// Returns the contact sheet of prototypes as a figure; `None` if the file is not a PNG.
pub fn contact_sheet(png: &[u8], prototypes: &Prototypes) -> Option<Figure> {
    let note = format!(
        "{} of {} prototypes, one per row, by size; nearest image first",
        prototypes.shown.len(),
        prototypes.shown_of
    );
    let svg = sheet(png, "Images nearest to prototypes", &note)?;
    Some(Figure { name: "prototypes-nearest".into(), section: Section::Clustering, svg })
}

/// Returns the SVG text of a sheet of pictures; `None` if the file is not a PNG.
pub(crate) fn sheet(png: &[u8], title: &str, note: &str) -> Option<String> {
    let (width, height) = size(png)?;
    const WIDTH: f64 = 400.0;
    // The sheet is scaled to the width of a figure, without smoothing.
    let tall = WIDTH * height as f64 / width.max(1) as f64;
    let top = 42.0;
    let mut svg = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{title}\" \
         xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui,sans-serif\"><title>{title}</title>",
        top + tall
    );
    text(&mut svg, (2.0, 14.0), "title", title);
    text(&mut svg, (2.0, 32.0), "unit", note);
    svg.push_str(&format!(
        "<image y=\"{top}\" width=\"{WIDTH}\" height=\"{tall:.1}\" style=\"image-rendering:pixelated\" \
         href=\"data:image/png;base64,{}\"/></svg>",
        base64(png)
    ));
    Some(svg)
}

/// Returns a PNG file as a data URI; `None` if it is not one.
pub(crate) fn data_uri(png: &[u8]) -> Option<String> {
    size(png).map(|_| format!("data:image/png;base64,{}", base64(png)))
}

/// Returns width and height of a PNG file, which follow its signature.
fn size(png: &[u8]) -> Option<(u32, u32)> {
    let chunks = png.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let number = |offset: usize| Some(u32::from_be_bytes(*chunks.get(offset..)?.first_chunk()?));
    Some((number(8)?, number(12)?))
}

/// Encodes bytes as base64 (RFC 4648), with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0u32, |w, b| w << 8 | *b as u32) << (8 * (3 - three.len()));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= three.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_examples_of_the_standard() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\u{ff}\u{fe}", "w7/Dvg=="),
        ];
        pairs.iter().for_each(|(text, want)| assert_eq!(base64(text.as_bytes()), *want));
    }

    #[test]
    fn a_sheet_keeps_its_aspect_ratio_and_other_files_are_skipped() {
        let png =
            [&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], &[0, 0, 0, 200, 0, 0, 0, 50], &[8, 2, 0, 0, 0]].concat();
        let figure =
            contact_sheet(&png, &Prototypes { shown: vec![3, 1], shown_of: 9, ..Prototypes::default() })
                .unwrap();
        assert!(
            figure.svg.contains("height=\"100.0\"") && figure.svg.contains("2 of 9 prototypes"),
            "{}",
            figure.svg
        );
        assert!(contact_sheet(b"GIF89a", &Prototypes::default()).is_none());
        assert!(contact_sheet(&png[..12], &Prototypes::default()).is_none());
    }
}
