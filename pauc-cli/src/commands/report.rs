//! `report`.

use crate::Failure;
use crate::args::heading;
use crate::training::{damaged_line, no_run};
use clap::Args;
use pauc::report::ReportData;
use pauc::train::side_by_side;
use pauc::traits::atomic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write the report of a run again, or show several runs on one page.
///
/// The page of several runs has their curves over each other, a table of their metrics with differences to the
/// first run, means over the seeds of a recipe, the differences between their recipes, and where each comes from.
///
/// Example: pauc-cli report runs/simclr-0a1b2c3d runs/pcl-4e5f6a7b --out compare.html
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The folder of a run; with --out, of several runs, or with the runs of several seeds.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The .html file to write the page of several runs to.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
}

impl ReportArgs {
    /// Writes a report.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        match (&self.out, &self.runs[..]) {
            (Some(out), runs) => write_page(runs, out)?,
            (None, [run]) => write_again(run)?,
            (None, _) => {
                let message = "error: the page of several runs needs a name; add --out compare.html, or give one run \
                    to write its own report.html";
                return Err(Failure::new(2, message));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes `report.html` into the folder of a run.
fn write_again(run: &Path) -> Result<(), Failure> {
    if !run.join("metrics.jsonl").is_file() {
        return Err(no_run(run, "metrics.jsonl"));
    }
    let (output, data) = (run.join("report.html"), ReportData::read(run)?);
    warn_of_damage(&data);
    atomic::remove_leftovers(&output);
    let written = pauc::report::write_report_of(&data, run);
    outln!("{}", written.map_err(|e| Failure::of_output(e, &output))?.display());
    Ok(())
}

/// Writes one page about several runs.
fn write_page(runs: &[PathBuf], out: &Path) -> Result<(), Failure> {
    check_page("--out", out)?;
    let all = side_by_side::read(runs).map_err(Failure::of_request)?;
    if let [only] = &all.runs[..] {
        let folder = only.data.folder.display();
        let message = format!(
            "error: a page with --out has several runs, and this is one; `report {folder}` writes its report.html"
        );
        return Err(Failure::new(2, message));
    }
    all.runs.iter().for_each(|run| warn_of_damage(&run.data));
    atomic::remove_leftovers(out);
    let written = pauc::report::write_side_by_side(&all, out);
    outln!("{}", written.map_err(|e| page_failure(e, out))?.display());
    Ok(())
}

/// Checks that the name of a page is that of an HTML file.
pub fn check_page(option: &str, out: &Path) -> Result<(), Failure> {
    if out.extension().is_some_and(|e| e.eq_ignore_ascii_case("html") || e.eq_ignore_ascii_case("htm")) {
        return Ok(());
    }
    let message = format!("error: {option} {}: give the page a name that ends in .html", out.display());
    Err(Failure::new(2, message))
}

/// Returns the failure to write a page: of its file, or because of what was asked for.
pub fn page_failure(error: pauc::traits::Error, out: &Path) -> Failure {
    match error {
        e @ pauc::traits::Error::Io { .. } => Failure::of_output(e, out),
        e => Failure::of_request(e),
    }
}

fn warn_of_damage(data: &ReportData) {
    for line in &data.damaged {
        errln!("warning: {}", damaged_line(&data.folder.join("metrics.jsonl"), *line));
    }
}
