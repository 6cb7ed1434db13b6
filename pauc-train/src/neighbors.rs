//! Nearest rows, near-duplicates and outliers of files of embeddings, with the names of the images.

use crate::memory;
use pauc_cluster::feature_files::Matrix;
use pauc_cluster::sample_columns::SampleColumns;
use pauc_data::contact_sheet;
use pauc_data::pixels::{Filter, Rect, resample};
use pauc_probes::neighbors::{BANK, Found, SearchOptions, search, typicality};
use pauc_traits::dataset::{ImageSource, Splits};
use pauc_traits::{Error, Image, Result, atomic};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a neighbor in memory: cosine and row.
const NEIGHBOR: u128 = 8;
/// The largest side of an image on a sheet, in pixels.
const THUMBNAIL: usize = 96;

/// What to search, and for what.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The rows that are queries: a `.safetensors`, `.npy`, `.csv` or `.parquet` file.
    pub queries: &'a Path,
    /// The rows to find; the queries themselves if `None`.
    pub bank: Option<&'a Path>,
    /// The tensor or column of the files.
    pub tensor: Option<&'a str>,
    /// The number of nearest rows, and the cosine of near-duplicates.
    pub options: SearchOptions,
}

/// A file's rows, without the vectors.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// The file.
    pub path: PathBuf,
    /// The number of rows.
    pub count: usize,
    /// Ids, labels and names, as far as the file has them.
    pub samples: SampleColumns,
}

/// A row of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its number in the file, from 0.
    pub row: usize,
    /// Its place in the split.
    pub id: i64,
    /// The path of its image within the dataset, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Rows {
    pub(crate) fn open(path: &Path, tensor: Option<&str>) -> Result<(Matrix, Rows)> {
        let matrix = Matrix::open(path, tensor)?;
        let count = matrix.rows().rows;
        let rows = Rows { path: path.into(), count, samples: SampleColumns::read(path, count)? };
        Ok((matrix, rows))
    }

    /// Returns a row with its id, which is its number if the file has no ids, and its name.
    pub fn row(&self, row: usize) -> Row {
        let id = self.samples.ids.as_ref().map_or(row as i64, |ids| ids[row]);
        Row { row, id, name: self.samples.names.as_ref().map(|names| names[row].clone()) }
    }

    /// Returns the row with a name, or whose number is `wanted` if the file has no names.
    ///
    /// # Errors
    /// If there is no such row. The error has the most similar name.
    pub fn find(&self, wanted: &str) -> Result<usize> {
        let none = |help: String| {
            Error::config(format!("{}: no row is called `{wanted}`{help}", self.path.display()))
        };
        match &self.samples.names {
            Some(names) => names.iter().position(|name| name == wanted).ok_or_else(|| {
                let near = pauc_traits::registry::did_you_mean(wanted, names.iter().map(String::as_str));
                none(near.map_or_else(String::new, |near| format!("; did you mean `{near}`?")))
            }),
            None => wanted.parse().ok().filter(|row| *row < self.count).ok_or_else(|| {
                none(format!(": it has no names; give the number of a row below {}", self.count))
            }),
        }
    }
}

/// The result of a search in files.
#[derive(Clone, Debug)]
pub struct Searched {
    /// The queries.
    pub queries: Rows,
    /// The rows to find; `None` if they are the queries.
    pub bank: Option<Rows>,
    /// Nearest rows and near-duplicates.
    pub found: Found,
    /// Seconds of the search alone.
    pub seconds: f64,
}

/// Searches files of embeddings.
///
/// # Errors
/// If a file is missing or damaged, widths differ, a value is NaN or infinite, or the result needs more than
/// the machine's memory.
pub fn search_files(job: &Job<'_>) -> Result<Searched> {
    let (matrix, queries) = Rows::open(job.queries, job.tensor)?;
    let bank = job.bank.map(|path| Rows::open(path, job.tensor)).transpose()?;
    let rows = bank.as_ref().map_or(queries.count, |(_, rows)| rows.count);
    check_memory(queries.count, job.options.k.min(rows))?;
    let began = Instant::now();
    let found = search(matrix.rows(), bank.as_ref().map(|(matrix, _)| matrix.rows()), job.options);
    let found = found.map_err(|e| match e {
        Error::NonFinite { ref what, .. } if what == BANK => of_file(e, job.bank.unwrap_or(job.queries)),
        e => of_file(e, job.queries),
    })?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Searched { queries, bank: bank.map(|(_, rows)| rows), found, seconds })
}

