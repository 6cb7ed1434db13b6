//! `atlas`.

use crate::Failure;
use crate::args::{DataChangedArg, DeviceArg, heading};
use crate::commands::embed::VectorsName;
use crate::device::{self, DeviceJob};
use crate::recipes::{here, parse_component};
use crate::saved::{SavedArgs, SplitName};
use clap::{Args, ValueEnum};
use pauc::models::NetworkDevice;
use pauc::report::ReportData;
use pauc::report::html::ATLAS;
use pauc::train::atlas::{AtlasOptions, Drawn, MOST, RunJob, Subject, draw};
use pauc::train::saved_run::Part;
use pauc::traits::registry::kind;
use pauc::traits::{Error, atomic};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Draw a map of the images of a run, or of a file of embeddings.
///
/// Writes one HTML file, which works offline. Images that the encoder finds similar are close together on its map
/// (t-SNE). The page shows pictures as you zoom in, the nearest images of each image, likely wrong labels,
/// near-duplicates and outliers. You can search images, color them by class, prototype and other properties, and draw
/// around them to copy their names. If there are more images than --limit, equally many of each prototype or class are
/// drawn.
///
/// For a file of embeddings, --data adds pictures. The file has to be one that `embed` wrote.
///
/// Example: pauc-cli atlas runs/quickstart-0a1b2c3d/seed0 --split test
#[derive(Debug, Args)]
pub struct AtlasArgs {
    /// The run's folder, or a .safetensors, .npy, .csv or .parquet file of embeddings.
    #[arg(value_name = "RUN|EMBEDDINGS")]
    input: PathBuf,
    /// The split of the run; by default all.
    #[arg(long, help_heading = heading::INPUT)]
    split: Option<AtlasSplit>,
    /// A dataset, as a recipe writes it. With a run: embed these images instead of its own. With a file: its images.
    #[arg(long, value_name = "DATASET", help_heading = heading::INPUT)]
    data: Option<String>,
    #[command(flatten)]
    data_changed: DataChangedArg,
    /// Use the momentum encoder instead of the online encoder.
    #[arg(long, help_heading = heading::INPUT)]
    momentum: bool,
    /// The checkpoint to read; by default the last.
    #[arg(long, value_name = "FILE", help_heading = heading::INPUT)]
    checkpoint: Option<PathBuf>,
    /// The vectors of the run; by default features, as in probes.
    #[arg(long, help_heading = heading::INPUT)]
    vectors: Option<VectorsName>,
    /// The tensor of a safetensors file, or the column of a Parquet file.
    #[arg(long, value_name = "NAME", help_heading = heading::INPUT)]
    tensor: Option<String>,
    /// Draw at most this many images.
    #[arg(long, value_name = "N", default_value_t = MOST as u64, help_heading = heading::MEASUREMENT)]
    #[arg(value_parser = clap::value_parser!(u64).range(3..=MOST as u64))]
    limit: u64,
    /// Group images of at least this cosine as near-duplicates.
    #[arg(long, value_name = "COSINE", default_value = "0.99", allow_negative_numbers = true)]
    #[arg(value_parser = crate::commands::neighbors::cosine, help_heading = heading::MEASUREMENT)]
    duplicates: f32,
    /// The HTML file to write; by default atlas.html in the run's folder, or x.atlas.html beside the file x.npy.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

/// The images of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AtlasSplit {
    /// The training split.
    Train,
    /// The test split.
    Test,
    /// Both.
    All,
}

