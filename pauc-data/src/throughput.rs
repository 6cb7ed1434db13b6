//! Measures the speed of a dataset and its views.

use crate::{Loader, LoaderOptions, Throughput, ViewPipeline};
use pauc_traits::dataset::ImageSource;
use pauc_traits::{Count, Result};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Images per second, for each stage and overall.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// Threads of the loader; 0: the calling thread.
    pub threads: usize,
    /// The number of images in all rounds.
    pub images: u64,
    /// Images per second of wall time, in the median round.
    pub images_per_second: f64,
    /// Images per second of one thread, for reading only.
    pub read: f64,
    /// Images per second of one thread, for the augmentation of all views only.
    pub augment: f64,
    /// Images per second of one thread, for the normalization of all views only.
    #[serde(rename = "normalise")]
    pub normalize: f64,
}

/// Loads batches for about `time`, after a warm-up round that fills caches and is not counted.
///
/// # Errors
/// If an image cannot be read, or there are fewer images than `batch`.
pub fn measure(
    source: &Arc<dyn ImageSource>,
    views: &ViewPipeline,
    batch: Count,
    threads: usize,
    time: Duration,
) -> Result<Speed> {
    let options = LoaderOptions { threads, ..LoaderOptions::training(batch, 0) };
    let loader = Loader::new(source.clone(), views.clone(), options)?;
    // A round takes about a quarter of a second, and every thread prepares some batches in it, so that there
    // is a median. Rounds follow each other without a pause: batches prepared in advance count in the next
    // round.
    let first = Instant::now();
    loader.batches(0..1).try_for_each(|b| b.map(drop))?;
    let fit = (0.25 / first.elapsed().as_secs_f64().max(1e-6)).min(10_000.0) as u64;
    let round = fit.max(2 * threads.max(1) as u64);
    let mut batches = loader.batches(0..u64::MAX / 2);
    let mut one_round =
        || -> Result<usize> { (&mut batches).take(round as usize).map(|b| Ok(b?.ids.len())).sum() };
    one_round()?;
    let before = loader.throughput();
    let (mut rates, began) = (Vec::new(), Instant::now());
    while rates.is_empty() || began.elapsed() < time {
        let start = Instant::now();
        let images = one_round()?;
        rates.push(images as f64 / start.elapsed().as_secs_f64().max(1e-9));
    }
    rates.sort_by(f64::total_cmp);
    let after = loader.throughput();
    let images = after.images - before.images;
    let rate = |stage: fn(&Throughput) -> Duration| {
        images as f64 / (stage(&after) - stage(&before)).as_secs_f64().max(1e-9)
    };
    Ok(Speed {
        threads,
        images,
        images_per_second: rates[rates.len() / 2],
        read: rate(|t| t.read),
        augment: rate(|t| t.augment),
        normalize: rate(|t| t.normalize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryImages, ViewSpec};
    use pauc_traits::ImageShape;

    #[test]
    fn every_stage_is_measured() {
        let shape = ImageShape { height: 8, width: 8, channels: 3 };
        let source: Arc<dyn ImageSource> =
            Arc::new(MemoryImages::new(shape, vec![7; 192 * 20], None).unwrap());
        let specs: Vec<ViewSpec> =
            pauc_traits::component_ron::options().from_str("[(ops: [RandomResizedCrop(size: 8)])]").unwrap();
        let views = ViewPipeline::training(&specs, Some(shape), &[(0.5, 0.2); 3]).unwrap();
        for threads in [0, 2] {
            let speed = measure(&source, &views, Count::lit(5), threads, Duration::from_millis(1)).unwrap();
            assert!(speed.images >= 5 && speed.images.is_multiple_of(5));
            for rate in [speed.images_per_second, speed.read, speed.augment, speed.normalize] {
                assert!(rate.is_finite() && rate > 0.0, "{speed:?}");
            }
        }
        assert!(measure(&source, &views, Count::lit(21), 0, Duration::ZERO).is_err());
    }
}