/// Makes NaN an error of a file, not of a diverged encoder.
pub(crate) fn of_file(e: Error, path: &Path) -> Error {
    match e {
        Error::NonFinite { place, .. } => {
            Error::damaged(path, format!("holds NaN or infinity: {}", place.unwrap_or_default()))
        }
        e => e,
    }
}

pub(crate) fn check_memory(rows: usize, k: usize) -> Result<()> {
    let needed = rows as u128 * k as u128 * NEIGHBOR;
    match memory::of_machine() {
        Some(limit) if needed > u128::from(limit) => Err(Error::config(format!(
            "the {k} nearest of {rows} rows need {}, this machine has {}; lower k",
            memory::bytes(needed),
            memory::bytes(limit.into())
        ))),
        _ => Ok(()),
    }
}

/// A nearest row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Near {
    /// The row.
    #[serde(flatten)]
    pub row: Row,
    /// Its cosine to the query.
    pub cosine: f32,
}

/// A query with its nearest rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighborhood {
    /// The query.
    #[serde(flatten)]
    pub query: Row,
    /// Its nearest rows, nearest first.
    pub nearest: Vec<Near>,
}

/// A row that is far from all others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outlier {
    /// The row.
    #[serde(flatten)]
    pub row: Row,
    /// The mean cosine to its nearest rows.
    pub mean_cosine: f64,
}

impl Searched {
    fn bank(&self) -> &Rows {
        self.bank.as_ref().unwrap_or(&self.queries)
    }

    /// Returns a query with its nearest rows.
    pub fn neighborhood(&self, query: usize) -> Neighborhood {
        let near = |(cosine, row): &(f32, u32)| Near { row: self.bank().row(*row as usize), cosine: *cosine };
        Neighborhood {
            query: self.queries.row(query),
            nearest: self.found.nearest[query].iter().map(near).collect(),
        }
    }

    /// Returns the groups of near-duplicates. In a search between two files, a group is a query with its
    /// nearest row; groups are in the order of the queries.
    pub fn duplicates(&self) -> Vec<Vec<Row>> {
        if self.bank.is_none() {
            let rows = |group: &Vec<u32>| group.iter().map(|row| self.queries.row(*row as usize)).collect();
            return self.found.groups.iter().map(rows).collect();
        }
        let close = (0..self.queries.count).filter(|query| self.found.close[*query] > 0);
        let pair = |query: usize| {
            let nearest = self.found.nearest[query].first().map(|(_, row)| self.bank().row(*row as usize));
            std::iter::once(self.queries.row(query)).chain(nearest).collect()
        };
        close.map(pair).collect()
    }

    /// Returns up to `count` rows of the lowest mean cosine to their nearest, lowest first.
    pub fn outliers(&self, count: usize) -> Vec<Outlier> {
        let typicality = typicality(&self.found.nearest);
        let mut order: Vec<(f64, usize)> =
            typicality.into_iter().enumerate().filter_map(|(row, mean)| Some((mean?, row))).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let outlier = |(mean_cosine, row): (f64, usize)| Outlier { row: self.queries.row(row), mean_cosine };
        order.into_iter().take(count).map(outlier).collect()
    }

