//! Times k-means and the diagnostics of coagulation on given or generated rows.
//!
//! `PAUC_FEATURES=rows.npy RAYON_NUM_THREADS=1 cargo bench -p pauc-cluster --bench kmeans -- 1000 20 KMeans`
//! The arguments are k, iterations and the clusterer; `PAUC_FEATURES` is a little-endian float32 matrix as NumPy
//! saves it. Without it, 50 000 Gaussian rows of 128 are scaled to unit length.

use dfdx::prelude::Cpu;
use pauc_cluster::coagulation::Coagulation;
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::Rows;
use pauc_traits::registry::kind;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Compute, Configured, Features};
use rand_distr::{Distribution, StandardNormal};
use std::error::Error;
use std::time::Instant;

fn read_npy(path: &str) -> Result<(Vec<f32>, usize), Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let header_len = u16::from_le_bytes([*bytes.get(8).ok_or("no header")?, bytes[9]]) as usize;
    let header = std::str::from_utf8(&bytes[10..10 + header_len])?;
    if !header.contains("'<f4'") || !header.contains("'fortran_order': False") {
        return Err(format!("{path}: not a row-major float32 matrix: {header}").into());
    }
    let shape = header.split("'shape': (").nth(1).and_then(|s| s.split(')').next()).ok_or("no shape")?;
    let cols = shape.split(',').nth(1).ok_or("not a matrix")?.trim().parse()?;
    let values = bytes[10 + header_len..].chunks_exact(4);
    Ok((values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(), cols))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let argument = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.to_string());
    let (k, iterations, name) = (argument(0, "1000"), argument(1, "20"), argument(2, "KMeans"));
    let (data, cols) = match std::env::var("PAUC_FEATURES") {
        Ok(path) => read_npy(&path)?,
        Err(_) => {
            let rng = &mut stream(0, Purpose::Data, 0, 0, 0);
            let mut data: Vec<f32> = (0..50_000 * 128).map(|_| StandardNormal.sample(rng)).collect();
            pauc_cluster::unit_rows(&mut data, 128);
            (data, 128)
        }
    };
    let rows = data.len() / cols;
    let device = Cpu::default();
    let context = FitContext { seed: 0, epoch: 0, previous: &[], labels: None };
    let inits: &[&str] = if name == "KMeans" { &[", init: Random", ", init: KMeansPlusPlus"] } else { &[""] };
    for init in inits {
        let text = format!("{name}(k: [{k}], iterations: {iterations}{init})");
        let clusterer = Configured::<kind::Clusterer>::parse(&text)?;
        for _ in 0..3 {
            let start = Instant::now();
            let features = Features { device: &device, data: data.as_slice(), rows, cols };
            let levels = Cpu::clusterer(&*clusterer.value).fit(features, context)?;
            let report = &levels[0].report;
            println!(
                "{text} on {rows}×{cols}, {} threads: {:.3} s, objective {:.2}, {} updates, {} splits",
                rayon::current_num_threads(),
                start.elapsed().as_secs_f64(),
                report.objective.last().unwrap_or(&f64::NAN),
                report.objective.len() - 1,
                report.splits
            );
        }
    }
    let few = 5000.min(rows);
    let features = Features { device: &device, data: &data[..few * cols], rows: few, cols };
    let clusterer = Configured::<kind::Clusterer>::parse("KMeans(k: [250])")?;
    let levels = Cpu::clusterer(&*clusterer.value).fit(features, context)?;
    let start = Instant::now();
    let state = Coagulation::of_clustering(Rows::new(&data[..few * cols], cols), &levels[0], &[])?;
    println!(
        "coagulation of {few}×{cols} in 250: {:.3} s, within rank {:.2}",
        start.elapsed().as_secs_f64(),
        state.within_rank
    );
    Ok(())
}
