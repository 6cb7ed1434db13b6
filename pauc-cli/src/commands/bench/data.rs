//! `bench data`.

use crate::Failure;
use crate::args::{JsonArg, heading};
use crate::commands::data::DataArgs;
use clap::Args;
use pauc::data::throughput;
use std::process::ExitCode;
use std::time::Duration;

/// Measure how many images per second are read, augmented and normalized.
///
/// Example: pauc-cli bench data recipes/fashion-mini/simclr.ron --loader-threads 1,2
#[derive(Debug, Args)]
pub struct BenchDataArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Numbers of loader threads to measure; 0 loads on the calling thread.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2")]
    #[arg(help_heading = heading::MEASUREMENT)]
    loader_threads: Vec<usize>,
    /// Seconds to measure each.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, help_heading = heading::MEASUREMENT)]
    seconds: f64,
    #[command(flatten)]
    output: JsonArg,
}

impl BenchDataArgs {
    /// Measures the throughput of the loader.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let mut data = self.data.recipe()?;
        let splits = data.open_with_views()?;
        let views = data.training_views(&splits)?;
        let time = Duration::from_secs_f64(self.seconds.clamp(0.0, 3600.0));
        let batch = data.recipe.train.batch;
        let batch = batch.min(splits.train.len().try_into().unwrap_or(batch));
        let mut all = Vec::new();
        for threads in &self.loader_threads {
            all.push(throughput::measure(&splits.train, &views, batch, *threads, time)?);
        }
        if self.output.json {
            let json = serde_json::json!({
                "data": splits.description, "views": views.len(), "speed": all,
            });
            outln!("{json}");
            return Ok(ExitCode::SUCCESS);
        }
        outln!("{}, {} views", splits.description, views.len());
        outln!(
            "images/s of     loader        read     augment   normalize   (the last three: one thread's share)"
        );
        for s in &all {
            outln!(
                "{:>2} threads  {:>10.0}  {:>10.0}  {:>10.0}  {:>10.0}",
                s.threads,
                s.images_per_second,
                s.read,
                s.augment,
                s.normalize
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
