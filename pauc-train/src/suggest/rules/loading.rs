//! How images are read, and what that costs.

use super::images::Images;
use super::{Choice, Request};
use crate::suggest::machine::{Machine, Speed};
use crate::suggest::{count, time};

/// Whether this many decoded images fit into a quarter of the memory.
pub(super) fn fits_into_cache(request: &Request<'_>, machine: &Machine, size: usize, images: usize) -> bool {
    decoded_bytes(request, size, images) <= cache(machine) as f64
}

/// The memory for decoded images in bytes.
pub(super) fn cache(machine: &Machine) -> u64 {
    machine.memory.map_or(2 << 30, |bytes| (bytes / 4).max(1 << 30))
}

/// The bytes of this many images after shrinking.
pub(super) fn decoded_bytes(request: &Request<'_>, size: usize, images: usize) -> f64 {
    let survey = request.survey;
    let shrunk = shorter_side(request, size)
        .map_or(1.0, |side| (side as f64 / survey.short_sides.median.max(1) as f64).powi(2).min(1.0));
    images as f64 * survey.bytes_per_image * shrunk
}

/// Returns the side to which images are shrunk as they are read, if they are much larger than what the encoder sees.
pub(super) fn shorter_side(request: &Request<'_>, size: usize) -> Option<usize> {
    let side = 2 * size;
    let is_larger = request.survey.short_sides.median * 4 > side * 5;
    (is_larger && request.data.may_set("shorter_side")).then_some(side)
}

/// Returns the images per second of a run on this many images with this candidate, with loading.
pub(super) fn rate(request: &Request<'_>, machine: &Machine, speed: &Speed, images: usize) -> f64 {
    let is_cached = fits_into_cache(request, machine, speed.candidate.size, images);
    let decode = if is_cached { 0.0 } else { request.survey.seconds_per_image };
    let load = (decode + 2.0 * speed.seconds_per_view) / machine.threads.max(1) as f64;
    let train = 1.0 / speed.images_per_second.max(1e-9);
    // A GPU trains while the processor loads; on a CPU, both share the cores.
    1.0 / if machine.is_gpu { train.max(load) } else { train + load }.max(1e-12)
}

/// Chooses the settings of the dataset.
pub(super) fn data(
    request: &Request<'_>,
    machine: &Machine,
    images: &Images,
    size: usize,
) -> Vec<(&'static str, Choice<String>)> {
    let mut chosen = Vec::new();
    if let Some(Choice { value, why }) = &images.fraction {
        chosen.push(("test_fraction", Choice::new(format!("{value}"), why.clone())));
    }
    if let Some(on_error) = on_error(request, machine) {
        chosen.push(("on_error", on_error));
    }
    if let Some(side) = shorter_side(request, size) {
        let why = format!(
            "The encoder sees {size} pixels, and the shorter side has {} in the median: images are shrunk as they are read, so \
             that more of them stay in memory.",
            request.survey.short_sides.median
        );
        chosen.push(("shorter_side", Choice::new(side.to_string(), why)));
    }
    let bytes = decoded_bytes(request, size, request.survey.images()) * 1.25;
    let mebibytes = (bytes / f64::from(1 << 20)).ceil();
    if request.data.may_set("cache") && mebibytes > 2048.0 && bytes <= cache(machine) as f64 {
        let why = format!("MiB for all {} decoded images.", count(request.survey.images()));
        chosen.push(("cache", Choice::new(format!("{mebibytes:.0}"), why)));
    }
    chosen
}

/// The share of the budget that reading every image once may take.
const READ_ONCE: f64 = 0.05;

/// Decides whether unreadable images are skipped.
pub(super) fn on_error(request: &Request<'_>, machine: &Machine) -> Option<Choice<String>> {
    let survey = request.survey;
    if !request.data.may_set("on_error") {
        return None;
    }
    let (images, bad) = (survey.images(), survey.unreadable.len());
    let once = images as f64 * survey.seconds_per_image / machine.threads.max(1) as f64;
    if let Some(first) = survey.unreadable.first() {
        let expected = (bad as f64 * images as f64 / survey.read.max(1) as f64).ceil();
        // Twice as many, for those that were not read and those to come.
        let most = if survey.is_complete() { bad + bad.div_ceil(10) } else { (2.0 * expected) as usize + 10 };
        let why = format!(
            "{} of the {} images read cannot be decoded, such as {}. They are left out and listed in `data_errors.jsonl`. \
             Each opening reads all images once, which takes about {}.",
            count(bad),
            count(survey.read),
            first.path,
            time(once)
        );
        return Some(Choice::new(format!("Skip(max: {most})"), why));
    }
    if survey.is_complete() {
        let why = format!("All {} images can be read.", count(images));
        return Some(Choice::new("Fail".into(), why));
    }
    if once <= READ_ONCE * request.budget.seconds() {
        let most = images / 1000 + 1;
        let why = format!(
            "All of the {} images read can be decoded; reading the others takes about {}, so up to {most} bad ones are left out \
             and listed.",
            count(survey.read),
            time(once)
        );
        return Some(Choice::new(format!("Skip(max: {most})"), why));
    }
    let why = format!(
        "All of the {} images read can be decoded. Reading all {} takes about {}; `pauc-cli data verify` does. `Skip(max: 100)` \
         leaves bad ones out.",
        count(survey.read),
        count(images),
        time(once)
    );
    Some(Choice::new("Fail".into(), why))
}
