//! `neighbors`.

use crate::Failure;
use crate::args::{JsonArg, heading};
use crate::recipes::{here, parse_component};
use clap::Args;
use pauc::probes::neighbors::SearchOptions;
use pauc::train::neighbors::{Job, Row, Searched, search_files};
use pauc::traits::atomic;
use pauc::traits::registry::kind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lines of a list that are printed; files have all.
const PRINTED: usize = 10;
/// Queries on a sheet if none are named.
const ON_SHEET: usize = 12;

/// Find the nearest rows of embeddings, near-duplicates and outliers.
///
/// Compares each row of a file with all other rows, or with all rows of a second file, by cosine. The search is
/// exact. Files of `embed` also hold the names of the images, which the output then shows. With two files,
/// near-duplicates are rows of the first with a near-duplicate in the second: `neighbors test.npy train.npy
/// --duplicates 0.99` finds test images that may have leaked into the training split.
///
/// Example: pauc-cli neighbors features.npy -k 5 --duplicates 0.99 --out neighbors.csv
#[derive(Debug, Args)]
pub struct NeighborsArgs {
    /// The embeddings: a .safetensors, .npy, .csv or .parquet file.
    embeddings: PathBuf,
    /// The embeddings to search; by default the other rows of the first file.
    among: Option<PathBuf>,
    /// The tensor of safetensors files, or the column of Parquet files.
    #[arg(long, value_name = "NAME", help_heading = heading::INPUT)]
    tensor: Option<String>,
    /// The dataset of the embeddings, as a recipe writes it, for --sheet.
    #[arg(long, value_name = "DATASET", requires = "sheet", help_heading = heading::INPUT)]
    data: Option<String>,
    /// The number of nearest rows.
    #[arg(short, value_name = "K", default_value = "10", help_heading = heading::MEASUREMENT)]
    k: NonZeroUsize,
    /// Print the nearest rows of this image, by its name in the file, or of this row if the file has no names;
    /// may be given several times.
    #[arg(long, value_name = "NAME", help_heading = heading::MEASUREMENT)]
    query: Vec<String>,
    /// Group rows of at least this cosine, such as 0.99. Copies may be 0.000001 below 1, by rounding.
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true, value_parser = cosine)]
    #[arg(help_heading = heading::MEASUREMENT)]
    duplicates: Option<f32>,
    /// List this many rows with the lowest mean cosine to their nearest rows.
    #[arg(long, value_name = "N", help_heading = heading::MEASUREMENT)]
    outliers: Option<NonZeroUsize>,
    /// The .csv file to write, with one line per row and nearest row; near-duplicates and outliers go to
    /// x.duplicates.csv and x.outliers.csv.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
    /// The PNG file to write: the images of --query, or of 12 rows, each with its nearest.
    #[arg(long, value_name = "FILE", requires = "data", help_heading = heading::OUTPUT)]
    sheet: Option<PathBuf>,
    #[command(flatten)]
    output: JsonArg,
}

/// Reads a cosine.
pub fn cosine(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|value: &f32| (-1.0..=1.0).contains(value));
    value.ok_or_else(|| "a cosine is between -1 and 1".into())
}

