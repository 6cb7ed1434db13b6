//! `data fetch`: downloads standard datasets from their authors' servers.

use crate::Failure;
use crate::args::heading;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Download a standard dataset from its authors' server. Needs a binary with the feature `download`.
///
/// Resumes an interrupted download. Files get their final names only after their checksums match.
///
/// Example: pauc-cli data fetch Cifar10 --root data/cifar10
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The dataset: Mnist, FashionMnist, Cifar10, Cifar100 or Stl10.
    name: String,
    /// The address of a mirror with the same files.
    #[arg(long, value_name = "URL", help_heading = heading::INPUT)]
    from: Option<String>,
    /// The folder to write to.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    root: PathBuf,
}

impl FetchArgs {
    /// Downloads a dataset.
    #[cfg(feature = "download")]
    pub fn execute(self) -> Result<ExitCode, Failure> {
        use indicatif::{ProgressBar, ProgressStyle};
        use pauc::data::fetch::{Fetched, Progress, fetch, official};

        let sets = official();
        let Some(set) = sets.iter().find(|s| s.name.eq_ignore_ascii_case(&self.name)) else {
            let names = || sets.iter().map(|s| s.name.as_str());
            let near = pauc::traits::registry::did_you_mean(&self.name, names());
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            let known = names().collect::<Vec<_>>().join(", ");
            let message = format!("error: cannot fetch a dataset `{}`{near}; known: {known}", self.name);
            return Err(Failure::new(2, message));
        };
        let bar = ProgressBar::no_length(); // draws nothing without a terminal
        let style = "{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let outcome = fetch(set, &self.root, self.from.as_deref(), &mut |p: &Progress<'_>| {
            bar.set_message(p.path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            if let Some(total) = p.total {
                bar.set_length(total);
            }
            bar.set_position(p.bytes);
        });
        bar.finish_and_clear();
        let what = if outcome? == Fetched::Now { "fetched" } else { "is already there" };
        outln!(
            "{} {what}; recipes read it with `data: {0}(root: {:?})`",
            set.name,
            self.root.display().to_string()
        );
        Ok(ExitCode::SUCCESS)
    }

    /// Names the feature that this build lacks.
    #[cfg(not(feature = "download"))]
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let FetchArgs { name, root: _, from: _ } = self;
        let message = format!(
            "error: this binary cannot fetch {name}: \
             build it with `cargo build --release -p pauc-cli --features download`"
        );
        Err(Failure::new(2, message))
    }
}
