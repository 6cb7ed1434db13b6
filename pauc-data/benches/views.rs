//! Measures how many images per second one thread turns into views, from memory.
//!
//! ```sh
//! cargo bench -p pauc-data --bench views
//! ```
//! Prints one line per measurement: the median of nine rounds.
#![allow(clippy::unwrap_used)] // a benchmark stops at the first error

use pauc_data::{Loader, LoaderOptions, MemoryImages, ViewPipeline, ViewSpec};
use pauc_traits::component_ron::options;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Count, ImageShape};
use rand::RngCore;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn images(count: usize, height: usize, width: usize, channels: usize) -> Arc<MemoryImages> {
    let shape = ImageShape { height, width, channels };
    let mut pixels = vec![0; count * shape.len()];
    stream(0, Purpose::Data, 0, 0, 0).fill_bytes(&mut pixels);
    Arc::new(MemoryImages::new(shape, pixels, None).unwrap())
}

/// Returns the CPU time of this thread, so that other programs do not count, or the wall time if the system
/// does not provide it.
fn clock() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let told = told.and_then(|t| t.split_whitespace().next()?.parse().ok()).map(Duration::from_nanos);
    told.unwrap_or_else(|| START.elapsed())
}

/// Prints the images per second of `views` in batches of 64.
fn measure(name: &str, source: &Arc<MemoryImages>, views: &str) {
    use pauc_traits::dataset::ImageSource;
    let specs: Vec<ViewSpec> = options().from_str(views).unwrap();
    let pipeline = ViewPipeline::training(&specs, source.shape(), &source.statistics()).unwrap();
    let batch = Count::try_from(source.len().min(64)).unwrap();
    let settings = LoaderOptions { threads: 0, ..LoaderOptions::training(batch, 0) };
    let loader = Loader::new(source.clone(), pipeline, settings).unwrap();
    let mut rates: Vec<f64> = (0..10)
        .map(|epoch| {
            let start = clock();
            let count: usize =
                loader.epoch(epoch, 0).map(|b| std::hint::black_box(b.unwrap()).ids.len()).sum();
            count as f64 / (clock() - start).as_secs_f64()
        })
        .skip(1)
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{name:<44} {:>9.0} images/s {:>8.2} µs/image", rates[4], 1e6 / rates[4]);
}

fn main() {
    let simclr = |size: usize, blur: &str| {
        format!(
            "[(count: 2, ops: [RandomResizedCrop(size: {size}), HorizontalFlip(), ColorJitter(), Grayscale(), {blur}])]"
        )
    };
    let exact = |kernel: usize| format!("GaussianBlur(model: Exact, kernel: {kernel})");
    let small = images(2048, 32, 32, 3);
    measure("two SimCLR views 32 px, kernel of 3", &small, &simclr(32, &exact(3)));
    measure("two SimCLR views 32 px, Pillow's blur", &small, &simclr(32, "GaussianBlur()"));
    for op in [
        "",
        "RandomResizedCrop(size: 32)",
        "RandomResizedCrop(size: 32, interpolation: Bicubic)",
        "HorizontalFlip(p: 1.0)",
        "ColorJitter(p: 1.0)",
        "ColorJitter(p: 1.0, hue: 0.0)",
        "Grayscale(p: 1.0)",
        "GaussianBlur(p: 1.0)",
        "GaussianBlur(p: 1.0, model: Exact, kernel: 3)",
        "RandomCrop(size: 32)",
    ] {
        measure(&format!("  one view: {op}"), &small, &format!("[(count: 1, ops: [{op}])]"));
    }
    let gray = "[(count: 2, ops: [RandomResizedCrop(size: 28), HorizontalFlip(), ColorJitter()])]";
    measure("two views 28 px gray", &images(2048, 28, 28, 1), gray);
    let large = images(32, 375, 500, 3);
    measure("two SimCLR views 224 px from 500×375", &large, &simclr(224, &exact(23)));
    for op in
        ["", "ColorJitter(p: 1.0)", "Grayscale(p: 1.0)", "GaussianBlur(p: 1.0, model: Exact, kernel: 23)"]
    {
        let views = format!("[(count: 1, ops: [RandomResizedCrop(size: 224), {op}])]").replace(", ]", "]");
        measure(&format!("  one view: RandomResizedCrop(size: 224) {op}"), &large, &views);
    }
}
