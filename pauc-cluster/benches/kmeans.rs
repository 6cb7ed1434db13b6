//! Times clusterers and the diagnostics of coagulation on features from a file or generated ones.
//!
//! `PAUC_FEATURES=rows.npy RAYON_NUM_THREADS=1 cargo bench -p pauc-cluster --bench kmeans -- 'KMeans(k: [1000])'`
//!
//! The arguments are clusterers as in a recipe. Each is fitted `PAUC_ROUNDS` times (default 3) with seeds 0,
//! 1, … `PAUC_FEATURES` is a file that `pauc-cli cluster` can read. Without it, the features are 50 000
//! Gaussian rows of width 128, scaled to unit length. `PAUC_ROWS` limits the number of rows: only the first
//! are used.

use pauc_cluster::coagulation::Coagulation;
use pauc_cluster::feature_files::Matrix;
use pauc_traits::Configured;
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::registry::kind;
use pauc_traits::rng::{Purpose, stream};
use rand_distr::{Distribution, StandardNormal};
use std::error::Error;
use std::time::Instant;

fn number(name: &str, default: usize) -> Result<usize, Box<dyn Error>> {
    Ok(std::env::var(name).map_or(Ok(default), |v| v.parse())?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut texts: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if texts.is_empty() {
        texts = ["Random", "KMeansPlusPlus"].map(|init| format!("KMeans(k: [1000], init: {init})")).to_vec();
    }
    let (read, generated);
    let (data, cols) = match std::env::var("PAUC_FEATURES") {
        Ok(path) => {
            read = Matrix::open(path.as_ref(), None)?;
            (read.rows().data, read.rows().cols)
        }
        Err(_) => {
            let rng = &mut stream(0, Purpose::Data, 0, 0, 0);
            let mut data: Vec<f32> = (0..50_000 * 128).map(|_| StandardNormal.sample(rng)).collect();
            pauc_cluster::unit_rows(&mut data, 128);
            generated = data;
            (generated.as_slice(), 128)
        }
    };
    let rows = number("PAUC_ROWS", usize::MAX)?.min(data.len() / cols);
    let data = &data[..rows * cols];
    for text in &texts {
        let clusterer = Configured::<kind::Clusterer>::parse(text)?;
        for seed in 0..number("PAUC_ROUNDS", 3)? as u64 {
            let start = Instant::now();
            let levels = clusterer.fit(RowsView::new(data, cols), FitContext::new(seed))?;
            let seconds = start.elapsed().as_secs_f64();
            for level in &levels {
                println!(
                    "{text} on {rows}×{cols}, {} threads, seed {seed}: {seconds:.3} s, k {}, objective {:.2}, {} updates, \
                     {} splits, {} empty",
                    rayon::current_num_threads(),
                    level.k,
                    level.report.objective.last().unwrap_or(&f64::NAN),
                    level.report.objective.len() - 1,
                    level.report.splits,
                    level.report.empty
                );
            }
        }
    }
    let few = 5000.min(rows);
    let some = RowsView::new(&data[..few * cols], cols);
    let clusterer = Configured::<kind::Clusterer>::parse("KMeans(k: [250])")?;
    let levels = clusterer.fit(some, FitContext::new(0))?;
    let start = Instant::now();
    let state = Coagulation::of_clustering(some, &levels[0], &[])?;
    println!(
        "coagulation of {few}×{cols} in 250: {:.3} s, within rank {:.2}",
        start.elapsed().as_secs_f64(),
        state.within_rank
    );
    Ok(())
}