impl NeighborsArgs {
    /// Searches files of embeddings.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        if let Some(out) = self.out.as_ref().filter(|out| out.extension().is_none_or(|e| e != "csv")) {
            return Err(Failure::new(2, format!("error: {}: end the name in .csv", out.display())));
        }
        // Opened first: a mistake in it costs no search.
        let data = self.data.as_deref().map(|text| parse_component::<kind::Dataset>("--data", text));
        let data = data.transpose()?.map(|dataset| Ok::<_, Failure>(dataset.open(&here()?)?)).transpose()?;
        let job = Job {
            queries: &self.embeddings,
            bank: self.among.as_deref(),
            tensor: self.tensor.as_deref(),
            options: SearchOptions { k: self.k.get(), duplicates: self.duplicates },
        };
        self.out.iter().chain(&self.sheet).for_each(|path| atomic::remove_leftovers(path));
        let searched = search_files(&job).map_err(Failure::of_request)?;
        let find = |name: &String| searched.queries.find(name);
        let queries: Vec<usize> =
            self.query.iter().map(find).collect::<Result<_, _>>().map_err(Failure::of_request)?;
        if let (Some(path), Some(data)) = (&self.sheet, &data) {
            let some = searched.queries.count.min(ON_SHEET);
            let spread: Vec<usize> = (0..some).map(|i| i * searched.queries.count / some).collect();
            let shown = if queries.is_empty() { &spread } else { &queries };
            let png = searched.sheet(data, shown, self.k.get().min(PRINTED)).map_err(Failure::of_request)?;
            atomic::write(path, &png).map_err(Failure::of_writing)?;
        }
        self.write(&searched).map_err(Failure::of_writing)?;
        if self.output.json {
            outln!("{}", self.json(&searched, &queries));
        } else {
            self.print(&searched, &queries);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn write(&self, searched: &Searched) -> pauc::traits::Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        searched.write_csv(out)?;
        if self.duplicates.is_some() {
            searched.write_duplicates(&out.with_extension("duplicates.csv"))?;
        }
        match self.outliers {
            Some(count) => searched.write_outliers(&out.with_extension("outliers.csv"), count.get()),
            None => Ok(()),
        }
    }

    /// The neighborhoods of the queries, or of all rows if there are none.
    fn json(&self, searched: &Searched, queries: &[usize]) -> serde_json::Value {
        let all: Vec<usize> = (0..searched.queries.count).collect();
        let shown = if queries.is_empty() { &all } else { queries };
        let neighborhoods: Vec<_> = shown.iter().map(|query| searched.neighborhood(*query)).collect();
        let mut json = serde_json::json!({
            "rows": searched.queries.count, "k": self.k, "seconds": searched.seconds,
            "neighbors": neighborhoods,
        });
        if let Some(bank) = &searched.bank {
            json["among"] = bank.count.into();
        }
        if self.duplicates.is_some() {
            json["duplicates"] = serde_json::json!(searched.duplicates());
        }
        if let Some(count) = self.outliers {
            json["outliers"] = serde_json::json!(searched.outliers(count.get()));
        }
        json
    }

    fn print(&self, searched: &Searched, queries: &[usize]) {
        let among =
            searched.bank.as_ref().map_or_else(String::new, |bank| format!(" among {} others", bank.count));
        outln!(
            "{} rows, the {} nearest of each{among}: {:.3} s",
            searched.queries.count,
            self.k,
            searched.seconds
        );
        for query in queries {
            let neighborhood = searched.neighborhood(*query);
            outln!("nearest to {}:", label(&neighborhood.query));
            neighborhood.nearest.iter().for_each(|near| outln!("  {:.4}  {}", near.cosine, label(&near.row)));
        }
        if let Some(least) = self.duplicates {
            let groups = searched.duplicates();
            let rows: usize = groups.iter().map(Vec::len).sum();
            outln!("near-duplicates, cosine at least {least}: {rows} rows in {} groups", groups.len());
            for group in groups.iter().take(PRINTED) {
                outln!("  {}", group.iter().map(label).collect::<Vec<_>>().join(", "));
            }
            self.print_rest(
                groups.len(),
                self.out.as_deref().map(|out| out.with_extension("duplicates.csv")),
            );
        }
        if let Some(count) = self.outliers {
            outln!("outliers, by the mean cosine to the {} nearest:", self.k);
            let outliers = searched.outliers(count.get());
            for outlier in outliers.iter().take(PRINTED) {
                outln!("  {:.4}  {}", outlier.mean_cosine, label(&outlier.row));
            }
            self.print_rest(
                outliers.len(),
                self.out.as_deref().map(|out| out.with_extension("outliers.csv")),
            );
        }
        for path in self.out.iter().chain(&self.sheet) {
            outln!("{}", path.display());
        }
    }

    fn print_rest(&self, count: usize, file: Option<PathBuf>) {
        if count > PRINTED {
            let place = file.as_deref().map(Path::display);
            let place =
                place.map_or_else(|| "--json or --out lists them".into(), |file| format!("see {file}"));
            outln!("  and {} more; {place}", count - PRINTED);
        }
    }
}

/// Returns what a row is called: its name, or its number.
fn label(row: &Row) -> String {
    row.name.clone().unwrap_or_else(|| format!("row {}", row.row))
}
