//! The report of a run: one HTML file with the recipe, the course and the results of the run.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! | module | contents |
//! |---|---|
//! | [`events`] | the types of `metrics.jsonl`, shared with its writer |
//! | [`data`] | reads the folder of a run into [`ReportData`] |
//! | [`data_issues`] | leaked images and likely wrong labels |
//! | [`figures`] | the figures of a run |
//! | [`plot`], [`scatter`], [`axis`] | charts and scatter plots as SVG, and the numbers at their axes |
//! | [`narrate`] | events as lines of text |
//! | [`picture`] | image files in figures |
//! | [`postmortem`] | why a run ended with NaN or infinity: causes, story, section of the page |
//! | [`protobuf`] | the encoding of TensorBoard's events and of ONNX |
//! | [`tensorboard`] | the metrics as TensorBoard event files |
//! | `term_gradients` | the gradients of single terms at the embeddings |
//! | [`verdict`] | accuracies compared with the baselines |
//! | [`html`] | the page |
//! | [`atlas`] | the page with a map of images |
//! | [`side_by_side`] | several runs on one page |
//! | [`study`] | a sweep on one page |
//!
//! The page is self-contained: it loads nothing, works offline and on a phone, and follows the reader's
//! choice of light or dark mode.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub mod atlas;
pub mod axis;
pub mod data;
pub mod data_issues;
pub mod events;
pub mod figure;
pub mod figures;
pub mod html;
pub mod narrate;
pub mod picture;
pub mod plot;
pub mod postmortem;
pub mod protobuf;
pub mod scatter;
pub mod side_by_side;
pub mod study;
pub mod tensorboard;
mod term_gradients;
pub mod verdict;

pub use data::ReportData;
pub use html::render;
pub use side_by_side::SideBySide;
pub use study::Study;

use pauc_traits::{Error, Result, atomic};
use std::path::{Path, PathBuf};

/// Writes `report.html` into the folder of a run and returns its path.
///
/// Reads `metrics.jsonl`, which is required, and if they exist `run.json`, `recipe.resolved.ron`,
/// `figures/embedding.json`, `figures/prototypes.json`, `figures/prototypes.png`, `figures/data-issues.json` with its
/// pictures, and `postmortem.json` with its pictures.
///
/// # Errors
/// If a file cannot be read or written, or `run.json`, `postmortem.json` or `figures/embedding.json` is damaged.
pub fn write_report(run_dir: &Path) -> Result<PathBuf> {
    write_report_of(&ReportData::read(run_dir)?, run_dir)
}

/// Writes `report.html` about `data`, which [`ReportData::read`] read from the folder of the run.
///
/// # Errors
/// [`Error::Io`] naming `report.html` if it cannot be written.
pub fn write_report_of(data: &ReportData, run_dir: &Path) -> Result<PathBuf> {
    write(&run_dir.join("report.html"), &render(data)?)
}

/// Writes the page about several runs.
///
/// # Errors
/// [`Error::Config`] if no two runs have a metric or a curve in common, [`Error::Io`] if the file cannot be
/// written.
pub fn write_side_by_side(runs: &SideBySide, path: &Path) -> Result<PathBuf> {
    write(path, &side_by_side::render(runs)?)
}

/// Writes the page about a sweep.
///
/// # Errors
/// [`Error::Config`] if no run has finished, [`Error::Io`] if the file cannot be written.
pub fn write_study(study: &Study, path: &Path) -> Result<PathBuf> {
    write(path, &study::render(study)?)
}

/// Writes every chart of a sweep's page to its own file in a folder, and returns the paths.
///
/// # Errors
/// [`Error::Io`] if a file cannot be written.
pub fn write_study_figures(study: &Study, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let file =
        |(name, svg): (String, String)| write(&folder.join(format!("{name}.svg")), &plot::standalone(&svg));
    study::charts(study).into_iter().map(file).collect()
}

/// Writes every figure of the report to its own file, `figures/<name>.svg`, and returns the paths.
///
/// # Errors
/// As for [`write_report`].
pub fn write_figures(run_dir: &Path) -> Result<Vec<PathBuf>> {
    let data = ReportData::read(run_dir)?;
    let folder = run_dir.join("figures");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let figures = figures::all(&data);
    let write =
        |f: &figure::Figure| write(&folder.join(format!("{}.svg", f.name)), &plot::standalone(&f.svg));
    figures.iter().map(write).collect()
}

/// Writes a file atomically and returns its path.
fn write(path: &Path, text: &str) -> Result<PathBuf> {
    atomic::write(path, text.as_bytes())?;
    Ok(path.to_path_buf())
}
