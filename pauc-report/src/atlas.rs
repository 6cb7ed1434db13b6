//! The atlas: one HTML file with a map of images, which works offline.
//!
//! The page is a template, a style sheet and a script in the folder `atlas`, each purpose in a file of its own. The
//! images come as arrays by number, in JSON with base64, and thumbnails as sheets at the end of the page: what is seen
//! first is read first.

mod payload;

use crate::picture::base64;
use crate::plot::colors;
use minijinja::{AutoEscape, Environment, context};
use pauc_traits::{Error, Result};
use std::io::{self, Write};

/// The parts of the script, in their order.
const SCRIPT: [&str; 9] = [
    include_str!("atlas/data.js"),
    include_str!("atlas/colors.js"),
    include_str!("atlas/sheets.js"),
    include_str!("atlas/view.js"),
    include_str!("atlas/draw.js"),
    include_str!("atlas/legend.js"),
    include_str!("atlas/panel.js"),
    include_str!("atlas/input.js"),
    include_str!("atlas/main.js"),
];
/// Colors besides those of charts: cards, and scales from low to high.
const LIGHT: &str = "--card:#f6f7f9;--ramp0:#c3d3e8;--ramp1:#86aed8;--ramp2:#4a86c0;--ramp3:#1f5a9a;--ramp4:#08264d;\
    --hot0:#c9ced6;--hot1:#d9b98f;--hot2:#e08a3c;--hot3:#c9451c;--hot4:#8c0f0f";
const DARK: &str = "--card:#1c2027;--ramp0:#2d3f5a;--ramp1:#35639b;--ramp2:#4b90d0;--ramp3:#8cc4f2;--ramp4:#e8f6ff;\
    --hot0:#444c59;--hot1:#8a6a45;--hot2:#e08a3c;--hot3:#ff6a3d;--hot4:#ff2e4d";

/// What the page shows. Everything that is by image has the same order, in which near images on the map should be near.
#[derive(Clone, Debug, Default)]
pub struct Atlas {
    /// The title.
    pub title: String,
    /// Words and values under the title.
    pub facts: Vec<(String, String)>,
    /// Remarks about the data, such as how it was sampled.
    pub notes: Vec<String>,
    /// Positions on the map; the unit has no meaning.
    pub points: Vec<[f32; 2]>,
    /// The number of each image in the data.
    pub ids: Vec<u32>,
    /// The names of the images, if they have any.
    pub names: Option<Vec<String>>,
    /// The names of the classes.
    pub classes: Vec<String>,
    /// The class of each image; `None` for images without one.
    pub labels: Option<Vec<Option<u32>>>,
    /// The labels of the nearest images.
    pub votes: Option<Votes>,
    /// The prototypes.
    pub prototypes: Option<Prototypes>,
    /// The split of each image, as an index into names, if the images are of several.
    pub splits: Option<(Vec<u8>, Vec<String>)>,
    /// The mean cosine of each image to its nearest.
    pub typicality: Vec<f32>,
    /// The nearest images of each image, nearest first: cosine and number.
    pub nearest: Vec<Vec<(f32, u32)>>,
    /// Images whose label is likely wrong, the most likely first; `None` without labels.
    pub wrong: Option<Vec<u32>>,
    /// Groups of near-duplicates, or the first images of large ones.
    pub duplicates: Vec<Vec<u32>>,
    /// The number of images of each group.
    pub duplicate_counts: Vec<usize>,
    /// How many of these groups, the first ones, have images of several splits.
    pub across_splits: usize,
    /// The least cosine of near-duplicates.
    pub duplicate_cosine: f32,
    /// The least typical images, the least typical first.
    pub outliers: Vec<u32>,
    /// Thumbnails, if the images are available.
    pub thumbnails: Option<Thumbnails>,
}

/// The labels of the nearest images of each image; `None` if they have none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Votes {
    /// The most frequent label, and its share.
    pub most: Vec<Option<(u32, f32)>>,
    /// The share of other labels than that of the image itself.
    pub disagreement: Vec<f32>,
}

/// The prototypes of a level.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prototypes {
    /// The prototype of each image.
    pub of: Vec<u32>,
    /// The concentration φ of each prototype.
    pub concentrations: Vec<f32>,
}

/// Thumbnails in sheets of 16 × 16 cells, in the order of the images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thumbnails {
    /// The width and height of a cell, in pixels.
    pub cell: usize,
    /// Width and height of each thumbnail, which is in the upper left corner of its cell.
    pub sizes: Vec<[u8; 2]>,
    /// The sheets, as JPEG files.
    pub sheets: Vec<Vec<u8>>,
}

