//! Files of embedded splits, with their provenance.

use crate::evaluate::Embedded;
use crate::saved_run::{Part, SavedRun};
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::{Error, Result, atomic, npy};
use std::path::{Path, PathBuf};

/// The vectors in a `.npy` file; a `.safetensors` file holds both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `features` (N, F), `embeddings` (N, D), `ids` N, `labels` N, and the provenance as metadata.
    Safetensors,
    /// The chosen vectors, with `x.ids.npy`, `x.labels.npy` and `x.json` (the provenance) beside `x.npy`.
    Npy,
    /// The columns `ids`, `labels`, `features` and `embeddings` (lists), and the provenance as metadata.
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
            #[cfg(feature = "parquet")]
            Some("parquet") => Ok(Form::Parquet),
            _ => Err(Error::config(format!("{}: {ENDINGS}", path.display()))),
        }
    }
}

#[cfg(feature = "parquet")]
const ENDINGS: &str = "end the name in .safetensors, .npy or .parquet";
#[cfg(not(feature = "parquet"))]
const ENDINGS: &str =
    "end the name in .safetensors or .npy; pauc built with `--features parquet` also writes .parquet";

/// Writes vectors, ids and labels in the format of the extension of `path`. Rows are in the order of the
/// split, and ids are indices into it. Returns the files.
///
/// # Shapes
/// `labels`: (n), one per embedded sample, if the split has labels.
///
/// # Errors
/// As [`Form::of`], or if the disk fails.
pub fn write(
    embedded: &Embedded,
    labels: Option<&[u32]>,
    from: &Provenance,
    vectors: Vectors,
    path: &Path,
) -> Result<Vec<PathBuf>> {
    let rows = embedded.features.len() / embedded.feature_dim.max(1);
    let ids: Vec<i64> = (0..rows as i64).collect();
    let labels = labels.map(|l| l.iter().map(|l| i64::from(*l)).collect::<Vec<_>>());
    let (e, f) = (embedded, embedded.feature_dim);
    match Form::of(path)? {
        Form::Safetensors => {
            let mut file = TensorFile::new();
            file.insert("features", &[rows, f], Values::F32(e.features.clone()))?;
            file.insert("embeddings", &[rows, e.dim], Values::F32(e.embeddings.clone()))?;
            file.insert("ids", &[rows], Values::I64(ids))?;
            if let Some(labels) = labels {
                file.insert("labels", &[rows], Values::I64(labels))?;
            }
            file.metadata.extend(from.fields().map(|(k, v)| (k.to_string(), v)));
            file.save(path)?;
            Ok(vec![path.to_path_buf()])
        }
        Form::Npy => {
            let (values, cols) = match vectors {
                Vectors::Features => (&e.features, f),
                Vectors::Embeddings => (&e.embeddings, e.dim),
            };
            write_npy(values, cols, &ids, labels.as_deref(), from, path)
        }
        #[cfg(feature = "parquet")]
        Form::Parquet => {
            use pauc_data::parquet_writer::{self, Cells};
            let mut columns = vec![("ids", Cells::Integers(&ids))];
            columns.extend(labels.as_deref().map(|l| ("labels", Cells::Integers(l))));
            columns.push(("features", Cells::Lists { values: &e.features, width: f }));
            columns.push(("embeddings", Cells::Lists { values: &e.embeddings, width: e.dim }));
            parquet_writer::write(path, &columns, &from.fields())?;
            Ok(vec![path.to_path_buf()])
        }
    }
}

/// Writes a matrix to `path`, and ids, labels and the provenance beside it. Returns the files.
fn write_npy(
    values: &[f32],
    cols: usize,
    ids: &[i64],
    labels: Option<&[i64]>,
    from: &Provenance,
    path: &Path,
) -> Result<Vec<PathBuf>> {
    let integers = |numbers: &[i64]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        npy::encode(npy::Element::Signed(8), &[numbers.len()], &bytes)
    };
    let floats: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let matrix = npy::encode(npy::Element::Float(4), &[ids.len(), cols], &floats);
    let beside = |ending: &str| path.with_extension(ending);
    let mut files = vec![(path.to_path_buf(), matrix), (beside("ids.npy"), integers(ids))];
    files.extend(labels.map(|labels| (beside("labels.npy"), integers(labels))));
    let json = serde_json::to_string_pretty(from).map_err(|e| Error::Other(e.into()))?;
    files.push((beside("json"), (json + "\n").into_bytes()));
    files.iter().try_for_each(|(path, bytes)| atomic::write(path, bytes))?;
    Ok(files.into_iter().map(|(path, _)| path).collect())
}
