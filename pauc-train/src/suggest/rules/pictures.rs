//! Kinds of pictures, and the views and candidates for each.

use pauc_data::survey::Survey;

/// The kinds of pictures that views differ for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// Small and without colors, such as digits.
    SmallGray,
    /// Large and without colors, such as X-rays.
    LargeGray,
    /// Small and in color, such as CIFAR.
    Small,
    /// Photographs.
    Photograph,
}

/// An image size, and an encoder and views for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Height and width that the encoder sees, in pixels.
    pub size: usize,
    /// The encoder as a recipe writes it.
    pub encoder: String,
    /// The views as a recipe writes them.
    pub views: String,
}

/// The largest shorter side of a small image, in pixels.
const SMALL: usize = 64;
/// The share of gray images from which all count as gray.
const GRAY: f64 = 0.95;
/// Sizes for larger images, in pixels.
const SIZES: [usize; 5] = [64, 96, 128, 160, 224];

/// Returns the kind of the pictures.
pub fn picture(survey: &Survey) -> Picture {
    let is_small = survey.short_sides.median <= SMALL;
    match (is_small, survey.gray >= GRAY) {
        (true, true) => Picture::SmallGray,
        (false, true) => Picture::LargeGray,
        (true, false) => Picture::Small,
        (false, false) => Picture::Photograph,
    }
}

/// Returns two or three candidates, from the fastest to the one that learns most, for images whose shorter side has `side`
/// pixels in the median.
pub fn candidates(picture: Picture, side: usize, is_gpu: bool) -> Vec<Candidate> {
    let candidate =
        |size, encoder: &str| Candidate { size, encoder: encoder.into(), views: views(picture, size) };
    let mut all = if matches!(picture, Picture::Small | Picture::SmallGray) {
        // The smallest encoder needs 16 pixels.
        let size = side.clamp(16, SMALL);
        let encoders = if is_gpu {
            ["ResNet18(stem: Small, width: 32)", "ResNet18(stem: Small)", "ResNet50(stem: Small)"]
        } else {
            [
                "ConvNet(channels: [32, 64, 128, 256], grid: 2)",
                "ResNet18(stem: Small, width: 16)",
                "ResNet18(stem: Small, width: 32)",
            ]
        };
        encoders.map(|encoder| candidate(size, encoder)).to_vec()
    } else {
        let at_most =
            |most: usize| SIZES.into_iter().filter(|s| *s <= most.min(side)).max().unwrap_or(SIZES[0]);
        let largest = if is_gpu { "ResNet50()" } else { "ResNet18()" };
        vec![
            candidate(at_most(96), "ResNet18(width: 32)"),
            candidate(at_most(128), "ResNet18()"),
            candidate(at_most(224), largest),
        ]
    };
    all.dedup();
    all
}

/// Returns the views for a kind of picture.
pub fn views(picture: Picture, size: usize) -> String {
    let steps = match picture {
        Picture::SmallGray => format!(
            "RandomResizedCrop(size: {size}, scale: (0.3, 1.0)), HorizontalFlip(p: 0.5), \
             ColorJitter(p: 0.8, brightness: 0.4, contrast: 0.4)"
        ),
        Picture::LargeGray => format!(
            "RandomResizedCrop(size: {size}, scale: (0.2, 1.0)), HorizontalFlip(p: 0.5), \
             ColorJitter(p: 0.8, brightness: 0.4, contrast: 0.4), GaussianBlur(p: 0.5)"
        ),
        Picture::Small => format!("SimClr(size: {size}, strength: 0.5, blur: 0.0, scale: (0.2, 1.0))"),
        Picture::Photograph => format!("MocoV2(size: {size})"),
    };
    format!("[(count: 2, ops: [{steps}])]")
}

pub(super) fn why_views(picture: Picture, survey: &Survey) -> String {
    let found = format!(
        "{:.0} % of the images read are gray, and the shorter side has {} pixels in the median",
        survey.gray * 100.0,
        survey.short_sides.median
    );
    let kind = match picture {
        Picture::SmallGray => {
            "small gray images get crops, flips and mild changes of brightness; remove the flip if mirror images differ in \
             meaning, as letters do"
        }
        Picture::LargeGray => "gray images get crops, flips, changes of brightness, and blur",
        Picture::Small => "small color images get SimCLR's views for CIFAR, without blur",
        Picture::Photograph => "photographs get MoCo v2's views",
    };
    format!("{found}: {kind}. `pauc-cli data preview` draws them.")
}
