//! The files of `checkpoints/`: `step-00000120.safetensors` for each of the newest steps, `last.safetensors`,
//! which is the newest of them, and `best.safetensors`, which is also one of them. While none of the newest
//! has a network that still learns, `good.safetensors` is the newest one that has.

use crate::branch::step_name;
use crate::history::Written;
use crate::progress::RunProgress;
use crate::run_dir::RunDir;
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::{Error, Result, atomic};
use std::fs;
use std::path::{Path, PathBuf};

/// A checkpoint could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the checkpoint of step {step}: {error}; {}", .before.as_ref().map_or_else(
    || "there is no earlier checkpoint; free some space, then `pauc-cli resume` begins at step 0".to_string(),
    |p| format!("{} is unchanged; free some space, then run `pauc-cli resume`", p.display())
))]
struct Unwritten {
    step: u64,
    error: Error,
    before: Option<PathBuf>,
}

/// Returns the BLAKE3 hash of all names, shapes, values and metadata, except the metadata entry `blake3`.
pub fn checksum(file: &TensorFile) -> String {
    let mut hash = blake3::Hasher::new();
    let text = |hash: &mut blake3::Hasher, text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    for (key, value) in file.metadata.iter().filter(|(key, _)| *key != "blake3") {
        text(&mut hash, key);
        text(&mut hash, value);
    }
    for name in file.names() {
        let Some(tensor) = file.get(name) else { continue };
        text(&mut hash, name);
        text(&mut hash, &format!("{:?}", tensor.shape));
        let mut bytes = Vec::with_capacity(1 << 16);
        macro_rules! words {
            ($values:expr) => {
                for part in $values.chunks(1 << 13) {
                    bytes.clear();
                    part.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
                    hash.update(&bytes);
                }
            };
        }
        match &tensor.values {
            Values::F32(v) => words!(v),
            Values::I64(v) => words!(v),
            Values::U64(v) => words!(v),
            Values::U8(v) => drop(hash.update(v)),
        }
    }
    hash.finalize().to_hex().to_string()
}

impl RunDir {
    /// Returns the path of a checkpoint, which need not exist.
    pub(crate) fn checkpoint(&self, name: &str) -> PathBuf {
        self.path().join("checkpoints").join(format!("{name}.safetensors"))
    }

