//! What files of features say of their samples: ids, labels and names, as `pauc-cli embed` writes them.

use crate::csv_file;
use crate::feature_files::{self, Kind};
use pauc_traits::{Error, Result, npy};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Columns of the samples of a file, as far as it has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleColumns {
    /// The places of the samples in their split.
    pub ids: Option<Vec<i64>>,
    /// The class labels.
    pub labels: Option<Vec<i64>>,
    /// The paths of the images within the dataset.
    pub names: Option<Vec<String>>,
    /// The split of the dataset that the samples are: `train` or `test`.
    pub split: Option<String>,
}

impl SampleColumns {
    /// Reads what a file of features, or the files beside a `.npy` file, say of its `rows` samples.
    ///
    /// # Errors
    /// If a file is damaged, or has another number of ids, labels or names.
    pub fn read(path: &Path, rows: usize) -> Result<SampleColumns> {
        let columns = match feature_files::kind(path)? {
            Kind::Safetensors => of_safetensors(path)?,
            Kind::Npy => beside(path)?,
            Kind::Csv => SampleColumns {
                split: split_beside(path)?,
                ..csv_file::samples(path, &feature_files::text(path)?)?
            },
            Kind::Parquet => of_parquet(path)?,
        };
        let lengths = [
            ("ids", columns.ids.as_ref().map(Vec::len)),
            ("labels", columns.labels.as_ref().map(Vec::len)),
            ("names", columns.names.as_ref().map(Vec::len)),
        ];
        let wrong = lengths.into_iter().find_map(|(what, len)| Some((what, len.filter(|len| *len != rows)?)));
        wrong.map_or(Ok(columns), |(what, len)| {
            let message = format!("{len} {what} for {rows} samples; expected one per sample");
            Err(Error::damaged(path, message))
        })
    }
}

/// Reads the tensors `ids`, `labels`, and the text `names` with its `name_offsets`.
fn of_safetensors(path: &Path) -> Result<SampleColumns> {
    let file = feature_files::map(path)?;
    let wrong = |why: String| Error::damaged(path, why);
    let tensors = SafeTensors::deserialize(file.bytes()).map_err(|e| wrong(format!("damaged: {e}")))?;
    let has = |name: &str| tensors.names().contains(&name);
    let integers = |name: &str| feature_files::integers(path, Some(name));
    let column = |name: &str| has(name).then(|| integers(name)).transpose();
    let mut columns =
        SampleColumns { ids: column("ids")?, labels: column("labels")?, ..SampleColumns::default() };
    let metadata = SafeTensors::read_metadata(file.bytes()).map_err(|e| wrong(format!("damaged: {e}")))?.1;
    columns.split = metadata.metadata().as_ref().and_then(|pairs| pairs.get("split").cloned());
    if let (Ok(text), true) = (tensors.tensor("names"), has("name_offsets")) {
        let text = std::str::from_utf8(text.data()).map_err(|_| wrong("`names` is not UTF-8".into()))?;
        let offsets = integers("name_offsets")?;
        let name = |ends: &[i64]| {
            let [start, end] = [ends[0], ends[1]].map(usize::try_from);
            text.get(start.ok()?..end.ok()?).map(str::to_string)
        };
        let names = offsets.windows(2).map(name).collect::<Option<_>>();
        columns.names = Some(names.ok_or_else(|| wrong("`name_offsets` do not fit `names`".into()))?);
    }
    Ok(columns)
}

/// Reads the files beside `x.npy`: `x.ids.npy`, `x.labels.npy` and `x.names.npy`.
fn beside(path: &Path) -> Result<SampleColumns> {
    let file = |what: &str| Some(path.with_extension(format!("{what}.npy"))).filter(|file| file.exists());
    let integers = |file: PathBuf| feature_files::integers(&file, None);
    let texts = |file: PathBuf| npy::texts(feature_files::map(&file)?.bytes(), &file);
    Ok(SampleColumns {
        ids: file("ids").map(integers).transpose()?,
        labels: file("labels").map(integers).transpose()?,
        names: file("names").map(texts).transpose()?,
        split: split_beside(path)?,
    })
}

/// Reads the split from the provenance in `x.json`, if there is one.
fn split_beside(path: &Path) -> Result<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Provenance {
        split: Option<String>,
    }
    let file = path.with_extension("json");
    if !file.exists() {
        return Ok(None);
    }
    let read = serde_json::from_str::<Provenance>(&feature_files::text(&file)?);
    let provenance =
        read.map_err(|e| Error::damaged(&file, format!("is not the provenance of vectors: {e}")));
    Ok(provenance?.split)
}

#[cfg(feature = "parquet")]
fn of_parquet(path: &Path) -> Result<SampleColumns> {
    crate::parquet::samples(path, std::fs::File::open(path).map_err(|e| Error::io(path, e))?)
}

/// The features of such a file cannot be read either.
#[cfg(not(feature = "parquet"))]
fn of_parquet(_: &Path) -> Result<SampleColumns> {
    Ok(SampleColumns::default())
}