impl Atlas {
    /// Writes the page.
    ///
    /// # Errors
    /// If the disk fails, or what is by image has different lengths.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let page = self.page().map_err(io::Error::other)?;
        to.write_all(page.as_bytes())?;
        for sheet in self.thumbnails.iter().flat_map(|t| &t.sheets) {
            writeln!(to, "<script type=\"text/plain\" class=\"sheet\">{}</script>", base64(sheet))?;
        }
        to.write_all(b"</body>\n</html>\n")
    }

    /// Returns the page without its sheets and its end.
    fn page(&self) -> Result<String> {
        self.check()?;
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_trim_blocks(true);
        let nearest = self.nearest.iter().map(Vec::len).max().unwrap_or(0);
        let groups = self.duplicates.len();
        let page = environment.render_str(
            include_str!("atlas/page.html"),
            context! {
                title => self.title,
                light => format!("{}{LIGHT}", colors(false)),
                dark => format!("{}{DARK}", colors(true)),
                style => include_str!("atlas/style.css"),
                facts => self.facts,
                notes => self.notes,
                label => format!("Map of {} images", self.points.len()),
                count => self.points.len(),
                nearest,
                has_thumbnails => self.thumbnails.is_some(),
                wrong => self.wrong.as_ref().map(Vec::len),
                wrong_note => "At least half of the nearest images have one other label. Such a label is often wrong, or \
                    the image shows both.",
                duplicates => groups,
                duplicates_note => self.duplicates_note(),
                outliers_note => "The images that are least similar to their nearest, the least similar first.",
                payload => payload::json(self)?,
                script => SCRIPT.join("\n"),
            },
        );
        page.map_err(|e| Error::Other(e.into()))
    }

    fn duplicates_note(&self) -> String {
        let what = "Groups of images whose cosine to another of the group is at least";
        let leaked = match self.across_splits {
            0 => String::new(),
            1 => " The first group has images of several splits.".into(),
            n => format!(" The first {n} groups have images of several splits."),
        };
        let why =
            if leaked.is_empty() { "" } else { " Accuracy on such test images is not accuracy on new ones." };
        format!("{what} {}.{leaked}{why}", self.duplicate_cosine)
    }

    fn check(&self) -> Result<()> {
        let n = self.points.len();
        let votes = self.votes.as_ref();
        let lengths = [
            ("ids", Some(self.ids.len())),
            ("names", self.names.as_ref().map(Vec::len)),
            ("labels", self.labels.as_ref().map(Vec::len)),
            ("votes", votes.map(|v| v.most.len())),
            ("votes", votes.map(|v| v.disagreement.len())),
            ("prototypes", self.prototypes.as_ref().map(|p| p.of.len())),
            ("splits", self.splits.as_ref().map(|s| s.0.len())),
            ("typicality", Some(self.typicality.len())),
            ("nearest", Some(self.nearest.len())),
            ("thumbnails", self.thumbnails.as_ref().map(|t| t.sizes.len())),
        ];
        let groups = self.duplicates.len();
        if self.duplicate_counts.len() != groups {
            let message = format!("{} counts for {groups} groups", self.duplicate_counts.len());
            return Err(Error::shape("near-duplicates", message));
        }
        match lengths.into_iter().find_map(|(what, len)| Some((what, len.filter(|len| *len != n)?))) {
            Some((what, len)) => Err(Error::shape(what, format!("{len} for {n} images"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(atlas: &Atlas) -> String {
        let mut page = Vec::new();
        atlas.write(&mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    fn two(names: [&str; 2]) -> Atlas {
        Atlas {
            title: "two <images>".into(),
            facts: vec![("data".into(), "a & b".into())],
            points: vec![[0.0, 0.0], [1.0, -1.0]],
            ids: vec![7, 3],
            names: Some(names.map(str::to_string).to_vec()),
            typicality: vec![0.5; 2],
            nearest: vec![vec![(0.5, 1)], vec![(0.5, 0)]],
            outliers: vec![1, 0],
            duplicate_cosine: 0.99,
            ..Atlas::default()
        }
    }

    #[test]
    fn names_are_text_wherever_they_are() {
        let page = page(&two(["</script><script>alert(1)</script>", "<!-- \u{2028} \"b\" -->"]));
        assert!(!page.contains("alert(1)</script>") && !page.contains("<!-- "));
        assert!(page.contains("<h1>two &lt;images&gt;</h1>") && page.contains("<b>a &amp; b</b>"));
        let start = page.find("id=\"payload\">").unwrap() + "id=\"payload\">".len();
        let payload = &page[start..start + page[start..].find("</script>").unwrap()];
        let read: serde_json::Value = serde_json::from_str(payload).unwrap();
        assert_eq!(read["names"][0], "</script><script>alert(1)</script>");
        assert_eq!(read["names"][1], "<!-- \u{2028} \"b\" -->");
    }

    #[test]
    fn the_page_loads_nothing() {
        let mut atlas = two(["a", "b"]);
        atlas.thumbnails = Some(Thumbnails { cell: 8, sizes: vec![[8, 8]; 2], sheets: vec![vec![1, 2, 3]] });
        let page = page(&atlas);
        assert!(page.contains("<script type=\"text/plain\" class=\"sheet\">AQID</script>\n</body>"));
        assert!(page.contains("default-src 'none'"));
        for outside in ["http://", "https://", "<link", " src=", "@import", "url("] {
            assert!(!page.contains(outside), "the page contains {outside}");
        }
        // A script must not end itself.
        assert!(SCRIPT.iter().all(|part| !part.contains("</script") && !part.contains("<!--")));
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let page = page(&two(["a", "b"]));
        assert!(!page.contains("id=\"tab-wrong\"") && page.contains("id=\"tab-outliers\""));
        assert!(!page.contains("of several splits"));
        let leaked = Atlas { across_splits: 1, ..two(["a", "b"]) };
        assert!(self::page(&leaked).contains("at least 0.99. The first group has images of several splits."));
        let labeled = Atlas { wrong: Some(vec![1]), ..two(["a", "b"]) };
        assert!(self::page(&labeled).contains("id=\"tab-wrong\""));
    }

    #[test]
    fn lengths_have_to_agree() {
        let atlas = Atlas { ids: vec![1], ..two(["a", "b"]) };
        let error = atlas.write(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("1 for 2 images"), "{error}");
    }
}
