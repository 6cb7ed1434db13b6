//! Embedded splits as files, with what they came from.

use crate::evaluate::Embedded;
use crate::saved_run::{Part, SavedRun};
use pauc_data::atomic;
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::{Error, Result};
use std::path::{Path, PathBuf};

/// Which vectors a `.npy` file holds; a `.safetensors` file holds both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// Features before the projector.
    Features,
    /// Projector outputs as unit rows.
    Embeddings,
}

/// What stands beside the vectors: where they came from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Provenance {
    /// The first digits of the recipe's hash.
    pub recipe: String,
    /// The run's seed.
    pub seed: u64,
    /// Optimiser steps of the checkpoint.
    pub step: u64,
    /// BLAKE3 of the checkpoint file.
    pub weights: String,
    /// `encoder` or `momentum.encoder`.
    pub network: String,
    /// One line on the data.
    pub data: String,
    /// `train` or `test`.
    pub split: String,
    /// BLAKE3 of all of the above: equal only for vectors of the same weights and images.
    pub provenance: String,
}

impl Provenance {
    /// Of a split of a run.
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

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `features` (N, F), `embeddings` (N, D), `ids` N, `labels` N, and the provenance as metadata.
    Safetensors,
    /// The chosen vectors; beside `x.npy` lie `x.ids.npy`, `x.labels.npy` and `x.json` with the provenance.
    Npy,
    /// The columns `ids`, `labels`, `features` and `embeddings` (lists), and the provenance as metadata.
    #[cfg(feature = "parquet")]
    Parquet,
}

impl Form {
    /// The form that a file's ending asks for.
    ///
    /// # Errors
    /// If it asks for none.
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

/// Writes vectors, ids and labels in the form that the ending of `path` asks for. Rows stand in the order of the split,
/// and ids are places in it. Returns the files.
///
/// # Errors
/// As [`Form::of`], or if the disk refuses.
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
            let bytes = |v: &[i64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
            let floats: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let beside = |ending: &str| path.with_extension(ending);
            let mut files = vec![(path.to_path_buf(), npy("<f4", &format!("{rows}, {cols}"), &floats))];
            files.push((beside("ids.npy"), npy("<i8", &format!("{rows},"), &bytes(&ids))));
            if let Some(labels) = labels {
                files.push((beside("labels.npy"), npy("<i8", &format!("{rows},"), &bytes(&labels))));
            }
            let json = serde_json::to_string_pretty(from).map_err(|e| Error::Other(e.into()))?;
            files.push((beside("json"), (json + "\n").into_bytes()));
            files.iter().try_for_each(|(path, bytes)| atomic::write(path, bytes))?;
            Ok(files.into_iter().map(|(path, _)| path).collect())
        }
        #[cfg(feature = "parquet")]
        Form::Parquet => {
            use pauc_data::parquet_writer::{self, Cells};
            let mut columns = vec![("ids", Cells::Integers(&ids))];
            columns.extend(labels.as_deref().map(|l| ("labels", Cells::Integers(l))));
            columns.push(("features", Cells::Lists { values: &e.features, width: f }));
            columns.push(("embeddings", Cells::Lists { values: &e.embeddings, width: e.dim }));
            table::write(path, &columns, &from.fields())?;
            Ok(vec![path.to_path_buf()])
        }
    }
}

/// An array in NumPy's format, version 1.0: the header is padded so that data begins at a multiple of 64.
fn npy(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    let padded = (10 + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', padded - 11 - header.len()));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_numpy_s() {
        let bytes = npy("<f4", "2, 3", &[0; 24]);
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let length = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        assert_eq!((10 + length) % 64, 0);
        assert_eq!(bytes.len(), 10 + length + 24);
        assert_eq!(bytes[9 + length], b'\n');
    }
}