    /// Returns the checkpoints of single steps, newest first.
    fn steps(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(self.path().join("checkpoints")).into_iter().flatten().flatten();
        let step = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?;
            Some((name.parse().ok()?, path.clone()))
        };
        let mut all: Vec<_> = entries.filter_map(|e| step(e.path())).collect();
        all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        all
    }

    /// Returns the files that a run can be resumed from, newest first.
    pub fn checkpoints(&self) -> Vec<PathBuf> {
        let last = self.checkpoint("last");
        let others = self
            .steps()
            .into_iter()
            .map(|(_, path)| path)
            .chain(["good", "best"].map(|n| self.checkpoint(n)));
        [last].into_iter().chain(others).filter(|p| p.exists()).collect()
    }

    /// Writes the checkpoint of a step, points `last.safetensors` and, if it is the best, `best.safetensors`
    /// to it, and removes checkpoints of older steps except the newest `keep`.
    ///
    /// # Errors
    /// If the disk fails; earlier checkpoints are then unchanged.
    pub fn add_checkpoint(&self, step: u64, file: &TensorFile, keep: usize, best: bool) -> Result<()> {
        let path = self.checkpoint(&step_name(step));
        let write = || {
            file.save(&path)?;
            if best {
                self.alias(&path, "best")?;
            }
            self.alias(&path, "last")
        };
        write().map_err(|error| {
            let before = Some(self.checkpoint("last")).filter(|p| p.exists());
            Error::Other(Box::new(Unwritten { step, error, before }))
        })?;
        self.remove_old(keep)
    }

    /// Writes the checkpoint that a run continues from as `last.safetensors`. Until [`RunDir::finish_branch`], the
    /// checkpoints of later steps keep their names.
    ///
    /// # Errors
    /// If the disk fails; the previous `last.safetensors` then stays.
    pub(crate) fn begin_branch(&self, step: u64, file: &TensorFile) -> Result<()> {
        let last = self.checkpoint("last");
        match Written::read(&last)? {
            Some(written) if written.step > step && !self.checkpoint(&step_name(written.step)).exists() => {
                atomic::alias(&last, &free_name(&self.checkpoint(&step_name(written.step)), SUPERSEDED))?;
            }
            None if last.exists() => drop(set_aside(&last)?),
            _ => {}
        }
        file.save(&last)
    }

    /// Renames what the run wrote after `last.safetensors`, the checkpoint of `step`, and gives that its second name.
    /// Safe to repeat.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn finish_branch(&self, step: u64) -> Result<()> {
        let mut later = Vec::new();
        for path in ["good", "best"].map(|name| self.checkpoint(name)) {
            if Written::read(&path)?.is_some_and(|written| written.step > step) {
                later.push(path);
            }
        }
        let steps = self.steps().into_iter().filter(|(other, _)| *other > step).map(|(_, path)| path);
        let postmortem = ["postmortem.json", "postmortem.safetensors"].map(|name| self.path().join(name));
        for path in later.into_iter().chain(steps).chain(postmortem.into_iter().filter(|path| path.exists()))
        {
            supersede(&path)?;
        }
        self.alias(&self.checkpoint("last"), &step_name(step))
    }

    /// Returns whether `best.safetensors` is of this step or an earlier one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn has_best_until(&self, step: u64) -> Result<bool> {
        Ok(Written::read(&self.checkpoint("best"))?.is_some_and(|best| best.step <= step))
    }

    /// Removes the checkpoints of older steps except the newest `keep`. If the networks of all of these have
    /// stopped learning, the newest other one of a network that had not becomes `good.safetensors`.
    fn remove_old(&self, keep: usize) -> Result<()> {
        let (steps, good) = (self.steps(), self.checkpoint("good"));
        let (kept, old) = steps.split_at(keep.min(steps.len()));
        let remove = |path: &Path| fs::remove_file(path).map_err(|e| Error::io(path, e));
        let rescued = if kept.iter().any(|(_, path)| is_alive(path)) {
            if good.exists() {
                remove(&good)?;
            }
            None
        } else {
            old.iter().map(|(_, path)| path).find(|path| is_alive(path))
        };
        if let Some(path) = rescued {
            atomic::rename(path, &good).map_err(|e| Error::io(path, e))?;
        }
        old.iter()
            .map(|(_, path)| path)
            .filter(|path| Some(*path) != rescued)
            .try_for_each(|path| remove(path))
    }

    /// Returns the newest checkpoint of a network that still learned, if there is one.
    pub fn good_checkpoint(&self) -> Option<PathBuf> {
        let all = self.steps().into_iter().map(|(_, path)| path).chain([self.checkpoint("good")]);
        all.into_iter().find(|path| is_alive(path))
    }

    /// Gives a checkpoint a second name, atomically and without using its space twice if the file system
    /// supports that.
    fn alias(&self, path: &Path, name: &str) -> Result<()> {
        atomic::alias(path, &self.checkpoint(name))
    }
}

/// Returns whether the network in a checkpoint still learned. Checkpoints of older versions do not know, and
/// count as such.
fn is_alive(path: &Path) -> bool {
    let Some(metadata) = TensorFile::metadata_of(path) else { return false };
    RunProgress::of(&metadata).and_then(|p| p.health).is_none_or(|health| health.is_alive())
}

/// The ending of files that a run wrote after the checkpoint that it continued from later.
const SUPERSEDED: &str = "superseded";

/// Renames an unusable file to a name that nothing overwrites, and returns that name.
///
/// # Errors
/// If the disk fails.
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    rename_to_free(path, "unusable")
}

/// Renames a file that later ones of a run replace, and returns its new name.
///
/// # Errors
/// If the disk fails.
pub(crate) fn supersede(path: &Path) -> Result<PathBuf> {
    rename_to_free(path, SUPERSEDED)
}

fn rename_to_free(path: &Path, ending: &str) -> Result<PathBuf> {
    let to = free_name(path, ending);
    atomic::rename(path, &to).map_err(|e| Error::io(path, e))?;
    Ok(to)
}

