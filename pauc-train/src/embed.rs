//! Files of embedded splits, with their provenance.

use crate::evaluate::Embedded;
use crate::saved_run::{Part, SavedRun};
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::dataset::ImageSource;
use pauc_traits::{Error, Result, atomic, npy};
use std::path::{Path, PathBuf};

/// The vectors in a `.npy` or `.csv` file; files of other kinds hold both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Vectors {
    /// The encoder's output.
    Features,
    /// The projector's output, scaled to unit length.
    Embeddings,
}

/// The provenance of vectors.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Provenance {
    /// The first digits of the recipe's hash.
    pub recipe: String,
    /// The run's seed.
    pub seed: u64,
    /// Optimizer steps of the checkpoint.
    pub step: u64,
    /// BLAKE3 of the checkpoint file.
    pub weights: String,
    /// `encoder` or `momentum.encoder`.
    pub network: String,
    /// A description of the data.
    pub data: String,
    /// `train` or `test`.
    pub split: String,
    /// BLAKE3 of all of the above: equal only for vectors of the same weights and images.
    pub provenance: String,
}

impl Provenance {
    /// Describes a split of a run.
    pub fn new(saved: &SavedRun, part: Part, momentum: bool, step: u64) -> Self {
        let plan = &saved.plan;
        let mut all = Provenance {
            recipe: plan.hash.clone(),
            seed: plan.recipe.train.seed,
            step,
            weights: saved.weights.clone(),
            network: if momentum { "momentum.encoder" } else { "encoder" }.into(),
            data: plan.splits.description.clone(),
            split: part.name().into(),
            provenance: String::new(),
        };
        let fields: Vec<String> = all.fields().into_iter().map(|(k, v)| format!("{k}={v}\n")).collect();
        all.provenance = blake3::hash(fields.concat().as_bytes()).to_hex().to_string();
        all
    }

    fn fields(&self) -> [(&'static str, String); 8] {
        [
            ("recipe", self.recipe.clone()),
            ("seed", self.seed.to_string()),
            ("step", self.step.to_string()),
            ("weights", self.weights.clone()),
            ("network", self.network.clone()),
            ("data", self.data.clone()),
            ("split", self.split.clone()),
            ("provenance", self.provenance.clone()),
        ]
    }
}

/// What the samples are, besides their vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// The class labels, if there are any.
    pub labels: Option<Vec<u32>>,
    /// The paths of the images within the dataset, if they are files.
    pub names: Option<Vec<String>>,
}

impl Samples {
    /// Reads labels and paths of all images of a split.
    pub fn of(images: &dyn ImageSource) -> Self {
        let names = (0..images.len()).map(|index| images.path(index)).collect();
        Samples { labels: images.labels().map(<[u32]>::to_vec), names }
    }

    /// Checks that there is a label and a name for each of the `rows` samples.
    fn check(&self, rows: usize) -> Result<()> {
        let lengths =
            [("labels", self.labels.as_ref().map(Vec::len)), ("names", self.names.as_ref().map(Vec::len))];
        let wrong = lengths.into_iter().find_map(|(what, len)| Some((what, len.filter(|len| *len != rows)?)));
        wrong.map_or(Ok(()), |(what, len)| Err(Error::shape(what, format!("{len} for {rows} samples"))))
    }
}

/// The file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `features` (N, F), `embeddings` (N, D), `ids` N, `labels` N, and the provenance as metadata. The names
    /// are `names`, their concatenated UTF-8, and `name_offsets` (N + 1), where each begins.
    Safetensors,
    /// The chosen vectors, with `x.ids.npy`, `x.labels.npy`, `x.names.npy` and `x.json` (the provenance)
    /// beside `x.npy`.
    Npy,
    /// The columns `id`, `label`, `name` and one per dimension of the chosen vectors, with `x.json` (the
    /// provenance) beside `x.csv`.
    Csv,
    /// The columns `ids`, `labels`, `names`, `features` and `embeddings` (lists of one size), and the
    /// provenance as metadata.
    #[cfg(feature = "parquet")]
    Parquet,
}

impl Form {
    /// Returns the format for a file's extension.
    ///
    /// # Errors
    /// If the extension is unknown.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => Ok(Form::Safetensors),
            Some("npy") => Ok(Form::Npy),
            Some("csv") => Ok(Form::Csv),
            #[cfg(feature = "parquet")]
            Some("parquet") => Ok(Form::Parquet),
            _ => Err(Error::config(format!("{}: {ENDINGS}", path.display()))),
        }
    }
}

#[cfg(feature = "parquet")]
const ENDINGS: &str = "end the name in .safetensors, .npy, .csv or .parquet";
#[cfg(not(feature = "parquet"))]
const ENDINGS: &str =
    "end the name in .safetensors, .npy or .csv; this pauc was built without the feature `parquet`";

/// Writes vectors, ids, labels and names in the format of the extension of `path`. Rows are in the order of
/// the split, and ids are indices into it. `samples` are those of `embedded`. Returns the files.
///
/// # Errors
/// As [`Form::of`], or if the number of labels or names is not that of vectors, or the disk fails.
pub fn write(
    embedded: &Embedded,
    samples: &Samples,
    from: &Provenance,
    vectors: Vectors,
    path: &Path,
) -> Result<Vec<PathBuf>> {
    let rows = embedded.features.len() / embedded.feature_dim.max(1);
    samples.check(rows)?;
    let labels = samples.labels.as_ref();
    let table = Table {
        embedded,
        ids: (0..rows as i64).collect(),
        labels: labels.map(|labels| labels.iter().map(|label| i64::from(*label)).collect()),
        names: samples.names.as_deref(),
        from,
    };
    match Form::of(path)? {
        Form::Safetensors => table.safetensors(path),
        Form::Npy => table.npy(vectors, path),
        Form::Csv => table.csv(vectors, path),
        #[cfg(feature = "parquet")]
        Form::Parquet => table.parquet(path),
    }
}

