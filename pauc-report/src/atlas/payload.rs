//! The data of the page as JSON: numbers as base64 of little-endian arrays, which the script reads at once.

use super::Atlas;
use crate::picture::base64;
use pauc_traits::{Error, Result};
use serde::Serialize;

#[derive(Serialize)]
struct Payload<'a> {
    count: usize,
    points: String,
    ids: String,
    names: Option<&'a [String]>,
    classes: &'a [String],
    labels: Option<String>,
    votes: Option<VotesPayload>,
    prototypes: Option<PrototypesPayload<'a>>,
    splits: Option<String>,
    split_names: Option<&'a [String]>,
    typicality: String,
    near: Near,
    lists: Lists<'a>,
    duplicate_cosine: f32,
    thumbnails: Option<ThumbnailsPayload>,
}

#[derive(Serialize)]
struct VotesPayload {
    labels: String,
    shares: String,
    disagreement: String,
}

#[derive(Serialize)]
struct PrototypesPayload<'a> {
    of: String,
    concentrations: &'a [f32],
}

#[derive(Serialize)]
struct Near {
    k: usize,
    /// Bytes per number of an image.
    width: usize,
    rows: String,
    distances: String,
}

#[derive(Serialize)]
struct Lists<'a> {
    wrong: Option<&'a [u32]>,
    duplicates: &'a [Vec<u32>],
    duplicate_counts: &'a [usize],
    outliers: &'a [u32],
}

#[derive(Serialize)]
struct ThumbnailsPayload {
    cell: usize,
    sizes: String,
}

/// Returns the data of a page, for a `script` element.
pub(super) fn json(atlas: &Atlas) -> Result<String> {
    let payload = Payload {
        count: atlas.points.len(),
        points: base64(&places(&atlas.points)),
        ids: unsigned(&atlas.ids),
        names: atlas.names.as_deref(),
        classes: &atlas.classes,
        labels: atlas.labels.as_ref().map(|labels| signed(labels.iter().copied())),
        votes: atlas.votes.as_ref().map(|votes| VotesPayload {
            labels: signed(votes.most.iter().map(|vote| vote.map(|(label, _)| label))),
            shares: base64(&shares(votes.most.iter().map(|vote| vote.map_or(0.0, |(_, share)| share)))),
            disagreement: base64(&shares(votes.disagreement.iter().copied())),
        }),
        prototypes: atlas.prototypes.as_ref().map(|p| PrototypesPayload {
            of: signed(p.of.iter().map(|of| Some(*of))),
            concentrations: &p.concentrations,
        }),
        splits: atlas.splits.as_ref().map(|(of, _)| base64(of)),
        split_names: atlas.splits.as_ref().map(|(_, names)| &names[..]),
        typicality: base64(&atlas.typicality.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
        near: near(&atlas.nearest),
        lists: Lists {
            wrong: atlas.wrong.as_deref(),
            duplicates: &atlas.duplicates,
            duplicate_counts: &atlas.duplicate_counts,
            outliers: &atlas.outliers,
        },
        duplicate_cosine: atlas.duplicate_cosine,
        thumbnails: atlas
            .thumbnails
            .as_ref()
            .map(|t| ThumbnailsPayload { cell: t.cell, sizes: base64(t.sizes.as_flattened()) }),
    };
    let text = serde_json::to_string(&payload).map_err(|e| Error::Other(e.into()))?;
    // A script element ends at `</script`, and `<!--` changes how it is read.
    Ok(text.replace('<', "\\u003c"))
}

/// Returns x and y of each point in steps of 1/65535 of the map, which keeps its aspect ratio and has y downward.
fn places(points: &[[f32; 2]]) -> Vec<u8> {
    let bound = |d: usize, pick: fn(f64, f64) -> f64, from: f64| {
        points.iter().map(|p| f64::from(p[d])).fold(from, pick)
    };
    let low = [0, 1].map(|d| bound(d, f64::min, f64::INFINITY));
    let high = [0, 1].map(|d| bound(d, f64::max, f64::NEG_INFINITY));
    let extent = (high[0] - low[0]).max(high[1] - low[1]);
    let steps = |v: f64| if extent > 0.0 { (v / extent * 65535.0).round() as u16 } else { 32768 };
    let place = |p: &[f32; 2]| {
        let [x, y] = [steps(f64::from(p[0]) - low[0]), steps(high[1] - f64::from(p[1]))];
        [x.to_le_bytes(), y.to_le_bytes()].concat()
    };
    points.iter().flat_map(place).collect()
}

fn unsigned(values: &[u32]) -> String {
    base64(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

/// Encodes numbers below 2³¹, and −1 for none.
fn signed(values: impl Iterator<Item = Option<u32>>) -> String {
    let number = |v: Option<u32>| v.and_then(|v| i32::try_from(v).ok()).unwrap_or(-1);
    base64(&values.flat_map(|v| number(v).to_le_bytes()).collect::<Vec<u8>>())
}

/// Returns shares of 1 in steps of 1/255.
fn shares(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.map(|v| (v * 255.0).round() as u8).collect()
}

/// Encodes the nearest images: numbers in as few bytes as they need, and the distances √(2 − 2·cos) of unit vectors in
/// steps of 2/255. An image that has fewer than others is filled with its own number.
fn near(nearest: &[Vec<(f32, u32)>]) -> Near {
    let k = nearest.iter().map(Vec::len).max().unwrap_or(0);
    let width = if nearest.len() <= 1 << 16 { 2 } else { 3 };
    let (mut rows, mut distances) = (Vec::new(), Vec::new());
    for (i, list) in nearest.iter().enumerate() {
        let own = (1.0, i as u32);
        for (cosine, row) in list.iter().chain(std::iter::repeat(&own)).take(k) {
            rows.extend_from_slice(&row.to_le_bytes()[..width]);
            distances.push(((2.0 - 2.0 * cosine).clamp(0.0, 4.0).sqrt() * 127.5).round() as u8);
        }
    }
    Near { k, width, rows: base64(&rows), distances: base64(&distances) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_keep_the_aspect_ratio_and_y_points_down() {
        let number =
            |bytes: &[u8]| bytes.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect::<Vec<_>>();
        let got = number(&places(&[[1.0, 1.0], [5.0, 2.0], [3.0, 3.0]]));
        assert_eq!(got, [0, 32768, 65535, 16384, 32768, 0]);
        assert_eq!(number(&places(&[[4.0, 4.0]])), [32768, 32768]);
        assert!(places(&[]).is_empty());
    }

    #[test]
    fn nearest_images_are_filled_to_one_length() {
        let got = near(&[vec![(1.0, 1), (-1.0, 2)], vec![(0.5, 0)], vec![]]);
        assert_eq!((got.k, got.width), (2, 2));
        assert_eq!(got.rows, base64(&[1, 0, 2, 0, 0, 0, 1, 0, 2, 0, 2, 0]));
        // Distances 0, 2, 1, and 0 for the fill.
        assert_eq!(got.distances, base64(&[0, 255, 128, 0, 0, 0]));
        assert_eq!(signed([Some(3), None].into_iter()), base64(&[3, 0, 0, 0, 255, 255, 255, 255]));
        assert_eq!(shares([0.0, 0.5, 1.0].into_iter()), [0, 128, 255]);
    }
}