/// Returns the first free name of a file with `ending` and a number.
fn free_name(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("checkpoint");
    let free = (1..).map(|n| path.with_file_name(format!("{name}.{ending}{n}"))).find(|p| !p.exists());
    free.unwrap_or_else(|| path.with_file_name(format!("{name}.{ending}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(value: f32) -> TensorFile {
        let mut file = TensorFile::new();
        file.metadata.insert("step".into(), "1".into());
        file.insert("w", &[2], Values::F32(vec![value, 2.0])).unwrap();
        file
    }

    #[test]
    fn the_checksum_sees_values_shapes_names_and_metadata() {
        let sum = checksum(&file(1.0));
        assert_eq!(sum, checksum(&file(1.0)));
        assert_ne!(sum, checksum(&file(-1.0)));
        let mut noted = file(1.0);
        noted.metadata.insert("blake3".into(), sum.clone());
        assert_eq!(sum, checksum(&noted));
        noted.metadata.insert("step".into(), "2".into());
        assert_ne!(sum, checksum(&noted));
        let mut other = TensorFile::new();
        other.metadata.insert("step".into(), "1".into());
        other.insert("w", &[1, 2], Values::F32(vec![1.0, 2.0])).unwrap();
        assert_ne!(sum, checksum(&other));
    }

    #[test]
    fn the_newest_stay_and_the_best() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        dir.create().unwrap();
        for step in [5, 10, 15, 20] {
            dir.add_checkpoint(step, &file(step as f32), 2, step == 10).unwrap();
        }
        let names = |p: &PathBuf| p.file_stem().unwrap().to_str().unwrap().to_string();
        let all: Vec<_> = dir.checkpoints().iter().map(names).collect();
        assert_eq!(all, ["last", "step-00000020", "step-00000015", "best"]);
        let value = |name| TensorFile::load(dir.checkpoint(name)).unwrap().f32("w").unwrap()[0];
        assert_eq!((value("last"), value("best")), (20.0, 10.0));
        let aside = set_aside(&dir.checkpoint("last")).unwrap();
        assert!(aside.ends_with("last.safetensors.unusable1") && dir.checkpoints().len() == 3);
        assert!(fs::read_dir(folder.path().join("checkpoints")).unwrap().count() == 4);
    }

    #[test]
    fn the_last_network_that_learned_is_kept_until_there_is_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        dir.create().unwrap();
        let add = |step: u64, gradient_norm: f64, spread: f64| {
            let mut file = file(step as f32);
            let health = Some(crate::progress::NetworkHealth { gradient_norm, spread: Some(spread) });
            let progress = RunProgress { health, ..RunProgress::default() };
            file.metadata.insert("marks".into(), serde_json::to_string(&progress).unwrap());
            dir.add_checkpoint(step, &file, 2, false).unwrap();
            dir.good_checkpoint().map(|path| TensorFile::load(path).unwrap().f32("w").unwrap()[0])
        };
        assert_eq!(add(1, 0.0, 0.9), None);
        assert_eq!(add(2, 0.5, 0.9), Some(2.0));
        assert_eq!(add(3, 0.4, 0.01), Some(2.0), "collapsed");
        let rescued = || dir.checkpoint("good").exists();
        assert!(!rescued(), "one of the newest two is good");
        assert_eq!((add(4, 0.0, 0.9), rescued()), (Some(2.0), true), "no gradient");
        assert_eq!((add(5, 1e-7, 0.9), rescued()), (Some(2.0), true), "weights of 10⁷");
        assert_eq!((add(6, 0.1, 0.5), rescued()), (Some(6.0), false));
    }

    #[test]
    fn what_cannot_be_written_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        dir.create().unwrap();
        dir.add_checkpoint(5, &file(5.0), 2, false).unwrap();
        // A folder with the file's name: a rename cannot replace it, for any user.
        fs::create_dir(dir.checkpoint("step-00000010")).unwrap();
        let error = dir.add_checkpoint(10, &file(10.0), 2, false).unwrap_err().to_string();
        assert!(error.contains("step 10") && error.contains("last.safetensors is unchanged"), "{error}");
        assert_eq!(TensorFile::load(dir.checkpoint("last")).unwrap().f32("w").unwrap()[0], 5.0);
    }
}