/// What is written of a split: one row per sample.
struct Table<'a> {
    embedded: &'a Embedded,
    ids: Vec<i64>,
    labels: Option<Vec<i64>>,
    names: Option<&'a [String]>,
    from: &'a Provenance,
}

impl Table<'_> {
    fn safetensors(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let (mut file, e, rows) = (TensorFile::new(), self.embedded, self.ids.len());
        file.insert("features", &[rows, e.feature_dim], Values::F32(e.features.clone()))?;
        file.insert("embeddings", &[rows, e.dim], Values::F32(e.embeddings.clone()))?;
        file.insert("ids", &[rows], Values::I64(self.ids.clone()))?;
        if let Some(labels) = &self.labels {
            file.insert("labels", &[rows], Values::I64(labels.clone()))?;
        }
        if let Some(names) = self.names {
            let text = names.concat().into_bytes();
            let starts = names.iter().scan(0, |end, name| {
                *end += name.len() as i64;
                Some(*end)
            });
            let offsets = std::iter::once(0).chain(starts).collect();
            file.insert("names", &[text.len()], Values::U8(text))?;
            file.insert("name_offsets", &[rows + 1], Values::I64(offsets))?;
        }
        file.metadata.extend(self.from.fields().map(|(k, v)| (k.to_string(), v)));
        file.save(path)?;
        Ok(vec![path.to_path_buf()])
    }

    /// Writes a matrix to `path`, and everything else beside it.
    fn npy(&self, vectors: Vectors, path: &Path) -> Result<Vec<PathBuf>> {
        let integers = |numbers: &[i64]| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
            npy::encode(npy::Element::Signed(8), &[numbers.len()], &bytes)
        };
        let (values, cols) = self.chosen(vectors);
        let floats: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let matrix = npy::encode(npy::Element::Float(4), &[self.ids.len(), cols], &floats);
        let beside = |ending: &str| path.with_extension(ending);
        let mut files = vec![(path.to_path_buf(), matrix), (beside("ids.npy"), integers(&self.ids))];
        files.extend(self.labels.as_ref().map(|labels| (beside("labels.npy"), integers(labels))));
        files.extend(self.names.map(|names| (beside("names.npy"), npy::encode_texts(names))));
        files.push((beside("json"), self.json(vectors)?));
        files.iter().try_for_each(|(path, bytes)| atomic::write(path, bytes))?;
        Ok(files.into_iter().map(|(path, _)| path).collect())
    }

    fn csv(&self, vectors: Vectors, path: &Path) -> Result<Vec<PathBuf>> {
        let (values, cols) = self.chosen(vectors);
        let letter = if vectors == Vectors::Features { 'f' } else { 'e' };
        atomic::write_with(path, |file| {
            let mut file = csv::Writer::from_writer(file);
            let known = [("id", true), ("label", self.labels.is_some()), ("name", self.names.is_some())];
            let header = known.iter().filter(|(_, is_known)| *is_known).map(|(name, _)| name.to_string());
            file.write_record(header.chain((0..cols).map(|column| format!("{letter}{column}"))))?;
            for (row, id) in self.ids.iter().enumerate() {
                file.write_field(id.to_string())?;
                if let Some(labels) = &self.labels {
                    file.write_field(labels[row].to_string())?;
                }
                if let Some(names) = self.names {
                    file.write_field(&names[row])?;
                }
                // The shortest text that is read back as the same number.
                file.write_record(values[row * cols..(row + 1) * cols].iter().map(f32::to_string))?;
            }
            file.flush()
        })?;
        let json = path.with_extension("json");
        atomic::write(&json, &self.json(vectors)?)?;
        Ok(vec![path.to_path_buf(), json])
    }

    #[cfg(feature = "parquet")]
    fn parquet(&self, path: &Path) -> Result<Vec<PathBuf>> {
        use pauc_data::parquet_writer::{self, Cells};
        let mut columns = vec![("ids", Cells::Integers(&self.ids))];
        columns.extend(self.labels.as_deref().map(|l| ("labels", Cells::Integers(l))));
        columns.extend(self.names.map(|names| ("names", Cells::Texts(names))));
        for (name, vectors) in [("features", Vectors::Features), ("embeddings", Vectors::Embeddings)] {
            let (values, width) = self.chosen(vectors);
            columns.push((name, Cells::Lists { values, width }));
        }
        parquet_writer::write(path, &columns, &self.from.fields())?;
        Ok(vec![path.to_path_buf()])
    }

    /// Returns the vectors, row by row, and their length.
    fn chosen(&self, vectors: Vectors) -> (&[f32], usize) {
        match vectors {
            Vectors::Features => (&self.embedded.features, self.embedded.feature_dim),
            Vectors::Embeddings => (&self.embedded.embeddings, self.embedded.dim),
        }
    }

    /// Returns the provenance, and which vectors the file beside holds, as JSON.
    fn json(&self, vectors: Vectors) -> Result<Vec<u8>> {
        #[derive(serde::Serialize)]
        struct Beside<'a> {
            #[serde(flatten)]
            from: &'a Provenance,
            vectors: Vectors,
        }
        let json = serde_json::to_string_pretty(&Beside { from: self.from, vectors });
        Ok((json.map_err(|e| Error::Other(e.into()))? + "\n").into_bytes())
    }
}