impl AtlasArgs {
    /// Writes the map.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let out = self.output();
        if out.extension().is_none_or(|e| e != "html" && e != "htm") {
            return Err(Failure::new(2, format!("error: {}: end the name in .html", out.display())));
        }
        if !self.input.exists() {
            let remedy = "give the folder of a run, or a .safetensors, .npy, .csv or .parquet file".into();
            return Err(Error::NotFound { path: self.input, remedy }.into());
        }
        // Before hours of embedding.
        atomic::check_writable(&out).map_err(Failure::of_writing)?;
        if self.input.is_dir() {
            if self.tensor.is_some() {
                let message = "error: --tensor is for files; use --vectors for a run";
                return Err(Failure::new(2, message));
            }
            return device::run_on(&self.device.name.clone(), self);
        }
        if let Some(option) = self.of_run() {
            let message =
                format!("error: {option} is for runs, but {} is not a folder", self.input.display());
            return Err(Failure::new(2, message));
        }
        let parse = |text: &String| parse_component::<kind::Dataset>("--data", text);
        let data = self.data.as_ref().map(parse).transpose()?;
        let data = data.map(|dataset| Ok::<_, Failure>(dataset.open(&here()?)?)).transpose()?;
        let subject =
            Subject::of_file(&self.input, self.tensor.as_deref(), data.as_ref(), self.limit as usize);
        self.write(subject.map_err(Failure::of_request)?)
    }

    fn output(&self) -> PathBuf {
        let beside = || match self.input.is_dir() {
            true => self.input.join(ATLAS),
            false => self.input.with_extension("atlas.html"),
        };
        self.out.clone().unwrap_or_else(beside)
    }

    /// Returns an option that was given and is for runs only.
    fn of_run(&self) -> Option<&'static str> {
        let given = [
            ("--split", self.split.is_some()),
            ("--momentum", self.momentum),
            ("--checkpoint", self.checkpoint.is_some()),
            ("--vectors", self.vectors.is_some()),
            ("--data-changed", self.data_changed.is_accepted()),
        ];
        given.into_iter().find_map(|(option, is_given)| is_given.then_some(option))
    }

    fn write(&self, subject: Subject) -> Result<ExitCode, Failure> {
        let out = self.output();
        let count = subject.ids.len();
        let drawn =
            draw(subject, AtlasOptions { duplicates: self.duplicates }).map_err(Failure::of_request)?;
        for warning in &drawn.warnings {
            errln!("warning: {warning}");
        }
        atomic::remove_leftovers(&out);
        atomic::write_with(&out, |file| drawn.atlas.write(file)).map_err(Failure::of_writing)?;
        self.print(&drawn, count);
        outln!("{}", out.display());
        self.link(&out)
    }

    /// Lets the report of the run link to an atlas in its folder.
    fn link(&self, out: &Path) -> Result<ExitCode, Failure> {
        if *out == self.input.join(ATLAS) && self.input.join("metrics.jsonl").is_file() {
            let report = self.input.join("report.html");
            atomic::remove_leftovers(&report);
            let written = pauc::report::write_report_of(&ReportData::read(&self.input)?, &self.input);
            written.map_err(|e| Failure::of_output(e, &report))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, drawn: &Drawn, count: usize) {
        let times: Vec<String> =
            drawn.times.iter().map(|(what, seconds)| format!("{what} {seconds:.1} s")).collect();
        outln!("{count} images, {} nearest of each: {}", drawn.neighbors, times.join(", "));
        outln!("{}", drawn.summary());
        for note in &drawn.atlas.notes {
            outln!("{note}");
        }
    }
}

impl DeviceJob for AtlasArgs {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let saved = SavedArgs {
            run: self.input.clone(),
            // Read below.
            split: SplitName::Train,
            data: self.data.clone(),
            data_changed: self.data_changed,
            momentum: self.momentum,
            checkpoint: self.checkpoint.clone(),
        };
        let saved = saved.open(device)?;
        let has_test = saved.plan.splits.test.as_ref().is_some_and(|test| !test.is_empty());
        let parts: &[Part] = match self.split.unwrap_or(AtlasSplit::All) {
            AtlasSplit::Test => &[Part::Test],
            AtlasSplit::All if has_test => &[Part::Train, Part::Test],
            AtlasSplit::All | AtlasSplit::Train => &[Part::Train],
        };
        let vectors = self.vectors.unwrap_or(VectorsName::Features).into();
        let job = RunJob { parts, momentum: self.momentum, vectors, limit: self.limit as usize };
        let subject = Subject::of_run(device, &saved, &job).map_err(Failure::of_request)?;
        self.write(subject)
    }
}