    /// Writes one line per query and nearest row: `row,id,name,rank,near_row,near_id,near_name,cosine`.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write_csv(&self, path: &Path) -> Result<()> {
        atomic::write_with(path, |file| {
            let mut file = csv::Writer::from_writer(file);
            file.write_record(["row", "id", "name", "rank", "near_row", "near_id", "near_name", "cosine"])?;
            for query in 0..self.queries.count {
                let Neighborhood { query, nearest } = self.neighborhood(query);
                for (rank, near) in nearest.into_iter().enumerate() {
                    let [name, near_name] =
                        [&query.name, &near.row.name].map(|n| n.clone().unwrap_or_default());
                    file.serialize((
                        (query.row, query.id, name, rank + 1),
                        (near.row.row, near.row.id, near_name, near.cosine),
                    ))?;
                }
            }
            file.flush()
        })
    }

    /// Writes one line per row of a group of near-duplicates: `group,row,id,name`.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write_duplicates(&self, path: &Path) -> Result<()> {
        let groups = self.duplicates();
        write_rows(path, ["group", "row", "id", "name"], || {
            groups.iter().enumerate().flat_map(|(g, rows)| rows.iter().map(move |row| (g.to_string(), row)))
        })
    }

    /// Writes one line per outlier, lowest first: `mean_cosine,row,id,name`.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write_outliers(&self, path: &Path, count: usize) -> Result<()> {
        let outliers = self.outliers(count);
        write_rows(path, ["mean_cosine", "row", "id", "name"], || {
            outliers.iter().map(|outlier| (outlier.mean_cosine.to_string(), &outlier.row))
        })
    }

    /// Returns a PNG with one line per query: its image, then those of up to `columns` of its nearest rows. The
    /// images come from the splits of `data` that the files name.
    ///
    /// # Errors
    /// If a file does not say which split it has, a row's name is not that of its image in `data`, or an image
    /// cannot be read.
    pub fn sheet(&self, data: &Splits, queries: &[usize], columns: usize) -> Result<Vec<u8>> {
        let (from, to) = (&**images(&self.queries, data)?, &**images(self.bank(), data)?);
        let mut cells = Vec::new();
        for query in queries {
            cells.push(thumbnail(from, &self.queries, *query)?);
            let nearest = &self.found.nearest[*query];
            for (_, row) in nearest.iter().take(columns) {
                cells.push(thumbnail(to, self.bank(), *row as usize)?);
            }
            // Lines are of one length.
            let missing = columns.saturating_sub(nearest.len());
            let blank = Image::new(pauc_traits::ImageShape { height: 1, width: 1, channels: 1 }, vec![255]);
            cells.extend(std::iter::repeat_n(blank, missing));
        }
        contact_sheet(&cells, columns + 1)
    }
}

/// Writes rows as CSV, with a first column.
fn write_rows<'a, I: Iterator<Item = (String, &'a Row)>>(
    path: &Path,
    header: [&str; 4],
    rows: impl Fn() -> I,
) -> Result<()> {
    atomic::write_with(path, |file| {
        let mut file = csv::Writer::from_writer(file);
        file.write_record(header)?;
        for (first, row) in rows() {
            file.serialize((first, row.row, row.id, row.name.as_deref().unwrap_or_default()))
                .map_err(io::Error::from)?;
        }
        file.flush()
    })
}

/// Returns the split of `data` that a file has the rows of.
pub(crate) fn images<'a>(rows: &Rows, data: &'a Splits) -> Result<&'a Arc<dyn ImageSource>> {
    let path = rows.path.display();
    match rows.samples.split.as_deref() {
        Some("train") => Ok(&data.train),
        Some("test") => data.test.as_ref().ok_or_else(|| {
            Error::config(format!("{path} has rows of the test split, but {} has none", data.description))
        }),
        _ => Err(Error::config(format!(
            "{path} does not say which split it has; use a file that `pauc-cli embed` wrote"
        ))),
    }
}

/// Returns the index of a row's image, and checks that it has the row's name.
pub(crate) fn index_of(images: &dyn ImageSource, rows: &Rows, row: usize) -> Result<usize> {
    let Row { id, name, .. } = rows.row(row);
    let index = usize::try_from(id).unwrap_or(usize::MAX);
    let wrong = |known: String| {
        Error::config(format!(
            "{}: row {row} is `{}`, but image {id} of the data {known}; give the dataset of the embeddings",
            rows.path.display(),
            name.as_deref().unwrap_or("without a name")
        ))
    };
    if index >= images.len() {
        return Err(wrong(format!("does not exist: it has {}", images.len())));
    }
    let known = images.path(index);
    if name.is_some() && name != known {
        return Err(wrong(known.map_or_else(|| "has no name".into(), |known| format!("is `{known}`"))));
    }
    Ok(index)
}

/// Reads the image of a row, shrunk, and checks that it has the row's name.
fn thumbnail(images: &dyn ImageSource, rows: &Rows, row: usize) -> Result<Image<'static>> {
    let image = images.image(index_of(images, rows, row)?)?;
    let (height, width) = (image.shape.height, image.shape.width);
    let side = height.max(width);
    if side <= THUMBNAIL {
        return Ok(image.into_owned());
    }
    let shrunk = |length: usize| (length * THUMBNAIL / side).max(1);
    Ok(resample::resize(&image, Rect::whole(image.shape), shrunk(height), shrunk(width), Filter::Bilinear))
}
